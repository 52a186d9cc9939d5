"""Does the label tree help? Flat, independent and tree heads, each at its own best rate, beside other people's tools.

    python benchmarks/heads.py frozen --data FOLDER --weights tf_efficientnet_lite0.safetensors
    python benchmarks/heads.py end_to_end --data FOLDER --weights FILE --datasets grocery --rates 3e-4 1e-3 3e-3

FOLDER has a folder for each data set of :data:`DATASETS`. ``frozen`` trains heads on features of the pretrained
network, which are computed once; ``end_to_end`` runs the script, and repeats nothing that has finished. The rate of a
method is the one whose leaves are right most often in a part that is neither trained on nor tested, over all seeds.
Intervals are 95 % bootstrap intervals over the test images, of the mean over the seeds. HiClass (``pip install
hiclass``) is needed by the method of that name alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from side_by_side import REPOSITORY, command_line
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from common.data.rows import ImageRows, Samples, make_loader
from common.data.sampling import evaluation_batches
from common.data.splits import LabelColumns, choose_rows, load_splits, read_cells
from common.images.transforms import EvaluationTransform, Normalize
from common.losses.cross_entropy import LevelCrossEntropy
from common.model.backbones import load_backbone
from common.model.heads import LevelHeads
from common.model.hierarchy import Hierarchy
from common.optim.schedule import level_weights

NETWORK = "timm/tf_efficientnet_lite0"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


class DataSet(NamedTuple):
    """Where labels are, and which files; without ``select``, training rows that are not trained on choose the rate."""

    labels: str
    size: int
    test: str = "validation"
    select: str | None = None
    group: str | None = None
    num_train: int | None = None


DATASETS = {
    "planktonset": DataSet("--label_column class --hierarchy {data}/taxonomy.csv", 128, num_train=2000),
    "grocery": DataSet("--level_columns kind coarse fine", 224, "test", "validation"),
    "magnetic_tile": DataSet("--label_column kind --hierarchy {trees}/magnetic_tile.yaml", 224, group="tile"),
}


class Part(NamedTuple):
    """Of a part of a data set: features (images, channels), labels (images, levels) and leaves (images,)."""

    features: torch.Tensor
    labels: torch.Tensor
    leaves: torch.Tensor


Predict = Callable[[Part], tuple[torch.Tensor, torch.Tensor | None]]  # leaves; log-probabilities of all, or None


class Source:
    """The files of a data set, its tree, and which rows a seed takes for what."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.chosen, folder = name, DATASETS[name], args.data / name
        self.words = words = self.chosen.labels.format(data=folder, trees=REPOSITORY / "hierarchies").split()
        files = sorted({"train", self.chosen.test, self.chosen.select or "train"})
        self.splits = load_splits("", None, {file: str(folder / f"{file}.parquet") for file in files})
        columns = LabelColumns(None, words[1], words[3]) if words[0] == "--label_column" else LabelColumns(words[1:])
        self.hierarchy, _ = columns.read_hierarchy(self.splits["train"])
        self.labels = {file: columns.read_labels(self.splits[file], self.hierarchy, file) for file in files}

    def rows(self, seed: int) -> dict[str, tuple[str, np.ndarray]]:
        """Part -> file and row numbers."""
        chosen, every = self.chosen, {file: np.arange(len(labels)) for file, labels in self.labels.items()}
        train = choose_rows(len(every["train"]), chosen.num_train, seed)
        if chosen.group:
            train = np.flatnonzero(pd.factorize(np.array(read_cells(self.splits["train"], chosen.group)))[0] % 5)
        rest = np.setdiff1d(every["train"], train)
        rest = rest[choose_rows(len(rest), chosen.num_train, seed)]
        select = (chosen.select, every[chosen.select]) if chosen.select else ("train", rest)
        return {"train": ("train", train), "select": select, "test": (chosen.test, every[chosen.test])}

    def tasks(self, args: argparse.Namespace) -> dict[int, dict[str, Part]]:
        """train, select and test of each seed; the features of all images are computed once."""
        cache = args.output_dir / "features" / f"{self.name}-{self.chosen.size}.npz"
        cache.parent.mkdir(parents=True, exist_ok=True)
        if not cache.is_file():
            found = {file: extract(rows, file, self.chosen.size, args) for file, rows in self.splits.items()}
            np.savez(cache, **found)
        leaf_of, every = {tuple(path): leaf for leaf, path in enumerate(self.hierarchy.ancestors.tolist())}, {}
        for file, labels in self.labels.items():
            leaves = torch.tensor([leaf_of[tuple(row)] for row in labels.tolist()])
            every[file] = Part(torch.from_numpy(np.load(cache)[file]), torch.from_numpy(labels), leaves)
        return {
            seed: {part: Part(*(v[rows] for v in every[file])) for part, (file, rows) in self.rows(seed).items()}
            for seed in args.seeds
        }


