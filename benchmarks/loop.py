"""train_taxonomy.py from JPEG files against a bare loop, the Trainer of Transformers, and a loop around timm's loader.

- compute: ResNet-18 at 160 px, batches of 16: forward, backward and step decide;
- input: a tiny ViT at 64 px from 500-px JPEGs: decoding decides.

"bare" repeats forward, backward and step on one batch that is there already: what no loop can beat. All train the
same model on one thread with one worker process, each in a process of its own, in turns. The speed is the median over
groups of optimizer steps, the first group left out.

    python benchmarks/loop.py --rounds 3
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from side_by_side import apart, balanced_tree, command_line, draw_data, machine, repeated, run_script, table
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook

CASES = {
    "compute": {"model": "timm/resnet18", "image_size": 160, "batch": 16, "steps": 40, "every": 10},
    "input": {"model": "timm/test_vit", "image_size": 64, "batch": 16, "steps": 240, "every": 60},
}
TREE = balanced_tree([16], ["species"])
SCALE = (0.35, 1.0)


def main() -> None:
    parser = command_line(__doc__, rounds=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="loop_") as name:
        draw_data(Path(name), 500, TREE, train=8192, validation=16)
        for case in options.cases:
            ways = {way: partial(apart, speed, train, CASES[case], Path(name)) for way, train in WAYS.items()}
            print(
                f"\n{case}: {CASES[case]}\n\n{table(repeated(ways, options.rounds), 'bare', 'images/s')}", flush=True
            )


def speed(train: Callable[..., object], case: dict, *args: object) -> float:
    """Images per second of whatever steps an optimizer."""
    times: list[float] = []

    def note(*_: object) -> None:
        if torch.cuda.is_available() and len(times) % case["every"] == 0:
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    hook = register_optimizer_step_post_hook(note)
    train(case, *args)
    hook.remove()
    groups = itertools.pairwise(times[case["every"] :: case["every"]])
    return statistics.median(case["every"] * case["batch"] / (end - start) for start, end in groups)


def train_ours(case: dict, folder: Path) -> None:
    words = f"--level_columns species --model_name_or_path {case['model']} --image_size {case['image_size']} "
    words += f"--per_device_train_batch_size {case['batch']} --max_train_steps {case['steps'] + 1} "
    words += f"--dataloader_num_workers 1 --crop_scale {SCALE[0]} --color_jitter 0 --random_erasing 0"
    run_script("train_taxonomy", folder, Path(tempfile.mkdtemp(dir=folder)), words)


def build(case: dict, pyramid: bool = False) -> torch.nn.Module:
    """The script's own model, with its defaults; for pixels with a pyramid."""
    from common.model.backbones import load_backbone
    from common.model.modeling import LabelTreeForImageClassification, LabelTreeForSemanticSegmentation

    backbone, _ = load_backbone(case["model"], pretrained=False, image_size=case["image_size"], pyramid=pyramid)
    if pyramid:
        options = {"decoder": "upernet", "decoder_channels": case["decoder_channels"]}
        return LabelTreeForSemanticSegmentation.build(backbone, TREE, "tree", **options).train()
    return LabelTreeForImageClassification.build(backbone, TREE, "tree").train()


class Files(torch.utils.data.Dataset):
    """The table's images as Pillow reads them, transformed, with labels."""

    def __init__(self, folder: Path, transform: Callable | None = None) -> None:
        table = pd.read_csv(folder / "train.csv")
        self.files, self.labels = table["image"].tolist(), [TREE.names[0].index(name) for name in table["species"]]
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple:
        image = Image.open(self.folder / self.files[row]).convert("RGB")
        return self.transform(image) if self.transform else image, self.labels[row]


def train_bare(
    case: dict, folder: Path | None, pyramid: bool = False, device: str = "cpu", bf16: bool = False
) -> tuple:
    """Forward, backward and step on one batch; returns model and optimizer."""
    model = build(case, pyramid).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    pixels = torch.randn(case["batch"], 3, case["image_size"], case["image_size"], device=device)
    labels = torch.arange(case["batch"], device=device) % TREE.num_leaves
    for _ in range(case["steps"] + 1):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = model(pixels, logits_only=True).float()
        cross_entropy(logits, labels.view(-1, *[1] * (logits.dim() - 2)).expand(-1, *logits.shape[2:])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def train_trainer(case: dict, folder: Path) -> None:
    """As the example script for image classification does it, with a worker."""
    from input import hf_transform
    from transformers import Trainer, TrainingArguments

    def collate(rows: list[tuple]) -> dict[str, torch.Tensor]:
        pixels, labels = zip(*rows, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=folder),
        per_device_train_batch_size=case["batch"],
        max_steps=case["steps"] + 1,
        logging_steps=case["every"],
        dataloader_num_workers=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    images = Files(folder, hf_transform(case["image_size"], SCALE))
    Trainer(build(case), arguments, train_dataset=images, data_collator=collate).train()


def train_timm(case: dict, folder: Path) -> None:
    """The inner loop of timm's training script around its loader, with what ours does to images."""
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, dispatch_clip_grad

    model, size = build(case), (3, case["image_size"], case["image_size"])
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    options = {"is_training": True, "use_prefetcher": False, "num_workers": 1, "scale": SCALE, "color_jitter": None}
    loader = create_loader(Files(folder), size, case["batch"], **options, device=torch.device("cpu"))
    losses = AverageMeter()
    for step, (pixels, labels) in enumerate(itertools.islice(loader, case["steps"] + 1)):
        loss = cross_entropy(model(pixels, logits_only=True), labels)
        loss.backward()
        dispatch_clip_grad(model.parameters(), value=1.0, mode="norm")
        optimizer.step()
        losses.update(loss.item() if step % case["every"] == 0 else 0.0, len(pixels))
        optimizer.zero_grad()


WAYS = {"ours": train_ours, "HF Trainer": train_trainer, "timm": train_timm, "bare": train_bare}

if __name__ == "__main__":
    main()
