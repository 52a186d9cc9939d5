"""Position embeddings of Transformers' encoders: resampled once for another image size, not in every forward pass."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig

Build = Callable[[PretrainedConfig], nn.Module]

_bias_indices: dict[Any, torch.Tensor] = {}


def image_size_of(config: PretrainedConfig) -> int | None:
    """The side of the images that a configuration is for, also that of an image encoder in it; ``None`` without."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    return size if size is None or isinstance(size, int) else size[0]


def with_image_size(config: PretrainedConfig, size: int) -> PretrainedConfig:
    """A copy of a configuration for images of another size."""
    config = copy.deepcopy(config)
    inner = getattr(config, "vision_config", config)
    inner.image_size = size if isinstance(inner.image_size, int) else [size] * len(inner.image_size)
    return config


def fit_config(config: PretrainedConfig, size: int | None, build: Build) -> PretrainedConfig:
    """The configuration for images of this size, if the shape of any weight depends on it; otherwise as it is."""
    if size is None or image_size_of(config) in (None, size):
        return config
    fitted = with_image_size(config, size)
    with torch.device("meta"):
        shapes = [{name: value.shape for name, value in build(each).state_dict().items()} for each in (config, fitted)]
    return config if shapes[0] == shapes[1] else fitted


def fit_weights(model: nn.Module, config: PretrainedConfig, build: Build) -> nn.Module:
    """A model of another image size with this model's weights; where they are of positions, resampled.

    The positions are those that the model would interpolate in each forward pass for such images. That costs time, and
    the gradient of bicubic interpolation is not deterministic on GPUs. ``config`` is from :func:`fit_config`.

    Raises:
        ValueError: it cannot be done.
    """
    size, own = image_size_of(config), image_size_of(model.config)
    if size == own:
        return model
    fitted = build(config)
    try:
        fitted.load_state_dict(_resampled(model, fitted, size))
    except (RuntimeError, AttributeError) as error:
        message = f"This backbone takes only images of {own} px, not {size}: leave --image_size out."
        raise ValueError(message) from error
    return fitted


@torch.no_grad()
def _resampled(model: nn.Module, fitted: nn.Module, size: int) -> dict[str, torch.Tensor]:
    state, shapes = model.state_dict(), {name: value.shape for name, value in fitted.state_dict().items()}
    for name, module in model.named_modules():
        for table in ("position_embeddings", "position_embedding.weight", "relative_position_bias_table"):
            key = f"{name}.{table}"
            if key not in state or state[key].shape == shapes[key]:
                continue
            if table == "relative_position_bias_table":
                state[key] = _resize_bias(state[key], module.window_size, fitted.get_submodule(name).window_size)
                continue
            # As the module itself interpolates them, shown a dummy of the right number of tokens.
            given = (torch.zeros(1, *shapes[key][-2:]), size, size)
            if "pos_embeds" in inspect.signature(module.interpolate_pos_encoding).parameters:
                given = (given[0], module.position_embeddings, size, size)
            state[key] = module.interpolate_pos_encoding(*given).reshape(shapes[key])
    return state


def speed_up_bias(model: nn.Module) -> None:
    """Let the relative position biases of BEiT and data2vec do their work once per size and not in every pass."""
    for module in model.modules():
        if hasattr(module, "relative_position_bias_table") and hasattr(module, "generate_relative_position_index"):
            kind = type(module)
            module.__class__ = type(kind.__name__, (_RelativePositionBias, kind), {})


class _RelativePositionBias(nn.Module):
    """In the place of Transformers' forward pass, with the same result.

    That one copies an index from the host and resizes table and bias in each layer and pass, even to their own size.
    Its index is remembered without the device, so that a pass on "meta" spoils later ones.
    """

    def forward(
        self, window_size: Sequence[int], interpolate_pos_encoding: bool = False, dim_size: int | None = None
    ) -> torch.Tensor:
        table = _resize_bias(self.relative_position_bias_table, self.window_size, window_size)
        key = (*window_size, table.device)
        index = _bias_indices.get(key)
        if index is None:
            with torch.device(table.device):
                index = self.generate_relative_position_index.__wrapped__(tuple(window_size))
            if type(index) is torch.Tensor and not torch.compiler.is_compiling():  # not one of a trace
                _bias_indices[key] = index
        return table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1).contiguous().unsqueeze(0)


def _resize_bias(table: torch.Tensor, old: Sequence[int], new: Sequence[int]) -> torch.Tensor:
    """BEiT's table (distances + 3, heads) for another number of patches (rows, columns), bilinearly."""
    if tuple(old) == tuple(new):
        return table
    rows, columns = (2 * side - 1 for side in old)
    grid = table[:-3].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=[2 * side - 1 for side in new], mode="bilinear")
    return torch.cat([grid[0].permute(1, 2, 0).flatten(0, 1), table[-3:]])
