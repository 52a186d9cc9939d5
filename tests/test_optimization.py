"""Parameter groups on tiny encoders of both libraries, and schedules against Transformers' and PyTorch's."""

import math

import pytest
import timm
import timm.optim
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    ResNetConfig,
    SegformerConfig,
    SwinConfig,
    ViTConfig,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from common.optim.parameters import parameter_groups
from common.optim.schedule import SCHEDULES, learning_rate_factor, set_learning_rate

SMALL = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
SMALL |= {"image_size": 32, "patch_size": 16}
CONFIGS = {
    "beit": BeitConfig(
        **SMALL, use_relative_position_bias=True, use_absolute_position_embeddings=True, use_mask_token=True
    ),
    "vit": ViTConfig(**SMALL),
    "swin": SwinConfig(embed_dim=8, depths=[1, 2, 1], num_heads=[1, 1, 1], image_size=32, patch_size=2, window_size=2),
    "convnext": ConvNextConfig(hidden_sizes=[8, 8, 8], depths=[1, 3, 1], num_stages=3),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 2], layer_type="basic"),
    "segformer": SegformerConfig(
        hidden_sizes=[8] * 4, depths=[1, 2, 1, 1], decoder_hidden_size=8, num_attention_heads=[1] * 4
    ),
}
TIMM = ["timm/resnet10t", "timm/test_vit", "timm/test_convnext", "timm/test_efficientnet", "timm/swin", "timm/beit"]
ENCODERS = [*TIMM, *CONFIGS]


class Model(nn.Module):
    """As the models of this project: an encoder in ``backbone.model``, and heads."""

    def __init__(self, name):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.model = make_encoder(name)
        self.heads = nn.Linear(4, 3)


def make_encoder(name):
    if name == "timm/swin":
        sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8}
        return SwinTransformer(**sizes, depths=(1, 2), num_heads=(1, 1), num_classes=0)
    if name == "timm/beit":
        sizes = {"img_size": 32, "embed_dim": 8, "depth": 3, "num_heads": 2}
        return timm.create_model("beit_base_patch16_224", num_classes=0, **sizes)
    if name.startswith("timm/"):
        return timm.create_model(name.removeprefix("timm/"), num_classes=0)
    encoder = AutoModelForImageClassification.from_config(CONFIGS[name])
    encoder.classifier = nn.Identity()
    return encoder


def settings(model, **options):
    """Name of each parameter -> its group."""
    groups = parameter_groups(model, 1e-3, 0.05, **options)
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(group_of) == sum(len(group["params"]) for group in groups), "a parameter is in two groups"
    return {name: group_of[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---- groups


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("name", ENCODERS)
def test_groups_cover_each_parameter_once_and_the_optimizer_takes_them(name, layer_decay):
    model = Model(name)
    frozen = next(model.backbone.parameters()).requires_grad_(False)
    groups = parameter_groups(model, 1e-3, 0.05, layer_decay)
    every = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(every) == sorted(id(p) for p in model.parameters() if p is not frozen)
    assert len({(group["weight_decay"], group["base_lr"]) for group in groups}) == len(groups)
    optimizer = torch.optim.AdamW(groups)
    set_learning_rate(optimizer, 0.5)
    assert all(group["lr"] == 0.5 * group["base_lr"] for group in optimizer.param_groups)
    if layer_decay == 1:
        assert {group["base_lr"] for group in groups} == {1e-3}


@pytest.mark.parametrize("name", ENCODERS)
def test_only_matrices_and_filters_decay(name):
    model = Model(name)
    modules = dict(model.named_modules())
    weights = {
        f"{path}.weight" for path, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)
    }  # independent of what parameters are called
    decayed = {parameter for parameter, group in settings(model).items() if group["weight_decay"]}
    assert decayed == weights and "heads.weight" in decayed
    assert {group["weight_decay"] for group in settings(model).values()} == {0.0, 0.05}


@pytest.mark.parametrize(
    "name, parts",
    [
        ("timm/test_vit", ["cls_token", "pos_embed"]),
        ("timm/beit", ["cls_token", "relative_position_bias_table"]),
        ("beit", ["cls_token", "mask_token", "position_embeddings", "relative_position_bias_table"]),
        ("swin", ["relative_position_bias_table"]),
    ],
)
def test_tokens_and_positions_do_not_decay(name, parts):
    """Guards the test above: these have two dimensions or more."""
    model = Model(name)
    shapes = {parameter: value.dim() for parameter, value in model.named_parameters()}
    for part in parts:
        found = {parameter: group for parameter, group in settings(model).items() if parameter.endswith(part)}
        assert found and all(shapes[parameter] > 1 and not group["weight_decay"] for parameter, group in found.items())


def parameters_in_order_of_use(encoder, size):
    """By running it: names of the parameters of each module when it is first called."""
    order = []
    for path, module in encoder.named_modules():
        own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)]
        module.register_forward_pre_hook(lambda _, __, own=own: order.extend(n for n in own if n not in order))
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, size, size))
    return order


