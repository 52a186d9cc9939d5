"""Find images that are in more than one split, even if they were rotated, mirrored, resized or re-encoded.

    python data_prep/find_leaks.py --dataset_name DIR --output_dir DIR [--group_column NAME] [--within_splits]
    python data_prep/find_leaks.py --train_file a.csv --validation_file b.csv --image_column file --output_dir DIR

Finds the same file, the same pixels, and copies that were rotated by multiples of 90 degrees, mirrored, resized,
compressed, made brighter or darker; with --group_column also groups on both sides.

Writes leaks.csv (all pairs), leaks.html (pictures of the first 500) and problems.csv, which --exclude_rows of the
other scripts and of the trainers takes. Exit status: 0 if there are no leaks, 1 if there are, 2 if something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from common.data.problems import Problem, write_problems
from common.data.rows import ImageRows
from common.run.command import run
from data_prep.leaks.compare import LEAST_DETAIL, Place, compare, unlike
from data_prep.leaks.describe import FLAT, describe, undescribed
from data_prep.leaks.report import Leak, write_page, write_table
from data_prep.leaks.search import CONFIDENCE, find_copies
from data_prep.parts.inputs import Inputs, input_parser, open_inputs
from data_prep.parts.parallel import map_rows, work_folder

LEAK_KINDS = ("same file", "same pixels", "copy", "same group")


def find_leaks(
    images: Mapping[str, ImageRows],
    folder: Path,
    *,
    within_splits: bool = False,
    confidence: float = CONFIDENCE,
    num_proc: int = 0,
    seed: int = 0,
) -> tuple[list[Leak], list[str]]:
    """Pairs of rows that show the same picture.

    Args:
        images: of each split, the one to learn from first.
        folder: for unfinished work; see :func:`data_prep.parts.parallel.work_folder`.
        within_splits: also look for pairs in one split.
        confidence: that a pair must have; lower finds more pairs, right and wrong ones.
        num_proc: processes; 0 for this one.
        seed: of the search.

    Returns:
        The pairs, the surest first, and a sentence for each image that could not be decoded.
    """
    described = {
        split: map_rows(
            partial(describe, rows), partial(undescribed, rows), range(len(rows)), folder, split, num_proc=num_proc
        )
        for split, rows in images.items()
    }
    found: dict[tuple[Place, Place], Leak] = {}
    for later, earlier in _pairs_of_splits(described, within_splits):
        for leak in _between(later, earlier, described, confidence, seed):
            if (leak.second, leak.first) not in found:
                found.setdefault((leak.first, leak.second), leak)
    leaks = _looked_at(list(found.values()), images, folder, num_proc)
    problems = [str(line) for results in described.values() for line in results["problem"] if line]
    order = sorted(leaks, key=lambda leak: (LEAK_KINDS.index(leak.kind), -leak.confidence, leak.first, leak.second))
    return order, problems


def _pairs_of_splits(splits: Iterable[str], within: bool = False) -> list[tuple[str, str]]:
    """Each split with each one before it, and perhaps with itself."""
    splits = list(splits)
    return [(later, earlier) for at, later in enumerate(splits) for earlier in splits[: at + within]]


def _between(
    later: str, earlier: str, described: Mapping[str, Mapping[str, np.ndarray]], confidence: float, seed: int
) -> list[Leak]:
    """Same files, then copies that the descriptors tell."""
    queries, others = described[later], described[earlier]
    first_row: dict[bytes, int] = {}
    for row, (content, problem) in enumerate(zip(others["content"], others["problem"], strict=True)):
        if not problem:
            first_row.setdefault(content.tobytes(), row)
    leaks = []
    for row, (content, problem) in enumerate(zip(queries["content"], queries["problem"], strict=True)):
        other = None if problem else first_row.get(content.tobytes())
        if other is not None and (later, row) != (earlier, other):
            leaks.append(Leak((later, row), (earlier, other), "same file"))
    rows, other_rows = (np.flatnonzero(results["contrast"] >= FLAT) for results in (queries, others))
    index = None if later == earlier else others["spectrum"][other_rows]
    pairs = find_copies(queries["spectrum"][rows], index, confidence, seed)
    for query, other, transform, sure in zip(
        rows[pairs.query], other_rows[pairs.found], pairs.transform, pairs.confidence, strict=True
    ):
        places = ((later, int(query)), (earlier, int(other)))
        if later == earlier and query < other:
            places = places[::-1]
            transform = {5: 6, 6: 5}.get(int(transform), transform)  # the way back
        same = (queries["content"][query] == others["content"][other]).all()
        leaks.append(
            Leak(*places, "same file" if same else "copy", 0 if same else int(transform), confidence=float(sure))
        )
    return leaks


def _looked_at(leaks: list[Leak], images: Mapping[str, ImageRows], folder: Path, num_proc: int) -> list[Leak]:
    """Decode both images of each copy, measure how well they agree, and drop what is only alike from afar."""
    copies = [leak for leak in leaks if leak.kind == "copy"]
    kept = [leak for leak in leaks if leak.kind != "copy"]
    if copies:
        pairs = [(leak.first, leak.second, leak.transform) for leak in copies]
        work, how = partial(compare, dict(images), pairs), {"num_proc": num_proc, "chunk_rows": 64}
        looks = map_rows(work, unlike, range(len(copies)), folder, "pairs", **how)
        for at, leak in enumerate(copies):
            leak.correlation, leak.detail = float(looks["correlation"][at]), float(looks["detail"][at])
            leak.kind = "same pixels" if looks["same"][at] else "copy"
        kept += [leak for leak in copies if leak.detail >= LEAST_DETAIL]
    return kept


def find_shared_groups(groups: Mapping[str, Sequence[Any]]) -> list[Leak]:
    """A pair for each row of a later split whose group has rows in an earlier one, with the first of those.

    Args:
        groups: of each split, the one to learn from first, a value a row; blank ones belong to no group.
    """
    leaks = []
    for later, earlier in _pairs_of_splits(groups):
        first: dict[Any, int] = {}
        for row, group in enumerate(groups[earlier]):
            first.setdefault(group, row)
        leaks += [
            Leak((later, row), (earlier, first[group]), "same group")
            for row, group in enumerate(groups[later])
            if group not in (None, "") and group in first
        ]
    return leaks


def write_results(
    folder: Path, leaks: Sequence[Leak], inputs: Inputs, exclude: str, groups: Mapping[str, Sequence[Any]]
) -> None:
    """Write leaks.html, problems.csv and leaks.csv, the last one last.

    Args:
        folder: made if missing.
        leaks: what was found.
        inputs: the data.
        exclude: which side problems.csv names, ``earlier`` or ``later``.
        groups: of each split, a value a row; all rows of a group that is on both sides are named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        (split, row): (split, int(number), file)
        for split in {split for leak in leaks for split, _ in (leak.first, leak.second)}
        for row, (number, file) in enumerate(zip(inputs.numbers[split], inputs.image_names(split), strict=True))
    }
    members: dict[tuple[str, Any], list[Place]] = {}
    for split, values in groups.items():
        for row, group in enumerate(values):
            members.setdefault((split, group), []).append((split, row))
    problems: dict[Place, Problem] = {}
    for leak in leaks:
        place, other = (leak.second, leak.first) if exclude == "earlier" else (leak.first, leak.second)
        split, row = place
        told = f"{leak.kind} as row {names[other][1]} of the {other[0]} split"
        for listed in members[split, groups[split][row]] if leak.kind == "same group" else [place]:
            problems.setdefault(listed, Problem(*names[listed], f"leak: {leak.kind}", told))
    write_page(folder / "leaks.html", leaks, names, inputs.images())
    write_problems(folder / "problems.csv", [problems[place] for place in sorted(problems)])
    write_table(folder / "leaks.csv", leaks, names)


