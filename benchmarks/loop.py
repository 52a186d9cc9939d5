"""train_taxonomy.py from JPEG files against a bare loop, the Trainer of Transformers, and a loop around timm's loader.

- compute: ResNet-18 at 160 px, batches of 16: forward, backward and step decide;
- input: a tiny ViT at 64 px from 500-px JPEGs: decoding decides.

"bare" repeats forward, backward and step on one batch that is there already: what no loop can beat. All train the same
model on one thread with one worker process, each in a process of its own, in turns; the first steps are not counted.

    python benchmarks/loop.py --rounds 3
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.input import drawn
from benchmarks.side_by_side import machine

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = {
    "compute": {"model": "timm/resnet18", "image_size": 160, "batch": 16, "steps": 40, "every": 10},
    "input": {"model": "timm/test_vit", "image_size": 64, "batch": 16, "steps": 240, "every": 60},
}
WAYS = ("ours", "HF Trainer", "timm", "bare")
SIDE, NUM_CLASSES = 500, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--once", nargs=3, metavar=("WAY", "CASE", "FOLDER"), help="internal: one measurement")
    options = parser.parse_args()
    if options.once:
        way, case, folder = options.once
        print(f"{PEERS[way](CASES[case], Path(folder)):.3f}")
        return
    print(machine())
    with tempfile.TemporaryDirectory(prefix="loop_") as folder:
        make_table(Path(folder))
        for case in options.cases:
            speeds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    speeds[way].append(measured(way, case, Path(folder)))
            report(case, speeds)


def make_table(folder: Path) -> None:
    """64 photographs under many rows, in the form that the script reads."""
    files = drawn(folder / "images", SIDE)
    rows = [(f"images/{files[row % len(files)].name}", f"class{row % NUM_CLASSES}") for row in range(8192)]
    for split, part in (("train", rows), ("validation", rows[:16])):
        pd.DataFrame(part, columns=["image", "species"]).to_csv(folder / f"{split}.csv", index=False)


def measured(way: str, case: str, folder: Path) -> float:
    if way == "ours":
        return run_script(CASES[case], folder)
    command = [sys.executable, __file__, "--once", way, case, str(folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def run_script(case: dict, folder: Path) -> float:
    """Images per second of the script: the median of the speeds that it logs, without the first."""
    words = f"--level_columns species --model_name_or_path {case['model']} --no_pretrained --no_report".split()
    words += ["--train_file", str(folder / "train.csv"), "--validation_file", str(folder / "validation.csv")]
    words += ["--image_size", str(case["image_size"]), "--per_device_train_batch_size", str(case["batch"])]
    words += ["--max_train_steps", str(case["steps"]), "--logging_steps", str(case["every"])]
    words += ["--dataloader_num_workers", "1", "--checkpointing_seconds", "0", "--crop_scale", "0.35"]
    words += ["--color_jitter", "0", "--random_erasing", "0", "--output_dir", tempfile.mkdtemp(dir=folder)]
    script = [
        sys.executable,
        "-c",
        "import torch, sys, train_taxonomy; torch.set_num_threads(1); train_taxonomy.main()",
    ]
    done = subprocess.run([*script, *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return statistics.median(map(float, re.findall(r"([\d,.]+) images/s", done.stderr)[1:]))


def build(case: dict, pyramid: bool = False) -> torch.nn.Module:
    """The script's own model, with its defaults; for pixels with a pyramid."""
    from common.model.backbones import load_backbone
    from common.model.hierarchy import Hierarchy
    from common.model.modeling import LabelTreeForImageClassification, LabelTreeForSemanticSegmentation

    torch.set_num_threads(1)
    backbone, _ = load_backbone(case["model"], pretrained=False, image_size=case["image_size"], pyramid=pyramid)
    tree = Hierarchy(["species"], [[f"class{index}" for index in range(NUM_CLASSES)]], [[None] * NUM_CLASSES])
    if pyramid:
        options = {"decoder": "upernet", "decoder_channels": 256}
        return LabelTreeForSemanticSegmentation.build(backbone, tree, "tree", **options).train()
    return LabelTreeForImageClassification.build(backbone, tree, "tree").train()


