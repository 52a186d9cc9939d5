"""What opening encoders of timm and Transformers takes, whether their features are pooled or kept as a pyramid."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_model_data_config
from timm.models import load_model_config_from_hf
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, PretrainedConfig

TIMM_PREFIXES = ("timm/", "hf-hub:", "local-dir:")

logger = logging.getLogger(__name__)

# ---- timm


def open_timm(
    name: str,
    pretrained: bool,
    weights: str | None,
    image_size: int | None,
    drop_path_rate: float | None,
    **optional: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """The whole classifier and the ``spec`` that :func:`build_timm` needs; arguments as of ``load_backbone``.

    Args:
        optional: more arguments for the architecture, which are left out where it does not take them.

    Raises:
        ValueError: if the weights do not fit.
    """
    kwargs: dict[str, Any] = {}
    architecture = name.removeprefix("timm/")
    if name.startswith("hf-hub:"):  # remember the architecture, so that the saved model needs no hub
        _, architecture, model_args = load_model_config_from_hf(name.removeprefix("hf-hub:"))
        kwargs.update(model_args or {})
    source = name if name.startswith(("hf-hub:", "local-dir:")) else architecture
    state = load_file(weights) if weights else None
    if state is not None:
        kwargs["num_classes"] = num_classes_in(state, timm.get_pretrained_cfg_value(architecture, "classifier"))
    optional |= {"img_size": image_size, "drop_path_rate": drop_path_rate}
    model = _create_timm(source, pretrained, kwargs, optional)
    if state is not None:
        load_strictly(model, timm.models.clean_state_dict(state), weights)
    config = resolve_model_data_config(model)
    return model, {
        "library": "timm",
        "architecture": model.pretrained_cfg.get("architecture") or architecture,
        "kwargs": {k: v for k, v in kwargs.items() if v is not None and k != "num_classes"},
        "image_size": image_size or config["input_size"][-1],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
    }


def build_timm(spec: dict[str, Any]) -> nn.Module:
    """The same architecture with random weights and without a classifier."""
    return timm.create_model(spec["architecture"], pretrained=False, num_classes=0, **spec["kwargs"])


def _create_timm(name: str, pretrained: bool, kwargs: dict[str, Any], optional: dict[str, Any]) -> nn.Module:
    """Tell the architecture its image size where it wants to know; notes in ``kwargs`` what it accepted."""
    optional = {key: value for key, value in optional.items() if value is not None and key not in kwargs}
    while True:
        try:
            model = timm.create_model(name, pretrained=pretrained, **kwargs, **optional)
        except TypeError as error:
            refused = [key for key in optional if f"'{key}'" in str(error)]
            if not refused:
                raise
            for key in refused:
                del optional[key]
                if key == "drop_path_rate":  # a fully convolutional network needs no image size
                    logger.warning("%s takes no %s: it has no effect.", name, key)
        else:
            kwargs.update(optional)
            return model


# ---- Transformers


def read_config(name: str, drop_path_rate: float | None, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration of a model, by id or local path, with another stochastic depth if it has that."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    return set_drop_path_rate(config, name, drop_path_rate)


def set_drop_path_rate(config: PretrainedConfig, name: str, drop_path_rate: float | None) -> PretrainedConfig:
    """Changes ``config`` and returns it; a warning where it has no such setting."""
    if drop_path_rate is not None:
        if hasattr(config, "drop_path_rate"):
            config.drop_path_rate = drop_path_rate
        else:
            logger.warning("%s takes no drop_path_rate: it has no effect.", name)
    return config


def config_to_dict(config: PretrainedConfig) -> dict[str, Any]:
    """What of a configuration describes the encoder: nothing of labels, its origin or its storage."""
    kept = config.to_dict()
    for key in ("id2label", "label2id", "architectures", "transformers_version", "num_labels", "dtype"):
        kept.pop(key, None)
    return kept


def preprocessing(name: str) -> dict[str, Any]:
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


# ---- both


def num_classes_in(state: dict[str, torch.Tensor], classifier: str | None) -> int:
    """Outputs of the linear layer of this name in a state dict; 0 if it holds none."""
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    return 0 if weight is None else weight.shape[0]


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor], source: str | None) -> None:
    """Load a state dict; ValueError if a name is missing or unknown."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"The weights in {source} do not fit the backbone: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}."
        )


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether a model's ``forward`` names this argument."""
    return argument in inspect.signature(model.forward).parameters


def first_line(error: BaseException) -> str:
    """The first line of an error's message and of what caused it, without the period, for messages of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else type(error).__name__).rstrip(".")
    cause = "" if error.__cause__ is None else first_line(error.__cause__)
    return text if cause in text else f"{text}: {cause}"
