"""The models as Transformers models: backbone, heads for every level, and the label tree in the config."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)
from transformers.utils import ModelOutput

from .answers import Answers, answer_levels, path_probabilities, thresholds_for
from .backbones import Backbone
from .costs import cheapest, cost_matrix
from .decoders import DECODERS, convolution, resize
from .encoder_models import EncoderModel, LabelTreeConfig, LabelTreeFeatures
from .heads import LevelHeads
from .hierarchy import Hierarchy
from .pyramids import PyramidBackbone
from .tree import IGNORE

logger = logging.getLogger(__name__)


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


class LabelTreeModel(EncoderModel):
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
        names = dict(enumerate(hierarchy.leaf_names()))
        names = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
        config = LabelTreeConfig(backbone=backbone.spec, hierarchy=hierarchy.to_dict(), head=head, **names, **options)
        trained = {name: value.clone() for name, value in backbone.state_dict().items()}
        model = cls(config, backbone)
        model.backbone.load_state_dict(trained, strict=False)  # post_init may have initialised it anew
        model.heads.reset_parameters()
        return model

    @classmethod
    def read_hierarchy(cls, folder: str | Path) -> Hierarchy | None:
        """The label tree of the model in a local folder; None without; ValueError if another script wrote it."""
        file = Path(folder) / "config.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if content.get("model_type") != LabelTreeConfig.model_type:
            return None
        if content.get("architectures") != [cls.__name__]:
            raise ValueError(f"{folder} holds a {content.get('architectures')}, not a {cls.__name__}.")
        return Hierarchy.from_dict(content["hierarchy"])

    def go_on_from(self, before: Any) -> None:
        """Take what a model of other classes or another head knows, if ``before`` is one: decoder, classes by name."""
        if isinstance(before, type(self)):
            if hasattr(self, "decoder"):
                self.decoder.load_state_dict(before.decoder.state_dict())
            known, of = self.heads.init_classes(before.heads.classifiers()), sum(self.hierarchy.num_classes)
            logger.warning("The saved model knows %d of %d classes by name; others start as their parents.", known, of)

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
        return self.as_wanted(output, return_dict)

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
        tree, per_leaf, labels = self.hierarchy, labels.dim() == logits.dim() - 1, labels.long()
        if not per_leaf and (labels.dim() != logits.dim() or labels.shape[1] != tree.num_levels):
            raise ValueError(
                f"labels are leaves (batch, ...) or paths (batch, {tree.num_levels}, ...): {labels.shape}."
            )
        if per_leaf and logits.dim() == 4 and tree.num_leaves <= 255:
            labels = labels.where(labels != 255, IGNORE)
        columns, bounds = ((labels,), (tree.num_leaves,)) if per_leaf else (labels.unbind(1), tree.num_classes)
        for column, bound in zip(columns, bounds, strict=True):
            if column.numel() and int(column.max()) >= bound:
                raise ValueError(f"There is a label {int(column.max())}, but there are {bound} classes.")
        path = tree.lift(labels) if per_leaf else columns
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

    def path_scores(
        self, logits: torch.Tensor, log_probs: Sequence[torch.Tensor] | None = None, are_leaves: bool = False
    ) -> torch.Tensor:
        """(batch, leaves, ...): the best path ends in the leaf with the highest of these, as the model was evaluated.

        It is the most probable leaf, or with the decoding ``levels`` the path with the most levels expected right.

        Args:
            logits: of the heads, or if they ``are_leaves`` of :meth:`LevelHeads.leaf_logits`.
            log_probs: of every level, if they are known.
        """
        if (self.config.evaluation or {}).get("decoding") == "levels":
            return self.hierarchy.path_scores([level.exp() for level in log_probs or self.heads.log_probs(logits)])
        return logits if are_leaves else self.heads.leaf_logits(logits)

    @cached_property
    def costs(self) -> torch.Tensor:
        """Of answers to whole images, for the decoding ``cost``."""
        return cost_matrix(self.hierarchy, **self.config.evaluation["costs"]).to(self.device)

    def decode(
        self,
        output: LabelTreeOutput,
        target_precision: float | None = None,
        thresholds: Sequence[float | None] | None = None,
        size: Sequence[int] | None = None,
    ) -> Answers:
        """The best path through the label tree, as the metrics of evaluation are of, and how far it is answered.

        Args:
            output: of the model, for images or pixels.
            target_precision: answer at the finest level at which this share of answers is expected right, by the
                thresholds that evaluation stored in ``config.calibration``.
            thresholds: lowest probability per level instead; ``None`` for levels that are not answered.
            size: height and width of the image that the model was shown; answers are then of its pixels.

        Raises:
            ValueError: if the model has no calibration, or none for such a precision.
        """
        if target_precision is not None:
            if not self.config.calibration:
                raise ValueError("The model has no calibration for target_precision; give thresholds instead.")
            _, thresholds = thresholds_for(self.config.calibration, target_precision)
        tree, chances = self.hierarchy, output.log_probs
        scores = self.path_scores(output.logits, chances, are_leaves=True)
        if size is not None:
            enlarge = partial(F.interpolate, size=tuple(size), mode="bilinear", align_corners=False)
            scores, chances = enlarge(scores.float()), [enlarge(level) for level in chances]
        leaf, level = scores.argmax(1), None
        if (self.config.evaluation or {}).get("decoding") == "cost":  # of whole images
            leaf, level = cheapest(tree, self.costs, output.logits.float().softmax(1))
        labels = tree.lift(leaf)
        path, probabilities = torch.stack(labels, 1), path_probabilities(chances, labels)
        if level is None or thresholds is not None:
            level = answer_levels(probabilities, path, [0.0] * tree.num_levels if thresholds is None else thresholds)
        return Answers(tree, leaf, path, probabilities, level)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """As Transformers does; ``AutoModel`` will load the encoder alone."""
        features = f"{LabelTreeFeatures.__module__.rpartition('.')[2]}.{LabelTreeFeatures.__name__}"
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), "AutoModel": features}
        if getattr(self, "auxiliary", None) is not None:
            kept = {name: value for name, value in self.state_dict().items() if not name.startswith("auxiliary.")}
            options = {"state_dict": kept, **options}
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
        known = pixel_values.shape[2:] == (1, 1)  # features that were computed before
        return self.heads(self.dropout(pixel_values.flatten(1) if known else self.backbone(pixel_values)))


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
        if config.decoder == "linear":  # reads a ViT's maps as they are
            self.backbone.resizers = nn.ModuleList()
        self.decoder = DECODERS[config.decoder](self.backbone.channels, config.decoder_channels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.heads = LevelHeads(self.hierarchy, self.decoder.num_features, config.head, config.head_scale)
        self.auxiliary: nn.Module | None = None
        self.post_init()

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = (-(-side // self.stride) for side in pixel_values.shape[-2:])
        maps = self.backbone(pixel_values)
        logits = self.heads(self.dropout(self.decoder(maps)))
        if logits.shape[2] < height:  # maps of a ViT
            divisor = self.backbone.size_divisor
            size = [-(-side // divisor) * divisor // self.stride for side in pixel_values.shape[-2:]]
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        if self.auxiliary is not None and self.training:
            logits = torch.cat([logits, resize(self.auxiliary(maps[2]), logits)])
        return logits[:, :, :height, :width]  # the backbone may have padded

    def add_auxiliary_head(self, channels: int = 256) -> None:
        """Add an FCN head on the map of stride 16, never saved, whose logits follow the others in training mode."""
        heads = LevelHeads(self.hierarchy, channels, self.config.head, self.config.head_scale)
        block = convolution(self.backbone.channels[2], channels, 3)
        self.auxiliary = nn.Sequential(block, nn.Dropout2d(self.config.dropout), heads)


# Pipelines look a model's class up here, to say that they do not support it.
for _names, _kind in (
    (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, LabelTreeForImageClassification),
    (MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, LabelTreeForSemanticSegmentation),
):
    _names.setdefault(LabelTreeConfig.model_type, _kind.__name__)