class Files(torch.utils.data.Dataset):
    """The table's images as Pillow reads them, transformed, with labels."""

    def __init__(self, folder: Path, transform: Callable | None = None) -> None:
        table = pd.read_csv(folder / "train.csv")
        self.files, self.labels = table["image"].tolist(), [int(name[5:]) for name in table["species"]]
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple:
        image = Image.open(self.folder / self.files[row]).convert("RGB")
        return self.transform(image) if self.transform else image, self.labels[row]


def run_bare(case: dict, folder: Path) -> float:
    model = build(case)
    return bare_loop(case, model, torch.optim.AdamW(model.parameters(), fused=True))


def bare_loop(
    case: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: str = "cpu", bf16: bool = False
) -> float:
    """Images per second of forward, backward and step on one batch."""
    pixels = torch.randn(case["batch"], 3, case["image_size"], case["image_size"], device=device)
    labels = torch.arange(case["batch"], device=device) % NUM_CLASSES
    speeds = []
    for _ in range(case["steps"] // case["every"]):
        started = time.perf_counter()
        for _ in range(case["every"]):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                logits = model(pixels, logits_only=True).float()
            where = labels.view(-1, *[1] * (logits.dim() - 2)).expand(-1, *logits.shape[2:])
            torch.nn.functional.cross_entropy(logits, where).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        speeds.append(case["every"] * case["batch"] / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


def run_trainer(case: dict, folder: Path) -> float:
    """As the example script for image classification does it, with a worker."""
    from torchvision import transforms
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        times: list[float] = []

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            self.times.append(time.perf_counter())

    class Rows(Files):
        def __getitem__(self, row: int) -> dict:
            return dict(zip(("pixel_values", "labels"), super().__getitem__(row), strict=True))

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(case["image_size"], scale=(0.35, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build(case)

        def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict:
            scores = self.model(pixel_values, logits_only=True)
            return {"loss": torch.nn.functional.cross_entropy(scores, labels), "logits": scores}

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=folder),
        per_device_train_batch_size=case["batch"],
        max_steps=case["steps"],
        logging_steps=case["every"],
        dataloader_num_workers=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    clock = Clock()
    Trainer(Wrapped(), arguments, train_dataset=Rows(folder, transform), callbacks=[clock]).train()
    ends = clock.times[case["every"] - 1 :: case["every"]]
    return statistics.median(
        case["every"] * case["batch"] / (later - earlier) for earlier, later in zip(ends, ends[1:], strict=False)
    )


def run_timm(case: dict, folder: Path) -> float:
    """The inner loop of timm's training script around its loader, with what ours does to images."""
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, dispatch_clip_grad

    model = build(case)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    loader = create_loader(
        Files(folder),
        (3, case["image_size"], case["image_size"]),
        case["batch"],
        is_training=True,
        use_prefetcher=False,
        num_workers=1,
        scale=(0.35, 1.0),
        color_jitter=None,
        device=torch.device("cpu"),
    )
    losses, speeds, started = AverageMeter(), [], time.perf_counter()
    for step, (pixels, labels) in enumerate(loader, 1):
        loss = torch.nn.functional.cross_entropy(model(pixels, logits_only=True), labels)
        loss.backward()
        dispatch_clip_grad(model.parameters(), value=1.0, mode="norm")
        optimizer.step()
        losses.update(loss.item() if step % case["every"] == 0 else 0.0, len(pixels))
        optimizer.zero_grad()
        if step % case["every"] == 0:
            speeds.append(case["every"] * case["batch"] / (time.perf_counter() - started))
            started = time.perf_counter()
        if step == case["steps"]:
            break
    return statistics.median(speeds[1:])


PEERS = {"HF Trainer": run_trainer, "timm": run_timm, "bare": run_bare}


def report(case: str, speeds: dict[str, list[float]]) -> None:
    """Medians, ranges, and how much of the bare loop's speed each reaches."""
    bare = statistics.median(speeds["bare"])
    print(f"\n{case}: {CASES[case]}\n\n| | images/s, median | range | / bare |\n|---|---|---|---|")
    for way, values in speeds.items():
        median = statistics.median(values)
        print(f"| {way} | {median:.1f} | {min(values):.1f} to {max(values):.1f} | {median / bare:.2f} |")


if __name__ == "__main__":
    main()
