"""Encoders of timm and Transformers as pyramids: image -> four feature maps, at strides 4, 8, 16 and 32."""

from __future__ import annotations

import math
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_MAPPING,
    AutoBackbone,
    AutoModel,
    PretrainedConfig,
    SegformerConfig,
)

from . import encoders
from .encoders import TIMM_PREFIXES, EncoderOptions, config_to_dict
from .positions import fit_config, fit_weights, image_size_of, speed_up_bias, with_image_size

STRIDES = (4, 8, 16, 32)


class PyramidBackbone(nn.Module):
    """An encoder without its classifier: (batch, 3, height, width) -> four maps at strides 4, 8, 16 and 32.

    Images are padded with zeros, the mean colour, at the right and at the bottom to multiples of ``size_divisor``.
    Encoders with one stride (ViT, BEiT) give maps after each quarter of their blocks, which are resized as for BEiT's
    UPerNet (Bao et al., ICLR 2022). Encoders that take only one image size process larger images in tiles of it.

    Args:
        spec: what it takes to build the same architecture again without any download: ``library`` ("timm" or
            "transformers") and its arguments, ``image_size`` and the preprocessing; and, found by :func:`_plan`,
            ``levels`` (indices of the four maps among all that the encoder gives), ``stride`` (of an encoder with
            one, else None), ``channels``, ``size_divisor`` and ``tiles``.
        model: the encoder, if there is one already; otherwise it is built with random weights.
    """

    def __init__(self, spec: dict[str, Any], model: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.model = model if model is not None else _build(spec)
        if spec["library"] == "timm":  # without what comes after the last level: classifier, final norm, deeper stages
            self.model.prune_intermediate_layers(sorted(set(spec["levels"])), prune_norm=True, prune_head=True)
        speed_up_bias(self.model)
        self.channels: list[int] = list(spec["channels"])
        self.size_divisor: int = spec["size_divisor"]
        pairs = zip(self.channels, STRIDES, strict=True) if spec["stride"] else ()
        self.resizers = nn.ModuleList(_resizer(channels, spec["stride"] / stride) for channels, stride in pairs)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Normalised images (batch, 3, height, width), floating point -> maps (batch, channels, padded size / stride).

        The padded height and width are the next multiples of ``size_divisor``.
        """
        side = self.size_divisor
        height, width = (math.ceil(pixels / side) * side for pixels in pixel_values.shape[2:])
        pixels = F.pad(pixel_values, (0, width - pixel_values.shape[3], 0, height - pixel_values.shape[2]))
        tiles = self.spec["tiles"] and (height, width) != (side, side)
        maps = _feature_maps(self.model, _cut(pixels, side) if tiles else pixels, self.spec["levels"])
        if tiles:
            maps = [_join(features, height // side, width // side) for features in maps]
        for index, (resizer, stride) in enumerate(zip(self.resizers, STRIDES, strict=False)):
            maps[index] = resizer(maps[index])
            size = (height // stride, width // stride)
            if maps[index].shape[2:] != size:  # patches of 14 pixels
                maps[index] = F.interpolate(maps[index], size=size, mode="bilinear", align_corners=False)
        return maps


def load_pyramid(options: EncoderOptions) -> PyramidBackbone:
    """Open an encoder and find its four maps.

    Raises:
        ValueError: if the weights do not fit, or the encoder has no four maps.
    """
    if options.name.startswith(TIMM_PREFIXES):  # some take any size if asked to; _plan finds out about the others
        model, spec = encoders.open_timm(options, dynamic_img_size=True, strict_img_size=False)
        return PyramidBackbone(_plan(spec, options.name), model)
    known = None if options.pretrained or Path(options.name).is_dir() else encoders.segformer_config(options.name)
    config = encoders.read_config(options, known)
    if isinstance(config, SegformerConfig):
        config.reshape_last_stage = True
    own = image_size_of(config)
    config = fit_config(config, options.image_size, _from_config)
    spec = _plan(encoders.transformers_spec(options, config, pyramid=True, imagenet=bool(known)), options.name)
    if not options.pretrained and not options.weights:
        return PyramidBackbone(spec)
    padded = math.ceil(spec["image_size"] / spec["size_divisor"]) * spec["size_divisor"]
    fitted = fit_config(_config(spec), padded, _from_config)
    model = _from_pretrained(with_image_size(fitted, own) if own else fitted, options)
    model = fit_weights(model, fitted, _from_config)
    return PyramidBackbone(spec | {"config": config_to_dict(fitted)}, model)


# ---- encoders


def _feature_maps(model: nn.Module, pixels: torch.Tensor, levels: list[int] | None = None) -> list[torch.Tensor]:
    """The maps (batch, channels, rows, columns) of these levels; of all by default."""
    positions = sorted(set(levels)) if levels is not None else None
    if hasattr(model, "forward_intermediates"):
        maps = model.forward_intermediates(pixels, indices=positions, intermediates_only=True)
        return [maps[positions.index(level)] for level in levels] if positions else maps
    takes = signature(model.forward).parameters
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
    if type(model.config) in MODEL_FOR_BACKBONE_MAPPING:
        maps = model(pixels, **options).feature_maps
    else:
        maps = model(pixels, output_hidden_states=True, **options).hidden_states
    maps = list(maps) if levels is None else [maps[level] for level in levels]
    return [features if features.dim() == 4 else _unfold(features, pixels, model.config) for features in maps]


def _unfold(tokens: torch.Tensor, pixels: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """Tokens of a ViT (batch, special tokens and then patches, channels) -> (batch, channels, rows, columns)."""
    rows, columns = (side // config.patch_size for side in pixels.shape[2:])
    return tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns)).contiguous()


def _cut(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """(batch, channels, rows * side, columns * side) -> (batch * rows * columns, channels, side, side)."""
    tiles = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # batch, channels, rows, side, columns, side
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _join(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse of :func:`_cut`."""
    return tiles.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _resizer(channels: int, factor: float) -> nn.Module:
    """Enlarge (or reduce) a map by the power of two nearest to ``factor``."""
    power = round(math.log2(factor))
    if power <= 0:
        return nn.MaxPool2d(2**-power) if power else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(power):
        layers += [nn.ConvTranspose2d(channels, channels, 2, 2), nn.GroupNorm(1, channels), nn.GELU()]
    return nn.Sequential(*layers[:-2])  # as BEiT's: normalised and activated in between


def _config(spec: dict[str, Any], levels: list[int] | None = None) -> PretrainedConfig:
    """The configuration in a ``spec``; a backbone then returns these levels, if given."""
    config = CONFIG_MAPPING[spec["config"]["model_type"]].from_dict(dict(spec["config"]))
    if levels is not None and type(config) in MODEL_FOR_BACKBONE_MAPPING:
        config.out_indices = levels
    return config


def _from_config(config: PretrainedConfig) -> nn.Module:
    kind = AutoBackbone if type(config) in MODEL_FOR_BACKBONE_MAPPING else AutoModel
    return kind.from_config(config, dtype=torch.float32)


def _build(spec: dict[str, Any]) -> nn.Module:
    return encoders.build_timm(spec) if spec["library"] == "timm" else _from_config(_config(spec))


def _from_pretrained(config: PretrainedConfig, options: EncoderOptions) -> nn.Module:
    """Load with Transformers, which translates older parameter names, and without the checkpoint's heads.

    AutoBackbone would ask the hub whether there is such a repository, even for a local folder.
    """
    in_backbones = type(config) in MODEL_FOR_BACKBONE_MAPPING
    kind = (MODEL_FOR_BACKBONE_MAPPING if in_backbones else MODEL_MAPPING)[type(config)]
    folder, state = (None, load_file(options.weights)) if options.weights else (options.name, None)
    model, found = kind.from_pretrained(
        folder, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    with torch.device("meta"):  # a backbone may have norms that classifiers lack
        known = set(AutoModel.from_config(config).state_dict())
    prefix = f"{model.base_model_prefix}."
    missing = sorted(key for key in found["missing_keys"] if key.removeprefix(prefix) in known and "pooler" not in key)
    if missing:
        source = options.weights or options.name
        raise ValueError(f"The weights in {source} do not fit the backbone: {len(missing)} missing {missing[:3]}.")
    return model


# ---- finding the four maps


def _plan(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """Add to a ``spec`` what depends on the feature maps, found by running the encoder on the "meta" device.

    Raises:
        ValueError: if there are no maps at the four strides.
    """
    own, error = spec["image_size"], None
    divisors = sorted({32, 64, 128, 224} | ({own} if own % 32 == 0 else set()))
    with torch.device("meta"):
        if spec["library"] == "timm":
            encoder = encoders.build_timm(spec)
        else:
            names = getattr(_config(spec), "stage_names", None) or []
            encoder = _from_config(_config(spec, list(range(len(names)))))
            speed_up_bias(
                encoder
            )  # Transformers' own would remember what it computes on "meta", and spoil later passes
        encoder.eval()
        for divisor, tiles in [*((divisor, False) for divisor in divisors), (own, True)]:
            try:
                chosen = _choose(encoder, divisor, divisor)
                if tiles and own not in divisors:
                    raise ValueError(f"it takes only images of one size, and {own} pixels are not a multiple of 32.")
                if tiles or _choose(encoder, 3 * divisor, 5 * divisor) == chosen:
                    return _with_levels(spec | chosen | {"size_divisor": divisor, "tiles": tiles})
            except Exception as refusal:  # encoders refuse sizes with any exception: asserts, shape mismatches, ...
                error = refusal
    raise ValueError(
        f"{name} gives no feature maps at strides 4, 8, 16 and 32: {encoders.first_line(error)}."
    ) from error


def _choose(encoder: nn.Module, height: int, width: int) -> dict[str, Any]:
    """The last map of each stride, or four maps of an encoder with one stride; ValueError without such maps."""
    with torch.no_grad():
        maps = _feature_maps(encoder, torch.zeros(1, 3, height, width))
    strides = [
        height // features.shape[2]
        if height * features.shape[3] == width * features.shape[2] and height % features.shape[2] == 0
        else None
        for features in maps
    ]  # None: not the same in both directions, or rounded
    if len(set(strides)) == 1 and strides[0] is not None:
        first = 0 if hasattr(encoder, "forward_intermediates") else 1  # Transformers' lists start with the embedding
        depth = len(maps) - first
        levels = [first + max(round(depth * quarter / 4) - 1, 0) for quarter in (1, 2, 3, 4)]
    elif set(STRIDES) <= set(strides):
        levels = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
    else:
        shapes = [tuple(features.shape[2:]) for features in maps]
        raise ValueError(f"its maps of {height} x {width} pixels are {shapes}.")
    single = strides[0] if len(set(strides)) == 1 else None
    return {"levels": levels, "stride": single, "channels": [maps[level].shape[1] for level in levels]}


def _with_levels(spec: dict[str, Any]) -> dict[str, Any]:
    """Make a backbone of Transformers return its four maps alone: it has norms for the levels that it returns only."""
    returned = sorted(set(spec["levels"]))
    if spec["library"] == "timm" or type(_config(spec)) not in MODEL_FOR_BACKBONE_MAPPING:
        return spec
    levels = [returned.index(level) for level in spec["levels"]]
    return spec | {"levels": levels, "config": config_to_dict(_config(spec, returned))}
