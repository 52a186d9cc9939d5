"""Predictions for pixels: masks with a palette, overlays, and the area of each class."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..images.encoded import EncodedImage
from ..images.mask_transforms import Geometry, ImageEvaluationTransform
from ..images.transforms import Normalize
from ..model.modeling import LabelTreeForSemanticSegmentation
from ..report.colours import leaf_colours
from ..report.prediction_masks import save_mask
from ..system.files import atomic_write
from .objects import write_objects
from .views import averaged
from .windows import Resampler, dense_labels, image_logits, warn_of_scale

logger = logging.getLogger(__name__)


class MaskInput:
    """Encoded image -> what ``show`` makes of it for the model, its own size, and a small picture for the overlay."""

    def __init__(self, show: ImageEvaluationTransform, overlay_size: int) -> None:
        self.show, self.overlay_size = show, overlay_size

    def __call__(self, image: EncodedImage) -> dict[str, Any]:
        pixels = image.pixels()
        sample = {**self.show(pixels), "size": image.shape}
        if self.overlay_size:
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            picture.thumbnail((self.overlay_size, self.overlay_size))
            sample["picture"] = np.asarray(picture)
        return sample


class MaskPredictor:
    """Predicts a class for every pixel, and writes masks, overlays and areas.

    Args:
        args: the options of predict.py.
        accelerator: knows the device and the precision.
        models: whose answers are averaged.

    Attributes:
        largest_part, groups, settings, transform: as of :class:`common.predict.images.ClassPredictor`.
    """

    largest_part = 32
    groups = None

    def __init__(
        self, args: Any, accelerator: Accelerator, models: Sequence[LabelTreeForSemanticSegmentation]
    ) -> None:
        self.model, self.accelerator = models[0], accelerator
        self.hierarchy, spec = self.model.hierarchy, self.model.config.backbone
        self.output_dir, self.overlay_size = Path(args.output_dir), args.overlay_size
        self.formats, self.mm_per_pixel = set(args.format) - {"csv"}, args.mm_per_pixel
        given = {name: getattr(args, name) for name in ("eval_crop", "eval_stride", "resize_longer", "tta")}
        given = {name: value for name, value in given.items() if value is not None}
        warn_of_scale(self.model.config.evaluation, given.get("eval_crop"))
        self.evaluation = {**self.model.config.evaluation, **given}
        self.answer = averaged(models, self.evaluation.get("tta", "none"))
        self.colours = leaf_colours(self.hierarchy)
        self.palette = self.colours.flatten().tolist()
        gaps = (self.hierarchy.ancestors < 0).any(1).numpy()
        self.painted = ~gaps if gaps.any() and not gaps.all() else np.ones_like(gaps)
        crop, mode, longer = (self.evaluation[name] for name in ("eval_crop", "resize_mode", "resize_longer"))
        geometry = Geometry(crop or spec["image_size"], mode, bool(crop), longer)
        self.windows = {"eval_crop": crop, "eval_stride": self.evaluation["eval_stride"]}
        self.windows["batch_size"] = args.per_device_eval_batch_size
        self.batch_size = 1 if crop else args.per_device_eval_batch_size
        self.transform = MaskInput(ImageEvaluationTransform(geometry, spec["mean"]), args.overlay_size)
        self.settings = {"how images are shown": self.evaluation, "--overlay_size": args.overlay_size}
        self.settings |= {"--format": sorted(self.formats), "--mm_per_pixel": self.mm_per_pixel}
        self.normalize = Normalize(spec["mean"], spec["std"]).to(accelerator.device)

    @torch.inference_mode()
    def predict(self, batch: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """A line for each image of a batch, whose mask and overlay are written; ``names`` are those of the images."""
        with self.accelerator.autocast():
            logits = image_logits(self.answer, batch["pixels"], self.normalize, **self.windows)
        scores, lines = self.model.path_scores(logits), []
        for index, (row, name) in enumerate(zip(batch["rows"].tolist(), names, strict=True)):
            resampler = Resampler(batch["resized"][index], batch["size"][index], self.model.stride, logits.device)
            (leaf,) = dense_labels(resampler, [scores[index]], lambda parts: [parts[0].max(1).indices])
            stem = f"{row:06d}_{plain_stem(name)}"
            with self.file("masks", f"{stem}.png") as file:
                save_mask(file, leaf, self.palette)
            if self.overlay_size:
                picture = Image.fromarray(self.overlay(batch["picture"][index], leaf.cpu().numpy()))
                with self.file("overlays", f"{stem}.jpg") as file:
                    picture.save(file, "JPEG", quality=90)
            counts = torch.bincount(leaf.flatten().long(), minlength=self.hierarchy.num_leaves)
            lines.append(
                {"kind": "image", "row": row, "image": name, "mask": f"masks/{stem}.png", "pixels": counts.tolist()}
            )
        return lines

    def file(self, folder: str, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write in one of the output folder's folders."""
        path = self.output_dir / folder / name
        path.parent.mkdir(exist_ok=True)
        return atomic_write(path, "wb")

    def overlay(self, picture: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        """A picture (h, w, 3) blended with the colours of leaves (height, width), except on the background.

        Leaves whose path skips a level are background, as Clean has no kind of damage.
        """
        height, width = picture.shape[:2]
        leaf = np.asarray(Image.fromarray(leaf).resize((width, height), Image.Resampling.NEAREST))
        mixed = (picture.astype(np.uint16) + self.colours[leaf]) // 2
        return np.where(self.painted[leaf][..., None], mixed, picture).astype(np.uint8)

    def merge(self, lines: Iterable[Mapping[str, Any]], output_dir: Path) -> dict[str, Any]:
        """Write areas.csv, a row per image, level and class, and return the shares of all pixels."""
        hierarchy, total = self.hierarchy, torch.zeros(self.hierarchy.num_leaves, dtype=torch.long)
        lines, square = list(lines), [self.mm_per_pixel**2] if self.mm_per_pixel else []
        classes = [
            (level, name) for index, level in enumerate(hierarchy.levels) for name in hierarchy.display_names(index)
        ]
        with atomic_write(output_dir / "areas.csv") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "image", "mask", "level", "class", "pixels", "share", *["mm2" for _ in square]])
            for line in lines:
                counts = torch.tensor(line["pixels"])
                total += counts
                head, size = [line["row"], line["image"], line["mask"]], max(1, int(counts.sum()))
                for of_class, pixels in zip(classes, torch.cat(hierarchy.count_lifted(counts)).tolist(), strict=True):
                    writer.writerow(
                        [*head, *of_class, pixels, round(pixels / size, 6), *(pixels * mm2 for mm2 in square)]
                    )
        if self.formats:
            write_objects(lines, output_dir, hierarchy.leaf_names(), self.painted, self.formats, self.mm_per_pixel)
        num_pixels = int(total.sum())
        shares: dict[str, dict[str, float]] = {level: {} for level in hierarchy.levels}
        for (level, name), pixels in zip(classes, torch.cat(hierarchy.count_lifted(total)).tolist(), strict=True):
            shares[level][name] = pixels / max(1, num_pixels)
        for level, found in shares.items():
            logger.info("%s: %s", level, ", ".join(f"{name} {100 * share:.3g}%" for name, share in found.items()))
        return {"num_pixels": num_pixels, "areas": shares}


def plain_stem(name: str) -> str:
    """An image's name for use in a file name: without its folder, other than letters, digits, dots and dashes as _."""
    stem = os.path.splitext(os.path.basename(name))[0]
    return re.sub(r"[^\w.-]+", "_", stem)[:80] or "image"
