"""Find images that stand in more than one split, also where they were turned, mirrored, resized or re-encoded.

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
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from common.data.problems import Problem, image_names, write_problems
from common.data.rows import ImageRows
from common.data.splits import check_columns, read_cells
from data_prep.inputs import Inputs, add_inputs, add_num_proc, open_inputs, rows_of
from data_prep.leaks.compare import LEAST_DETAIL, Compare, Place
from data_prep.leaks.describe import FLAT, Describe
from data_prep.leaks.report import Leak, write_page, write_table
from data_prep.leaks.search import CONFIDENCE, find_copies
from data_prep.parallel import joined, run_chunks, work_folder

KINDS = ("same file", "same pixels", "copy", "same group")


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
        folder: for unfinished work; see :func:`data_prep.parallel.work_folder`.
        within_splits: also look for pairs in one split.
        confidence: from which on a pair is one; lower finds more, right and wrong.
        num_proc: processes; 0 for this one.
        seed: of the search.

    Returns:
        The pairs, the surest first, and a sentence for each image that could not be decoded.
    """
    described = {}
    for split, rows in images.items():
        if len(rows):
            described[split] = joined(run_chunks(Describe(rows), len(rows), folder, split, num_proc=num_proc))
    splits = list(described)
    found: dict[tuple[Place, Place], Leak] = {}
    for position, later in enumerate(splits):
        for earlier in splits[: position + within_splits]:
            for leak in _between(later, earlier, described, confidence, seed):
                key = (leak.first, leak.second)
                if key[::-1] not in found:
                    found.setdefault(key, leak)
    leaks = _looked_at(list(found.values()), images, folder, num_proc)
    problems = [str(line) for results in described.values() for line in results["problem"] if line]
    order = sorted(leaks, key=lambda leak: (KINDS.index(leak.kind), -leak.confidence, leak.first, leak.second))
    return order, problems


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
        work = Compare(dict(images), [(leak.first, leak.second, leak.transform) for leak in copies])
        looks = joined(run_chunks(work, len(copies), folder, "pairs", num_proc=num_proc, chunk_rows=64))
        for leak, whole, detail, same in zip(
            copies, looks["correlation"], looks["detail"], looks["same"], strict=True
        ):
            leak.correlation, leak.detail = float(whole), float(detail)
            leak.kind = "same pixels" if same else "copy"
        kept += [leak for leak in copies if leak.detail >= LEAST_DETAIL]
    return kept


def find_shared_groups(groups: Mapping[str, Sequence[Any]]) -> list[Leak]:
    """A pair for each row of a later split whose group has rows in an earlier one, with the first of those.

    Args:
        groups: of each split, the one to learn from first, a value a row; blank ones belong to no group.
    """
    leaks = []
    splits = list(groups)
    for position, later in enumerate(splits):
        for earlier in splits[:position]:
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
    folder: Path,
    leaks: Sequence[Leak],
    inputs: Inputs,
    images: Mapping[str, ImageRows],
    image_column: str,
    exclude: str,
    groups: Mapping[str, Sequence[Any]],
) -> None:
    """Write leaks.html, problems.csv and leaks.csv, the last one last.

    Args:
        folder: made if missing.
        leaks: what was found.
        inputs, images, image_column: the data.
        exclude: which side problems.csv names, ``earlier`` or ``later``.
        groups: of each split, a value a row; all rows of a group that is on both sides are named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {place for leak in leaks for place in (leak.first, leak.second)}
    files = {split: image_names(inputs.splits[split], image_column) for split in {place[0] for place in places}}
    names = {place: files[place[0]][place[1]] for place in places}
    numbers = {place: int(inputs.numbers[place[0]][place[1]]) for place in places}
    members: dict[tuple[str, Any], list[int]] = {}
    for split, values in groups.items():
        for row, group in enumerate(values):
            members.setdefault((split, group), []).append(row)
    problems: dict[Place, Problem] = {}
    for leak in leaks:
        place, other = (leak.second, leak.first) if exclude == "earlier" else (leak.first, leak.second)
        rows = [place[1]]
        if leak.kind == "same group":
            rows = members[place[0], groups[place[0]][place[1]]]
        for row in rows:
            number = int(inputs.numbers[place[0]][row])
            told = f"{leak.kind} as row {numbers[other]} of the {other[0]} split"
            problem = Problem(place[0], number, files[place[0]][row], f"leak: {leak.kind}", told)
            problems.setdefault((place[0], row), problem)
    write_page(folder / "leaks.html", leaks, names, numbers, images)
    write_problems(folder / "problems.csv", [problems[place] for place in sorted(problems)])
    write_table(folder / "leaks.csv", leaks, names, numbers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser)
    parser.add_argument("--group_column", help="column (observation, artwork) whose values must not cross splits")
    parser.add_argument("--output_dir", required=True, help="folder for the results")
    parser.add_argument("--within_splits", action="store_true", help="also look for pairs in one and the same split")
    parser.add_argument(
        "--confidence",
        type=float,
        default=CONFIDENCE,
        help="from which on a pair is one; lower finds more, right and wrong (data_prep/leaks/search.py)",
    )
    parser.add_argument(
        "--exclude",
        choices=("earlier", "later"),
        default="earlier",
        help="rows that problems.csv names: those of the split to learn from, so that a published test part stays "
        "whole, or those of the split to test on",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    add_num_proc(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Raises:
        ValueError: for anything the user can mend.
    """
    args = _parser().parse_args(argv)
    inputs = open_inputs(args)
    if len(inputs.splits) < 2 and not args.within_splits:
        raise ValueError(f"The data set has one split, {next(iter(inputs.splits))}; look inside with --within_splits.")
    images = {split: rows_of(args, split, data, args.image_column) for split, data in inputs.splits.items()}
    groups = {}
    if args.group_column:
        for split, data in inputs.splits.items():
            check_columns(data, [args.group_column], split)
            groups[split] = read_cells(data, args.group_column)
    output = Path(args.output_dir)
    roots = [rows.root for rows in images.values()]
    settings = inputs.settings("leaks", roots, args.image_column, args.within_splits, args.confidence, args.seed)
    with work_folder(output, settings) as folder:
        options = {"within_splits": args.within_splits, "confidence": args.confidence, "seed": args.seed}
        leaks, undecoded = find_leaks(images, folder, num_proc=args.num_proc, **options)
        leaks += find_shared_groups(groups)
        write_results(output, leaks, inputs, images, args.image_column, args.exclude, groups)
    for line in undecoded[:3]:
        print(f"not compared: {line}", file=sys.stderr)
    if undecoded:
        print(f"{len(undecoded)} images do not decode; check_images.py lists them.", file=sys.stderr)
    for (split, other, kind), count in Counter((k.first[0], k.second[0], k.kind) for k in leaks).items():
        rows = len(
            {leak.first for leak in leaks if (leak.first[0], leak.second[0], leak.kind) == (split, other, kind)}
        )
        print(f"{kind}: {count} pairs, {rows} rows of {split} with rows of {other}")
    print(f"{len(leaks)} leaks; pictures are in {output / 'leaks.html'}" if leaks else "No leaks.")
    return 1 if leaks else 0


if __name__ == "__main__":
    from common.run.command import run

    run(lambda: sys.exit(main()))
