"""Pyramids of both libraries' encoders: sizes, gradients, rebuilding, weights, and layer decay, all offline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from common.model.backbones import load_backbone
from common.model.encoders import segformer_config, segformer_size
from common.model.pyramids import STRIDES, PyramidBackbone
from common.optim.parameters import parameter_groups

# size_divisor, whether in tiles, and the image size to build for
TIMM = {
    "convnext_atto": (32, False, None),
    "resnet18": (32, False, None),
    "tf_efficientnet_lite0": (32, False, None),
    "mobilenetv3_small_050": (32, False, None),
    "regnetx_002": (32, False, None),
    "swin_tiny_patch4_window7_224": (32, False, None),
    "maxvit_tiny_tf_384": (64, False, 64),
    "coatnet_0_rw_224": (64, True, 64),
    "deit_tiny_distilled_patch16_224": (32, False, None),
    "test_vit": (32, False, 64),
    "beit_base_patch16_224": (64, True, 64),
    "pvt_v2_b0": (32, False, None),
    "edgenext_xx_small": (32, False, None),
    "fastvit_t8": (32, False, None),
}
SHALLOW = {"beit_base_patch16_224": {"depth": 4}}
SHALLOW |= dict.fromkeys(
    ("swin_tiny_patch4_window7_224", "maxvit_tiny_tf_384", "coatnet_0_rw_224"), {"depths": [1, 1, 1, 1]}
)
SINGLE = ("vit", "deit", "beit", "dinov2", "test_vit")  # encoders with one stride

SMALL = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 64}
HIERARCHY = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 16, 24]}
TRANSFORMERS = {
    "swin": transformers.SwinConfig(embed_dim=12, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4),
    "convnext": transformers.ConvNextConfig(**HIERARCHY),
    "resnet": transformers.ResNetConfig(embedding_size=8, layer_type="basic", **HIERARCHY),
    "segformer": transformers.SegformerConfig(num_attention_heads=[1] * 4, decoder_hidden_size=8, **HIERARCHY),
    "regnet": transformers.RegNetConfig(embedding_size=8, groups_width=8, **HIERARCHY),  # AutoModel's hidden states
    "beit": transformers.BeitConfig(**SMALL, image_size=64, patch_size=16, use_relative_position_bias=True),
    "vit": transformers.ViTConfig(**SMALL, image_size=64, patch_size=16),  # AutoModel's tokens
    "dinov2": transformers.Dinov2Config(**{**SMALL, "image_size": 56, "patch_size": 14}),
}


def random_images(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) and a.std() > 0 for a, b in zip(first, second, strict=True))


def maps_of(model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return model.eval()(pixels)


@pytest.fixture
def zeros(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, new models start with zeros: drawing their weights takes most of the time, and must not matter."""

    def start() -> None:
        for method in ("uniform_", "normal_"):
            monkeypatch.setattr(torch.Tensor, method, lambda tensor, *_, **__: tensor.zero_())

    return start


