"""Dice + focal loss at three levels (2, 4 and 16 classes), forward and backward, 4 images of 512 x 512: in turns.

"plain PyTorch" is what a few readable lines do (log-softmax per level, one-hot labels); "smp" and "MONAI" add one Dice
and one focal loss per level from segmentation-models-pytorch and MONAI. All take float32 scores at full resolution.
That ours has the gradient of the plain lines is checked first (the others differ in definition).
Peak memory is measured in processes of their own.

    python benchmarks/segmentation_loss.py --rounds 5
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import in_turns, machine, table
from common.losses.segmentation import SegmentationLoss
from common.model.heads import LevelHeads
from common.model.hierarchy import Hierarchy

WEIGHTS = (0.2, 0.3, 1.0)
CLASSES = (2, 4, 16)
TREE = Hierarchy(
    ["binary", "coarse", "fine"],
    [[f"{level}{index}" for index in range(number)] for level, number in enumerate(CLASSES)],
    [[None] * 2, [index // 2 for index in range(4)], [index // 4 for index in range(16)]],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak_of", help="only this one, once; prints its peak memory in MB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = make_steps(options.size)
    if options.peak_of:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = memory("VmRSS")
        steps[options.peak_of]()
        print(memory("VmHWM") - before)
        return
    check()
    print(machine(), "\n")
    alone = options.threads == 1
    print("CPU time of one thread" if alone else "wall time", "\n")
    print(table(in_turns(steps, options.rounds, cpu_time=alone), "ours, tree"))
    print("\n| | peak memory, MB | / ours |\n|---|---|---|")
    peaks = {name: peak(name, options) for name in steps}
    for name, megabytes in peaks.items():
        print(f"| {name} | {megabytes:,.0f} | {megabytes / peaks['ours, tree']:.2f} |")


def memory(entry: str) -> float:
    """Of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def peak(name: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--peak_of", name, "--size", str(options.size), "--threads", "1"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def make_steps(size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Name -> forward and backward, returns the gradient."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(16, (4, size // 16, size // 16), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    lifted = TREE.lift(labels)
    scores = torch.randn(4, sum(CLASSES), size, size, generator=generator).requires_grad_()

    leaf_scores = scores.detach()[:, -CLASSES[-1] :].contiguous().requires_grad_()

    def step(
        loss: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor = scores
    ) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            scores.grad = None
            loss(scores).backward()
            return scores.grad

        return run

    tree, independent = our_loss("tree"), our_loss("independent")
    steps = {
        "ours, tree": step(lambda scores: tree(scores, labels), leaf_scores),
        "ours, independent": step(lambda scores: independent(scores, labels)),
        "plain PyTorch": step(lambda scores: plain_loss(scores, lifted)),
    }
    for name, loss in others().items():
        steps[name] = step(lambda scores, loss=loss: loss(scores, lifted))
    return steps


def our_loss(kind: str) -> SegmentationLoss:
    return SegmentationLoss(LevelHeads(TREE, 4, kind), WEIGHTS, dice_over="batch", smooth=0.0)


def per_level(scores: torch.Tensor, lifted: list[torch.Tensor]) -> zip:
    return zip(WEIGHTS, scores.split(CLASSES, dim=1), lifted, strict=True)


def plain_loss(scores: torch.Tensor, lifted: list[torch.Tensor]) -> torch.Tensor:
    total = scores.new_zeros(())
    for weight, part, labels in per_level(scores, lifted):
        log_probs = part.log_softmax(1)
        one_hot = F.one_hot(labels, part.shape[1]).movedim(-1, 1)
        probs = log_probs.exp()
        inside, everywhere = (probs * one_hot).sum((0, 2, 3)), (probs + one_hot).sum((0, 2, 3))
        log_prob = log_probs.gather(1, labels[:, None])[:, 0]
        focal = ((1 - log_prob.exp()) ** 2 * -log_prob).mean()
        total = total + weight * 0.5 * ((1 - 2 * inside / everywhere).mean() + focal)
    return total


def others() -> dict[str, Callable[[torch.Tensor, list[torch.Tensor]], torch.Tensor]]:
    from monai.losses import DiceFocalLoss
    from segmentation_models_pytorch.losses import DiceLoss, FocalLoss

    dice, focal = DiceLoss("multiclass"), FocalLoss("multiclass", gamma=2.0)
    both = DiceFocalLoss(to_onehot_y=True, softmax=True, gamma=2.0, batch=True)

    def smp(scores: torch.Tensor, lifted: list[torch.Tensor]) -> torch.Tensor:
        return sum(w * 0.5 * (dice(part, y) + focal(part, y)) for w, part, y in per_level(scores, lifted))

    def monai(scores: torch.Tensor, lifted: list[torch.Tensor]) -> torch.Tensor:
        return sum(w * 0.5 * both(part, y[:, None]) for w, part, y in per_level(scores, lifted))

    return {"smp": smp, "MONAI": monai}


def check() -> None:
    """Independent heads are what the plain lines compute: the same gradient."""
    steps = make_steps(64)
    ours, plain = steps["ours, independent"](), steps["plain PyTorch"]()
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


if __name__ == "__main__":
    main()
