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


def guesses(truth: torch.Tensor, num_classes: int, generator: torch.Generator) -> torch.Tensor:
    """Wrong in three cases of ten."""
    wrong = torch.rand(truth.shape, generator=generator) < 0.3
    return torch.where(wrong, torch.randint(num_classes, truth.shape, generator=generator), truth)


def segmentation(mean_iou: str | None) -> tuple[str, dict, str]:
    tree, generator = balanced_tree((2, 4, 16)), torch.Generator().manual_seed(0)
    truth = torch.randint(16, (SIDE // 16, SIDE // 16), generator=generator)
    truth = truth.repeat_interleave(16, 0).repeat_interleave(16, 1)
    leaf = guesses(truth, 16, generator)
    argmax, small = tree.lift(leaf), [part.to(torch.uint8) for part in (truth, leaf)]
    ours, theirs = SegmentationMetrics(tree), MulticlassJaccardIndex(16)
    quick = MulticlassJaccardIndex(16, validate_args=False)
    ours.add_batch(predictions={"leaf": leaf}, references=truth)
    theirs.update(leaf[None], truth[None])
    assert abs(ours.compute()["levels"][tree.levels[-1]]["mean_iou"] - theirs.compute().item()) < 1e-6
    everything = {"leaf": leaf, "argmax": argmax}
    ways = {
        "ours, leaf": lambda: ours.add_batch(predictions={"leaf": small[1]}, references=small[0]),
        "ours, leaf and all levels": lambda: ours.add_batch(predictions=everything, references=truth),
        "torchmetrics": lambda: theirs.update(leaf[None], truth[None]),
        "torchmetrics, no validation": lambda: quick.update(leaf[None], truth[None]),
    }
    try:
        metric = evaluate.load(mean_iou or "mean_iou")
        arrays = {"predictions": [leaf.numpy()], "references": [truth.numpy()]}
        ways["evaluate mean_iou"] = lambda: metric.compute(**arrays, num_labels=16, ignore_index=255)
    except Exception as error:  # whatever the Hub says
        print(f"(without evaluate's mean_iou: {str(error).splitlines()[0][:80]})")
    return f"segmentation, one mask of {SIDE} x {SIDE}, 16 classes", ways, "ours, leaf"


def classification() -> tuple[str, dict, str]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(NUM_SPECIES, (64,), generator=generator)
    predicted = guesses(truth, NUM_SPECIES, generator)
    one_hot = torch.nn.functional.one_hot(predicted, NUM_SPECIES).float().mul(30).log_softmax(1)
    flat, deep = balanced_tree([NUM_SPECIES]), balanced_tree((7, 28, 95, 308, 918, NUM_SPECIES), RANKS)
    scores = torch.randn(64, NUM_SPECIES, generator=generator).log_softmax(1)
    of_tree = {"log_probs": [*deep.marginalize(scores)], "path": [*deep.ancestors[scores.argmax(1)].unbind(1)]}
    ours, deep_ours, counting = TaxonomyMetrics(flat), TaxonomyMetrics(deep), TaxonomyMetrics(flat)
    theirs = torchmetrics.MetricCollection(
        [MulticlassF1Score(NUM_SPECIES), MulticlassAccuracy(NUM_SPECIES, average="micro")]
    )
    counters, references = counting._unpack(counting._counts), truth[:, None]

    def count() -> None:
        """Only what macro-F1 and accuracy need, of predictions given."""
        counting._count_classes(counters, predicted[:, None], references, predicted[:, None] == references)

    of_level = {"log_probs": [one_hot], "path": [predicted]}
    ways = {
        "ours, six levels, everything": lambda: deep_ours.add_batch(
            predictions=of_tree, references=deep.ancestors[truth]
        ),
        "ours, macro-F1 and accuracy": count,
        "ours, one level, everything": lambda: ours.add_batch(predictions=of_level, references=references),
        "torchmetrics, macro-F1 and accuracy": lambda: theirs.update(predicted, truth),
    }
    ways["ours, one level, everything"](), theirs.update(predicted, truth)
    mine, other = ours.compute()["levels"][flat.levels[0]], theirs.compute()
    assert abs(mine["accuracy"] - other["MulticlassAccuracy"].item()) < 1e-6
    assert abs(mine["macro_f1"] - other["MulticlassF1Score"].item()) < 1e-6
    return f"classification, a batch of 64, {NUM_SPECIES:,} species", ways, "ours, macro-F1 and accuracy"


if __name__ == "__main__":
    main()
