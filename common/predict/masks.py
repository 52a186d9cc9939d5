"""Predictions for pixels: masks with a palette, overlays, and the area of each class."""

from __future__ import annotations

import csv
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

from ..files import atomic_write
from ..images.encoded import EncodedImage
from ..images.mask_transforms import Geometry, ImageEvaluationTransform
from ..images.transforms import Normalize
from ..model.modeling import LabelTreeForSemanticSegmentation
from ..report.colours import leaf_colours
from ..report.prediction_masks import save_mask
from .views import averaged
from .windows import Resampler, dense_labels, image_logits


class MaskInput:
    """Encoded image -> what a dense model is shown of it, its own size, and a small picture for the overlay.

    Args:
        show: makes what the model is shown.
        overlay_size: longer side of the overlay in pixels; 0 for none.
    """

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
        model: as training saved it.
        accelerator: knows the device and the precision.
        batch_size: images, or windows of one image, in a forward pass.
        output_dir: gets the folders masks and overlays.
        evaluation: how images are resized and cut (``config.evaluation``, perhaps changed).
        overlay_size: longer side of the overlays in pixels; 0 for none.

    Attributes:
        largest_part, groups, transform: as of :class:`common.predict.images.ClassPredictor`.
    """

    largest_part = 32
    groups = None

    def __init__(
        self,
        model: LabelTreeForSemanticSegmentation,
        accelerator: Accelerator,
        *,
        batch_size: int,
        output_dir: str | Path,
        evaluation: Mapping[str, Any],
        overlay_size: int,
        more_models: Sequence[LabelTreeForSemanticSegmentation] = (),
    ) -> None:
        self.answer = averaged([model, *more_models], evaluation.get("tta", "none"))
        self.model, self.accelerator, self.evaluation = model, accelerator, dict(evaluation)
        self.hierarchy = model.hierarchy
        self.output_dir, self.overlay_size = Path(output_dir), overlay_size
        self.colours = leaf_colours(self.hierarchy)
        self.palette = self.colours.flatten().tolist()
        gaps = (self.hierarchy.ancestors < 0).any(1).numpy()
        self.painted = ~gaps if gaps.any() and not gaps.all() else np.ones_like(gaps)
        spec = model.config.backbone
        crop = self.evaluation["eval_crop"]
        geometry = Geometry(
            crop or spec["image_size"], self.evaluation["resize_mode"], bool(crop), self.evaluation["resize_longer"]
        )
        self.batch_size, self.window_batch_size = 1 if crop else batch_size, batch_size
        self.transform = MaskInput(ImageEvaluationTransform(geometry, spec["mean"]), overlay_size)
        self.normalize = Normalize(spec["mean"], spec["std"]).to(accelerator.device)

    def settings(self) -> dict[str, Any]:
        """What the predictions depend on, besides model and images, by its name in messages."""
        return {"how images are shown": self.evaluation, "--overlay_size": self.overlay_size}

    def to_model(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 on the host -> normalised float on the device."""
        return self.normalize(pixels.to(self.accelerator.device, non_blocking=True))

    @torch.inference_mode()
    def predict(self, batch: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """A line for each image of a batch, whose mask and overlay are written; ``names`` are those of the images."""
        heads, stride, decoding = self.model.heads, self.model.stride, self.evaluation["decoding"]
        with self.accelerator.autocast():
            logits = image_logits(
                self.answer,
                batch["pixels"],
                self.to_model,
                eval_crop=self.evaluation["eval_crop"],
                eval_stride=self.evaluation["eval_stride"],
                batch_size=self.window_batch_size,
            )
        log_probs = heads.log_probs(logits) if decoding == "levels" else []
        path_scores = heads.path_scores(logits, log_probs, decoding)
        lines = []
        for index, (row, name) in enumerate(zip(batch["rows"].tolist(), names, strict=True)):
            resampler = Resampler(batch["resized"][index], batch["size"][index], stride, logits.device)
            (leaf,) = dense_labels(resampler, [path_scores[index]], lambda parts: [parts[0].max(1).indices])
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

    def finish_part(self) -> list[dict[str, Any]]:
        """No more lines after the last batch of a part."""
        return []

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
        hierarchy = self.hierarchy
        total = torch.zeros(hierarchy.num_leaves, dtype=torch.long)
        with atomic_write(output_dir / "areas.csv") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "image", "mask", "level", "class", "pixels", "share"])
            for line in lines:
                counts = torch.tensor(line["pixels"])
                total += counts
                size = max(1, sum(line["pixels"]))
                for level, name, pixels in self.areas(counts):
                    head = [line["row"], line["image"], line["mask"]]
                    writer.writerow([*head, hierarchy.levels[level], name, pixels, round(pixels / size, 6)])
        shares: dict[str, dict[str, float]] = {level: {} for level in hierarchy.levels}
        for level, name, pixels in self.areas(total):
            shares[hierarchy.levels[level]][name] = pixels / max(1, int(total.sum()))
        return {"num_pixels": int(total.sum()), "areas": shares}

    def areas(self, leaf_counts: torch.Tensor) -> Iterable[tuple[int, str, int]]:
        """(level, name of the class, pixels) of all classes, from pixels of each leaf."""
        for level, counts in enumerate(self.hierarchy.count_lifted(leaf_counts)):
            names = self.hierarchy.display_names(level)
            yield from ((level, name, pixels) for name, pixels in zip(names, counts.tolist(), strict=True))

    def describe_results(self, results: Mapping[str, Any]) -> list[str]:
        """What :meth:`merge` returned, as lines for the log."""
        return [
            f"{level}: " + ", ".join(f"{name} {100 * share:.3g}%" for name, share in shares.items())
            for level, shares in results["areas"].items()
        ]


def plain_stem(name: str) -> str:
    """An image's name for use in a file name: without its folder, other than letters, digits, dots and dashes as _."""
    stem = os.path.splitext(os.path.basename(name))[0]
    return re.sub(r"[^\w.-]+", "_", stem)[:80] or "image"
