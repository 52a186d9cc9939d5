"""Decoders of semantic segmentation: a pyramid of four feature maps -> one map at stride 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import nn
from torch.nn import functional as F

_STEP = 16  # channels come in multiples of this, so that halves and quarters still make groups


class _Decoder(nn.Module):
    """Four maps (batch, channels, height / stride, width / stride) -> (batch, ``num_features``, as the first).

    Args:
        in_channels: of the four maps, from stride 4 to stride 32.
        channels: of the decoder's own maps, see each decoder; a multiple of 16.

    Raises:
        ValueError: if there are not four maps, or ``channels`` is no multiple of 16.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        if len(in_channels) != 4:
            raise ValueError(f"A decoder takes four feature maps, not {len(in_channels)}.")
        if channels < _STEP or channels % _STEP:
            raise ValueError(f"The channels of a decoder must be a multiple of {_STEP}, not {channels}.")
        self.num_features = channels


class UPerNet(_Decoder):
    """Pyramid pooling on the deepest map, then a feature pyramid, all of whose levels are fused at stride 4.

    Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018. Every level has ``channels``.
    """

    scales = (1, 2, 3, 6)

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__(in_channels, channels)
        *shallow, deepest = in_channels
        self.pooled = nn.ModuleList(convolution(deepest, channels, 1) for _ in self.scales)
        self.bottleneck = convolution(deepest + len(self.scales) * channels, channels, 3)
        self.laterals = nn.ModuleList(convolution(width, channels, 1) for width in shallow)
        self.smoothing = nn.ModuleList(convolution(channels, channels, 3) for _ in shallow)
        self.fusion = convolution(len(in_channels) * channels, channels, 3)
        self.apply(_initialise)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        *shallow, deepest = maps
        context = [
            resize(layer(pool(deepest, scale)), deepest) for scale, layer in zip(self.scales, self.pooled, strict=True)
        ]
        levels = [lateral(level) for lateral, level in zip(self.laterals, shallow, strict=True)]
        levels.append(self.bottleneck(torch.cat([deepest, *context], 1)))
        for index in reversed(range(len(shallow))):
            levels[index] = levels[index] + resize(levels[index + 1], levels[index])
        smooth = [layer(level) for layer, level in zip(self.smoothing, levels, strict=False)] + levels[-1:]
        return self.fusion(torch.cat([resize(level, smooth[0]) for level in smooth], 1))


class UNet(_Decoder):
    """From the deepest map up: twice the size, concatenate the encoder's map of that size, two 3x3 convolutions.

    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015; it ends at
    stride 4, where the encoders' finest map is. ``channels`` are the coarsest step's; each finer step has half of
    them, but at least 16.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__(in_channels, channels)
        *skips, width = in_channels
        self.steps = nn.ModuleList()
        for index, skip in enumerate(reversed(skips)):
            wide = max(channels >> index, _STEP)
            self.steps.append(nn.Sequential(convolution(width + skip, wide, 3), convolution(wide, wide, 3)))
            width = wide
        self.num_features = width
        self.apply(_initialise)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        *skips, features = maps
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            features = step(torch.cat([resize(features, skip), skip], 1))
        return features


class SegFormerHead(_Decoder):
    """SegFormer's (Xie et al., NeurIPS 2021): each map made ``channels`` wide, and all fused by a 1x1 convolution."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__(in_channels, channels)
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.fusion = convolution(len(in_channels) * channels, channels, 1)
        self.apply(_initialise)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        wide = [projection(features) for projection, features in zip(self.projections, maps, strict=True)]
        return self.fusion(torch.cat([resize(features, wide[0]) for features in wide], 1))


class Linear(_Decoder):
    """The maps themselves, normalised, side by side, as DINOv2 and DINOv3 are read; ``channels`` have no effect."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__(in_channels, channels)
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in in_channels)
        self.num_features = sum(in_channels)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        normal = [norm(features) for norm, features in zip(self.norms, maps, strict=True)]
        return torch.cat([resize(features, normal[0]) for features in normal], 1)


DECODERS: dict[str, type[nn.Module]] = {"upernet": UPerNet, "unet": UNet, "segformer": SegFormerHead, "linear": Linear}


def convolution(in_channels: int, channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution that keeps the size, group normalisation, ReLU.

    Not batch normalisation: batches per device are small here, a map pooled to 1 x 1 has no statistics in a batch of
    one, and results must not depend on how a batch is split over processes.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.GroupNorm(num_groups(channels), channels),
        nn.ReLU(inplace=True),
    )


def num_groups(channels: int) -> int:
    """At most 32 groups of at least 4 channels: a group of one is constant where the map is 1 x 1."""
    return max(groups for groups in range(1, 33) if groups == 1 or (channels % groups == 0 and channels >= 4 * groups))


def resize(features: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear interpolation to the height and width of another map."""
    if features.shape[2:] == like.shape[2:]:
        return features
    return F.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)


def pool(features: torch.Tensor, size: int) -> torch.Tensor:
    """:func:`F.adaptive_avg_pool2d`, as products with matrices: its own gradient is not deterministic on GPUs."""
    eye = torch.eye(max(features.shape[2:]), dtype=features.dtype, device=features.device)
    rows, columns = (F.adaptive_avg_pool1d(eye[None, :side, :side], size)[0] for side in features.shape[2:])
    return rows.T @ features @ columns


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):  # He et al. 2015
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
