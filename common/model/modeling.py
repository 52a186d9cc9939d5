"""The models as Transformers models: backbone, heads for every level, and the label tree in the config."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)
from transformers.utils import ModelOutput

from .answers import Answers, decode, thresholds_for
from .backbones import Backbone
from .decoders import DECODERS
from .heads import LevelHeads
from .hierarchy import Hierarchy
from .pyramids import PyramidBackbone
from .tree import IGNORE


class LabelTreeConfig(PretrainedConfig):
    """Everything needed to build the model again offline.

    Args:
        backbone: the ``spec`` of a :class:`common.model.backbones.Backbone`.
        hierarchy: :meth:`Hierarchy.to_dict`.
        head: kind of :class:`common.model.heads.LevelHeads`.
        dropout: probability of dropping a feature before the heads, while training.
        decoder: of dense models, a name of :data:`common.model.decoders.DECODERS`.
        decoder_channels: its width.
        head_scale: of a ``tree`` head; models that older versions saved have 1.
        evaluation: how images were resized and paths decoded in evaluation; predict.py does the same.
        calibration: see :class:`common.metrics.calibration.Calibration`; of models for whole images.
    """

    model_type = "label_tree"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "log_probs"
    ]  # what Transformers' Trainer collects are the leaves' logits
    _auto_class = "AutoConfig"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        hierarchy: dict[str, Any] | None = None,
        head: str = "tree",
        dropout: float = 0.0,
        decoder: str | None = None,
        decoder_channels: int | None = None,
        evaluation: dict[str, Any] | None = None,
        calibration: dict[str, Any] | None = None,
        head_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone
        self.hierarchy = hierarchy
        self.head = head
        self.head_scale = head_scale
        self.dropout = dropout
        self.decoder = decoder
        self.decoder_channels = decoder_channels
        self.evaluation = evaluation
        self.calibration = calibration
        super().__init__(**kwargs)


@dataclass(init=False)
class LevelOutput(ModelOutput):
    """A tensor per level. Pipelines take batches apart along such outputs' tensors, but along tuples themselves."""


@dataclass
class LabelTreeOutput(ModelOutput):
    """What the model returns.

    Attributes:
        loss: with ``labels``; see :meth:`LabelTreeModel.compute_loss`.
        logits: (batch, leaves, ...); a softmax gives probabilities of the leaves, in the order of ``config.id2label``.
        log_probs: per level, (batch, classes of the level, ...) float32.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    log_probs: tuple[torch.Tensor, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_probs is not None:  # an attribute as a tuple, an item as a LevelOutput
            levels = self.log_probs.values() if isinstance(self.log_probs, dict) else self.log_probs
            object.__setattr__(self, "log_probs", tuple(levels))
            named = {f"level_{index}": level for index, level in enumerate(self.log_probs)}
            OrderedDict.__setitem__(self, "log_probs", LevelOutput(named))

    def to_tuple(self) -> tuple[Any, ...]:
        """What there is, in order."""
        return tuple(getattr(self, name) for name in self.keys())


class _EncoderModel(PreTrainedModel):
    """What has an encoder of another library in it, ``backbone.model``, and passes on what that can do."""

    config_class = LabelTreeConfig
    main_input_name = "pixel_values"
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True

    def set_attn_implementation(self, attn_implementation: str, **options: Any) -> None:
        """How attention is computed: ``eager``, ``sdpa``, or what else the encoder's library has."""
        encoder = self.backbone.model
        if isinstance(encoder, PreTrainedModel):
            encoder.set_attn_implementation(attn_implementation, **options)
        elif attn_implementation not in ("eager", "sdpa"):
            raise ValueError(f"timm's encoders have no attn_implementation {attn_implementation!r}: eager or sdpa.")
        for module in encoder.modules():
            if hasattr(module, "fused_attn"):  # timm's
                module.fused_attn = attn_implementation == "sdpa"
        self.config._attn_implementation_internal = attn_implementation

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *_: Any, **__: Any) -> str | None:
        return attn_implementation  # the encoder checks it

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **options: Any
    ) -> None:
        encoder, self.gradient_checkpointing = self.backbone.model, enable
        if isinstance(encoder, PreTrainedModel):
            if not encoder.supports_gradient_checkpointing:
                raise ValueError(f"{type(encoder).__name__} has no gradient checkpointing.")
            encoder._set_gradient_checkpointing(enable, gradient_checkpointing_func, **options)
            return
        try:
            encoder.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            raise ValueError(f"timm's {type(encoder).__name__} has no gradient checkpointing.") from error

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Only what checkpoints do not hold: timm's tables that are computed when a model is made."""
        if isinstance(module, LevelHeads):
            module.reset_parameters()
        elif hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def post_init(self) -> None:
        """As Transformers does; with the attention that was asked for."""
        super().post_init()
        if self.config._attn_implementation is not None:
            self.set_attn_implementation(self.config._attn_implementation)


