"""Find images that are in more than one split, even if they were rotated, mirrored, resized or re-encoded.

    python data_prep/find_leaks.py --dataset_name DIR --output_dir DIR [--group_column NAME] [--within_splits]
    python data_prep/find_leaks.py --train_file a.csv --validation_file b.csv --image_column file --output_dir DIR

Finds the same file, the same pixels, and copies that were rotated by multiples of 90 degrees, mirrored, resized,
compressed, made brighter or darker; with --group_column also groups on both sides.

Writes leaks.csv (all pairs), leaks.html (pictures of the first 500), problems.csv, which --exclude_rows of the other
scripts and of the trainers takes, and groups.csv: a number for what shows the same picture or belongs to the same
group, in whatever split, for --group_column of make_folds.py and prepare_table.py.
Exit status: 0 if there are no leaks, 1 if there are, 2 if something is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pandas as pd

from common.data.problems import Problem, write_problems
from common.data.rows import ImageRows
from common.run.command import run
from common.system.files import atomic_write
from data_prep.leaks.compare import LEAST_DETAIL, UNLIKE, compare
from data_prep.leaks.describe import FLAT, describe, undescribed
from data_prep.leaks.report import write_page, write_table
from data_prep.leaks.search import CONFIDENCE, Pictures, in_order, linked
from data_prep.parts.inputs import input_parser, open_inputs
from data_prep.parts.parallel import map_rows, work_folder

KINDS = ("same file", "same pixels", "copy", "same group")
CERTAINLY = {"transform": 0, "correlation": 1.0, "detail": 1.0, "confidence": np.inf}


def find_leaks(
    images: Mapping[str, ImageRows],
    rows: pd.DataFrame,
    folder: Path,
    *,
    within_splits: bool = False,
    confidence: float = CONFIDENCE,
    num_proc: int = 0,
    seed: int = 0,
) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Pairs of rows that show the same picture, or belong to the same group.

    Args:
        images: of each split, the one to learn from first.
        rows: of all splits, one after the other: ``split``, ``at``, the number in its images, and ``group``.
        folder: for unfinished work; see :func:`data_prep.parts.parallel.work_folder`.
        within_splits: also list pairs in one split.
        confidence: that a pair must have; lower finds more pairs, right and wrong ones.
        num_proc: processes; 0 for this one.
        seed: of the search.

    Returns:
        The pairs, the surest first: ``first`` and ``second``, the smaller number, as numbers of rows; ``kind``;
        ``transform``, what turns the first image into the second (TRANSFORMS); ``correlation`` and ``detail``
        (:func:`data_prep.leaks.compare.agreement`); ``confidence``. Then int (rows,), equal for rows that pairs
        link, whatever their split; and a sentence for each image that could not be decoded.
    """
    how = {"folder": folder, "num_proc": num_proc}
    parts = [
        map_rows(partial(describe, own), partial(undescribed, own), range(len(own)), name=split, **how)
        for split, own in images.items()
    ]
    facts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    good = np.flatnonzero(facts["problem"] == "")
    _, first, number = np.unique(facts["content"][good], axis=0, return_index=True, return_inverse=True)
    files = pd.Series(good[first][number.ravel()], index=good)  # of each row, the first row with the same file

    # ---- copies among different files: by their spectra, then decoded to see how well they agree
    shown = np.unique(files)
    shown = shown[facts["contrast"][shown] >= FLAT]
    places = list(zip(rows["split"].iloc[shown], rows["at"].iloc[shown], strict=True))

    def looked_at(pairs: pd.DataFrame, name: str) -> pd.DataFrame:
        listed = [(places[one], places[other], turn) for one, other, turn, _ in pairs.itertuples(index=False)]
        work = partial(compare, dict(images), listed)
        looks = map_rows(work, lambda _: UNLIKE, range(len(listed)), name=name, chunk_rows=64, **how) if listed else {}
        pairs = pairs.assign(**{key: looks.get(key, np.zeros(0)) for key in UNLIKE})
        return pairs[pairs["detail"] >= LEAST_DETAIL]

    pictures = Pictures(facts["spectrum"][shown], seed)
    copies = looked_at(pictures.copies(confidence), "pairs")
    copies = pd.concat([copies, looked_at(pictures.others_of_clusters(copies), "clusters")])
    copies = copies.assign(first=shown[copies["first"]], second=shown[copies["second"]])
    copies["kind"] = np.where(copies.pop("same"), "same pixels", "copy")

    # ---- pairs of files and groups as pairs of rows
    groups = rows["group"][rows["group"].fillna("") != ""]
    groups = pd.Series(groups.index, index=groups.index).groupby(groups).transform("min")
    same = [
        pd.DataFrame({"first": keys.unique(), "second": keys.unique(), "kind": kind, **CERTAINLY})
        for kind, keys in (("same file", files), ("same group", groups))
    ]
    leaks = pd.concat([_of_rows(pd.concat([same[0], copies]), files, rows), _of_rows(same[1], groups, rows)])
    apart = leaks["first"].map(rows["split"]) != leaks["second"].map(rows["split"])
    leaks = leaks[apart | (within_splits & (leaks["kind"] != "same group"))].sort_values(
        ["kind", "confidence", "first", "second"],
        ascending=[True, False, True, True],
        key=lambda column: column.map(KINDS.index) if column.name == "kind" else column,
        ignore_index=True,
    )
    ties = [pd.DataFrame({"first": keys.index, "second": keys}) for keys in (files, groups)]
    return leaks, linked(pd.concat([copies, *ties]), len(rows)), [str(line) for line in facts["problem"] if line]


