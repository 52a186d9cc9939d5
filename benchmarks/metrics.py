"""What counting costs: our metrics against ``evaluate`` and torchmetrics, in turns, on one CPU thread.

    python benchmarks/metrics.py --rounds 20

- segmentation: one mask of 512 x 512 with 16 classes, from the leaf, which is all that the others count; and from the
  leaf and the argmax of three levels;
- classification: a batch of 64 with 2,786 species: accuracy and macro-F1 of given predictions, by torchmetrics and by
  our counters of these; and all that ours count from log-probabilities of a tree of six levels.

That the same predictions give the same numbers is checked first.
"""

from __future__ import annotations

import evaluate
import torch
import torchmetrics
from side_by_side import RANKS, balanced_tree, command_line, in_turns, machine, table
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

from common.metrics.segmentation import SegmentationMetrics
from common.metrics.taxonomy import TaxonomyMetrics

NUM_SPECIES, SIDE = 2786, 512


def main() -> None:
    parser = command_line(__doc__, rounds=20)
    parser.add_argument("--mean_iou", help="folder of the metric mean_iou of evaluate, if it cannot be downloaded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for title, ways, base in (segmentation(options.mean_iou), classification()):
        print(f"\n{title}\n\n{table(in_turns(ways, options.rounds, cpu_time=True, repeats=5), base)}")


def guesses(truth: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Wrong in three cases of ten."""
    return torch.where(torch.rand(truth.shape) < 0.3, torch.randint(num_classes, truth.shape), truth)


def segmentation(mean_iou: str | None) -> tuple[str, dict, str]:
    tree = balanced_tree((2, 4, 16))
    truth = torch.randint(16, (SIDE // 16, SIDE // 16)).repeat_interleave(16, 0).repeat_interleave(16, 1)
    leaf = guesses(truth, 16)
    small = {"predictions": {"leaf": leaf.byte()}, "references": truth.byte()}
    whole = {"predictions": {"leaf": leaf, "argmax": tree.lift(leaf)}, "references": truth}
    ours, theirs = SegmentationMetrics(tree), MulticlassJaccardIndex(16)
    ours.add_batch(**small), theirs.update(leaf[None], truth[None])
    assert abs(ours.compute()["levels"][tree.levels[-1]]["mean_iou"] - theirs.compute().item()) < 1e-6
    arrays = {"predictions": [leaf.numpy()], "references": [truth.numpy()], "num_labels": 16, "ignore_index": 255}
    ways = {
        "ours, leaf": lambda: ours.add_batch(**small),
        "ours, leaf and all levels": lambda: ours.add_batch(**whole),
        "torchmetrics": lambda: theirs.update(leaf[None], truth[None]),
    }
    try:
        metric = evaluate.load(mean_iou or "mean_iou")
        ways["evaluate mean_iou"] = lambda: metric.compute(**arrays)
    except Exception as error:  # whatever the Hub says
        print(f"(without evaluate's mean_iou: {str(error).splitlines()[0][:80]})")
    return f"segmentation, one mask of {SIDE} x {SIDE}, 16 classes", ways, "ours, leaf"


def classification() -> tuple[str, dict, str]:
    truth = torch.randint(NUM_SPECIES, (64,))
    predicted, deep = guesses(truth, NUM_SPECIES), balanced_tree((7, 28, 95, 308, 918, NUM_SPECIES), RANKS)
    chances = torch.randn(64, NUM_SPECIES).scatter(1, predicted[:, None], 30).log_softmax(1)
    of_tree = {"log_probs": [*deep.marginalize(chances)], "path": [*deep.ancestors[predicted].unbind(1)]}
    ours, counting = TaxonomyMetrics(deep), TaxonomyMetrics(balanced_tree([NUM_SPECIES]))
    accuracy = MulticlassAccuracy(NUM_SPECIES, average="micro")
    theirs = torchmetrics.MetricCollection([MulticlassF1Score(NUM_SPECIES), accuracy])
    counters, references = counting._unpack(counting._counts), truth[:, None]
    given, right = predicted[:, None], predicted[:, None] == references
    ways = {
        "ours, six levels, everything": lambda: ours.add_batch(predictions=of_tree, references=deep.ancestors[truth]),
        "ours, macro-F1 and accuracy": lambda: counting._count_classes(counters, given, references, right),
        "torchmetrics, macro-F1 and accuracy": lambda: theirs.update(predicted, truth),
    }
    ways["ours, six levels, everything"](), theirs.update(predicted, truth)
    mine, other = ours.compute()["levels"][deep.levels[-1]], theirs.compute()
    assert abs(mine["accuracy"] - other["MulticlassAccuracy"].item()) < 1e-6
    assert abs(mine["macro_f1"] - other["MulticlassF1Score"].item()) < 1e-6
    return f"classification, a batch of 64, {NUM_SPECIES:,} species", ways, "ours, macro-F1 and accuracy"


if __name__ == "__main__":
    main()