class LabelTreeFeatures(_EncoderModel):
    """The encoder alone, as ``AutoModel`` loads it: image -> pooled features, or of dense models feature maps."""

    _keys_to_ignore_on_load_unexpected = (r"^heads\.", r"^decoder\.")

    def __init__(self, config: LabelTreeConfig) -> None:
        super().__init__(config)
        self.backbone = (PyramidBackbone if config.decoder else Backbone)(config.backbone)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPooling | BackboneOutput | tuple:
        """Normalised images -> ``pooler_output`` (batch, channels), or ``feature_maps`` at strides 4, 8, 16 and 32."""
        features = self.backbone(pixel_values.to(self.dtype))
        dense = isinstance(features, list)
        output = (
            BackboneOutput(feature_maps=tuple(features))
            if dense
            else BaseModelOutputWithPooling(pooler_output=features)
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()


class LabelTreeModel(_EncoderModel):
    """What models for whole images and for pixels have in common."""

    accepts_loss_kwargs = False  # Transformers' Trainer: the loss is a mean over the batch

    def __init__(self, config: LabelTreeConfig) -> None:
        super().__init__(config)
        self.hierarchy = Hierarchy.from_dict(config.hierarchy)
        names, given = self.hierarchy.leaf_names(), list((config.id2label or {}).values())
        if len(given) != len(names) or set(given).isdisjoint(names):
            raise ValueError(
                f"num_labels or id2label has {len(given)} classes ({', '.join(map(str, given[:3]))}, ...); the label "
                f"tree of the model has {len(names)} leaves ({', '.join(names[:3])}, ...), which cannot be "
                "replaced here. To train on another tree, give the folder to the script: --model_name_or_path."
            )

    @classmethod
    def build(cls, backbone: nn.Module, hierarchy: Hierarchy, head: str, **options: Any) -> LabelTreeModel:
        """A model for training, from a backbone that may already be trained; ``options`` are those of the config."""
        names = hierarchy.leaf_names()
        config = LabelTreeConfig(
            backbone=backbone.spec,
            hierarchy=hierarchy.to_dict(),
            head=head,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            **options,
        )
        trained = {name: value.clone() for name, value in backbone.state_dict().items()}
        model = cls(config, backbone)
        model.backbone.load_state_dict(trained)  # post_init may have initialised it anew
        model.heads.reset_parameters()
        return model

    @classmethod
    def is_saved_at(cls, folder: str | Path) -> bool:
        """Whether a local folder holds such a model; ValueError if it holds one that another script wrote."""
        file = Path(folder) / "config.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if content.get("model_type") != LabelTreeConfig.model_type:
            return False
        if content.get("architectures") != [cls.__name__]:
            raise ValueError(f"{folder} holds a {content.get('architectures')}, not a {cls.__name__}.")
        return True

    @classmethod
    def read_hierarchy(cls, folder: str | Path) -> Hierarchy:
        """The label tree of a model saved in a local folder; ValueError if there is none."""
        if not cls.is_saved_at(folder):
            raise ValueError(f"{folder} holds no model of a label tree.")
        return Hierarchy.from_dict(LabelTreeConfig.from_pretrained(folder).hierarchy)

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The heads' logits, which the loss takes: see :meth:`LevelHeads.forward`."""
        raise NotImplementedError

    def forward(
        self,
        pixel_values: torch.Tensor,
        logits_only: bool = False,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> LabelTreeOutput | torch.Tensor | tuple:
        """Normalised images (batch, 3, height, width) -> :class:`LabelTreeOutput`, or logits alone for training."""
        logits = self.compute_logits(pixel_values.to(self.dtype))
        if logits_only:
            return logits
        output = self.complete(logits, None if labels is None else self.compute_loss(logits, labels))
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()

    def complete(self, logits: torch.Tensor, loss: torch.Tensor | None = None) -> LabelTreeOutput:
        """All that follows from the heads' logits."""
        leaves = self.heads.leaf_logits(logits)
        if self.hierarchy.num_leaves == 1:  # pipelines show a single class's sigmoid
            leaves = torch.full_like(leaves, 100.0)
        return LabelTreeOutput(loss=loss, logits=leaves, log_probs=tuple(self.heads.log_probs(logits)))

    def compute_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of what is labelled, for training by others than our scripts.

        With one softmax over the leaves: of the finest class known, which trains the levels above too; of independent
        levels: of each level's class.

        Args:
            logits: the heads', (batch, outputs, ...); of dense models they are enlarged to the labels' size.
            labels: leaves (batch, ...) in the order of ``config.id2label``, or paths (batch, levels, ...): the class
                of each level. Negative numbers are ignored, and 255 in leaves of pixels if there are no more than 255.

        Raises:
            ValueError: if labels have another shape, or there is no such class.
        """
        sizes, per_leaf = self.hierarchy.num_classes, labels.dim() == logits.dim() - 1
        if not per_leaf and (labels.dim() != logits.dim() or labels.shape[1] != len(sizes)):
            raise ValueError(f"labels are leaves (batch, ...) or paths (batch, {len(sizes)}, ...): {labels.shape}.")
        labels = labels.long()
        if per_leaf and logits.dim() == 4 and self.hierarchy.num_leaves <= 255:
            labels = labels.where(labels != 255, IGNORE)
        columns, bounds = ((labels,), (self.hierarchy.num_leaves,)) if per_leaf else (labels.unbind(1), sizes)
        for column, bound in zip(columns, bounds, strict=True):
            if column.numel() and int(column.max()) >= bound:
                raise ValueError(f"There is a label {int(column.max())}, but there are {bound} classes.")
        path = self.hierarchy.lift(labels) if per_leaf else list(columns)
        if logits.dim() == 4:
            logits = F.interpolate(logits.float(), path[0].shape[1:], mode="bilinear", align_corners=False)
        total, count, open_ = 0.0, 0, torch.ones_like(path[0], dtype=torch.bool)
        for log_probs, label in reversed(list(zip(self.heads.log_probs(logits), path, strict=True))):
            known = (label >= 0) & open_
            chosen = log_probs.gather(1, label.clamp(min=0)[:, None])[:, 0]
            total, count = total - chosen.where(known, 0).sum(), count + known.sum()
            if self.heads.leaf_softmax:
                open_ = open_ & ~known
        return total / count.clamp(min=1)

    @property
    def decoding(self) -> str:
        """How the best path is found; see :func:`.answers.decode`."""
        return (self.config.evaluation or {}).get("decoding", "leaf")

    def decode(
        self,
        output: LabelTreeOutput,
        target_precision: float | None = None,
        thresholds: Sequence[float | None] | None = None,
    ) -> Answers:
        """The best path through the label tree, as the metrics of evaluation are of, and how far it is answered.

        Args:
            output: of the model, for images or pixels.
            target_precision: answer at the finest level at which this share of answers is expected right, by the
                thresholds that evaluation stored in ``config.calibration``.
            thresholds: lowest probability per level instead; ``None`` for levels that are not answered.

        Raises:
            ValueError: if the model has no calibration, or none for such a precision.
        """
        if target_precision is not None:
            if not self.config.calibration:
                raise ValueError("The model has no calibration for target_precision; give thresholds instead.")
            _, thresholds = thresholds_for(self.config.calibration, target_precision)
        return decode(self.hierarchy, output.logits, output.log_probs, self.decoding, thresholds)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """As Transformers does; ``AutoModel`` will load the encoder alone."""
        features = f"{__name__.rpartition('.')[2]}.{LabelTreeFeatures.__name__}"
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), "AutoModel": features}
        super().save_pretrained(save_directory, **options)


class LabelTreeForImageClassification(LabelTreeModel):
    """Image -> one class per level of the label tree."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: LabelTreeConfig, backbone: Backbone | None = None) -> None:
        super().__init__(config)
        self.backbone = backbone if backbone is not None else Backbone(config.backbone)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = LevelHeads(self.hierarchy, self.backbone.num_features, config.head, config.head_scale)
        self.post_init()

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.heads(self.dropout(self.backbone(pixel_values)))


class LabelTreeForSemanticSegmentation(LabelTreeModel):
    """Image -> one class per level and pixel. Logits and log-probabilities are at stride 4.

    Element (y, x) of them stands for the pixels 4y to 4y + 3, 4x to 4x + 3; the last row and column may stand for
    fewer. Resize them bilinearly for other sizes.
    """

    _auto_class = "AutoModelForSemanticSegmentation"
    stride = 4

    def __init__(self, config: LabelTreeConfig, backbone: PyramidBackbone | None = None) -> None:
        super().__init__(config)
        self.backbone = backbone if backbone is not None else PyramidBackbone(config.backbone)
        self.decoder = DECODERS[config.decoder](self.backbone.channels, config.decoder_channels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.heads = LevelHeads(self.hierarchy, self.decoder.num_features, config.head, config.head_scale)
        self.post_init()

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = (-(-side // self.stride) for side in pixel_values.shape[-2:])
        features = self.decoder(self.backbone(pixel_values))
        return self.heads(self.dropout(features))[:, :, :height, :width]  # the backbone may have padded


def _wants_dict(config: LabelTreeConfig, return_dict: bool | None) -> bool:
    return bool(config.return_dict if return_dict is None else return_dict)


# Pipelines look a model's class up here, to say that they do not support it.
for _names, _kind in (
    (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, LabelTreeForImageClassification),
    (MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, LabelTreeForSemanticSegmentation),
):
    _names.setdefault(LabelTreeConfig.model_type, _kind.__name__)
