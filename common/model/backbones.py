"""timm and Transformers encoders behind one interface: image -> pooled features, or a pyramid of feature maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification

from .encoders import (
    TIMM_PREFIXES,
    EncoderOptions,
    accepts,
    build_timm,
    config_to_dict,
    first_line,
    load_strictly,
    num_classes_in,
    open_timm,
    read_config,
    transformers_spec,
)
from .positions import fit_config, fit_weights, speed_up_bias
from .pyramids import PyramidBackbone, load_pyramid

logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """An encoder without its classifier: (batch, 3, height, width) -> (batch, ``num_features``).

    Args:
        spec: what it takes to build the same architecture again without any download: ``library`` ("timm" or
            "transformers"), its arguments, ``num_features``, ``image_size``, and the preprocessing that goes with it.
        model: the encoder, if there is one already; otherwise it is built with random weights.
    """

    def __init__(self, spec: dict[str, Any], model: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.model = model if model is not None else _build(spec)
        speed_up_bias(self.model)
        self.num_features: int = spec["num_features"]
        for name, parameter in self.model.named_parameters():
            if name.endswith("mask_token"):  # of pre-training: never used, and DDP wants gradients of everything
                parameter.requires_grad_(False)
        self._interpolate = spec["library"] == "transformers" and accepts(self.model, "interpolate_pos_encoding")

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised images (batch, 3, height, width), floating point -> features (batch, ``num_features``)."""
        if self.spec["library"] == "timm":
            return self.model(pixel_values)
        options = {"interpolate_pos_encoding": True} if self._interpolate else {}
        return self.model(pixel_values, **options).logits  # its classifier is an identity


def load_backbone(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    image_size: int | None = None,
    drop_path_rate: float | None = None,
    trust_remote_code: bool = False,
    pyramid: bool = False,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> tuple[Backbone | PyramidBackbone, nn.Linear | None]:
    """Build an encoder by name and load its weights.

    Args:
        name: ``timm/<architecture or model id>``, ``hf-hub:<org>/<timm model>``, ``local-dir:<timm folder>``, or what
            Transformers' ``AutoModelForImageClassification`` knows, by id or local path; for a pyramid, what
            ``AutoBackbone`` knows, or ``AutoModel`` if its hidden states are maps (SegFormer) or those of a ViT.
        pretrained: load the weights that go with the name; ``False`` builds the architecture with random weights.
        weights: a safetensors file with a state dict to load instead of those.
        image_size: side of the square input in pixels; the model's own by default.
        drop_path_rate: stochastic depth, where the architecture has it; its own by default.
        trust_remote_code: allow code from the model's repository to run (Transformers only).
        pyramid: give four feature maps, as decoders of segmentation need them, instead of pooled features.
        image_mean, image_std: of the three colours, in 0..1, instead of those that go with the weights.

    Returns:
        The backbone, and its own classifier if it came with trained weights (None with ``pyramid``).

    Raises:
        ValueError: if there is no such model, or the weights do not fit it.
    """
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"No weights file at {weights} (--backbone_weights).")
    options = EncoderOptions(
        name,
        pretrained and weights is None,
        weights,
        image_size,
        drop_path_rate,
        trust_remote_code,
        image_mean,
        image_std,
    )
    try:
        if pyramid:
            return load_pyramid(options), None
        load = _load_timm if name.startswith(TIMM_PREFIXES) else _load_transformers
        backbone, classifier = load(options)
    except (OSError, RuntimeError, KeyError, ImportError) as error:
        offline = "timm/<architecture> and nvidia/mit-b0 to b5 are" if pyramid else "timm/<architecture> is"
        hint = "" if pretrained else f" With --no_pretrained only the architecture is needed: {offline} offline."
        raise ValueError(f"Cannot load the backbone {name!r}: {first_line(error)}.{hint}") from error
    return backbone, classifier if pretrained or weights else None


def _load_timm(options: EncoderOptions) -> tuple[Backbone, nn.Linear | None]:
    model, spec = open_timm(options)
    classifier = model.get_classifier()
    model.reset_classifier(0)
    spec["num_features"] = getattr(model, "head_hidden_size", None) or model.num_features
    return Backbone(spec, model), classifier if isinstance(classifier, nn.Linear) else None


def _load_transformers(options: EncoderOptions) -> tuple[Backbone, nn.Linear | None]:
    config, remote, missing = read_config(options), options.trust_remote_code, set()
    kind = AutoModelForImageClassification
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and not remote:
        raise ValueError(
            f"{options.name}: Transformers has no image classifier of type {config.model_type}; look for timm/<name>."
        )
    build = partial(kind.from_config, trust_remote_code=remote, dtype=torch.float32)
    if options.pretrained:
        model, found = kind.from_pretrained(
            options.name,
            config=config,
            dtype=torch.float32,
            trust_remote_code=remote,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        missing = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    else:
        state = load_file(options.weights) if options.weights else {}
        config.num_labels = num_classes_in(state, "classifier") or config.num_labels
        model = build(config)
        if options.weights:
            load_strictly(model, state, options.weights)
    spec = transformers_spec(options, config)
    config = fit_config(config, spec["image_size"], build)
    model = fit_weights(model, config, build)
    name, classifier = _remove_classifier(model)
    spec |= {"config": config_to_dict(config), "num_features": classifier.in_features}
    untrained = sorted(key for key in missing if not key.startswith(name) and not key.endswith("mask_token"))
    if untrained:
        logger.warning(
            "%s has no weights for %d tensors, which start at random: %s.",
            options.name,
            len(untrained),
            ", ".join(untrained[:5]),
        )
    return Backbone(spec, model), None if f"{name}.weight" in missing else classifier


def _remove_classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """Replace the last linear layer with one output per label by an identity; return its name and that layer."""
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels and "classifier" in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
            return name, module
    raise ValueError(f"{type(model).__name__} has no linear classifier on pooled features; look for timm/<name>.")


def _build(spec: dict[str, Any]) -> nn.Module:
    if spec["library"] == "timm":
        return build_timm(spec)
    config = CONFIG_MAPPING[spec["config"]["model_type"]].from_dict(spec["config"] | {"architectures": []})
    model = AutoModelForImageClassification.from_config(config)
    _remove_classifier(model)
    return model
