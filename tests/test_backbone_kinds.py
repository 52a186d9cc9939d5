"""Kinds of encoders of Transformers and timm: each trains and loads again as the same, or is refused in one line."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from common.model import positions
from common.model.backbones import Backbone, load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification, LabelTreeForSemanticSegmentation
from common.run.dry_run import dry_run

TREE = Hierarchy(["genus", "species"], [["x", "w"], ["y", "z"]], [[None, None], [0, 0]])

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {**SMALL, "image_size": 32, "patch_size": 8}
DINO = {**SMALL, "image_size": 32, "patch_size": 8}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
STAGES = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
WINDOWS = {"embed_dim": 12, "depths": [1] * 4, "num_heads": [1, 2, 2, 2], "window_size": 2, "image_size": 64}
LEVIT = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2] * 3, "depths": [1] * 3, "key_dim": [8] * 3}

# With position embeddings that depend on the image size.
POSITIONS = {
    "beit": lambda: transformers.BeitConfig(**VIT, use_relative_position_bias=True),
    "beit shared": lambda: transformers.BeitConfig(
        **VIT, use_shared_relative_position_bias=True, use_absolute_position_embeddings=True
    ),
    "data2vec": lambda: transformers.Data2VecVisionConfig(**VIT, use_relative_position_bias=True),
    "vit": lambda: transformers.ViTConfig(**VIT),
    "deit": lambda: transformers.DeiTConfig(**VIT, architectures=["DeiTForImageClassificationWithTeacher"]),
    "dinov2": lambda: transformers.Dinov2Config(**DINO),
    "dinov2 with registers": lambda: transformers.Dinov2WithRegistersConfig(**DINO),
    "siglip": lambda: transformers.SiglipConfig(vision_config=dict(VIT), text_config=dict(TEXT)),
    "clip": lambda: transformers.CLIPConfig(vision_config=dict(VIT), text_config=dict(TEXT)),
    "metaclip 2": lambda: transformers.MetaClip2Config(vision_config=dict(VIT), text_config=dict(TEXT)),
    "hiera": lambda: transformers.HieraConfig(image_size=[32, 32], embed_dim=16, depths=[1] * 4, num_heads=[1] * 4),
    "vit_msn": lambda: transformers.ViTMSNConfig(**VIT),
    "ijepa": lambda: transformers.IJepaConfig(**VIT),
}
OTHERS = {
    "levit": lambda: transformers.LevitConfig(
        **LEVIT, image_size=64, architectures=["LevitForImageClassificationWithTeacher"]
    ),
    "swin": lambda: transformers.SwinConfig(**WINDOWS),
    "swinv2": lambda: transformers.Swinv2Config(**WINDOWS),
    "convnext": lambda: transformers.ConvNextConfig(**STAGES, image_size=32),
    "convnextv2": lambda: transformers.ConvNextV2Config(**STAGES, image_size=32),
    "resnet": lambda: transformers.ResNetConfig(**STAGES, embedding_size=8, layer_type="basic"),
    "regnet": lambda: transformers.RegNetConfig(**STAGES, embedding_size=8, groups_width=8),
    "poolformer": lambda: transformers.PoolFormerConfig(**STAGES),
    "segformer": lambda: transformers.SegformerConfig(**STAGES, num_attention_heads=[1] * 4),
    "pvt": lambda: transformers.PvtConfig(**STAGES, image_size=64, num_attention_heads=[1] * 4, mlp_ratios=[2] * 4),
    "pvt_v2": lambda: transformers.PvtV2Config(
        **STAGES, image_size=64, num_attention_heads=[1] * 4, mlp_ratios=[2] * 4
    ),
    "mobilevit": lambda: transformers.MobileViTConfig(
        image_size=64, hidden_sizes=[24, 24, 32], neck_hidden_sizes=[8, 16, 24, 24, 24, 24, 48], num_attention_heads=2
    ),
    "mobilenet_v2": lambda: transformers.MobileNetV2Config(image_size=64, depth_multiplier=0.25),
    "efficientnet": lambda: transformers.EfficientNetConfig(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320
    ),
    "focalnet": lambda: transformers.FocalNetConfig(image_size=64, embed_dim=12, depths=[1] * 4),
    "bit": lambda: transformers.BitConfig(hidden_sizes=[128, 256, 256, 256], depths=[1] * 4),
}
REFUSED = {
    "dinov3": (lambda: transformers.DINOv3ViTConfig(**VIT), "no image classifier of type dinov3_vit; look for timm/"),
    "vit_mae": (lambda: transformers.ViTMAEConfig(**VIT), "no image classifier of type vit_mae; look for timm/"),
    "siglip2": (
        lambda: transformers.Siglip2Config(
            vision_config={**SMALL, "patch_size": 8, "num_patches": 16}, text_config=dict(TEXT)
        ),
        "does not train at .* Choose another",
    ),
    "perceiver": (
        lambda: transformers.PerceiverConfig(num_latents=4, d_latents=16, d_model=16, image_size=32),
        "no linear classifier on pooled features; look for timm/",
    ),
}
# fmt: off
TIMM = [
    "beit_base_patch16_224", "cait_xxs24_224", "coatnet_nano_rw_224", "convnext_atto", "davit_tiny",
    "deit3_small_patch16_224", "edgenext_xx_small", "efficientformerv2_s0", "eva02_tiny_patch14_224", "fastvit_t8",
    "focalnet_tiny_srf", "ghostnet_050", "hiera_tiny_224", "hrnet_w18_small", "levit_128s", "maxvit_tiny_rw_224",
    "mixer_s16_224", "mobilenetv4_conv_small", "mobilevit_xxs", "mvitv2_tiny", "pit_ti_224", "poolformer_s12",
    "pvt_v2_b0", "regnetx_002", "repvgg_a0", "resnetv2_50", "starnet_s1", "swin_tiny_patch4_window7_224",
    "tf_efficientnetv2_b0", "tiny_vit_5m_224", "twins_pcpvt_small", "vit_small_patch16_dinov3",
    "xcit_nano_12_p16_224",
]
# fmt: on


def stock(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """Transformers' model as it loads checkpoints of this kind, with position embeddings that are not zero."""
    torch.manual_seed(0)
    kind = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    model = (kind[0] if isinstance(kind, tuple) else kind)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position" in name:
                parameter.normal_(std=0.5)
    return model.eval()