NORM_WITH_HEADS = {"timm/test_convnext", "timm/beit", "beit", "vit", "swin", "convnext"}  # as in their recipes


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "convnext_tiny", "vit_tiny_patch16_224", "resnet18"])
def test_layer_decay_is_that_of_timm(name):
    """Each encoder parameter's rate in our model is its rate in timm's groups of the complete classifier."""
    small = {"depth": 2, "embed_dim": 32, "num_heads": 2} if "patch16" in name else {}
    classifier = timm.create_model(name, **small)
    groups = timm.optim.param_groups_layer_decay(classifier, layer_decay=0.5)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    expected = {parameter: scales[id(value)] for parameter, value in classifier.named_parameters()}
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.model = timm.create_model(name, num_classes=0, **small)
    for parameter, group in settings(model, layer_decay=0.5).items():
        assert group["base_lr"] == pytest.approx(1e-3 * expected[parameter.removeprefix("backbone.model.")])


@pytest.mark.parametrize("name", ENCODERS)
def test_layer_decay_rises_from_the_stem_to_the_heads(name):
    model = Model(name)
    size = 160 if name == "timm/test_vit" else 32
    rates = {parameter: group["base_lr"] for parameter, group in settings(model, layer_decay=0.5).items()}
    order = parameters_in_order_of_use(model.backbone.model, size)
    used = [rates[f"backbone.model.{parameter}"] for parameter in order]
    assert len(order) > 0.85 * len(rates)  # timm's BEiT uses some without calling their module
    assert used == sorted(used)
    assert rates["heads.weight"] == rates["heads.bias"] == 1e-3
    assert used[-1] == (1e-3 if name in NORM_WITH_HEADS else pytest.approx(0.5e-3))
    steps = sorted(set(used))
    assert all(high == pytest.approx(2 * low) for low, high in zip(steps, steps[1:], strict=False))
    assert len(steps) >= 4  # the stem, the heads, and blocks in between


# ---- schedules


def scheduled(make, num_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, factors = make(optimizer), []
    for _ in range(num_steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def ours(schedule, num_steps, warmup=0):
    return [learning_rate_factor(schedule, step, num_steps, warmup) for step in range(num_steps)]


@pytest.mark.parametrize("num_steps, warmup", [(100, 0), (100, 10), (7, 1), (1, 0), (5, 4)])
@pytest.mark.parametrize(
    "schedule, theirs",
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
def test_cosine_and_linear_are_those_of_transformers(schedule, theirs, num_steps, warmup):
    """But for the warm-up, which does not waste a step on a rate of 0."""
    expected = scheduled(lambda optimizer: theirs(optimizer, warmup, num_steps), num_steps + 1)
    rising = expected[1 : warmup + 1]
    assert ours(schedule, num_steps, warmup) == pytest.approx(rising + expected[warmup:num_steps])


@pytest.mark.parametrize("num_steps, warmup", [(100, 10), (100, 50), (37, 5), (100, 0), (11, 0)])
def test_one_cycle_is_that_of_torch(num_steps, warmup):
    share = warmup / num_steps if warmup else 0.3
    expected = scheduled(lambda optimizer: OneCycleLR(optimizer, 1.0, num_steps, pct_start=share), num_steps - 1)
    assert ours("onecycle", num_steps, warmup)[:-1] == pytest.approx(expected)
    assert ours("onecycle", num_steps, warmup)[-1] == pytest.approx(1 / 25e4)


def test_constant():
    assert ours("constant", 5, 2) == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps, warmup", [(1, 0), (1, 1), (2, 1), (3, 3), (50, 5)])
def test_factors_are_pure_and_in_range(schedule, num_steps, warmup):
    factors = ours(schedule, num_steps, warmup)
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors) and any(factors)
    backwards = [learning_rate_factor(schedule, step, num_steps, warmup) for step in reversed(range(num_steps))]
    assert backwards[::-1] == factors
    beyond = learning_rate_factor(schedule, num_steps + 3, num_steps, warmup)
    assert 0 <= beyond <= max(factors)
