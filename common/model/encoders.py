"""Opening encoders of timm and Transformers, whether their features are pooled or kept as a pyramid."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import transformers
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config
from timm.models import load_model_config_from_hf
from timm.models._hub import load_model_config_from_path
from torch import nn
from transformers import AutoConfig, PretrainedConfig, SegformerConfig

from .positions import image_size_of, with_image_size

TIMM_PREFIXES = ("timm/", "hf-hub:", "local-dir:")

logger = logging.getLogger(__name__)


@dataclass
class EncoderOptions:
    """Which encoder to open, and how.

    Attributes:
        name: ``timm/<architecture or model id>``, ``hf-hub:<org>/<timm model>``, ``local-dir:<timm folder>``, or what
            Transformers' ``AutoModelForImageClassification`` knows, by id or local path; for a pyramid, what
            ``AutoBackbone`` knows, or ``AutoModel`` if its hidden states are maps (SegFormer) or those of a ViT.
        pretrained: load the weights that go with the name; ``False`` builds the architecture with random weights.
        weights: a safetensors file with a state dict to load instead of those.
        image_size: side of the square input in pixels; the model's own by default.
        drop_path_rate: stochastic depth, where the architecture has it; its own by default.
        trust_remote_code: allow code from the model's repository to run (Transformers only).
        image_mean, image_std: of the three colours, in 0..1, instead of those that go with the weights.
    """

    name: str
    pretrained: bool = True
    weights: str | None = None
    image_size: int | None = None
    drop_path_rate: float | None = None
    trust_remote_code: bool = False
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        self.pretrained = self.pretrained and self.weights is None


# ---- timm


def open_timm(options: EncoderOptions, **optional: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The complete classifier, and the ``spec`` that :func:`build_timm` needs.

    Args:
        options: which encoder.
        optional: more arguments for the architecture, left out where it does not take them.

    Raises:
        ValueError: if the weights do not fit.
    """
    architecture = name = options.name.removeprefix("timm/")
    kwargs, own, state = {}, None, None
    for prefix, read in (("hf-hub:", load_model_config_from_hf), ("local-dir:", load_model_config_from_path)):
        if name.startswith(prefix):  # remember the architecture, so that the saved model needs no hub
            own, architecture, model_args = read(name.removeprefix(prefix))
            kwargs.update(model_args or {})
    if options.weights:
        state = load_file(options.weights)
        kwargs["num_classes"] = num_classes_in(state, timm.get_pretrained_cfg_value(architecture, "classifier"))
    optional |= {"img_size": options.image_size, "drop_path_rate": options.drop_path_rate}
    model = create_timm(name, options.pretrained, kwargs, optional)
    if state is not None:
        load_timm(model, state, options.weights)
    return model, {
        "library": "timm",
        "architecture": model.pretrained_cfg.get("architecture") or architecture,
        "kwargs": {k: v for k, v in kwargs.items() if v is not None and k != "num_classes"},
        **_timm_pixels(options, model.pretrained_cfg if own is None else own, architecture),
    }