def saved(config: transformers.PretrainedConfig, folder: Path) -> str:
    stock(config).save_pretrained(folder)
    return str(folder)


def dry_run_of(name: str, backbone: Backbone, **options: object) -> LabelTreeForImageClassification:
    """ValueError unless it trains, can be saved, and gives the same logits when it is loaded again."""
    kind = LabelTreeForSemanticSegmentation if options else LabelTreeForImageClassification
    model = kind.build(backbone, TREE, "tree", **options)
    args = argparse.Namespace(model_name_or_path=name, image_size=None, ema_decay=0.0)

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return model.train()(pixels, logits_only=True).square().mean()

    dry_run(args, Accelerator(cpu=True), model, loss, 2)
    return model


class Resizing(TorchDispatchMode):
    """Notes interpolations: the gradient of the bicubic one is not deterministic on GPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "upsample" in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def pixels_of(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


# ---- kinds


@pytest.mark.parametrize(
    "name", [*POSITIONS, "levit", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_transformers(name, tmp_path):
    config = {**POSITIONS, **OTHERS}[name]()
    dry_run_of(name, load_backbone(saved(config, tmp_path))[0])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name, tmp_path):
    make, message = REFUSED[name]
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        dry_run_of(name, load_backbone(str(tmp_path), pretrained=False)[0])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    dry_run_of(name, load_backbone(f"timm/{name}", pretrained=False)[0])


@pytest.mark.parametrize("name, frozen", [("siglip", 11), ("clip", 2), ("metaclip 2", 2), ("vit", 0), ("beit", 0)])
def test_what_gets_no_gradient_is_frozen(name, frozen, tmp_path, caplog):
    """SigLIP's attention pooling and CLIP's last norm: several processes would wait for their gradients."""
    with caplog.at_level("INFO"):
        model = dry_run_of(name, load_backbone(saved(POSITIONS[name](), tmp_path))[0])
    still = [each for each, value in model.named_parameters() if not value.requires_grad and "mask_token" not in each]
    assert len(still) == frozen and (f"{frozen} parameters get no gradient" in caplog.text) == bool(frozen)


# ---- another image size


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_resampled_once(name, tmp_path):
    """As Transformers interpolates them, but not in each forward pass; saved and loaded again it stays so."""
    reference = stock(POSITIONS[name]())
    reference.save_pretrained(tmp_path)
    size = 64
    backbone, classifier = load_backbone(str(tmp_path), image_size=size)
    assert positions.image_size_of(backbone.model.config) == size == backbone.spec["image_size"]
    options = {} if name.startswith(("dinov2",)) else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = reference(pixels_of(size), **options).logits
        torch.testing.assert_close(classifier(backbone.eval()(pixels_of(size))), expected)
    model = LabelTreeForImageClassification.build(backbone, TREE, "tree")
    model.save_pretrained(tmp_path / "ours")
    again = LabelTreeForImageClassification.from_pretrained(tmp_path / "ours")
    for each in (model, again):
        with Resizing() as resizing:
            each.train()(pixels_of(size), logits_only=True).sum().backward()
        assert resizing.found == []
    assert torch.equal(model.eval()(pixels_of(size)).logits, again.eval()(pixels_of(size)).logits)


@pytest.mark.parametrize("name", ["beit", "data2vec", "vit", "dinov2", "hiera"])
def test_positions_of_pyramids_are_resampled_once(name, tmp_path):
    """To the padded size."""
    backbone, _ = load_backbone(saved(POSITIONS[name](), tmp_path), image_size=96, pyramid=True)
    with Resizing() as resizing:
        sum(features.sum() for features in backbone.train()(pixels_of(96))).backward()
    assert not [found for found in resizing.found if "bicubic" in found]
    dry_run_of(name, backbone, decoder="unet", decoder_channels=16)


def test_models_saved_before_go_on_interpolating(tmp_path):
    """Their positions are those of the backbone's own size."""
    reference = stock(POSITIONS["vit"]())
    backbone, classifier = load_backbone(saved(reference.config, tmp_path))
    spec = backbone.spec | {"image_size": 64}
    before = Backbone(spec)
    before.load_state_dict(backbone.state_dict())
    backbone.load_state_dict(before.state_dict())
    with torch.no_grad():
        expected = stock(reference.config)(pixels_of(64), interpolate_pos_encoding=True).logits
        torch.testing.assert_close(classifier(before.eval()(pixels_of(64))), expected)


