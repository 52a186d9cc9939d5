"""The options of train_segmentation.py that the other script does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .arguments import option
from .shared import CommonArguments


@dataclass
class SegmentationArguments(CommonArguments):
    """The options of this script."""

    mask_column: str = option("mask", "Masks, or their paths; pixel value v is class v, 255 ignored.", group="Data")
    mask_palette: str | None = option(None, "YAML file with a colour per class, for masks that are coded by colour.")
    mask_orientation: Literal["upright", "raw"] = option(
        "upright", "Where EXIF turns images: masks are as people see these, or drawn on the files as they lie (raw)."
    )
    ignore_values: list[int] | None = option(
        None, "Values in masks that stand for no class, beside 255 and those under ignore: in the hierarchy file."
    )
    cache_decoded: bool = option(
        False, "Decode once, into files of 4 bytes a pixel that all processes of a node share; changes only the time."
    )

    resize_mode: Literal["squash", "fit"] = option(
        "squash", "Show the whole image squashed to a square, or fit into it.", group="Images and augmentation"
    )
    tta: Literal["none", "hflip", "d4"] = option(
        "none", "Answer from several views of each image in evaluation, by mean probabilities; slower by their number."
    )
    eval_crop: int | None = option(None, "Show windows of so many pixels, at the image's own scale.", "greater than 0")
    eval_stride: int | None = option(
        None, "Distance from window to window in evaluation; two thirds of a window by default.", "greater than 0"
    )
    resize_longer: int | None = option(
        None, "Longer side that images are resized to before windows are cut; their own by default.", "greater than 0"
    )
    scale_jitter: list[float] = option([0.5, 2.0], "Smallest and largest random scale in training.")
    rare_crop: float = option(0.5, "Probability of a crop on a class not the image's commonest.", "from 0 up to 1")
    balanced_crop: bool = option(False, "Choose it the more often the fewer training images have it, not evenly.")
    copy_paste: float = option(0.0, "Probability of pasting in an object of a rarer class.", "from 0 up to 1")
    rot90: float = option(0.5, "Probability of a random turn by multiples of 90 degrees.", "from 0 up to 1")

    model_name_or_path: str = option(
        "nvidia/segformer-b3-finetuned-ade-512-512",
        "timm/<name>, hf-hub:<org>/<timm model>, a Transformers id or folder, or a folder that this script wrote.",
        group="Model",
    )
    decoder: Literal["upernet", "unet", "segformer", "linear"] = option(
        "upernet", "From the pyramid of feature maps to one at stride 4."
    )
    decoder_channels: int = option(256, "Its width.", "greater than 0")

    level_weights: list[str] = option(
        ["rising"], "A number per level, or leaf, equal, leaf_heavy, rising (0.2, 0.3, 1); literally.", group="Loss"
    )
    loss: list[str] = option(
        ["dice_focal"],
        "Of each level: dice_focal, cross_entropy, or parts with weights, dice=1 ce=0.5, of dice, tversky, "
        "focal, ce, lovasz, boundary, cldice.",
    )
    dice_weight: float = option(0.5, "Of the Dice part of dice_focal.", "at least 0")
    focal_weight: float = option(0.5, "Of the focal part of dice_focal.", "at least 0")
    focal_gamma: float = option(2.0, "How much focal loss turns away from pixels that are right.", "at least 0")
    tversky_beta: float = option(0.7, "Weight of missed pixels in tversky; of false ones 1 - beta.", "from 0 up to 1")
    ohem: float = option(1.0, "Pixels right with more probability are left out of ce and focal.", "over 0 and up to 1")
    dice_over: Literal["image", "batch"] = option(
        "image", "Overlap of each image, or of a forward pass as a whole (then batch sizes change the loss)."
    )
    aux_weight: float = option(0.0, "Of an auxiliary FCN head's loss (stride 16, training); often 0.4.", "at least 0")

    metric_for_best_model: str = option(
        "levels.last.mean_iou", "Entry of eval in all_results.json, last for the last level; or loss.", group="Run"
    )
    boundary_tolerance: int | None = option(
        None, "Also report boundary IoU, F1, clDice, recall of objects, with so many pixels off; slow.", "at least 1"
    )

    def problems(self) -> list[str]:
        problems = super().problems()
        problems += check_windows(self.eval_crop, self.eval_stride)
        if len(self.scale_jitter) != 2 or not 0 < self.scale_jitter[0] <= self.scale_jitter[-1]:
            problems.append(f"--scale_jitter takes the smallest and the largest scale, not {self.scale_jitter}")
        if self.loss == ["dice_focal"] and not self.dice_weight + self.focal_weight:
            problems.append("--dice_weight and --focal_weight must not both be 0")
        else:
            try:
                _ = self.loss_parts
            except ValueError as error:
                problems.append(str(error))
        return problems

    @property
    def loss_parts(self) -> dict[str, float]:
        """Weight of each part of the loss."""
        if self.loss == ["dice_focal"]:
            return {"dice": self.dice_weight, "focal": self.focal_weight}
        from ..losses.segmentation import loss_parts

        return loss_parts(["ce"] if self.loss == ["cross_entropy"] else self.loss)

    def idle(self) -> list[tuple[str, bool, str]]:
        from ..losses.segmentation import PIXEL_PARTS

        other, parts = f"--loss is {' '.join(self.loss)}", {part for part, weight in self.loss_parts.items() if weight}
        return [
            *super().idle(),
            ("dice_weight", self.loss != ["dice_focal"], other),
            ("focal_weight", self.loss != ["dice_focal"], other),
            ("focal_gamma", "focal" not in parts, other),
            ("tversky_beta", "tversky" not in parts, other),
            ("ohem", not parts & {*PIXEL_PARTS}, other),
            ("dice_over", parts <= {*PIXEL_PARTS}, other),
            ("decoder_channels", self.decoder == "linear", "the linear decoder has none of its own"),
            ("ignore_values", bool(self.mask_palette), "--mask_palette says which colours to ignore"),
            ("balanced_crop", not self.rare_crop, "--rare_crop is 0"),
            ("eval_stride", not self.eval_crop, "there is no --eval_crop"),
            ("resize_longer", not self.eval_crop, "there is no --eval_crop"),
            ("resize_mode", bool(self.eval_crop), "--eval_crop cuts windows"),
        ]


def check_windows(crop: int | None, stride: int | None) -> list[str]:
    """A message if ``--eval_crop`` or ``--eval_stride`` is wrong."""
    size, step = crop or 4, stride or 4
    if size % 4 or step % 4 or (crop and step > size):
        return ["--eval_crop and --eval_stride must be multiples of 4, and the stride no more than the crop"]
    return []
