"""The models as Transformers models: backbone, heads for every level, and the label tree in the config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .backbones import Backbone
from .decoders import DECODERS
from .heads import LevelHeads
from .hierarchy import Hierarchy
from .pyramids import PyramidBackbone


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


@dataclass
class LabelTreeOutput(ModelOutput):
    """What the model returns.

    Attributes:
        logits: (batch, leaves, ...); a softmax gives probabilities of the leaves, in the order of ``config.id2label``.
        log_probs: per level, (batch, classes of the level, ...) float32.
    """

    logits: torch.Tensor | None = None
    log_probs: tuple[torch.Tensor, ...] | None = None


class LabelTreeModel(PreTrainedModel):
    """What models for whole images and for pixels have in common."""

    config_class = LabelTreeConfig
    main_input_name = "pixel_values"
    base_model_prefix = "backbone"

    def __init__(self, config: LabelTreeConfig) -> None:
        super().__init__(config)
        self.hierarchy = Hierarchy.from_dict(config.hierarchy)

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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Only what checkpoints do not hold: timm's tables that are computed when a model is made."""
        if isinstance(module, LevelHeads):
            module.reset_parameters()
        elif hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The heads' logits, which the loss takes: see :meth:`LevelHeads.forward`."""
        raise NotImplementedError

    def forward(
        self, pixel_values: torch.Tensor, logits_only: bool = False, return_dict: bool | None = None, **_: Any
    ) -> LabelTreeOutput | torch.Tensor | tuple:
        """Normalised images (batch, 3, height, width) -> :class:`LabelTreeOutput`, or logits alone for training."""
        logits = self.compute_logits(pixel_values)
        if logits_only:
            return logits
        output = LabelTreeOutput(logits=self.heads.leaf_logits(logits), log_probs=tuple(self.heads.log_probs(logits)))
        return output.to_tuple() if return_dict is False else output


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