@pytest.mark.parametrize("name", ["levit", "pvt"])
def test_weights_of_one_size(name, tmp_path):
    with pytest.raises(ValueError, match="takes only images of 64 px, not 96: leave --image_size out"):
        load_backbone(saved(OTHERS[name](), tmp_path), image_size=96)


# ---- the size that a model was trained with


@pytest.mark.parametrize(
    "name, processor, size",
    [
        ("siglip", None, 32),
        ("clip", {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}, 40),
        ("resnet", {"size": {"height": 48, "width": 48}}, 48),
        (
            "resnet",
            {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}, "do_center_crop": True},
            48,
        ),
        ("resnet", {"size": {"shortest_edge": 56}}, 56),
        ("convnext", {"size": {"shortest_edge": 384}}, 384),
        ("convnext", None, 32),
    ],
)
def test_image_size(name, processor, size, tmp_path):
    saved({**POSITIONS, **OTHERS}[name](), tmp_path)
    if processor:
        transformers.ViTImageProcessor(**processor).save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path))[0].spec["image_size"] == size
    assert load_backbone(str(tmp_path), image_size=64)[0].spec["image_size"] == 64
    assert load_backbone(str(tmp_path), image_size=64, pretrained=False)[0].spec["image_size"] == 64


# ---- weights


def test_weights_that_a_checkpoint_lacks_are_named(tmp_path, caplog):
    reference = stock(POSITIONS["vit"]())
    state = {name: value for name, value in reference.state_dict().items() if "layernorm.weight" not in name}
    reference.save_pretrained(tmp_path, state_dict={n: v for n, v in state.items() if "classifier" not in n})
    backbone, classifier = load_backbone(str(tmp_path))
    assert classifier is None  # --init_leaf_from_classifier has nothing to start from
    assert "no weights for 1 tensors, which start at random: vit.layernorm.weight" in caplog.text


# ---- BEiT's relative positions


@pytest.mark.parametrize("name", ["beit", "beit shared", "data2vec"])
def test_faster_bias_is_the_same(name, tmp_path):
    """To the last bit, gradients included; the names of the weights too; at the table's size nothing is resized."""
    reference = stock(POSITIONS[name]())
    backbone, classifier = load_backbone(saved(reference.config, tmp_path))
    assert reference.state_dict().keys() - backbone.model.state_dict().keys() == {
        "classifier.weight",
        "classifier.bias",
    }
    load_backbone(str(tmp_path), pyramid=True)  # computes on "meta", which must not be remembered
    twin = copy.deepcopy(backbone)  # as the moving average has one
    for size in (32, 64):
        expected = reference(pixels_of(size), interpolate_pos_encoding=True).logits
        with Resizing() as resizing:
            found = classifier(backbone.eval()(pixels_of(size)))
        assert torch.equal(found, expected) and (resizing.found == []) == (size == 32)
        reference.zero_grad(), backbone.zero_grad()
        expected.square().sum().backward(), found.square().sum().backward()
        gradients = {name: value.grad for name, value in backbone.model.named_parameters()}
        for key, value in reference.named_parameters():
            if key in gradients and value.grad is not None:
                assert torch.equal(gradients[key], value.grad), key
    for parameter in twin.parameters():
        parameter.data.mul_(0.5)
    assert not torch.equal(classifier(twin.eval()(pixels_of(32))), classifier(backbone(pixels_of(32))))


def test_bias_is_traced_whole(tmp_path):
    backbone, _ = load_backbone(saved(POSITIONS["beit"](), tmp_path))
    expected = backbone.eval()(pixels_of(32))
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert torch.equal(compiled(pixels_of(32)), expected)