def _of_rows(pairs: pd.DataFrame, keys: pd.Series, rows: pd.DataFrame) -> pd.DataFrame:
    """Pairs of keys as pairs of rows that have them: the first one of a split with each, and each with the first."""
    members = pd.DataFrame({"row": keys.index, "key": keys, "split": rows["split"].iloc[keys.index].to_numpy()})
    members["leads"] = ~members.duplicated(["split", "key"])
    found = pairs.merge(members, left_on="first", right_on="key")
    found = found.merge(members, left_on="second", right_on="key", suffixes=("", "_other"))
    found = found[(found["leads"] | found["leads_other"]) & (found["row"] != found["row_other"])]
    return in_order(found.assign(first=found["row"], second=found["row_other"])[pairs.columns])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Raises ValueError for anything that the user can fix."""
    parser = input_parser(__doc__, groups=True, num_proc=True)
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for the results")
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
    args = parser.parse_args(argv)
    inputs = open_inputs(args)
    if len(inputs.splits) < 2 and not args.within_splits:
        raise ValueError(f"The data set has one split, {next(iter(inputs.splits))}; look inside with --within_splits.")
    images, groups, output = inputs.images(), inputs.cells(args.group_column), args.output_dir
    rows = [
        {"split": split, "row": inputs.numbers[split], "image": inputs.image_names(split), "group": groups.get(split)}
        for split in images
    ]
    rows = pd.concat([pd.DataFrame(part).reset_index(names="at") for part in rows], ignore_index=True)
    options = {"within_splits": args.within_splits, "confidence": args.confidence, "seed": args.seed}
    with work_folder(output, inputs.settings("leaks", options)) as folder:
        leaks, clusters, undecoded = find_leaks(images, rows, folder, num_proc=args.num_proc, **options)
        output.mkdir(parents=True, exist_ok=True)
        with atomic_write(output / "groups.csv") as file:
            rows[["split", "row", "image"]].assign(group=clusters).to_csv(file, index=False)
        write_page(output / "leaks.html", leaks, rows, images)
        named, other = ("second", "first") if args.exclude == "earlier" else ("first", "second")
        problems = []
        for leak in leaks.drop_duplicates(named).sort_values(named).to_dict("records"):
            row, partner, kind = rows.loc[leak[named]], rows.loc[leak[other]], leak["kind"]
            told = f"{kind} as row {partner['row']} of the {partner['split']} split"
            problems.append(Problem(row["split"], int(row["row"]), row["image"], f"leak: {kind}", told))
        write_problems(output / "problems.csv", problems)
        write_table(output / "leaks.csv", leaks, rows)  # the last one: it means that all are there
    if undecoded:
        print(*(f"not compared: {line}" for line in undecoded[:3]), sep="\n", file=sys.stderr)
        print(f"{len(undecoded)} images do not decode; check_images.py lists them.", file=sys.stderr)
    splits = [leaks[side].map(rows["split"]) for side in ("first", "second")]
    for (split, partner, kind), found in leaks.groupby([*splits, "kind"], sort=False):
        print(f"{kind}: {len(found)} pairs, {found['first'].nunique()} rows of {split} with rows of {partner}")
    print(f"{len(leaks)} leaks; pictures are in {output / 'leaks.html'}" if len(leaks) else "No leaks.")
    return 1 if len(leaks) else 0


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
