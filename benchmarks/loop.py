"""The scripts from JPEG files against a bare loop, the Trainer of Transformers, and a loop around timm's loader.

- compute: ResNet-18 at 160 px, batches of 16: forward, backward and step decide;
- input: a tiny ViT at 64 px from 500-px JPEGs: decoding decides;
- evaluate_images: ResNet-18 at 160 px, 2,786 species in six levels, from JPEGs of 300 px: loss, both decodings,
  accuracy, top-5, F1, calibration, distances, what the report shows;
- evaluate_masks: ConvNeXt-Atto with UPerNet at 256 px, masks of 512 x 384, 16 classes in three levels: loss, scores
  enlarged to the masks' size, IoU and F1 of both decodings.

"bare" repeats forward, backward and step (in evaluation forward) on one batch that is there already: what no loop can
beat. All train the same model on one thread with one worker process, each in a process of its own, in turns. The speed
is the median over groups of optimizer steps, the first group left out, as is an evaluation that starts the worker.

    python benchmarks/loop.py --rounds 3
"""

from __future__ import annotations

import importlib
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
from side_by_side import RANKS, apart, balanced_tree, command_line, draw_data, machine, repeated, run_script, table
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook

CASES = {
    "compute": {"model": "timm/resnet18", "image_size": 160, "batch": 16, "steps": 40, "every": 10},
    "input": {"model": "timm/test_vit", "image_size": 64, "batch": 16, "steps": 240, "every": 60},
}
IMAGES = f"--level_columns {' '.join(RANKS)} --model_name_or_path timm/resnet18 --image_size 160 "
MASKS = "--hierarchy {folder}/hierarchy.json --mask_column mask --model_name_or_path timm/convnext_atto "
EVALUATED = {  # script, images, batch, options
    "evaluate_images": ("train_taxonomy", 640, 32, IMAGES + "--per_device_train_batch_size 8"),
    "evaluate_masks": ("train_segmentation", 32, 4, MASKS + "--image_size 256 --per_device_train_batch_size 4"),
}
TREE = balanced_tree([16], ["species"])
SCALE = (0.35, 1.0)


def main() -> None:
    parser = command_line(__doc__, rounds=3)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *EVALUATED], default=[*CASES, *EVALUATED])
    options = parser.parse_args()
    print(machine())
    for case in options.cases:
        with tempfile.TemporaryDirectory(prefix="loop_") as name:
            if case in CASES:
                draw_data(Path(name), 500, TREE, train=8192, validation=16)
                ways = {way: partial(apart, speed, train, CASES[case], Path(name)) for way, train in WAYS.items()}
                found = repeated(ways, options.rounds)
            else:
                side, tree = 300, balanced_tree((7, 28, 95, 308, 918, 2786), RANKS)
                if case == "evaluate_masks":
                    side, tree = 512, balanced_tree((2, 4, 16))
                draw_data(Path(name), side, tree, train=tree.num_leaves, validation=EVALUATED[case][1])
                pairs = [pair for _ in range(options.rounds) for pair in apart(evaluate, *EVALUATED[case], Path(name))]
                found = dict(zip(("ours", "bare"), zip(*pairs, strict=True), strict=True))
        print(f"\n{case}: {(CASES | EVALUATED)[case]}\n\n{table(found, 'bare', 'images/s')}", flush=True)


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
    kind = LabelTreeForSemanticSegmentation if pyramid else LabelTreeForImageClassification
    options = {"decoder": "upernet", "decoder_channels": case["decoder_channels"]} if pyramid else {}
    return kind.build(backbone, TREE, "tree", **options).train()


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


def evaluate(script: str, images: int, batch: int, words: str, folder: Path) -> list[tuple[float, float]]:
    """Images per second of evaluations by a script, each with those of as many bare forward passes after it."""
    module, pairs = importlib.import_module(script), []
    evaluate_model = module.evaluate_model

    def timed(*args: object) -> object:
        started = time.perf_counter()
        result = evaluate_model(*args)
        middle, pixels = time.perf_counter(), torch.randn(batch, 3, *[args[-1].config.backbone["image_size"]] * 2)
        with torch.no_grad():
            for _ in range(images // batch):
                args[-1](pixels, logits_only=True)
        pairs.append((images / (middle - started), images / (time.perf_counter() - middle)))
        return result

    module.evaluate_model = timed
    words += " --dataloader_num_workers 1 --num_train_epochs 3 --max_train_samples 8 "
    words += f"--per_device_eval_batch_size {batch}"
    run_script(script, folder, Path(tempfile.mkdtemp(dir=folder)), words.format(folder=folder))
    return pairs[1:]


WAYS = {"ours": train_ours, "HF Trainer": train_trainer, "timm": train_timm, "bare": train_bare}

if __name__ == "__main__":
    main()
