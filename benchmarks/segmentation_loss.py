"""Dice + focal loss at three levels (2, 4 and 16 classes), forward and backward, 4 images of 512 x 512: in turns.

"plain PyTorch" is what a few readable lines do (log-softmax per level, one-hot labels); "smp" and "MONAI" add one Dice
and one focal loss per level from segmentation-models-pytorch and MONAI. All take float32 scores at full resolution.
That ours has the gradient of the plain lines is checked first (the others differ in definition).
Peak memory is measured in processes of their own.

    python benchmarks/segmentation_loss.py --rounds 5
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from side_by_side import apart, balanced_tree, command_line, in_turns, machine, table

from common.losses.segmentation import SegmentationLoss
from common.model.heads import LevelHeads

WEIGHTS = (0.2, 0.3, 1.0)
CLASSES = (2, 4, 16)
TREE = balanced_tree(CLASSES)


def main() -> None:
    options = command_line(__doc__, rounds=5, size=512, threads=torch.get_num_threads()).parse_args()
    torch.set_num_threads(options.threads)
    # Independent heads are what the plain lines compute: the same gradient.
    ours, plain = (make_steps(64)[name]() for name in ("ours, independent", "plain PyTorch"))
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()
    print(machine(), "\n")
    alone = options.threads == 1
    print("CPU time of one thread" if alone else "wall time", "\n")
    steps = make_steps(options.size)
    print(table(in_turns(steps, options.rounds, cpu_time=alone), "ours, tree"))
    print(f"\n{table({name: [apart(peak, name, options.size)] for name in steps}, 'ours, tree', 'peak memory, MB')}")


def peak(name: str, size: int) -> float:
    """How far one step raises the memory of this process, in MB."""
    step = make_steps(size)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("VmRSS")
    step()
    return memory("VmHWM") - before


def memory(entry: str) -> float:
    return int(re.search(rf"{entry}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


def make_steps(size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Name -> forward and backward, returns the gradient."""
    from monai.losses import DiceFocalLoss
    from segmentation_models_pytorch.losses import DiceLoss, FocalLoss

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(16, (4, size // 16, size // 16), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    lifted = TREE.lift(labels)
    scores = torch.randn(4, sum(CLASSES), size, size, generator=generator).requires_grad_()
    leaf_scores = scores.detach()[:, -CLASSES[-1] :].contiguous().requires_grad_()

    def step(loss: Callable, scores: torch.Tensor, target: object) -> Callable[[], torch.Tensor]:
        return lambda: torch.autograd.grad(loss(scores, target), scores)[0]

    dice, focal = DiceLoss("multiclass"), FocalLoss("multiclass", gamma=2.0)
    both = DiceFocalLoss(to_onehot_y=True, softmax=True, gamma=2.0, batch=True)
    return {
        "ours, tree": step(our_loss("tree"), leaf_scores, labels),
        "ours, independent": step(our_loss("independent"), scores, labels),
        "plain PyTorch": step(plain_loss, scores, lifted),
        "smp": step(weighted(lambda part, y: dice(part, y) + focal(part, y)), scores, lifted),
        "MONAI": step(weighted(lambda part, y: both(part, y[:, None])), scores, lifted),
    }


def our_loss(kind: str) -> SegmentationLoss:
    return SegmentationLoss(LevelHeads(TREE, 4, kind), WEIGHTS, dice_over="batch", smooth=0.0)


def weighted(of_level: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A loss of all levels from that of one."""

    def loss(scores: torch.Tensor, lifted: list[torch.Tensor]) -> torch.Tensor:
        levels = zip(WEIGHTS, scores.split(CLASSES, dim=1), lifted, strict=True)
        return sum(weight * 0.5 * of_level(part, labels) for weight, part, labels in levels)

    return loss


@weighted
def plain_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    log_probs = scores.log_softmax(1)
    one_hot = F.one_hot(labels, scores.shape[1]).movedim(-1, 1)
    probs = log_probs.exp()
    inside, everywhere = (probs * one_hot).sum((0, 2, 3)), (probs + one_hot).sum((0, 2, 3))
    log_prob = log_probs.gather(1, labels[:, None])[:, 0]
    return (1 - 2 * inside / everywhere).mean() + ((1 - log_prob.exp()) ** 2 * -log_prob).mean()


if __name__ == "__main__":
    main()