def load_timm(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load weights as timm does: also open_clip's, and of another image size; ValueError if they do not fit."""
    state = timm.models.clean_state_dict(state)
    shapes = [{name: value.shape for name, value in each.items()} for each in (state, model.state_dict())]
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if shapes[0] != shapes[1] and convert is not None:
        state = convert(state, model)
    if model.num_classes == 0:  # an embedding's projection
        state = {name: value for name, value in state.items() if name not in ("head.weight", "head.bias")}
    load_strictly(model, state, source)


def build_timm(spec: dict[str, Any]) -> nn.Module:
    """The same architecture with random weights and without a classifier."""
    return timm.create_model(spec["architecture"], pretrained=False, num_classes=0, **spec["kwargs"])


def _timm_pixels(options: EncoderOptions, own: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """What :func:`_pixels` returns; what a model's configuration leaves out is that of the tagged architecture."""
    try:
        usual = timm.get_pretrained_cfg(architecture)
    except RuntimeError:  # a tag of the author's own
        usual = timm.get_pretrained_cfg(architecture.partition(".")[0])
    own = {key: value for key, value in own.items() if value is not None}
    found = resolve_data_config({"in_chans": 3}, {**(usual.to_dict() if usual else {}), **own})
    resize_mode = "squash" if found["crop_mode"] == "squash" else "center"
    found |= {"image_size": found["input_size"][-1], "resize_mode": resize_mode}
    own["image_size"] = own.get("input_size")
    missing = [key for key in ("mean", "std", "image_size", "interpolation", "crop_pct") if own.get(key) is None]
    return _pixels(options, found, missing, f"timm's {architecture}" if usual else "ImageNet")


def create_timm(name: str, pretrained: bool, kwargs: dict[str, Any], optional: dict[str, Any]) -> nn.Module:
    """Create a model, without those optional arguments that it refuses; the others are added to ``kwargs``."""
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


def read_config(options: EncoderOptions, config: PretrainedConfig | None = None) -> PretrainedConfig:
    """The configuration of a model with the stochastic depth and image size asked for; read by name if not given.

    The image size is changed only where the weights are random; trained ones are resampled when they are there, see
    :func:`.positions.fit_weights`.
    """
    config = config or AutoConfig.from_pretrained(options.name, trust_remote_code=options.trust_remote_code)
    if options.drop_path_rate is not None:
        if hasattr(config, "drop_path_rate"):
            config.drop_path_rate = options.drop_path_rate
        else:
            logger.warning("%s takes no drop_path_rate: it has no effect.", options.name)
    config.architectures = []  # of several classes the first, which is the one that a saved model is built with
    if options.image_size and image_size_of(config) and not options.pretrained and not options.weights:
        config = with_image_size(config, options.image_size)
    return config


def transformers_spec(
    options: EncoderOptions, config: PretrainedConfig, pyramid: bool = False, imagenet: bool = False
) -> dict[str, Any]:
    """What it takes to build the same architecture again, and the preprocessing that goes with it.

    Args:
        options: which encoder.
        config: its configuration.
        pyramid: any image size will do, so that of the configuration goes before that of the preprocessing.
        imagenet: use ImageNet's mean and deviation instead of reading the model's preprocessing.
    """
    found: dict[str, Any] = {"image_size": image_size_of(config) or (segformer_size(options.name) if pyramid else 224)}
    missing: tuple[str, ...] = ()
    if imagenet:
        found["interpolation"] = "bilinear"
    else:
        try:
            found |= _processed(transformers.AutoImageProcessor.from_pretrained(options.name), not pyramid)
        except (OSError, ValueError):  # the defaults of its class are often others than those of the published weights
            missing = ("mean", "std", "interpolation", "image_size")
    pixels = _pixels(options, found, missing, "ImageNet")
    return {"library": "transformers", "config": config_to_dict(config), **pixels}


def config_to_dict(config: PretrainedConfig) -> dict[str, Any]:
    """What describes the encoder in a configuration, without labels, origin and storage."""
    dropped = ("id2label", "label2id", "architectures", "transformers_version", "num_labels", "dtype")
    return {key: value for key, value in config.to_dict().items() if key not in dropped}


def _processed(processor: Any, sized: bool) -> dict[str, Any]:
    """The pixels that a Transformers image processor makes; without their size unless ``sized``."""
    mean, std, how = (getattr(processor, name, None) for name in ("image_mean", "image_std", "resample"))
    if getattr(processor, "do_normalize", True) is False:
        mean, std = [0.0] * 3, [1.0] * 3
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    found = {"mean": mean, "std": std, "interpolation": None if how is None else names.get(int(how))}
    size, crop = (dict(getattr(processor, name, None) or {}) if sized else {} for name in ("size", "crop_size"))
    crop = crop if getattr(processor, "do_center_crop", False) else {}
    resized = size.get("shortest_edge") or size.get("height")
    side = crop.get("height") or resized
    if side:
        squash = not size.get("shortest_edge") and not crop
        share = getattr(processor, "crop_pct", None) if side < 384 else None  # ConvNeXt's, which has no crop_size
        found |= {"image_size": side, "resize_mode": "squash" if squash else "center"}
        found["crop_pct"] = share or side / resized
    return {key: value for key, value in found.items() if value is not None}


# Xie et al., "SegFormer", NeurIPS 2021, Table 6: depths of the encoders MiT-B0 to B5.
_MIT_DEPTHS = ([2, 2, 2, 2], [2, 2, 2, 2], [3, 4, 6, 3], [3, 4, 18, 3], [3, 8, 27, 3], [3, 6, 40, 3])
_MIT_NAME = re.compile(r"(?:.*[/_-])?(?:mit|segformer)-b([0-5])(?:-\D+-(\d+)-\d+)?$")


def segformer_config(name: str) -> SegformerConfig | None:
    """The configuration of a SegFormer encoder by its published name, without a download; ``None`` for other names."""
    match = _MIT_NAME.match(name)
    if match is None:
        return None
    widths = [32, 64, 160, 256] if match[1] == "0" else [64, 128, 320, 512]
    return SegformerConfig(hidden_sizes=widths, depths=_MIT_DEPTHS[int(match[1])])


def segformer_size(name: str) -> int:
    """The image size that a SegFormer was trained with, by its published name; 224 for other names."""
    match = _MIT_NAME.match(name)
    return int(match[2] or 512) if match else 224


# ---- both


def _pixels(options: EncoderOptions, found: Mapping[str, Any], missing: Sequence[str], whose: str) -> dict[str, Any]:
    """How images are prepared for an encoder, as a part of its ``spec``; a warning names what nobody has said.

    Args:
        options: which encoder; mean, deviation and size given there come first.
        found: what is known.
        missing: keys of ``found`` that the encoder itself does not have.
        whose: where they are from instead.
    """
    given = {"mean": options.image_mean, "std": options.image_std, "image_size": options.image_size}
    given = {key: value for key, value in given.items() if value is not None}
    pixels = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bicubic"}
    pixels |= {"resize_mode": "center", "crop_pct": 1.0, **found, **given}
    pixels |= {"mean": list(pixels["mean"]), "std": list(pixels["std"])}
    trained, assumed = bool(options.pretrained or options.weights), [key for key in missing if key not in given]
    if assumed and trained:
        logger.warning(
            "%s does not say how the images were that it was trained on. Assumed, as of %s: %s. --image_mean, "
            "--image_std and --image_size change that.",
            options.name, whose, ", ".join(f"{key} {pixels[key]}" for key in assumed),
        )  # fmt: skip
    if not trained:  # nobody has ever cropped images for these weights
        pixels |= {"resize_mode": "center", "crop_pct": 1.0}
    return {key: pixels[key] for key in ("image_size", "mean", "std", "interpolation", "resize_mode", "crop_pct")}


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


def first_line(error: BaseException) -> str:
    """What an error and its cause say in their first line, and of those below in one that tells how to log in."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    helpful = [line for line in lines[1:] if re.search("log ?in|logged|token|authenticated", line)]
    text = ". ".join(line.rstrip(".") for line in lines[:1] + helpful[:1])
    cause = "" if error.__cause__ is None else first_line(error.__cause__)
    return text if cause in text else f"{text}: {cause}"
