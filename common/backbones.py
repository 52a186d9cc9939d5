"""timm and Transformers encoders behind one interface: image -> pooled features."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_model_data_config
from timm.models import load_model_config_from_hf
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor, AutoModelForImageClassification

TIMM_PREFIXES = ("timm/", "hf-hub:", "local-dir:")

logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """An encoder without its classifier: (batch, 3, height, width) -> (batch, ``num_features``).

    Args:
        spec: what it takes to build the same architecture again without any download: ``library`` ("timm" or
            "transformers"), its arguments, ``num_features``, ``image_size``, and the preprocessing that goes with it.
        model: the encoder, if it has been built already; otherwise it is built with random weights.
    """

    def __init__(self, spec: dict[str, Any], model: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.model = model if model is not None else _build(spec)
        self.num_features: int = spec["num_features"]
        for name, parameter in self.model.named_parameters():
            if name.endswith("mask_token"):  # of pre-training: never used, and DDP wants gradients of everything
                parameter.requires_grad_(False)
        self._interpolate = spec["library"] == "transformers" and _accepts(self.model, "interpolate_pos_encoding")

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
) -> tuple[Backbone, nn.Linear | None]:
    """Build an encoder by name and load its weights.

    Args:
        name: ``timm/<architecture or model id>``, ``hf-hub:<org>/<timm model>``, ``local-dir:<timm folder>``, or what
            Transformers' ``AutoModelForImageClassification`` knows, by id or local path.
        pretrained: load the weights that go with the name; ``False`` builds the architecture with random weights.
        weights: a safetensors file with a state dict to load instead.
        image_size: side of the square input in pixels; the model's own by default.
        drop_path_rate: stochastic depth, where the architecture has it; its own by default.
        trust_remote_code: allow code from the model's repository to run (Transformers only).

    Returns:
        The backbone, and its own classifier if it came with trained weights.

    Raises:
        ValueError: if there is no such model, or the weights do not fit it.
    """
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"No weights file at {weights} (--backbone_weights).")
    timm_name = name.startswith(TIMM_PREFIXES)
    load = _load_timm if timm_name else _load_transformers
    try:
        options = {} if timm_name else {"trust_remote_code": trust_remote_code}
        model, classifier, spec = load(
            name, pretrained and weights is None, weights, image_size, drop_path_rate, **options
        )
    except (OSError, RuntimeError, KeyError) as error:
        hint = (
            ""
            if pretrained
            else " With --no_pretrained only the architecture is needed: timm/<architecture> is offline."
        )
        raise ValueError(f"Cannot load the backbone {name!r}: {_first_line(error)}{hint}") from error
    backbone = Backbone(spec, model)
    return backbone, classifier if pretrained or weights else None


# ---- timm


def _load_timm(
    name: str, pretrained: bool, weights: str | None, image_size: int | None, drop_path_rate: float | None
) -> tuple[nn.Module, nn.Linear | None, dict[str, Any]]:
    kwargs: dict[str, Any] = {"drop_path_rate": drop_path_rate}
    architecture = name.removeprefix("timm/")
    if name.startswith("hf-hub:"):  # remember the architecture, so that the saved model needs no hub
        _, architecture, model_args = load_model_config_from_hf(name.removeprefix("hf-hub:"))
        kwargs.update(model_args or {})
    source = name if name.startswith(("hf-hub:", "local-dir:")) else architecture
    state = load_file(weights) if weights else None
    if state is not None:
        kwargs["num_classes"] = _num_classes_in(state, timm.get_pretrained_cfg_value(architecture, "classifier"))
    model = _create_timm(source, pretrained, image_size, kwargs)
    if state is not None:
        _load_strictly(model, timm.models.clean_state_dict(state), weights)
    config = resolve_model_data_config(model)
    classifier = model.get_classifier()
    model.reset_classifier(0)
    spec = {
        "library": "timm",
        "architecture": model.pretrained_cfg.get("architecture") or architecture,
        "kwargs": {k: v for k, v in kwargs.items() if v is not None and k != "num_classes"},
        "image_size": image_size or config["input_size"][-1],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
    }
    spec["num_features"] = getattr(model, "head_hidden_size", None) or model.num_features
    return model, classifier if isinstance(classifier, nn.Linear) else None, spec


def _create_timm(name: str, pretrained: bool, image_size: int | None, kwargs: dict[str, Any]) -> nn.Module:
    """Tell the architecture its image size where it wants to know; notes in ``kwargs`` what it accepted."""
    optional = {"img_size": image_size, "drop_path_rate": kwargs.pop("drop_path_rate", None)}
    optional = {key: value for key, value in optional.items() if value is not None}
    while True:
        try:
            model = timm.create_model(name, pretrained=pretrained, **kwargs, **optional)
        except TypeError as error:
            refused = [key for key in optional if key in str(error)]
            if not refused:
                raise
            for key in refused:
                del optional[key]
                if key != "img_size":  # a fully convolutional network needs no image size
                    logger.warning("%s takes no %s: it has no effect.", name, key)
        else:
            kwargs.update(optional)
            return model


def _num_classes_in(state: dict[str, torch.Tensor], classifier: str | None) -> int:
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    return 0 if weight is None else weight.shape[0]


# ---- Transformers


def _load_transformers(
    name: str,
    pretrained: bool,
    weights: str | None,
    image_size: int | None,
    drop_path_rate: float | None,
    trust_remote_code: bool,
) -> tuple[nn.Module, nn.Linear | None, dict[str, Any]]:
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    if drop_path_rate is not None:
        if hasattr(config, "drop_path_rate"):
            config.drop_path_rate = drop_path_rate
        else:
            logger.warning("%s takes no drop_path_rate: it has no effect.", name)
    if pretrained:
        model = AutoModelForImageClassification.from_pretrained(
            name, config=config, trust_remote_code=trust_remote_code, ignore_mismatched_sizes=True
        )
    else:
        if image_size and isinstance(getattr(config, "image_size", None), int):
            config.image_size = image_size
        state = load_file(weights) if weights else None
        if state is not None:
            config.num_labels = _num_classes_in(state, "classifier") or config.num_labels
        model = AutoModelForImageClassification.from_config(config, trust_remote_code=trust_remote_code)
        if state is not None:
            _load_strictly(model, state, weights)
    classifier = _remove_classifier(model)
    kept = config.to_dict()
    for key in ("id2label", "label2id", "architectures", "transformers_version", "num_labels"):
        kept.pop(key, None)
    size = getattr(config, "image_size", None)
    spec = {
        "library": "transformers",
        "config": kept,
        "image_size": image_size or (size if isinstance(size, int) else 224),
        "num_features": classifier.in_features,
        **_preprocessing(name),
    }
    return model, classifier, spec


def _preprocessing(name: str) -> dict[str, Any]:
    """Mean, standard deviation and interpolation that the model was trained with, if that is known offline."""
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
        return {
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "interpolation": names.get(int(processor.resample), "bicubic"),
        }
    except (OSError, ValueError, AttributeError, TypeError):
        logger.warning("%s comes without a preprocessor_config.json: ImageNet's mean and deviation are used.", name)
        return {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD), "interpolation": "bicubic"}


def _remove_classifier(model: nn.Module) -> nn.Linear:
    """Put an identity in the place of the last linear layer with one output a label, and return that layer."""
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels and "classifier" in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
            return module
    raise ValueError(f"{type(model).__name__} has no linear classifier on pooled features; choose another backbone.")


# ---- both


def _build(spec: dict[str, Any]) -> nn.Module:
    if spec["library"] == "timm":
        return timm.create_model(spec["architecture"], pretrained=False, num_classes=0, **spec["kwargs"])
    content = dict(spec["config"])
    model = AutoModelForImageClassification.from_config(CONFIG_MAPPING[content["model_type"]].from_dict(content))
    _remove_classifier(model)
    return model


def _load_strictly(model: nn.Module, state: dict[str, torch.Tensor], source: str | None) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"The weights in {source} do not fit the backbone: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}."
        )


def _accepts(model: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
