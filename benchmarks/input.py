"""JPEG files -> RandomResizedCrop to 224 px -> batch: images per second of one core, ours against others, in turns.

Drawn photographs of 500 and 300 px (quality 90). "HF example" is the transform of Transformers' image classification
script (PIL, float tensors, normalised on the CPU); "timm" is ``create_transform`` as its training script calls it by
default, with colour jitter; "timm, no jitter" does what ours does. Ours hands uint8 to the device, which normalises.

    python benchmarks/input.py --rounds 5
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import in_turns, machine, table
from common.data.rows import ImageRows, Samples, collate
from common.images.transforms import TrainTransform

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NUM_IMAGES, SIZE = 64, 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=Path, help="folder of JPEG files to use instead of drawn ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="input_") as folder:
        for side in (500, 300):
            files = given(options.images) if options.images else drawn(Path(folder) / str(side), side)
            ours = our_images(files)
            check(ours, files)
            ways = {"ours": lambda ours=ours: collate(ours.__getitems__([(0, row) for row in range(len(ours))]))}
            for name, transform in others().items():
                ways[name] = lambda files=files, transform=transform: torch.stack(
                    [torch.as_tensor(transform(Image.open(file).convert("RGB"))) for file in files]
                )
            print(f"\n{'given images' if options.images else f'{side} px'}, images/s of one core\n")
            print(table(in_turns(ways, options.rounds, cpu_time=True), "ours", len(files), "images/s"))
            if options.images:
                break


def given(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:NUM_IMAGES]


def drawn(folder: Path, side: int) -> list[Path]:
    """Smooth colours with grain, as photographs have them: 50 to 70 kB at 500 px."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [folder / f"{index}.jpg" for index in range(NUM_IMAGES)]
    for file in files:
        coarse = Image.fromarray(rng.integers(0, 255, (side // 16, side // 12, 3), dtype=np.uint8))
        grain = rng.integers(-8, 8, (side * 3 // 4, side, 3))
        pixels = np.asarray(coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


def plain_transform() -> TrainTransform:
    """A random crop and a coin toss for mirroring, nothing else."""
    off = {"vflip": 0.0, "color_jitter": 0.0, "auto_augment": None, "random_erasing": 0.0}
    args = SimpleNamespace(crop_scale=0.08, aspect_ratio=4 / 3, hflip=0.5, **off)
    return TrainTransform(args, {"image_size": SIZE, "interpolation": "bilinear", "mean": MEAN})


def our_images(files: list[Path]) -> Samples:
    rows = ImageRows(Dataset.from_dict({"image": list(map(str, files))}), "image", "train")
    return Samples(rows, np.arange(len(files)), plain_transform(), np.zeros((len(files), 1), dtype=np.int64))


def others() -> dict[str, object]:
    hf = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    timm = {"is_training": True, "use_prefetcher": True, "interpolation": "random"}
    return {
        "HF example": hf,
        "timm": create_transform(SIZE, **timm, color_jitter=0.4),
        "timm, no jitter": create_transform(SIZE, **timm, color_jitter=None),
    }


def check(ours: Samples, files: list[Path]) -> None:
    """The same crop by Pillow: less than a grey level apart on average."""
    boxes: list[tuple[int, ...]] = []
    draw = ours.transform.crop.get_params
    ours.transform.crop.get_params = lambda *args: boxes.append(draw(*args)) or boxes[-1]
    for row, file in enumerate(files[:8]):
        got = ours[0, row]["pixels"].int()
        image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        expected = functional.pil_to_tensor(functional.resized_crop(image, *boxes[-1], [SIZE, SIZE])).int()
        differences = [(got - flipped).abs().float().mean() for flipped in (expected, expected.flip(2))]
        assert min(differences) < 1, differences
    ours.transform.crop.get_params = draw


if __name__ == "__main__":
    main()