class Holder(nn.Module):
    """As the trainers' models: ``backbone.model`` is the encoder."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.Linear(2, 2)


def source(name: str, folder: Path) -> str:
    """A network of timm, where it is deep with fewer blocks."""
    if name not in SHALLOW:
        return f"timm/{name}"
    config = {"architecture": name, "pretrained_cfg": timm.get_pretrained_cfg(name).to_dict()}
    (folder / "config.json").write_text(json.dumps(config | {"model_args": SHALLOW[name]}))
    return f"local-dir:{folder}"


def check(backbone: PyramidBackbone, name: str, zeros: Callable[[], None]) -> None:
    """Maps, gradients, the same model from its ``spec`` and state, and layer decay."""
    assert len(backbone.channels) == 4
    pixels = random_images(97, 130)
    divisor = backbone.size_divisor
    padded = [math.ceil(side / divisor) * divisor for side in (97, 130)]
    maps = backbone.train()(pixels)
    expected = [(1, c, padded[0] // s, padded[1] // s) for c, s in zip(backbone.channels, STRIDES, strict=True)]
    assert [tuple(features.shape) for features in maps] == expected
    sum((features * torch.randn_like(features)).sum() for features in maps).backward()
    assert all(value.grad.isfinite().all() for value in backbone.parameters() if value.grad is not None)
    for value in backbone.parameters():  # as the dry run does
        value.requires_grad_(value.grad is not None)
    assert not any("classifier" in key or key.startswith("model.head") for key in backbone.state_dict())
    if any(name.startswith(kind) for kind in SINGLE):
        assert len(backbone.resizers) == 4
    else:
        assert len(backbone.resizers) == 0

    zeros()
    rebuilt = PyramidBackbone(json.loads(json.dumps(backbone.spec)))
    rebuilt.load_state_dict(backbone.state_dict())
    assert sum(not value.requires_grad for value in backbone.parameters()) <= 4
    by_hand = F.pad(pixels, (0, padded[1] - 130, 0, padded[0] - 97))
    assert equal(maps_of(backbone, pixels), maps_of(rebuilt, by_hand))

    holder = Holder(backbone)
    groups = parameter_groups(holder, 1e-3, 0.05, 0.7)
    trained = [parameter for parameter in holder.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    encoder = [rates[id(p)] for p in backbone.model.parameters() if p.requires_grad]
    assert len(set(encoder)) >= 4 and any(
        max(encoder) == pytest.approx(rate) for rate in (0.7e-3, 1e-3)
    )  # last norms go with the heads
    assert all(rates[id(p)] == 1e-3 for p in [*backbone.resizers.parameters(), *holder.heads.parameters()])


@pytest.mark.parametrize("name", TIMM)
def test_timm(name, zeros, tmp_path):
    divisor, tiles, image_size = TIMM[name]
    config = timm.get_pretrained_cfg(name)
    backbone, classifier = load_backbone(
        source(name, tmp_path), pretrained=False, image_size=image_size, drop_path_rate=0.0, pyramid=True
    )
    assert classifier is None and (backbone.size_divisor, backbone.spec["tiles"]) == (divisor, tiles)
    assert backbone.spec["image_size"] == (image_size or config.input_size[-1])
    assert backbone.spec["mean"] == list(config.mean) and backbone.spec["interpolation"] == config.interpolation
    check(backbone, name, zeros)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_from_a_local_folder(name, tmp_path, zeros):
    TRANSFORMERS[name].save_pretrained(tmp_path)
    backbone, classifier = load_backbone(str(tmp_path), pretrained=False, pyramid=True)
    assert classifier is None and backbone.size_divisor == (224 if name == "dinov2" else 32)
    check(backbone, name, zeros)


def test_segformer_needs_no_hub(zeros):
    backbone, _ = load_backbone("nvidia/mit-b0", pretrained=False, drop_path_rate=0.0, pyramid=True)
    assert (backbone.channels, backbone.size_divisor, backbone.spec["image_size"]) == ([32, 64, 160, 256], 32, 512)
    assert backbone.spec["interpolation"] == "bilinear"
    check(backbone, "segformer", zeros)


def test_segformer_names():
    """Numbers of parameters of the encoders: Table 6 of the paper, in millions."""
    for index, millions in enumerate([3.4, 13.1, 24.2, 44.0, 60.8, 81.4]):
        with torch.device("meta"):
            model = transformers.SegformerModel(segformer_config(f"nvidia/mit-b{index}"))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.035)
    assert segformer_size("nvidia/segformer-b5-finetuned-ade-640-640") == 640
    assert segformer_size("nvidia/segformer-b1-finetuned-cityscapes-1024-1024") == 1024
    for name in ("nvidia/mit-b6", "me/permit-b0", "mit-b0-copy", "microsoft/swin-b0"):
        assert segformer_config(name) is None


def test_tiles_are_independent_and_in_their_places(tmp_path):
    name = source("coatnet_0_rw_224", tmp_path)
    backbone, _ = load_backbone(name, pretrained=False, image_size=64, pyramid=True)
    pixels = random_images(128, 192)
    maps = maps_of(backbone, pixels)
    one = maps_of(backbone, pixels[:, :, 64:128, 128:192])
    for stride, whole, part in zip(STRIDES, maps, one, strict=True):
        side = 64 // stride
        torch.testing.assert_close(whole[:, :, side : 2 * side, 2 * side : 3 * side], part)


def test_encoders_without_the_four_strides():
    name = "timm/levit_128s"
    with pytest.raises(ValueError, match=f"{name} gives no feature maps at strides 4, 8, 16 and 32: "):
        load_backbone(name, pretrained=False, pyramid=True)


def test_one_size_must_be_a_multiple_of_32(tmp_path):
    name = source("beit_base_patch16_224", tmp_path)
    with pytest.raises(ValueError, match="only images of one size, and 48 pixels are not a multiple of 32"):
        load_backbone(name, pretrained=False, image_size=48, pyramid=True)


def test_unknown_names_are_told():
    for name in ("timm/no_such_net", "no-such-org/no-such-model"):
        with pytest.raises(ValueError, match=f"Cannot load the backbone '{name}'.*mit-b0 to b5 are offline"):
            load_backbone(name, pretrained=False, pyramid=True)


# ---- weights


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_vit"])
def test_weights_file_of_a_timm_classifier(name, tmp_path):
    """Loaded strictly, classifier included; then the maps are those of the whole model."""
    torch.manual_seed(0)
    stock = timm.create_model(name, num_classes=9).eval()
    save_file(stock.state_dict(), tmp_path / "good.safetensors")
    backbone, _ = load_backbone(f"timm/{name}", weights=str(tmp_path / "good.safetensors"), pyramid=True)
    assert set(backbone.model.state_dict()) < set(stock.state_dict())
    size = backbone.spec["image_size"]
    pixels = random_images(size, size)
    with torch.no_grad():
        all_maps = stock.forward_intermediates(pixels, intermediates_only=True)
    levels = backbone.spec["levels"]
    maps = maps_of(backbone, pixels)
    if name == "test_vit":  # the third is at the encoder's own stride
        assert equal([maps[2]], [all_maps[levels[2]]])
    else:
        assert equal(maps, [all_maps[level] for level in levels])
    with pytest.raises(ValueError, match="do not fit the backbone.*missing.*unexpected"):
        load_backbone("timm/test_resnet", weights=str(tmp_path / "good.safetensors"), pyramid=True)


@pytest.mark.parametrize("kind", ["ImageClassification", "SemanticSegmentation"])
def test_segformer_checkpoints_of_either_kind(kind, tmp_path):
    """From a folder and from its file, whose names are those of the published checkpoints."""
    torch.manual_seed(0)
    stock = getattr(transformers, f"SegformerFor{kind}")(TRANSFORMERS["segformer"]).eval()
    stock.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    assert "segformer.encoder.block.1.1.mlp.dwconv.dwconv.weight" in load_file(file)
    processor = transformers.SegformerImageProcessor(image_mean=[0.1, 0.2, 0.3], resample=3)
    processor.save_pretrained(tmp_path)
    pixels = random_images(64, 96)
    with torch.no_grad():
        expected = stock(pixels, output_hidden_states=True).hidden_states
    for options in ({}, {"weights": str(file)}):
        backbone, _ = load_backbone(str(tmp_path), pyramid=True, **options)
        assert equal(maps_of(backbone, pixels), expected)
        assert (backbone.spec["mean"], backbone.spec["interpolation"]) == ([0.1, 0.2, 0.3], "bicubic")
    with pytest.raises(ValueError, match=r"do not fit the backbone|Cannot load the backbone"):
        load_backbone("nvidia/mit-b0", weights=str(file), pyramid=True)


@pytest.mark.parametrize("name", ["swin", "beit", "vit"])
def test_transformers_classifiers(name, tmp_path):
    """Their encoder's weights, although a backbone may have norms that they lack."""
    torch.manual_seed(0)
    stock = transformers.AutoModelForImageClassification.from_config(TRANSFORMERS[name])
    stock.save_pretrained(tmp_path)
    backbone, _ = load_backbone(str(tmp_path), pyramid=True)
    theirs = {key.removeprefix(f"{name}."): value for key, value in stock.state_dict().items()}
    ours = {key.removeprefix(f"{name}."): value for key, value in backbone.model.state_dict().items()}
    shared = theirs.keys() & ours.keys()
    assert len(shared) > 0.8 * len(ours) and all(torch.equal(theirs[key], ours[key]) for key in shared)
    assert all("norm" in key or "pooler" in key for key in ours.keys() - shared)
    save_file({"other": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="bad.safetensors do not fit the backbone: .* missing"):
        load_backbone(str(tmp_path), weights=str(tmp_path / "bad.safetensors"), pyramid=True)


# ---- inside a saved model


class SavedConfig(PretrainedConfig):
    model_type = "test_pyramid"

    def __init__(self, backbone=None, **kwargs):
        self.backbone = backbone
        super().__init__(**kwargs)


class Saved(PreTrainedModel):
    """As :class:`common.model.modeling.LabelTreeForImageClassification` holds its backbone."""

    config_class = SavedConfig
    base_model_prefix = "backbone"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = PyramidBackbone(config.backbone)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def forward(self, pixel_values):
        return self.backbone(pixel_values)


@pytest.mark.parametrize(
    "name",
    ["segformer", "swin", "beit", "timm/test_vit", "timm/coatnet_0_rw_224"],
)
def test_inside_a_saved_model(name, tmp_path, zeros):
    """Transformers builds models without memory first; tables that checkpoints lack must be computed all the same."""
    if name in TRANSFORMERS:
        TRANSFORMERS[name].save_pretrained(tmp_path / "config")
    folder: Path = tmp_path / "saved"
    origin = str(tmp_path / "config") if name in TRANSFORMERS else source(name.removeprefix("timm/"), tmp_path)
    backbone, _ = load_backbone(origin, pretrained=False, image_size=64, pyramid=True)
    zeros()
    model = Saved(SavedConfig(backbone=backbone.spec))
    model.backbone.load_state_dict(backbone.state_dict())
    model.save_pretrained(folder)
    loaded = Saved.from_pretrained(folder).backbone
    tensors = [dict([*part.named_parameters(), *part.named_buffers()]) for part in (loaded, backbone)]
    assert all(torch.equal(value, tensors[1].pop(name)) for name, value in tensors[0].items()) and not tensors[1]
    # Not bit by bit: kernels depend on where in memory the weights lie.
    torch.testing.assert_close(maps_of(loaded, random_images(64, 96)), maps_of(backbone, random_images(64, 96)))
