"""What counting costs: our metrics against ``evaluate`` and torchmetrics, in turns, on one CPU thread.

- segmentation: one mask of 512 x 512 with 16 classes, from the leaf, which is all that the others count; and from the
  leaf and the argmax of three levels;
- classification: a batch of 64 with 2,786 species: macro-F1 and accuracy of given predictions, by torchmetrics and by
  our counters of these; and all that ours count, with top-5, calibration and both decodings from log-probabilities,
  for one level and for a tree of six.

The same predictions give the same mean IoU, accuracy and macro-F1, which is checked first.

    python benchmarks/metrics.py --rounds 20
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import evaluate
import numpy as np
import torch
import torchmetrics
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.segmentation_loss import TREE
from benchmarks.side_by_side import in_turns, machine, table
from common.metrics.segmentation import SegmentationMetrics
from common.metrics.taxonomy import TaxonomyMetrics
from common.model.hierarchy import Hierarchy

NUM_SPECIES, SIDE = 2786, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--mean_iou", help="folder of the metric mean_iou of evaluate, if it cannot be downloaded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    segmentation(options.rounds, options.mean_iou)
    classification(options.rounds)


def segmentation(rounds: int, mean_iou: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(16, (SIDE // 16, SIDE // 16), generator=generator)
    truth = truth.repeat_interleave(16, 0).repeat_interleave(16, 1)
    wrong = torch.rand(truth.shape, generator=generator) < 0.3
    leaf = torch.where(wrong, torch.randint(16, truth.shape, generator=generator), truth)
    argmax = TREE.lift(leaf)
    small = [part.to(torch.uint8) for part in (truth, leaf)]
    ours = SegmentationMetrics(TREE)
    theirs = MulticlassJaccardIndex(16)
    quick = MulticlassJaccardIndex(16, validate_args=False)
    ways = {
        "ours, leaf": lambda: ours.add_batch(predictions={"leaf": small[1]}, references=small[0]),
        "ours, leaf and all levels": lambda: ours.add_batch(
            predictions={"leaf": leaf, "argmax": argmax}, references=truth
        ),
        "torchmetrics": lambda: theirs.update(leaf[None], truth[None]),
        "torchmetrics, no validation": lambda: quick.update(leaf[None], truth[None]),
    }
    ours.add_batch(predictions={"leaf": leaf}, references=truth)
    theirs.update(leaf[None], truth[None])
    assert abs(ours.compute()["levels"]["fine"]["mean_iou"] - theirs.compute().item()) < 1e-6
    metric = load(mean_iou)
    if metric is not None:
        arrays = leaf.numpy(), truth.numpy()
        ways["evaluate mean_iou"] = lambda: metric.compute(
            predictions=[arrays[0]], references=[arrays[1]], num_labels=16, ignore_index=255
        )
    print(f"\nsegmentation, one mask of {SIDE} x {SIDE}, 16 classes\n")
    print(table(in_turns(ways, rounds, cpu_time=True, repeats=5), "ours, leaf"))


def load(folder: str | None) -> evaluate.EvaluationModule | None:
    try:
        return evaluate.load(folder or "mean_iou")
    except Exception as error:  # whatever the Hub says
        print(f"(without evaluate's mean_iou: {str(error).splitlines()[0][:80]})")
        return None


def classification(rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(NUM_SPECIES, (64,), generator=generator)
    wrong = torch.rand(64, generator=generator) < 0.3
    predicted = torch.where(wrong, torch.randint(NUM_SPECIES, (64,), generator=generator), truth)
    flat = Hierarchy(["species"], [[str(index) for index in range(NUM_SPECIES)]], [[None] * NUM_SPECIES])
    ours = TaxonomyMetrics(flat)
    one_hot = torch.nn.functional.one_hot(predicted, NUM_SPECIES).float().mul(30).log_softmax(1)
    theirs = torchmetrics.MetricCollection(
        [MulticlassF1Score(NUM_SPECIES), MulticlassAccuracy(NUM_SPECIES, average="micro")]
    )
    tree, log_probs, labels, path = six_levels(generator)
    deep = TaxonomyMetrics(tree)
    ways = {
        "ours, six levels, everything": lambda: deep.add_batch(
            predictions={"log_probs": log_probs, "path": path}, references=labels
        ),
        "ours, macro-F1 and accuracy": count_classes(TaxonomyMetrics(flat), predicted, truth),
        "ours, one level, everything": lambda: ours.add_batch(
            predictions={"log_probs": [one_hot], "path": [predicted]}, references=truth[:, None]
        ),
        "torchmetrics, macro-F1 and accuracy": lambda: theirs.update(predicted, truth),
    }
    ways["ours, one level, everything"](), theirs.update(predicted, truth)
    mine, other = ours.compute()["levels"]["species"], theirs.compute()
    assert abs(mine["accuracy"] - other["MulticlassAccuracy"].item()) < 1e-6
    assert abs(mine["macro_f1"] - other["MulticlassF1Score"].item()) < 1e-6
    print(f"\nclassification, a batch of 64, {NUM_SPECIES:,} species\n")
    print(table(in_turns(ways, rounds, cpu_time=True, repeats=5), "ours, macro-F1 and accuracy"))


def count_classes(metric: TaxonomyMetrics, predicted: torch.Tensor, truth: torch.Tensor) -> Callable[[], None]:
    """Only what macro-F1 and accuracy need, of predictions given."""
    counters, references, path = metric._unpack(metric._counts), truth[:, None], predicted[:, None]

    def count() -> None:
        metric._count_classes(counters, path, references, path == references)

    return count


def six_levels(generator: torch.Generator) -> tuple[Hierarchy, list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
    """A tree of FungiTastic's size, and a batch of log-probabilities with labels and best paths."""
    sizes = (7, 28, 95, 308, 918, NUM_SPECIES)
    parents = [[None] * 7] + [
        [index * above // size for index in range(size)] for above, size in zip(sizes, sizes[1:], strict=False)
    ]
    names = [[f"{level}_{index}" for index in range(size)] for level, size in enumerate(sizes)]
    tree = Hierarchy(["phylum", "class", "order", "family", "genus", "species"], names, parents)
    leaf = torch.randn(64, NUM_SPECIES, generator=generator).log_softmax(1)
    log_probs = [*tree.marginalize(leaf)]
    labels = tree.ancestors[torch.randint(NUM_SPECIES, (64,), generator=generator)]
    path = tree.ancestors[leaf.argmax(1)]
    assert np.array_equal(path[:, -1].numpy(), leaf.argmax(1).numpy())
    return tree, log_probs, labels, list(path.unbind(1))


if __name__ == "__main__":
    main()
