"""Encoders as Transformers models: their configuration, what every model with one in it can do, and one alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling

from .backbones import Backbone
from .heads import LevelHeads
from .pyramids import PyramidBackbone


class LabelTreeConfig(PretrainedConfig):
    """Everything needed to build the model again offline.

    Attributes:
        backbone: the ``spec`` of a :class:`common.model.backbones.Backbone`.
        hierarchy: :meth:`Hierarchy.to_dict`.
        head: kind of :class:`common.model.heads.LevelHeads`.
        dropout: probability of dropping a feature before the heads, while training.
        decoder: of dense models, a name of :data:`common.model.decoders.DECODERS`.
        decoder_channels: its width.
        head_scale: of a ``tree`` head; models that older versions saved have 1.
        evaluation: how images were resized and paths decoded in evaluation; predict.py does the same.
        calibration: see :func:`common.metrics.calibration.calibrate`; of models for whole images.
    """

    model_type = "label_tree"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["log_probs"]  # Transformers' Trainer collects leaves' logits
    _auto_class = "AutoConfig"

    backbone: dict[str, Any] | None = None
    hierarchy: dict[str, Any] | None = None
    head: str = "tree"
    dropout: float = 0.0
    decoder: str | None = None
    decoder_channels: int | None = None
    evaluation: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    head_scale: float = 1.0


class EncoderModel(PreTrainedModel):
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

    def as_wanted(self, output: Any, return_dict: bool | None) -> Any:
        """The output, or a tuple if that is asked for, by default in the configuration."""
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

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


class LabelTreeFeatures(EncoderModel):
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
        if isinstance(features, list):
            output = BackboneOutput(feature_maps=tuple(features))
        else:
            output = BaseModelOutputWithPooling(pooler_output=features)
        return self.as_wanted(output, return_dict)
