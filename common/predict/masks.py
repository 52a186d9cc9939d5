"""Saved dense models on new images: masks with a palette, overlays, and how large the area of each class is."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..data.rows import ImageRows, Samples
from ..files import replaced_file
from ..images.encoded import EncodedImage
from ..images.mask_transforms import Geometry, ImageEvaluationTransform
from ..images.transforms import Normalize
from ..model.modeling import LabelTreeForSemanticSegmentation
from ..report.mask_pictures import save_mask
from ..report.plots import leaf_colours
from .predictor import Predictor, ShownImages
from .windows import Resampler, dense_labels, image_logits


class MaskPredictor(Predictor):
    """What is predicted of pixels.

    Args:
        model: as training saved it.
        accelerator: knows the device and the precision.
        output_dir: gets the folders masks and overlays.
        evaluation: how images are shown and cut (``config.evaluation``, perhaps changed).
        overlay_size: longer side of the overlays in pixels; 0 for none.
        window_batch_size: windows in one forward pass.
    """

    largest_part = 32

    def __init__(
        self,
        model: LabelTreeForSemanticSegmentation,
        accelerator: Accelerator,
        *,
        output_dir: str | Path,
        evaluation: Mapping[str, Any],
        overlay_size: int,
        window_batch_size: int,
    ) -> None:
        self.model, self.accelerator, self.evaluation = model, accelerator, dict(evaluation)
        self.hierarchy = model.hierarchy
        self.output_dir, self.overlay_size = Path(output_dir), overlay_size
        self.window_batch_size = window_batch_size
        self.colours = leaf_colours(self.hierarchy)
        self.palette = self.colours.flatten().tolist()
        gaps = (self.hierarchy.ancestors < 0).any(1).numpy()
        self.painted = ~gaps if gaps.any() and not gaps.all() else np.ones_like(gaps)
        spec = model.config.backbone
        crop = self.evaluation["eval_crop"]
        self.geometry = Geometry(
            crop or spec["image_size"], self.evaluation["resize_mode"], bool(crop), self.evaluation["resize_longer"]
        )
        self.normalize = Normalize(spec["mean"], spec["std"]).to(accelerator.device)

    def settings(self) -> dict[str, Any]:
        return {"how images are shown": self.evaluation, "--overlay_size": self.overlay_size}

    def batch_size(self, per_device: int) -> int:
        """Windows are batched, not the images that they are cut from."""
        return 1 if self.geometry.windows else per_device

    def samples(self, images: ImageRows) -> Samples:
        show = ImageEvaluationTransform(self.geometry, self.model.config.backbone["mean"])

        def transform(image: EncodedImage) -> dict[str, Any]:
            pixels = image.pixels()
            sample = {**show(pixels), "size": image.shape}
            if self.overlay_size:
                picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
                picture.thumbnail((self.overlay_size, self.overlay_size))
                sample["picture"] = np.asarray(picture)
            return sample

        return ShownImages(images, transform)

    def to_model(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 on the host -> normalised float on the device."""
        return self.normalize(pixels.to(self.accelerator.device, non_blocking=True))

    @torch.inference_mode()
    def predict(self, batch: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
        heads, stride = self.model.heads, self.model.stride
        with self.accelerator.autocast():
            logits = image_logits(
                self.model,
                batch["pixels"],
                self.to_model,
                eval_crop=self.evaluation["eval_crop"],
                eval_stride=self.evaluation["eval_stride"],
                batch_size=self.window_batch_size,
            )
        decoding = self.evaluation["decoding"]
        log_probs = heads.log_probs(logits) if decoding == "levels" else []
        path_scores = heads.path_scores(logits, log_probs, decoding)
        lines = []
        for index, (row, name) in enumerate(zip(batch["rows"].tolist(), names, strict=True)):
            resampler = Resampler(batch["resized"][index], batch["size"][index], stride, logits.device)
            (leaf,) = dense_labels(resampler, [path_scores[index]], lambda parts: [parts[0].max(1).indices])
            file = f"{row:06d}_{plain_stem(name)}"
            write_whole(self.output_dir / "masks" / f"{file}.png", lambda path, leaf=leaf: self.save(path, leaf))
            if self.overlay_size:
                picture = Image.fromarray(self.overlay(batch["picture"][index], leaf.cpu().numpy()))
                write_whole(
                    self.output_dir / "overlays" / f"{file}.jpg",
                    lambda path, picture=picture: picture.save(path, "JPEG", quality=90),
                )
            counts = torch.bincount(leaf.flatten().long(), minlength=self.hierarchy.num_leaves)
            lines.append(
                {"kind": "image", "row": row, "image": name, "mask": f"masks/{file}.png", "pixels": counts.tolist()}
            )
        return lines

    def save(self, path: Path, leaf: torch.Tensor) -> None:
        """Write a mask."""
        save_mask(path, leaf, self.palette)

    def overlay(self, picture: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        """A picture (h, w, 3) half covered with the colours of leaves (height, width); the background stays as it is.

        Background are leaves whose path skips a level, as Clean has no kind of damage.
        """
        height, width = picture.shape[:2]
        leaf = np.asarray(Image.fromarray(leaf).resize((width, height), Image.Resampling.NEAREST))
        mixed = (picture.astype(np.uint16) + self.colours[leaf]) // 2
        return np.where(self.painted[leaf][..., None], mixed, picture).astype(np.uint8)

    def merge(self, lines: Iterable[Mapping[str, Any]], output_dir: Path) -> dict[str, Any]:
        """Write areas.csv, a row per image, level and class; and return the shares of all pixels."""
        hierarchy = self.hierarchy
        total = torch.zeros(hierarchy.num_leaves, dtype=torch.long)
        with replaced_file(output_dir / "areas.csv") as stream:
            writer = csv.writer(stream)
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
        return [
            f"{level}: " + ", ".join(f"{name} {100 * share:.3g}%" for name, share in shares.items())
            for level, shares in results["areas"].items()
        ]


def plain_stem(name: str) -> str:
    """What is left of an image's name as part of a file name: letters, digits, dots, dashes; no folder."""
    stem = os.path.splitext(os.path.basename(name))[0]
    return re.sub(r"[^\w.-]+", "_", stem)[:80] or "image"


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file that takes its name when it is whole."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    write(unfinished)
    os.replace(unfinished, path)
