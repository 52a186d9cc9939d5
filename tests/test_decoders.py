"""Decoders: shapes, gradients, and that no image of a batch sees another."""

from __future__ import annotations

import pytest
import torch

from common.model.decoders import DECODERS, num_groups, pool

CHANNELS = [8, 12, 20, 24]
EACH = pytest.mark.parametrize("name", DECODERS)


def make(name: str, in_channels=CHANNELS, channels: int = 32) -> torch.nn.Module:
    torch.manual_seed(0)
    return DECODERS[name](in_channels, channels)


def maps_of(height: int, width: int, batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Of an image of this many pixels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(CHANNELS, sizes, strict=True)]


@EACH
@pytest.mark.parametrize("height, width, batch", [(64, 96, 2), (32, 32, 1), (224, 32, 1)])
def test_shapes_and_gradients(name, height, width, batch):
    """Deepest maps down to 1 x 1, smaller than the pooled sizes, and a batch of one while training."""
    decoder = make(name).train()
    maps = [features.requires_grad_() for features in maps_of(height, width, batch)]
    output = decoder(maps)
    assert output.shape == (batch, decoder.num_features, height // 4, width // 4)
    (output * torch.randn_like(output)).sum().backward()
    for parameter, value in decoder.named_parameters():
        assert value.grad is not None and torch.isfinite(value.grad).all(), parameter
        assert value.grad.abs().max() > 0, parameter
    assert all(features.grad.abs().max() > 0 for features in maps)


@EACH
def test_output_does_not_depend_on_the_batch(name):
    decoder = make(name).train()
    maps = maps_of(64, 64, batch=4)
    with torch.no_grad():
        whole = decoder(maps)
        parts = [decoder([features[i : i + 1] for features in maps]) for i in range(4)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decoder.eval()(maps), whole)


@EACH
def test_every_map_matters_and_the_finest_acts_nearby(name):
    decoder = make(name).eval()
    maps = maps_of(128, 128, batch=1)
    with torch.no_grad():
        before = decoder(maps)
        for level in range(4):
            changed = [features.clone() for features in maps]
            changed[level][:, :, 0, 0] += 5
            change = (decoder(changed) - before).abs().mean((0, 1))
            near, far = change[:8, :8].mean(), change[-8:, -8:].mean()
            assert near > (2 if level == 3 else 5) * far, level  # pooling carries the deepest map everywhere


@EACH
def test_values_and_gradients_start_at_a_sensible_scale(name):
    output = make(name, channels=64)(maps_of(128, 128))
    assert 0.3 < output.std() < 3 and 0.2 < (output > 0).float().mean() < 0.8


def test_number_of_parameters():
    """Of a ConvNeXt-T with 256 channels: UPerNet's pooling, bottleneck and fusion dominate."""
    sizes = {name: sum(p.numel() for p in make(name, [96, 192, 384, 768], 256).parameters()) for name in DECODERS}
    norms = 4 + 1 + 3 + 3 + 1
    convolutions = 4 * 768 + 9 * (768 + 4 * 256) + (96 + 192 + 384) + 3 * 9 * 256 + 9 * 4 * 256
    assert sizes["upernet"] == 256 * convolutions + norms * 2 * 256
    assert 2e6 < sizes["unet"] < sizes["upernet"] < 1e7


@pytest.mark.parametrize("channels, widths", [(256, [256, 128, 64]), (48, [48, 24, 16]), (16, [16, 16, 16])])
def test_unet_halves_its_channels(channels, widths):
    decoder = make("unet", channels=channels)
    assert [step[-1][0].out_channels for step in decoder.steps] == widths
    assert decoder.num_features == widths[-1]


def test_groups_divide_the_channels():
    for channels, groups in [(256, 32), (128, 32), (64, 16), (48, 12), (24, 6), (16, 4), (7, 1)]:
        assert num_groups(channels) == groups


def test_pooling_is_that_of_torch():
    for size in [1, 2, 3, 6]:
        features = torch.randn(2, 3, 4, 7)
        torch.testing.assert_close(pool(features, size), torch.nn.functional.adaptive_avg_pool2d(features, size))


@EACH
def test_errors(name):
    for channels in (0, 8, 100):
        with pytest.raises(ValueError, match=f"multiple of 16, not {channels}"):
            DECODERS[name](CHANNELS, channels)
    with pytest.raises(ValueError, match="four feature maps, not 3"):
        DECODERS[name](CHANNELS[:3])


def test_the_linear_decoder_is_linear_in_normalised_maps():
    """Against its definition: layer norm of each pixel, then resized and side by side."""
    decoder, maps = make("linear"), maps_of(64, 96)
    normal = [torch.nn.functional.layer_norm(m.movedim(1, 3), m.shape[1:2]).movedim(3, 1) for m in maps]
    sized = [torch.nn.functional.interpolate(m, maps[0].shape[2:], mode="bilinear") for m in normal]
    torch.testing.assert_close(decoder(maps), torch.cat(sized, 1), rtol=1e-3, atol=1e-4)
    assert decoder.num_features == sum(m.shape[1] for m in maps)


def test_segformer_decoder_has_the_size_of_the_published_one():
    """B0's with 256 channels, but for its classifier: 0.395 M (Table 1a)."""
    decoder = make("segformer", [32, 64, 160, 256], 256)
    assert sum(p.numel() for p in decoder.parameters()) == 256 * (512 + 4) + 4 * 256 * 256 + 2 * 256
