"""timm and Transformers encoders behind one interface: image -> pooled features, or a pyramid of feature maps."""

from __future__ import annotations

import logging
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForImageClassification,
    PretrainedConfig,
)

from . import encoders
from .encoders import TIMM_PREFIXES, EncoderOptions
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
        takes = signature(self.model.forward).parameters if spec["library"] == "transformers" else {}
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised images (batch, 3, height, width), floating point -> features (batch, ``num_features``)."""
        output = self.model(pixel_values, **self._options)
        return output if self.spec["library"] == "timm" else output.logits  # its classifier is an identity


def load_backbone(
    name: str, *, pyramid: bool = False, **options: Any
) -> tuple[Backbone | PyramidBackbone, nn.Linear | None]:
    """Build an encoder by name and load its weights.

    Args:
        name: see :class:`.encoders.EncoderOptions`.
        pyramid: give four feature maps, as decoders of segmentation need them, instead of pooled features.
        options: the other fields of :class:`.encoders.EncoderOptions`.

    Returns:
        The backbone, and its own classifier if it came with trained weights (None with ``pyramid``).

    Raises:
        ValueError: if there is no such model, or the weights do not fit it.
    """
    asked = EncoderOptions(name, **options)
    if asked.weights is not None and not Path(asked.weights).is_file():
        raise ValueError(f"No weights file at {asked.weights} (--backbone_weights).")
    try:
        if pyramid:
            return load_pyramid(asked), None
        backbone, classifier = (_load_timm if name.startswith(TIMM_PREFIXES) else _load_transformers)(asked)
    except (OSError, RuntimeError, KeyError, ImportError) as error:
        offline = "timm/<architecture> and nvidia/mit-b0 to b5 are" if pyramid else "timm/<architecture> is"
        hint = f" With --no_pretrained only the architecture is needed: {offline} offline."
        hint = "" if asked.pretrained or asked.weights else hint
        raise ValueError(f"Cannot load the backbone {name!r}: {encoders.first_line(error)}.{hint}") from error
    return backbone, classifier if asked.pretrained or asked.weights else None


def resized(backbone: Backbone | PyramidBackbone, size: int) -> Backbone | PyramidBackbone:
    """The same backbone for images of another size; position embeddings are resampled.

    Raises:
        ValueError: it takes images of one size only.
    """
    spec = {**backbone.spec, "image_size": size}
    if isinstance(backbone, PyramidBackbone):  # its maps have any size, but in tiles
        if spec["tiles"]:
            raise ValueError(f"This backbone takes only images of {backbone.spec['image_size']} px: --image_size.")
        backbone.spec = spec
        return backbone
    if spec["library"] == "timm":
        kwargs = {name: value for name, value in spec["kwargs"].items() if name != "img_size"}
        model = encoders.create_timm(spec["architecture"], False, kwargs, {"img_size": size})
        model.reset_classifier(0)
        encoders.load_timm(model, backbone.model.state_dict(), "the saved model")
        return Backbone({**spec, "kwargs": kwargs}, model)
    config = fit_config(backbone.model.config, size, _from_config)
    spec["config"] = encoders.config_to_dict(config)
    return Backbone(spec, fit_weights(backbone.model, config, _from_config))


def _load_timm(options: EncoderOptions) -> tuple[Backbone, nn.Linear | None]:
    model, spec = encoders.open_timm(options)
    classifier = model.get_classifier()
    model.reset_classifier(0)
    spec["num_features"] = getattr(model, "head_hidden_size", None) or model.num_features
    return Backbone(spec, model), classifier if isinstance(classifier, nn.Linear) else None


def _load_transformers(options: EncoderOptions) -> tuple[Backbone, nn.Linear | None]:
    config, missing = encoders.read_config(options), set()
    kind, remote = AutoModelForImageClassification, options.trust_remote_code
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and not remote:
        raise ValueError(
            f"{options.name}: Transformers has no image classifier of type {config.model_type}; look for timm/<name>."
        )
    build = partial(kind.from_config, trust_remote_code=remote, dtype=torch.float32)
    if options.pretrained:
        loading = {"dtype": torch.float32, "trust_remote_code": remote, "ignore_mismatched_sizes": True}
        model, found = kind.from_pretrained(options.name, config=config, output_loading_info=True, **loading)
        missing = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    else:
        state = load_file(options.weights) if options.weights else {}
        config.num_labels = encoders.num_classes_in(state, "classifier") or config.num_labels
        model = build(config)
        if options.weights:
            encoders.load_strictly(model, state, options.weights)
    spec = encoders.transformers_spec(options, config)
    config = fit_config(config, spec["image_size"], build)
    model = fit_weights(model, config, build)
    name, classifier = _remove_classifier(model)
    spec |= {"config": encoders.config_to_dict(config), "num_features": classifier.in_features}
    untrained = sorted(key for key in missing if not key.startswith(name) and not key.endswith("mask_token"))
    if untrained:
        names = ", ".join(untrained[:5])
        logger.warning(
            "%s has no weights for %d tensors, which start at random: %s.", options.name, len(untrained), names
        )
    return Backbone(spec, model), None if f"{name}.weight" in missing else classifier


def _remove_classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """Replace the last linear layer with one output per label by an identity; return its name and that layer."""
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels and "classifier" in name:
            model.set_submodule(name, nn.Identity())
            return name, module
    raise ValueError(f"{type(model).__name__} has no linear classifier on pooled features; look for timm/<name>.")


def _from_config(config: PretrainedConfig) -> nn.Module:
    model = AutoModelForImageClassification.from_config(config)
    _remove_classifier(model)
    return model


def _build(spec: dict[str, Any]) -> nn.Module:
    if spec["library"] == "timm":
        return encoders.build_timm(spec)
    config = spec["config"] | {"architectures": []}
    return _from_config(CONFIG_MAPPING[config["model_type"]].from_dict(config))
