"""ARTeFACT as it is published -> a prepared folder: what prepare_artefact.py does.

The Hub's columns are id, image, annotation, annotation_rgb, material, content, type and descriptions; the values of
annotations are 0 for clean, 1 to 15 for damage and 255 for background, by the data set's own card.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from PIL import Image

from common.data.splits import load_splits
from common.images.files import BAD_IMAGE
from common.labels.hierarchy_files import load_hierarchy
from data_prep.artefact_store import Palette, ScanStore, compare_colours, palette_of
from data_prep.data_card import Card
from data_prep.plan import Content
from data_prep.prepare_artefact import HUB_ID, ArtefactOptions
from data_prep.prepared import check_output, write_prepared
from data_prep.rows import SPLITS, RowSet, check_paths, exclude_listed, leave_shared, split_randomly
from data_prep.shards import open_arrow
from data_prep.tables import SPLIT, Rows, check_names, column_of, from_dataset, read_tables

logger = logging.getLogger(__name__)

IMAGE, MASK, COLOURED, ID, ARTWORK = "image", "annotation", "annotation_rgb", "id", "artwork"
KEPT = ("material", "content", "type")
FOLDERS = {IMAGE: ("images", "image"), MASK: ("annotations", "annotation")}
ROWS_PER_SHARD = 8  # scans are large
COLOURS_CHECKED = 16
COLOURS_PIXELS = 25_000_000


def prepare_artefact(options: ArtefactOptions) -> Path:
    """Read, check, split and store; returns the finished folder.

    Args:
        options: as on the command line.

    Raises:
        ValueError: something is wrong that rows cannot be left out for; see the message.
    """
    _check(options)
    options = replace(options)  # values that are drawn are written there
    check_output(options.output_dir)
    tree, _ = load_hierarchy(options.hierarchy)
    palette = palette_of(tree.leaf_names())
    read = _read_folder(options) if options.root else _read_dataset(options, palette)
    rows = RowSet(read.frame, IMAGE, read.problems, read.notes)
    rows.frame[SPLIT] = ""
    root = os.path.realpath(options.root) if options.root else ""
    if options.root:
        check_paths(rows, [IMAGE, MASK], root)
    exclude_listed(rows, options.exclude_rows)
    rows.leave_out(rows.frame[ID].isna(), "no id", "the row has no id")
    rows.leave_out(rows.frame.duplicated(ID), "listed twice", "an earlier row has the same id")
    rows.frame[ARTWORK] = column_of(artwork_of(name) for name in rows.frame[ID])
    _split(rows, options)
    kept = [name for name in KEPT if name in rows.frame]
    content = Content(
        rows,
        [ID, ARTWORK, *kept],
        [],
        _card(options),
        tree=tree,
        group_column=ARTWORK,
        root=root,
        sources=read.sources,
        source_columns={IMAGE: IMAGE, MASK: MASK},
        settings=options.settings(),
    )
    store = ScanStore(
        IMAGE,
        MASK,
        quality=options.quality,
        max_megapixels=options.max_megapixels,
        num_classes=tree.num_leaves,
        resize_longer=options.longer(),
        tile=options.tile,
        palette=palette,
    )
    folder = write_prepared(
        options.output_dir,
        content,
        store,
        num_proc=options.num_proc,
        strict=options.strict,
        rows_per_shard=ROWS_PER_SHARD,
    )
    logger.info("The data set is in %s", folder)
    return folder


def artwork_of(name: str) -> str:
    """The artwork that an image shows: augmented copies are named ``<id>_aug<N>``."""
    return re.sub(r"_aug\d+$", "", name)


def _check(options: ArtefactOptions) -> None:
    options.check()
    problems = []
    if options.root and options.dataset_name:
        problems.append("give --root or --dataset_name, not both")
    for name in ("resize_longer", "tile"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            problems.append(f"--{name} must be at least 1")
    if options.full_size and (options.resize_longer or options.tile):
        problems.append("--full_size stores the original files: it cannot go with --resize_longer or --tile")
    if options.split_by == "random" and (options.validation_values or options.test_values):
        problems.append("--validation_values and --test_values need --split_by content or material")
    if set(options.validation_values) & set(options.test_values):
        problems.append("--validation_values and --test_values share a value")
    if problems:
        raise ValueError("; ".join(problems) + ".")


# ---- reading


def _read_dataset(options: ArtefactOptions, palette: Palette) -> Rows:
    splits = load_splits(options.dataset_name or HUB_ID, None, {})
    splits = DatasetDict({name: data for name, data in splits.items() if len(data)})
    parts = {}
    for split, data in splits.items():
        check_names([ID, IMAGE, MASK], data.column_names, f"split {split!r}")
        parts[split] = [name for name in (ID, IMAGE, MASK, *KEPT) if name in data.column_names]
    columns = [name for name in next(iter(parts.values())) if all(name in part for part in parts.values())]
    read = from_dataset(splits, columns, [IMAGE, MASK])
    if all(COLOURED in data.column_names for data in splits.values()):
        read.notes += _compare_colours(read, palette)
    else:
        read.notes.append(f"There is no column {COLOURED}: the order of classes was checked by the range of values.")
    return read


def _compare_colours(read: Rows, palette: Palette) -> list[str]:
    """Compare masks with the same masks in colours, for a few rows: they tell which value is which class.

    Raises:
        ValueError: a value is shown in another class's colour.
    """
    tables = [open_arrow(path) for path in read.sources]
    starts = np.cumsum([0, *map(len, tables)])
    compared = agreed = 0
    for row in np.unique(np.linspace(0, len(read.frame) - 1, 4 * COLOURS_CHECKED).astype(int)).tolist():
        part = int(np.searchsorted(starts, row, side="right")) - 1
        cells = [tables[part][name][int(row - starts[part])].as_py() for name in (MASK, COLOURED)]
        pair = _open_pair(*cells)
        if pair is None:
            continue
        agreeing, wrong = compare_colours(*pair, palette)
        if wrong:
            raise ValueError(
                f"Row {row} ({read.frame[ID].iloc[row]}): {wrong}. The classes of these masks are in another order "
                "than the published one; write a hierarchy file with theirs (--hierarchy)."
            )
        compared, agreed = compared + 1, agreed + agreeing
        if compared == COLOURS_CHECKED:
            break
    return [f"Order of classes: in {compared} rows, {agreed} values have the published colour, and none another's."]


def _open_pair(mask: Any, shown: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """A mask and the same in colours; ``None`` if they are too large, or cannot be compared."""
    try:
        with Image.open(io.BytesIO(mask["bytes"])) as values, Image.open(io.BytesIO(shown["bytes"])) as colours:
            if values.mode != "L" or values.size != colours.size or np.prod(values.size) > COLOURS_PIXELS:
                return None
            return np.asarray(values), np.asarray(colours.convert("RGB"))
    except (TypeError, *BAD_IMAGE):
        return None  # a broken mask is left out later, with a reason


def _read_folder(options: ArtefactOptions) -> Rows:
    root = Path(options.root)
    table = root / "metadata.csv"
    if not table.is_file():
        raise ValueError(f"There is no {table} (--root).")
    read = read_tables({"": table}, [ID], [], KEPT)
    for column, names in FOLDERS.items():
        files = _files_by_id(root, names)
        read.frame[column] = column_of(files.get(name) for name in read.frame[ID])
        unnamed = set(files) - set(read.frame[ID])
        if unnamed:
            read.notes.append(f"{len(unnamed)} files of {names[0]} are not in metadata.csv, such as {min(unnamed)}.")
    return read


def _files_by_id(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Path relative to the root of each file by its name without ending; ValueError if there is no such folder."""
    for name in names:
        if (root / name).is_dir():
            files = sorted(entry.name for entry in (root / name).iterdir() if not entry.name.startswith("."))
            return {os.path.splitext(file)[0]: os.path.join(name, file) for file in files}
    raise ValueError(f"There is no folder {' or '.join(names)} in {root} (--root).")


