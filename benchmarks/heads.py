"""Does the label tree help? Flat, independent and tree heads, each at its own best rate, beside other people's tools.

    python benchmarks/heads.py frozen --data FOLDER --weights tf_efficientnet_lite0.safetensors
    python benchmarks/heads.py end_to_end --data FOLDER --weights FILE --datasets grocery --rates 3e-4 1e-3 3e-3

FOLDER has a folder for each data set of :data:`DATASETS`. ``frozen`` trains heads on features of the pretrained network,
which are computed once; ``end_to_end`` runs the scripts, and repeats nothing that has finished. The rate of a method is
the one whose leaves are right most often in a part that is neither trained on nor tested, over all seeds. Intervals are
95 % bootstrap intervals over the test images, of the mean over the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from common.data.rows import ImageRows, Samples, make_loader  # noqa: E402
from common.data.sampling import EvaluationBatchSampler  # noqa: E402
from common.data.splits import LabelColumns, choose_rows, load_splits, read_cells  # noqa: E402
from common.images.transforms import EvaluationTransform, Normalize  # noqa: E402
from common.model.backbones import load_backbone  # noqa: E402
from common.model.heads import LevelHeads  # noqa: E402
from common.model.hierarchy import Hierarchy  # noqa: E402

NETWORK = "timm/tf_efficientnet_lite0"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class DataSet:
    """Where the labels are, and which rows are for what.

    ``select`` is the file that chooses rates, or ``None``: then rows of the training file that are not trained on, those
    of every fifth value of ``group`` if given.
    """

    labels: str
    size: int
    test: str = "validation"
    select: str | None = None
    group: str | None = None
    num_train: int | None = None


DATASETS = {
    "planktonset": DataSet("--label_column class --hierarchy {data}/taxonomy.csv", 128, num_train=2000),
    "grocery": DataSet("--level_columns kind coarse fine", 224, "test", "validation"),
    "magnetic_tile": DataSet(
        "--label_column kind --hierarchy {repository}/hierarchies/magnetic_tile.yaml", 224, group="tile"
    ),
}


@dataclass
class Task:
    """Features and labels of one data set and seed: ``parts`` has train, select and test."""

    hierarchy: Hierarchy
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]]

    def leaves(self, part: str) -> torch.Tensor:
        """The leaf of each row."""
        position = {leaf: index for index, leaf in enumerate(self.hierarchy.leaves)}
        rows = [
            [(level, index) for level, index in enumerate(row) if index >= 0] for row in self.labels(part).tolist()
        ]
        return torch.tensor([position[row[-1]] for row in rows])

    def features(self, part: str) -> torch.Tensor:
        return self.parts[part][0]

    def labels(self, part: str) -> torch.Tensor:
        return self.parts[part][1]


Scores = tuple[torch.Tensor, torch.Tensor]
"""For each row the leaf predicted, and log-probabilities of all leaves (NaN if there are none)."""


# ---- features


class Source:
    """The files of a data set, its tree, and which rows a seed takes for what."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.chosen, folder = name, DATASETS[name], args.data / name
        self.words = self.chosen.labels.format(data=folder, repository=REPOSITORY).split()
        files = sorted({"train", self.chosen.test, self.chosen.select or "train"})
        self.splits = load_splits("", None, {file: str(folder / f"{file}.parquet") for file in files})
        words = self.words
        columns = LabelColumns(None, words[1], words[3]) if words[0] == "--label_column" else LabelColumns(words[1:])
        self.hierarchy, _ = columns.read_hierarchy(self.splits["train"])
        self.labels = {file: columns.read_labels(self.splits[file], self.hierarchy, file) for file in files}

    def rows(self, seed: int) -> dict[str, tuple[str, np.ndarray]]:
        """Part -> file and row numbers."""
        chosen, every = self.chosen, {file: np.arange(len(labels)) for file, labels in self.labels.items()}
        train = choose_rows(len(every["train"]), chosen.num_train, seed)
        if chosen.group:
            fold = pd.factorize(np.array(read_cells(self.splits["train"], chosen.group)))[0] % 5
            train = np.flatnonzero(fold)
        rest = np.setdiff1d(every["train"], train)
        rest = rest[choose_rows(len(rest), chosen.num_train, seed)]
        select = (chosen.select, every[chosen.select]) if chosen.select else ("train", rest)
        return {"train": ("train", train), "select": select, "test": (chosen.test, every[chosen.test])}

    def tasks(self, args: argparse.Namespace) -> dict[int, Task]:
        """A task for each seed; the features of all images are computed once."""
        file = args.output_dir / "features" / f"{self.name}-{self.chosen.size}.npz"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **{part: extract(rows, part, self.chosen.size, args) for part, rows in self.splits.items()})
        with np.load(file) as saved:
            pairs = {
                name: (torch.from_numpy(saved[name]), torch.from_numpy(self.labels[name])) for name in self.splits
            }

        def parts(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
            return {part: tuple(both[at] for both in pairs[file]) for part, (file, at) in self.rows(seed).items()}

        return {seed: Task(self.hierarchy, parts(seed)) for seed in args.seeds}


@torch.inference_mode()
def extract(rows: Any, part: str, size: int, args: argparse.Namespace) -> np.ndarray:
    """(rows, channels): the pretrained network's features of squashed images, prepared as it was trained."""
    backbone, _ = load_backbone(NETWORK, weights=str(args.weights), image_size=size)
    spec = backbone.eval().spec
    normalize = Normalize(spec["mean"], spec["std"])
    transform = EvaluationTransform(size, resize_mode="squash", crop_pct=1.0, interpolation=spec["interpolation"])
    samples = Samples(ImageRows(rows, "image", part), np.arange(len(rows)), transform)
    batches = make_loader(samples, EvaluationBatchSampler(len(rows), 64, 0, 1), 0, False)
    return torch.cat([backbone(normalize(batch["pixels"])) for batch in batches]).numpy()


# ---- heads on features


def train_head(task: Task, seed: int, rate: float, kind: str, scale: float, args: argparse.Namespace) -> LevelHeads:
    """AdamW with a cosine, as the scripts do it; ``independent`` with equal weights of the levels."""
    torch.manual_seed(seed)
    features, labels, leaves = task.features("train"), task.labels("train"), task.leaves("train")
    heads = LevelHeads(task.hierarchy, features.shape[1], kind, scale)
    optimizer = torch.optim.AdamW(heads.parameters(), rate, weight_decay=0.05, fused=True)
    order = [batch for _ in range(args.epochs or 30) for batch in torch.randperm(len(leaves)).split(64)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for batch in order:
        logits = heads(features[batch])
        if heads.leaf_softmax:
            loss = F.cross_entropy(logits, leaves[batch])
        else:
            blocks = logits.split(task.hierarchy.num_classes, 1)
            columns = zip(blocks, labels[batch].T, strict=True)
            loss = sum(
                F.cross_entropy(*column, reduction="sum") / max((column[1] >= 0).sum(), 1) for column in columns
            )
            loss = loss / len(blocks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return heads


@torch.no_grad()
def head(task: Task, seed: int, rate: float, args: argparse.Namespace, kind: str, root: float, decoding: str) -> Any:
    """Train a head; the sum over a path is divided by the number of levels to the power ``root``."""
    with torch.enable_grad():
        heads = train_head(task, seed, rate, kind, task.hierarchy.num_levels**-root, args)

    def predict(part: str) -> Scores:
        logits = heads(task.features(part))
        log_probs = heads.log_probs(logits)
        scores = heads.leaf_logits(logits).log_softmax(1)
        leaf = top_down(task.hierarchy, log_probs) if decoding == "top-down" else scores.argmax(1)
        return leaf, scores

    return predict


def top_down(hierarchy: Hierarchy, log_probs: Sequence[torch.Tensor]) -> torch.Tensor:
    """From level to level the most probable class below what was chosen so far."""
    allowed = torch.ones(len(log_probs[0]), hierarchy.num_leaves, dtype=torch.bool)
    for column, of_level in zip(hierarchy.ancestors.T, log_probs, strict=True):
        scores = torch.where(allowed & (column >= 0), of_level[:, column.clamp(min=0)], -torch.inf)
        best = column[scores.argmax(1)]
        here = column[None] == best[:, None]
        skipped = allowed & (column < 0)[None]  # leaves without a class at this level
        allowed = torch.where((scores > -torch.inf).any(1, keepdim=True), allowed & here | skipped, allowed)
    final = torch.stack([log_probs[level][:, index] for level, index in hierarchy.leaves], 1)
    return torch.where(allowed, final, -torch.inf).argmax(1)


# ---- what people would take instead


def logistic_regression(task: Task, seed: int, rate: float, args: argparse.Namespace) -> Any:
    """scikit-learn's, on the leaves; ``rate`` is C."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=rate, max_iter=300).fit(task.features("train").numpy(), task.leaves("train").numpy())

    def predict(part: str) -> Scores:
        scores = torch.full((len(task.labels(part)), task.hierarchy.num_leaves), -20.0, dtype=torch.float64)
        scores[:, model.classes_] = torch.from_numpy(model.predict_log_proba(task.features(part).numpy())).double()
        return scores.argmax(1), scores

    return predict


def hiclass(task: Task, seed: int, rate: float, args: argparse.Namespace) -> Any:
    """HiClass's classifier per parent node over the same logistic regression; gaps repeat the class above them."""
    from hiclass import LocalClassifierPerParentNode
    from sklearn.linear_model import LogisticRegression

    paths = []
    for leaf in task.hierarchy.ancestors.tolist():
        path: list[str] = []
        for level, index in enumerate(leaf):
            path.append(f"{level}-{index}" if index >= 0 else f"{path[-1] if path else 'root'}+")
        paths.append(path)
    leaf_of = {path[-1]: index for index, path in enumerate(paths)}
    model = LocalClassifierPerParentNode(LogisticRegression(C=rate, max_iter=300))
    model.fit(task.features("train").numpy(), np.array(paths)[task.leaves("train").numpy()])

    def predict(part: str) -> Scores:
        found = model.predict(task.features(part).numpy())[:, -1]
        leaf = torch.tensor([leaf_of[name] for name in found])
        return leaf, torch.full((len(leaf), task.hierarchy.num_leaves), torch.nan)

    return predict


STRENGTHS = (0.01, 0.1, 1.0)
METHODS: dict[str, tuple[Callable[..., Any], Sequence[float]]] = {
    "flat": (partial(head, kind="flat", root=0, decoding="leaf"), RATES),
    "independent": (partial(head, kind="independent", root=0, decoding="leaf"), RATES),
    "independent, top-down": (partial(head, kind="independent", root=0, decoding="top-down"), RATES),
    "tree, sum": (partial(head, kind="tree", root=0, decoding="leaf"), RATES),
    "tree, sum / sqrt(L)": (partial(head, kind="tree", root=0.5, decoding="leaf"), RATES),
    "tree, sum / L": (partial(head, kind="tree", root=1, decoding="leaf"), RATES),
    "logistic regression": (logistic_regression, STRENGTHS),
    "HiClass, per parent": (hiclass, STRENGTHS),
}


# ---- tables


@dataclass
class Outcome:
    """Of one method and rate, over the seeds: share right at the leaf of the part that selects, test scores."""

    select: float
    right: np.ndarray
    """(images, levels), the mean over the seeds; NaN where an image has no label."""
    nll: float


def score(task: Task, scores: Scores, part: str) -> tuple[np.ndarray, float]:
    """(images, levels) 1 where the best path is right, NaN without a label; negative log-likelihood of the leaf."""
    leaf, log_probs = scores
    labels, path = task.labels(part), torch.stack(task.hierarchy.lift(leaf), 1)
    right = torch.where(labels >= 0, (path == labels).double(), torch.nan)
    return right.numpy(), F.nll_loss(log_probs, task.leaves(part)).item()


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over images, in percent; NaN is left out."""
    values = 100 * values[~np.isnan(values)]
    draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    return values.mean(), *np.percentile(values[draws].mean(1), [2.5, 97.5])


def table(outcomes: dict[str, dict[float, Outcome]], levels: Sequence[str]) -> str:
    """Markdown: each method at its best rate, and how much its leaf is ahead of the first method's on the same images."""
    titles = ["method", "best rate", *reversed(levels), "leaf, against the first", "NLL"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
    base = None
    for method, by_rate in outcomes.items():
        rate, best = max(by_rate.items(), key=lambda item: item[1].select)
        base = best if base is None else base
        cells = ["{:.1f} [{:.1f}, {:.1f}]".format(*interval(best.right[:, -1]))]
        cells += [f"{100 * np.nanmean(best.right[:, level]):.1f}" for level in reversed(range(len(levels) - 1))]
        cells += [
            "" if best is base else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval((best.right - base.right)[:, -1]))
        ]
        lines.append(f"| {method} | {rate:g} | " + " | ".join([*cells, f"{best.nll:.2f}"]) + " |")
    rates = sorted({rate for by_rate in outcomes.values() for rate in by_rate})
    lines += ["", "| leaf / NLL at every rate | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
    lines.append("|---|" + "--:|" * len(rates))
    for method, by_rate in outcomes.items():
        cells = [f"{100 * np.nanmean(o.right[:, -1]):.1f} / {o.nll:.2f}" if o else "" for o in map(by_rate.get, rates)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def frozen(args: argparse.Namespace) -> None:
    """Every method on every data set's features."""
    for name in args.datasets:
        source = Source(name, args)
        tasks = source.tasks(args)
        outcomes: dict[str, dict[float, Outcome]] = {}
        for method in args.methods:
            make, rates = METHODS[method]
            for rate in rates if make in (logistic_regression, hiclass) else args.rates or rates:
                found = []
                for seed, task in tasks.items():
                    predict = make(task, seed, rate, args)
                    found.append([score(task, predict(part), part) for part in ("select", "test")])
                outcomes.setdefault(method, {})[rate] = Outcome(
                    np.mean([np.nanmean(select[0][:, -1]) for select, _ in found]),
                    np.mean([test[0] for _, test in found], 0),
                    float(np.mean([test[1] for _, test in found])),
                )
        hierarchy = source.hierarchy
        sizes = ", ".join(f"{len(labels):,} {part}" for part, (_, labels) in tasks[args.seeds[0]].parts.items())
        print(
            f"### {name}, frozen features\n\n{hierarchy}; {sizes}\n\n{table(outcomes, hierarchy.levels)}\n", flush=True
        )


# ---- end to end


HEADS = {
    "flat": "--head flat",
    "independent": "--head independent --level_weights equal",
    "tree, sum": "--head tree --head_scale 1",
    "tree, sum / sqrt(L)": "--head tree",
}
COMMON = (
    "--model_name_or_path {network} --backbone_weights {weights} --per_device_train_batch_size 32 --channels_last "
)
COMMON += "--eval_epochs 1000 --dataloader_num_workers 0 --no_report --save_predictions --checkpointing_steps 1000000"


def end_to_end(args: argparse.Namespace) -> None:
    """The script on the same rows as the features; what has finished is not done again."""
    for name in args.datasets:
        source, outcomes = Source(name, args), {}
        for method in [method for method in args.methods if method in HEADS]:
            for rate in args.rates or (3e-4, 1e-3, 3e-3):
                found = [run(source, method, rate, seed, args) for seed in args.seeds]
                select, right, nll = zip(*found, strict=True)
                outcomes.setdefault(method, {})[rate] = Outcome(
                    np.mean(select), np.mean(right, 0), float(np.mean(nll))
                )
                print(f"{name}, {method}, rate {rate:g}: done", file=sys.stderr, flush=True)
        print(f"### {name}, end to end\n\n{table(outcomes, source.hierarchy.levels)}\n", flush=True)


def run(
    source: Source, method: str, rate: float, seed: int, args: argparse.Namespace
) -> tuple[float, np.ndarray, float]:
    """Train unless that has been done: right in the part that selects, (test images, levels) right, leaf's loss."""
    files = {}
    for part, (file, rows) in source.rows(seed).items():
        files[part] = args.output_dir / "parts" / f"{source.name}-{part}-{seed}.parquet"
        if not files[part].is_file():
            files[part].parent.mkdir(parents=True, exist_ok=True)
            source.splits[file].select(rows).to_parquet(files[part])
    words = [method.replace(" ", "").replace("/", "_"), f"{rate:g}", str(seed), str(args.image_size), args.extra]
    output = args.output_dir / "runs" / source.name / "-".join(words).replace(" ", "_")
    options = f"--train_file {files['train']} --validation_file {files['select']} --test_file {files['test']} "
    options += f"{' '.join(source.words)} {COMMON.format(network=NETWORK, weights=args.weights)} {HEADS[method]} "
    options += f"--learning_rate {rate} --seed {seed} --image_size {args.image_size} --output_dir {output} "
    options += f"--num_train_epochs {args.epochs or 6} {args.extra}"
    if not (output / "all_results.json").is_file():
        output.mkdir(parents=True, exist_ok=True)
        with (output / "log.txt").open("w") as log:
            command = [sys.executable, str(REPOSITORY / "train_taxonomy.py"), *options.split()]
            subprocess.run(command, stdout=log, stderr=log, check=True)
    results = json.loads((output / "all_results.json").read_text())
    found, levels = pd.read_parquet(output / "predictions_test.parquet"), source.hierarchy.levels
    right = [
        (found[f"{level}_best_path"] == found[f"{level}_label"]).where(found[f"{level}_label"].notna())
        for level in levels
    ]
    nll = results["test"]["loss"] if "independent" not in method else np.nan
    return results["eval"]["levels"][levels[-1]]["accuracy"], np.array(right, float).T, nll


def main(argv: Sequence[str] | None = None) -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["frozen", "end_to_end"])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    parser.add_argument("--weights", type=Path, required=True, help="tf_efficientnet_lite0.safetensors")
    parser.add_argument("--output_dir", type=Path, default=Path("output/heads"))
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--rates", nargs="+", type=float, help="of our heads")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="30 frozen, 6 end to end")
    parser.add_argument("--image_size", type=int, default=96, help="end to end")
    parser.add_argument("--extra", default="", help="end to end: more options of train_taxonomy.py")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="sklearn|hiclass")
    (frozen if args.mode == "frozen" else end_to_end)(args)


if __name__ == "__main__":
    main()
