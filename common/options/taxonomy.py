"""The options of train_taxonomy.py that the other script does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .arguments import option
from .shared import CommonArguments

AUGMENTING = ("hflip", "vflip", "color_jitter", "crop_scale", "aspect_ratio", "auto_augment", "random_erasing")


@dataclass
class TaxonomyArguments(CommonArguments):
    """The options of this script."""

    level_columns: list[str] | None = option(None, "A column per level of the tree, coarse to fine.", group="Data")
    label_column: str | None = option(None, "One column that names a class of the tree in the file --hierarchy.")
    conflicts: Literal["keep", "majority", "error"] = option(
        "keep", "A name with another parent than in nine of ten of its rows: two classes, moved there, or an error."
    )

    resize_mode: Literal["center", "squash"] | None = option(
        None,
        "In evaluation: cut out the centre, or squash the image; by default as the backbone was evaluated.",
        group="Images and augmentation",
    )
    crop_pct: float | None = option(
        None, "Share of the resized image that evaluation keeps; by default the backbone's own.", "over 0 and up to 1"
    )
    tta: Literal["none", "hflip", "five_crop"] = option(
        "none", "Answer from several views of each image in evaluation, by mean probabilities; slower by their number."
    )
    crop_scale: float = option(0.25, "Smallest share of the area that a random crop keeps.", "over 0 and up to 1")
    aspect_ratio: float = option(1.33, "Widest random crop, width to height.", "at least 1")
    auto_augment: str | None = option(None, "timm policy, for example rand-m9-mstd0.5-inc1 (RandAugment).")
    random_erasing: float = option(0.0, "Probability of erasing a random rectangle.", "from 0 up to 1")
    mixup: float = option(0.0, "Alpha of mixup; 0 for none. The labels of every level are mixed.", "at least 0")
    cutmix: float = option(0.0, "Alpha of cutmix; 0 for none. The labels of every level are mixed.", "at least 0")
    mix_probability: float = option(1.0, "Share of the steps that mix, if mixup or cutmix are on.", "from 0 up to 1")

    init_leaf_from_classifier: str | None = option(
        None, "Start the last level from the backbone's classifier; FILE lists its names, one a line.", group="Model"
    )
    cache_features: str | None = option(None, "--tune head: keep features here, so that heads train in seconds.")
    feature_views: int = option(1, "Augmented views to draw features from; 1: as in evaluation.", "greater than 0")

    logit_adjustment: float = option(
        0.0, "Multiple of the log-prior added to the logits in training; usually 0 or 1.", "at least 0", group="Loss"
    )
    sampling: Literal["natural", "sqrt", "balanced", "repeat_factor"] = option(
        "natural", "How often images of rare classes are drawn: as they come, by the square root, balanced, repeated."
    )
    label_smoothing: float = option(0.0, "Share of the target spread over all classes.", "at least 0 and less than 1")
    eval_group_column: str | None = option(None, "Column (observation) whose images are evaluated together, too.")
    decoding: Literal["leaf", "levels", "cost"] = option(
        "leaf", "Best path: of the most probable leaf, with most levels expected right, or of the cheapest answer."
    )
    costs: str | None = option(None, "--decoding cost: YAML file with what answers cost, see docs/predicting.md.")
    explain: bool = option(False, "Show in the report what counted for the predictions of its examples (Grad-CAM).")
    score_unknown: bool = option(False, "Names of evaluation data that the tree lacks are unknown classes, no error.")
    top_k: int = option(5, "An image counts for top5_accuracy if its label is among so many classes.", "at least 1")

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.class_weighting != "none" and self.logit_adjustment:
            problems.append("--class_weighting and --logit_adjustment correct the same thing twice; choose one")
        if self.sampling != "natural" and (self.class_weighting != "none" or self.logit_adjustment):
            problems.append("--sampling and --class_weighting or --logit_adjustment correct the same thing twice")
        if self.mixes and (self.per_device_train_batch_size or 2) % 2:
            problems.append("mixup and cutmix mix pairs: --per_device_train_batch_size must be even")
        if self.score_unknown and not (self.level_columns or self.eval_only):
            problems.append("--score_unknown goes with --level_columns")
        trained = self.tune != "head" or self.unfreeze_after
        if self.cache_features and (trained or self.mixes or self.tta != "none"):
            problems.append("--cache_features goes with --tune head, and with no unfreeze_after, mixup, cutmix or tta")
        return problems

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with their neighbours."""
        return bool(self.mixup or self.cutmix)

    def idle(self) -> list[tuple[str, bool, str]]:
        plain = bool(self.cache_features) and self.feature_views == 1
        return [
            *super().idle(),
            ("feature_views", not self.cache_features, "there is no --cache_features"),
            *((name, plain, "--feature_views is 1") for name in AUGMENTING),
            ("costs", self.decoding != "cost", f"--decoding is {self.decoding}"),
            ("explain", self.no_report, "there is to be no report"),
            ("mix_probability", not self.mixes, "mixup and cutmix are off"),
            ("conflicts", bool(self.hierarchy) or self.eval_only, "the label tree comes from elsewhere"),
        ]
