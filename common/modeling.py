"""The trained model as Transformers knows it: a backbone, heads for every level, and the label tree in its config."""

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
from .heads import LevelHeads
from .hierarchy import Hierarchy


class LabelTreeConfig(PretrainedConfig):
    """Everything needed to build a model again offline.

    Args:
        backbone: the ``spec`` of a :class:`common.backbones.Backbone`.
        hierarchy: :meth:`Hierarchy.to_dict`.
        head: kind of :class:`common.heads.LevelHeads`.
        dropout: probability of dropping a feature before the heads, while training.
    """

    model_type = "label_tree"
    _auto_class = "AutoConfig"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        hierarchy: dict[str, Any] | None = None,
        head: str = "tree",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone
        self.hierarchy = hierarchy
        self.head = head
        self.dropout = dropout
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


class LabelTreeForImageClassification(PreTrainedModel):
    """Image -> one class per level of the label tree."""

    config_class = LabelTreeConfig
    _auto_class = "AutoModelForImageClassification"
    main_input_name = "pixel_values"
    base_model_prefix = "backbone"

    def __init__(self, config: LabelTreeConfig, backbone: Backbone | None = None) -> None:
        super().__init__(config)
        self.hierarchy = Hierarchy.from_dict(config.hierarchy)
        self.backbone = backbone if backbone is not None else Backbone(config.backbone)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = LevelHeads(self.hierarchy, self.backbone.num_features, config.head)
        self.post_init()

    @classmethod
    def build(cls, backbone: Backbone, hierarchy: Hierarchy, head: str, dropout: float = 0.0) -> PreTrainedModel:
        """A model for training, from a backbone that may already be trained."""
        names = hierarchy.leaf_names()
        config = LabelTreeConfig(
            backbone=backbone.spec,
            hierarchy=hierarchy.to_dict(),
            head=head,
            dropout=dropout,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        trained = {name: value.clone() for name, value in backbone.state_dict().items()}
        model = cls(config, backbone)
        model.backbone.load_state_dict(trained)  # post_init may have initialised it anew
        model.heads.reset_parameters()
        return model

    @staticmethod
    def is_saved_at(folder: str | Path) -> bool:
        """Whether a local folder holds such a model."""
        file = Path(folder) / "config.json"
        return file.is_file() and json.loads(file.read_text()).get("model_type") == LabelTreeConfig.model_type

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

    def scores(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the loss works on: see :meth:`LevelHeads.forward`."""
        return self.heads(self.dropout(self.backbone(pixel_values)))

    def forward(
        self, pixel_values: torch.Tensor, scores_only: bool = False, return_dict: bool | None = None, **_: Any
    ) -> LabelTreeOutput | torch.Tensor | tuple:
        """Normalised images (batch, 3, height, width) -> :class:`LabelTreeOutput`, or scores alone for training."""
        scores = self.scores(pixel_values)
        if scores_only:
            return scores
        output = LabelTreeOutput(logits=self.heads.leaf_scores(scores), log_probs=tuple(self.heads.log_probs(scores)))
        return output.to_tuple() if return_dict is False else output