def _parser() -> argparse.ArgumentParser:
    parser = input_parser(__doc__, groups=True, num_proc=True)
    parser.add_argument("--output_dir", required=True, help="folder for the results")
    parser.add_argument("--within_splits", action="store_true", help="also look for pairs inside each split")
    parser.add_argument(
        "--confidence",
        type=float,
        default=CONFIDENCE,
        help="least confidence of a pair; lower finds more pairs, right and wrong ones (data_prep/leaks/search.py)",
    )
    parser.add_argument(
        "--exclude",
        choices=("earlier", "later"),
        default="earlier",
        help="rows that problems.csv lists: those of the split to learn from, so that a published test split stays "
        "complete, or those of the split to test on",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Raises ValueError for anything that the user can fix."""
    args = _parser().parse_args(argv)
    inputs = open_inputs(args)
    if len(inputs.splits) < 2 and not args.within_splits:
        raise ValueError(f"The data set has one split, {next(iter(inputs.splits))}; look inside with --within_splits.")
    images, groups = inputs.images(), inputs.cells(args.group_column)
    output = Path(args.output_dir)
    options = {"within_splits": args.within_splits, "confidence": args.confidence, "seed": args.seed}
    with work_folder(output, inputs.settings("leaks", options)) as folder:
        leaks, undecoded = find_leaks(images, folder, num_proc=args.num_proc, **options)
        leaks += find_shared_groups(groups)
        write_results(output, leaks, inputs, args.exclude, groups)
    for line in undecoded[:3]:
        print(f"not compared: {line}", file=sys.stderr)
    if undecoded:
        print(f"{len(undecoded)} images do not decode; check_images.py lists them.", file=sys.stderr)
    rows: dict[tuple[str, str, str], list[int]] = {}
    for leak in leaks:
        rows.setdefault((leak.first[0], leak.second[0], leak.kind), []).append(leak.first[1])
    for (split, other, kind), found in rows.items():
        print(f"{kind}: {len(found)} pairs, {len(set(found))} rows of {split} with rows of {other}")
    print(f"{len(leaks)} leaks; pictures are in {output / 'leaks.html'}" if leaks else "No leaks.")
    return 1 if leaks else 0


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
