"""JPEG files -> RandomResizedCrop to 224 px -> batch: images per second of one core, ours against others, in turns.

Drawn photographs of 500 and 300 px (quality 90). "HF example" is the transform of Transformers' image classification
script (PIL, float tensors, normalised on the CPU); "timm" is ``create_transform`` as its training script calls it by
default, with colour jitter; "timm, no jitter" does what ours does. Ours hands uint8 to the device, which normalises.

    python benchmarks/input.py --rounds 5
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from side_by_side import command_line, drawn, in_turns, machine, table
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms import functional

from common.data.rows import ImageRows, Samples, collate
from common.images.transforms import TrainTransform

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NUM_IMAGES, SIZE = 64, 224


def main() -> None:
    parser = command_line(__doc__, rounds=5)
    parser.add_argument("--images", type=Path, help="folder of JPEG files to use instead of drawn ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="input_") as folder:
        if options.images:
            given = [path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")]
            cases = {"given images": sorted(given)[:NUM_IMAGES]}
        else:
            cases = {f"{side} px": drawn(Path(folder) / str(side), side) for side in (500, 300)}
        timm = partial(create_transform, SIZE, is_training=True, use_prefetcher=True, interpolation="random")
        others = {"HF example": hf_transform(SIZE), "timm": timm(color_jitter=0.4)}
        others["timm, no jitter"] = timm(color_jitter=None)
        for title, files in cases.items():
            rows = ImageRows(Dataset.from_dict({"image": list(map(str, files))}), "image", "train")
            labels = np.zeros((len(files), 1), dtype=np.int64)
            ours = Samples(rows, np.arange(len(files)), plain_transform(), labels)
            ways = {"ours": lambda ours=ours: collate(ours.__getitems__([(0, row) for row in range(len(ours))]))}
            ways |= {name: partial(theirs, way, files) for name, way in others.items()}
            print(f"\n{title}: {check(ours, files)}; images/s of one core\n")
            found = in_turns(ways, options.rounds, cpu_time=True, images=len(files))
            print(table(found, "ours", "images/s", into=True))


def plain_transform() -> TrainTransform:
    """A random crop and a coin toss for mirroring, nothing else."""
    off = {"vflip": 0.0, "color_jitter": 0.0, "auto_augment": None, "random_erasing": 0.0}
    args = SimpleNamespace(crop_scale=0.08, aspect_ratio=4 / 3, hflip=0.5, **off)
    return TrainTransform(args, {"image_size": SIZE, "interpolation": "bilinear", "mean": MEAN})


def hf_transform(size: int, scale: tuple[float, float] = (0.08, 1.0)) -> transforms.Compose:
    """What Transformers' example for image classification does to a training image."""
    crop, flip = transforms.RandomResizedCrop(size, scale), transforms.RandomHorizontalFlip()
    return transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def theirs(transform: Callable, files: list[Path]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(transform(Image.open(file).convert("RGB"))) for file in files])


def check(ours: Samples, files: list[Path]) -> str:
    """The same crop by Pillow, which decodes the whole; how many grey levels apart they are on average."""
    boxes: list[tuple[int, ...]] = []
    draw, found = ours.transform.crop.get_params, []
    ours.transform.crop.get_params = lambda *args: boxes.append(draw(*args)) or boxes[-1]
    for row, file in enumerate(files[:32]):
        got, image = ours[0, row]["pixels"].int(), Image.open(file).convert("RGB")
        expected = functional.pil_to_tensor(functional.resized_crop(image, *boxes[-1], [SIZE, SIZE])).int()
        found.append(min((got - flipped).abs().float().mean().item() for flipped in (expected, expected.flip(2))))
    ours.transform.crop.get_params = draw
    assert max(found) < 5, f"another part of {files[int(np.argmax(found))]}"
    return f"{np.mean(found):.2f} grey levels from the same crop by Pillow on average, {max(found):.2f} at most"


if __name__ == "__main__":
    main()
