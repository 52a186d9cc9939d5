"""Encoders of both libraries as pyramids: image -> four feature maps, at strides 4, 8, 16 and 32."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
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

from .encoders import (
    TIMM_PREFIXES,
    accepts,
    build_timm,
    config_to_dict,
    first_line,
    open_timm,
    preprocessing,
    read_config,
    set_drop_path_rate,
)

STRIDES = (4, 8, 16, 32)

# Xie et al., "SegFormer", NeurIPS 2021, Table 6: widths and depths of the encoders MiT-B0 to B5.
_WIDE = (64, 128, 320, 512)
_MIT = [
    ((32, 64, 160, 256), (2, 2, 2, 2)),
    (_WIDE, (2, 2, 2, 2)),
    (_WIDE, (3, 4, 6, 3)),
    (_WIDE, (3, 4, 18, 3)),
    (_WIDE, (3, 8, 27, 3)),
    (_WIDE, (3, 6, 40, 3)),
]
_MIT_NAME = re.compile(r"(?:.*[/_-])?(?:mit|segformer)-b([0-5])(?:-\D+-(\d+)-\d+)?$")


class PyramidBackbone(nn.Module):
    """An encoder without its classifier: (batch, 3, height, width) -> four maps at strides 4, 8, 16 and 32.

    Images are padded with zeros, the mean colour, at the right and at the bottom up to multiples of ``size_divisor``.
    Encoders that work at one stride (ViT, BEiT) give maps after each quarter of their blocks, which are resized as for
    BEiT's UPerNet (Bao et al., ICLR 2022). Those bound to one image size see larger images in tiles of that size.

    Args:
        spec: what it takes to build the same architecture again without any download: ``library`` ("timm" or
            "transformers") and its arguments, ``image_size`` and the preprocessing; and, found by :func:`_plan`,
            ``levels`` (positions of the four maps among all that the encoder gives), ``stride`` (of an encoder with
            one, else None), ``channels``, ``size_divisor``, ``tiles`` and ``unused`` (parameters without a gradient).
        model: the encoder, if it has been built already; otherwise it is built with random weights.
    """

    def __init__(self, spec: dict[str, Any], model: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.model = _prune(model if model is not None else _build(spec), spec)
        self.channels: list[int] = list(spec["channels"])
        self.strides: list[int] = list(STRIDES)
        self.size_divisor: int = spec["size_divisor"]
        self.resizers = nn.ModuleList()
        if spec["stride"]:
            self.resizers.extend(
                _resizer(channels, spec["stride"] / stride)
                for channels, stride in zip(self.channels, STRIDES, strict=True)
            )
        for name in spec["unused"]:  # DDP wants gradients of everything
            self.model.get_parameter(name).requires_grad_(False)

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
            size = (height // stride, width // stride)
            features = resizer(maps[index])
            if features.shape[2:] != size:  # patches of 14 pixels
                features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
            maps[index] = features
        return maps


def load_pyramid(
    name: str,
    pretrained: bool,
    weights: str | None,
    image_size: int | None,
    drop_path_rate: float | None,
    trust_remote_code: bool,
) -> PyramidBackbone:
    """Arguments as of :func:`.backbones.load_backbone`; ``pretrained`` is False if there is a weights file.

    Raises:
        ValueError: if the weights do not fit, or the encoder has no four maps.
    """
    if name.startswith(TIMM_PREFIXES):  # some are told to take any size, those of the rest that cannot are found out
        model, spec = open_timm(
            name, pretrained, weights, image_size, drop_path_rate, dynamic_img_size=True, strict_img_size=False
        )
        return PyramidBackbone(_plan(spec, name), model)
    table = None if pretrained or Path(name).is_dir() else _segformer_config(name)
    config = set_drop_path_rate(table, name, drop_path_rate) if table else None
    config = config or read_config(name, drop_path_rate, trust_remote_code)
    own_size = getattr(config, "image_size", None) or _segformer_size(name)
    own_size = own_size if isinstance(own_size, int) else own_size[0]
    if not pretrained and image_size and hasattr(config, "image_size"):
        config.image_size = image_size if isinstance(config.image_size, int) else [image_size] * 2
    if isinstance(config, SegformerConfig):
        config.reshape_last_stage = True
    spec = {
        "library": "transformers",
        "config": config_to_dict(config),
        "image_size": image_size or own_size,
        **(_imagenet() if table else preprocessing(name)),
    }
    spec = _plan(spec, name)
    config = _config(spec)
    if pretrained:
        model = _from_pretrained(config, name, None, name)
    else:
        model = _from_pretrained(config, None, load_file(weights), weights) if weights else _from_config(config)
    return PyramidBackbone(spec, model)


# ---- encoders


def _build(spec: dict[str, Any]) -> nn.Module:
    return build_timm(spec) if spec["library"] == "timm" else _from_config(_config(spec))


def _prune(model: nn.Module, spec: dict[str, Any]) -> nn.Module:
    """Remove what comes after the last level: classifier, final norm, deeper stages."""
    if spec["library"] == "timm":
        model.prune_intermediate_layers(sorted(set(spec["levels"])), prune_norm=True, prune_head=True)
    return model


def _feature_maps(model: nn.Module, pixels: torch.Tensor, levels: list[int] | None = None) -> list[torch.Tensor]:
    """The maps (batch, channels, rows, columns) at these positions, or all that an encoder gives."""
    positions = sorted(set(levels)) if levels is not None else None
    if hasattr(model, "forward_intermediates"):
        maps = model.forward_intermediates(pixels, indices=positions, intermediates_only=True)
        return [maps[positions.index(level)] for level in levels] if positions else maps
    options: dict[str, Any] = {"interpolate_pos_encoding": True} if accepts(model, "interpolate_pos_encoding") else {}
    if type(model.config) in MODEL_FOR_BACKBONE_MAPPING:
        maps = model(pixels, **options).feature_maps
    else:
        maps = model(pixels, output_hidden_states=True, **options).hidden_states
    maps = list(maps) if levels is None else [maps[level] for level in levels]
    return [features if features.dim() == 4 else _unfold(features, pixels, model.config) for features in maps]


def _unfold(tokens: torch.Tensor, pixels: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """Tokens of a ViT (batch, special ones and then patches, channels) -> (batch, channels, rows, columns)."""
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
    """Enlarge (or reduce) a map by the power of two next to ``factor``."""
    power = round(math.log2(factor))
    if power <= 0:
        return nn.MaxPool2d(2**-power) if power else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(power):
        layers += [nn.ConvTranspose2d(channels, channels, 2, 2), nn.GroupNorm(1, channels), nn.GELU()]
    return nn.Sequential(*layers[:-2])  # as BEiT's: normalised and activated in between


def _segformer_config(name: str) -> SegformerConfig | None:
    match = _MIT_NAME.match(name)
    if match is None:
        return None
    widths, depths = _MIT[int(match[1])]
    return SegformerConfig(hidden_sizes=list(widths), depths=list(depths))


def _segformer_size(name: str) -> int:
    match = _MIT_NAME.match(name)
    return int(match[2] or 512) if match else 224


def _imagenet() -> dict[str, Any]:
    """What SegFormer's authors used."""
    return {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD), "interpolation": "bilinear"}