@torch.inference_mode()
def extract(rows: Any, part: str, size: int, args: argparse.Namespace) -> np.ndarray:
    """(rows, channels): the network's features of squashed images, prepared as it was trained."""
    backbone, _ = load_backbone(NETWORK, weights=str(args.weights), image_size=size)
    spec = backbone.eval().spec
    normalize = Normalize(spec["mean"], spec["std"])
    transform = EvaluationTransform(size, resize_mode="squash", crop_pct=1.0, interpolation=spec["interpolation"])
    samples = Samples(ImageRows(rows, "image", part), np.arange(len(rows)), transform)
    batches = make_loader(samples, evaluation_batches(len(rows), 64), 0, False)
    return torch.cat([backbone(normalize(batch["pixels"])) for batch in batches]).numpy()


def head(tree: Hierarchy, train: Part, settings: tuple, kind: str, root: float = 0, down: bool = False) -> Predict:
    """Train a head with AdamW and a cosine, as the scripts do; ``independent`` with equal weights of the levels.

    The sum over a path is divided by the number of levels to the power ``root``.
    """
    seed, rate, epochs = settings
    torch.manual_seed(seed)
    heads = LevelHeads(tree, train.features.shape[1], kind, tree.num_levels**-root)
    loss_fn = LevelCrossEntropy(heads, level_weights(["leaf" if heads.leaf_softmax else "equal"], tree))
    optimizer = torch.optim.AdamW(heads.parameters(), rate, weight_decay=0.05, fused=True)
    order = [batch for _ in range(epochs) for batch in torch.randperm(len(train.labels)).split(64)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for batch in order:
        optimizer.zero_grad()
        loss_fn(heads(train.features[batch]), train.labels[batch]).backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def predict(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        logits = heads(part.features)
        scores = heads.leaf_logits(logits).log_softmax(1)
        return from_the_top(tree, heads.log_probs(logits)) if down else scores.argmax(1), scores

    return predict


def from_the_top(tree: Hierarchy, log_probs: Sequence[torch.Tensor]) -> torch.Tensor:
    """From level to level the most probable class below what was chosen so far."""
    allowed = torch.ones(len(log_probs[0]), tree.num_leaves, dtype=torch.bool)
    for column, of_level in zip(tree.ancestors.T, log_probs, strict=True):
        scores = torch.where(allowed & (column >= 0), of_level[:, column.clamp(min=0)], -torch.inf)
        chosen = column[None] == column[scores.argmax(1)][:, None]
        skipped = (column < 0)[None]  # leaves without a class at this level
        allowed &= chosen | skipped | ~(scores > -torch.inf).any(1, keepdim=True)
    final = torch.stack([log_probs[level][:, index] for level, index in tree.leaves], 1)
    return torch.where(allowed, final, -torch.inf).argmax(1)


def logistic_regression(tree: Hierarchy, train: Part, settings: tuple) -> Predict:
    """scikit-learn's, on the leaves; the rate is C."""
    model = LogisticRegression(C=settings[1], max_iter=300).fit(train.features.numpy(), train.leaves.numpy())

    def predict(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.full((len(part.labels), tree.num_leaves), -20.0, dtype=torch.float64)
        scores[:, model.classes_] = torch.from_numpy(model.predict_log_proba(part.features.double().numpy()))
        return scores.argmax(1), scores

    return predict


def hiclass(tree: Hierarchy, train: Part, settings: tuple) -> Predict:
    """HiClass's classifier per parent node over the same logistic regression; a gap is a class of its own."""
    from hiclass import LocalClassifierPerParentNode

    paths = [[str(leaf[: level + 1]) for level in range(len(leaf))] for leaf in tree.ancestors.tolist()]
    leaf_of = {path[-1]: index for index, path in enumerate(paths)}
    model = LocalClassifierPerParentNode(LogisticRegression(C=settings[1], max_iter=300))
    model.fit(train.features.numpy(), np.array(paths)[train.leaves.numpy()])
    return lambda part: (torch.tensor([leaf_of[path[-1]] for path in model.predict(part.features.numpy())]), None)


METHODS: dict[str, Callable[..., Predict]] = {
    "flat": partial(head, kind="flat"),
    "independent": partial(head, kind="independent"),
    "independent, top-down": partial(head, kind="independent", down=True),
    "tree, sum": partial(head, kind="tree"),
    "tree, sum / sqrt(L)": partial(head, kind="tree", root=0.5),
    "tree, sum / L": partial(head, kind="tree", root=1),
    "logistic regression": logistic_regression,
    "HiClass, per parent": hiclass,
}
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # C of the logistic regressions
HEADS = {
    "flat": "--head flat",
    "independent": "--head independent --level_weights equal",
    "tree, sum": "--head tree --head_scale 1",
    "tree, sum / sqrt(L)": "--head tree",
}
COMMON = "--model_name_or_path {network} --backbone_weights {weights} --channels_last --eval_epochs 1000 --no_report "
COMMON += "--dataloader_num_workers 0 --save_predictions"


class Outcome(NamedTuple):
    """Of a run, or the mean over seeds: leaves right in the part that selects, and of the test part (images, levels) 1
    where the best path is right (NaN without a label), and the negative log-likelihood of the leaves."""

    select: float
    right: np.ndarray
    nll: float


def run_frozen(source: Source, tasks: dict, method: str, rate: float, seed: int, args: argparse.Namespace) -> Outcome:
    """Train a head on features, and test it."""
    tree, (train, select, test) = source.hierarchy, tasks[seed].values()
    predict = METHODS[method](tree, train, (seed, rate, args.epochs or 30))
    leaf, log_probs = predict(test)
    right = torch.where(test.labels >= 0, (torch.stack(tree.lift(leaf), 1) == test.labels).double(), torch.nan)
    selected = (predict(select)[0] == select.leaves).double().mean().item()
    return Outcome(selected, right.numpy(), np.nan if log_probs is None else F.nll_loss(log_probs, test.leaves).item())


def run_script(source: Source, method: str, rate: float, seed: int, args: argparse.Namespace) -> Outcome:
    """Train by the script on the same rows as the features, unless that has been done."""
    folder, options = args.output_dir / "end_to_end" / source.name, []
    parts = source.rows(seed)
    seen = set(map(tuple, source.labels["train"][parts["train"][1]].tolist()))
    for part, (file, rows) in parts.items():
        if part == "select":  # the script refuses to validate on classes that it does not train
            rows = rows[[tuple(label) in seen for label in source.labels[file][rows].tolist()]]
        table = folder / f"{part}-{seed}.parquet"
        options += [f"--{'validation' if part == 'select' else part}_file", str(table)]
        if not table.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            source.splits[file].select(rows).to_parquet(table)
    settings = f"{method}-{rate:g}-{seed}-{args.image_size}-{args.epochs or 6}{args.extra}"
    output = folder / re.sub(r"[^\w.-]+", "_", settings)
    if not (output / "all_results.json").is_file():
        output.mkdir(exist_ok=True)
        words = f"{HEADS[method]} {COMMON.format(network=NETWORK, weights=args.weights)} --learning_rate {rate} "
        words += f"--seed {seed} --image_size {args.image_size} --num_train_epochs {args.epochs or 6} {args.extra}"
        command = [sys.executable, str(REPOSITORY / "train_taxonomy.py"), *options, *source.words, *words.split()]
        with (output / "log.txt").open("w") as log:
            subprocess.run([*command, "--output_dir", str(output)], stdout=log, stderr=log, check=True)
        shutil.rmtree(output / "checkpoints")
    results = json.loads((output / "all_results.json").read_text())
    found, levels = pd.read_parquet(output / "predictions_test.parquet"), source.hierarchy.levels
    label, path = ({level: found[f"{level}_{kind}"] for level in levels} for kind in ("label", "best_path"))
    right = np.array([(path[level] == label[level]).where(label[level].notna()) for level in levels], float).T
    nll = results["test"]["loss"] if method != "independent" else np.nan  # else the mean over the levels
    return Outcome(results["eval"]["levels"][levels[-1]]["accuracy"], right, nll)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over images, in percent; NaN is left out."""
    values = 100 * values[~np.isnan(values)]
    draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    return values.mean(), *np.percentile(values[draws].mean(1), [2.5, 97.5])


def table(outcomes: dict[str, dict[float, Outcome]], levels: Sequence[str]) -> str:
    """Markdown: each method at its best rate, and how far its leaf is ahead of the first method's; and all rates."""
    best = {method: max(by_rate.items(), key=lambda item: item[1].select) for method, by_rate in outcomes.items()}
    base = next(iter(best.values()))[1]
    titles = ["method", "best rate", *reversed(levels), "leaf, against the first", "NLL"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
    for method, (rate, one) in best.items():
        cells = ["{:.1f} [{:.1f}, {:.1f}]".format(*interval(one.right[:, -1]))]
        cells += [f"{100 * np.nanmean(column):.1f}" for column in one.right.T[-2::-1]]
        ahead = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval((one.right - base.right)[:, -1]))
        cells += ["" if one is base else ahead, f"{one.nll:.2f}"]
        lines.append(f"| {method} | {rate:g} | " + " | ".join(cells) + " |")
    rates = sorted({rate for by_rate in outcomes.values() for rate in by_rate})
    lines += ["", f"| leaf / NLL by rate | {' | '.join(f'{rate:g}' for rate in rates)} |"]
    lines.append("|---" * (len(rates) + 1) + "|")
    for method, by_rate in outcomes.items():
        cells = [f"{100 * np.nanmean(o.right[:, -1]):.1f} / {o.nll:.2f}" if o else "" for o in map(by_rate.get, rates)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print tables."""
    parser = command_line(__doc__, output_dir=Path("output/heads"), seeds=[0, 1, 2])
    parser.add_argument("mode", choices=["frozen", "end_to_end"])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    parser.add_argument("--weights", type=Path, required=True, help="tf_efficientnet_lite0.safetensors")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--rates", nargs="+", type=float, help="of our heads; end to end: of the backbone")
    parser.add_argument("--epochs", type=int, help="30 frozen, 6 end to end")
    parser.add_argument("--image_size", type=int, default=96, help="end to end")
    parser.add_argument("--extra", default="", help="end to end: more options of the script")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="sklearn|hiclass")
    frozen = args.mode == "frozen"
    for name in args.datasets:
        source = Source(name, args)
        tasks = source.tasks(args) if frozen else {}
        outcomes: dict[str, dict[float, Outcome]] = {}
        for method in [method for method in args.methods if frozen or method in HEADS]:
            rates = args.rates or (RATES if frozen else (3e-4, 1e-3, 3e-3))
            for rate in rates if isinstance(METHODS[method], partial) else STRENGTHS:
                runs = ((method, rate, seed, args) for seed in args.seeds)
                found = [run_frozen(source, tasks, *run) if frozen else run_script(source, *run) for run in runs]
                mean = Outcome(*(np.mean(values, 0) for values in zip(*found, strict=True)))
                outcomes.setdefault(method, {})[rate] = mean
        print(f"### {name}, {'frozen features' if frozen else 'end to end'}\n\n{source.hierarchy}", end="")
        print(*(f"; {len(rows):,} {part}" for part, (_, rows) in source.rows(args.seeds[0]).items()), "\n")
        print(table(outcomes, source.hierarchy.levels), flush=True)


if __name__ == "__main__":
    main()