# ---- splits


def _split(rows: RowSet, options: ArtefactOptions) -> None:
    shares = (options.validation_share, options.test_share)
    if options.split_by == "random":
        stratified = ["content"] if "content" in rows.frame else []
        split_randomly(rows, ARTWORK, stratified, shares, options.seed)
        return
    check_names([options.split_by], list(rows.frame.columns), "The data set")
    rows.leave_out(rows.frame[options.split_by].isna(), "no split", f"the row has no {options.split_by}")
    if not (options.validation_values or options.test_values):
        _draw_values(options, sorted(set(rows.frame[options.split_by])))
    _split_by_values(rows, options)
    leave_shared(rows, ARTWORK, "artwork in two splits")


def _draw_values(options: ArtefactOptions, values: Sequence[str]) -> None:
    """Contents or materials to hold out: of each split with a share, its share of them and at least one."""
    order = np.random.default_rng(options.seed).permutation(values).tolist()
    shares = (options.validation_share, options.test_share)
    numbers = [max(1, round(share * len(values))) if share else 0 for share in shares]
    if sum(numbers) >= len(values):
        raise ValueError(f"There are {len(values)} values of {options.split_by}, too few to hold {sum(numbers)} out.")
    options.validation_values = order[: numbers[0]]
    options.test_values = order[numbers[0] : sum(numbers)]


def _split_by_values(rows: RowSet, options: ArtefactOptions) -> None:
    values = rows.frame[options.split_by]
    asked = {
        name: split
        for split, names in zip(SPLITS[1:], (options.validation_values, options.test_values), strict=True)
        for name in names
    }
    unknown = sorted(set(asked) - set(values))
    if unknown:
        raise ValueError(f"No image has the {options.split_by} {unknown}; there are: {sorted(set(values))}.")
    rows.frame[SPLIT] = column_of(asked.get(value, "train") for value in values)


def _card(options: ArtefactOptions) -> Card:
    how = "at random" if options.split_by == "random" else f"by {options.split_by}"
    return Card(
        "ARTeFACT",
        "image-segmentation",
        "[ARTeFACT](https://daniela997.github.io/ARTeFACT/) (Ivanova et al., WACV 2025), damage in analogue media, "
        f"made ready by `data_prep/prepare_artefact.py`. Split {how}; no artwork is in two splits. "
        f"{options.how_stored()} "
        "Values of masks are the leaves of `hierarchy.json`, 255 is background, to be ignored.",
    )