def _config(spec: dict[str, Any], levels: list[int] | None = None) -> PretrainedConfig:
    """That of a ``spec``; a backbone's shall return these levels, if there are any given."""
    config = CONFIG_MAPPING[spec["config"]["model_type"]].from_dict(dict(spec["config"]))
    if levels is not None and type(config) in MODEL_FOR_BACKBONE_MAPPING:
        config.out_indices = levels
    return config


def _from_config(config: PretrainedConfig) -> nn.Module:
    return (AutoBackbone if type(config) in MODEL_FOR_BACKBONE_MAPPING else AutoModel).from_config(config)


def _from_pretrained(
    config: PretrainedConfig, folder: str | None, state: dict[str, torch.Tensor] | None, source: str
) -> nn.Module:
    """By Transformers, which knows older names of parameters; heads of the checkpoint are left out.

    Not by AutoBackbone, which asks the hub whether there is such a repository, even for a local folder.
    """
    in_backbones = type(config) in MODEL_FOR_BACKBONE_MAPPING
    kind = (MODEL_FOR_BACKBONE_MAPPING if in_backbones else MODEL_MAPPING)[type(config)]
    model, found = kind.from_pretrained(
        folder, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    with torch.device("meta"):  # a backbone may have norms that no classifier has
        known = set(AutoModel.from_config(config).state_dict())
    prefix = f"{model.base_model_prefix}."
    missing = sorted(key for key in found["missing_keys"] if key.removeprefix(prefix) in known and "pooler" not in key)
    if missing:
        raise ValueError(f"The weights in {source} do not fit the backbone: {len(missing)} missing {missing[:3]}.")
    return model


# ---- finding the four maps


def _plan(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """Add to a ``spec`` what depends on the feature maps, found by running the encoder without data ("meta" tensors).

    Raises:
        ValueError: if there are no maps at the four strides.
    """
    own, error = spec["image_size"], None
    whole = own % 32 == 0
    with torch.device("meta"):
        encoder = _build_with_all_levels(spec).eval()
        for divisor in sorted({32, 64, 128, 224, own} if whole else {32, 64, 128, 224}):
            try:
                chosen = _choose(encoder, divisor, divisor)
                if _choose(encoder, 3 * divisor, 5 * divisor) == chosen:
                    return _complete(spec | chosen | {"size_divisor": divisor, "tiles": False})
            except Exception as refusal:  # in their own ways: asserts, shapes that do not match, ...
                error = refusal
        try:
            chosen = _choose(encoder, own, own)
            if whole:
                return _complete(spec | chosen | {"size_divisor": own, "tiles": True})
            error = ValueError(f"it takes only images of one size, and {own} pixels are no multiple of 32.")
        except Exception as refusal:
            error = refusal
    raise ValueError(f"{name} gives no feature maps at strides 4, 8, 16 and 32: {first_line(error)}.") from error


def _build_with_all_levels(spec: dict[str, Any]) -> nn.Module:
    if spec["library"] == "timm":
        return build_timm(spec)
    names = getattr(_config(spec), "stage_names", None) or []
    return _from_config(_config(spec, list(range(len(names)))))


def _choose(encoder: nn.Module, height: int, width: int) -> dict[str, Any]:
    """The last map of each stride, or four of an encoder with one stride; ValueError if there are no such maps."""
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
        raise ValueError(f"of {height} x {width} pixels it makes {[tuple(features.shape[2:]) for features in maps]}.")
    single = strides[0] if len(set(strides)) == 1 else None
    return {"levels": levels, "stride": single, "channels": [maps[level].shape[1] for level in levels]}


def _complete(spec: dict[str, Any]) -> dict[str, Any]:
    """Add the names of the encoder's parameters that the four maps do not depend on."""
    if spec["library"] == "transformers":
        returned = sorted(set(spec["levels"]))
        config = _config(spec, returned)
        if (
            type(config) in MODEL_FOR_BACKBONE_MAPPING
        ):  # it has norms for the levels that it returns, and for no others
            spec |= {"levels": [returned.index(level) for level in spec["levels"]], "config": config_to_dict(config)}
    pyramid = PyramidBackbone(spec | {"unused": []}).eval()
    maps = pyramid(torch.zeros(1, 3, spec["size_divisor"], spec["size_divisor"]))
    sum(features.sum() for features in maps).backward()
    return spec | {"unused": [name for name, value in pyramid.model.named_parameters() if value.grad is None]}
