"""Writing a prepared folder: a data set that ``datasets.load_from_disk`` reads, and what there is to know about it.

Images are checked and stored first, and splits drawn among the rows that are left, so that a broken image cannot take
the last one of a class out of training. Work is done in ``<output_dir>.incomplete``, which appears under its name in
one step; after a kill the same command resumes there. That folder holds ``pieces/`` (see pieces.py) and at the end
``final/``, into which the pieces go one by one. Every step can be repeated after a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import DatasetInfo, Features, Image, Value
from tqdm.auto import tqdm

from common.data.prepared import FORMAT, PREPARED_FILE, read_prepared
from common.data.problems import Problem, write_problems
from common.files import atomic_write
from common.labels.table import hierarchy_from_table
from data_prep.parts.columns import IMAGE, ROW, SOURCE, SPLIT, SPLITS
from data_prep.parts.parallel import work_folder

from .card import Content, describe, write_card
from .images import Store
from .pieces import PieceMaker, make_pieces, open_arrow, write_arrow

logger = logging.getLogger(__name__)

NOTES_SHOWN = 20

APART = {"output_dir", "num_proc", "strict", "exclude_rows"}
"""Options that do not change what is in a folder, or whose effect is in the rows"""


def check_output(output_dir: str | Path) -> Path:
    """The folder to write, as an absolute path; ValueError if something else is there."""
    folder = Path(output_dir).absolute()
    if folder.exists() and read_prepared(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not a prepared folder; name another one (--output_dir).")
    return folder


def write_prepared(args: argparse.Namespace, content: Content, store: Store, rows_per_piece: int = 1000) -> Path:
    """Look at every image, store it, and write the folder; or resume doing so, or find it finished.

    Args:
        args: the command line; see :mod:`data_prep.folder.options`.
        content, store: the rows, and how their images are stored.
        rows_per_piece: what a kill loses at most, times processes.

    Returns:
        The folder, as an absolute path.

    Raises:
        ValueError: rows have problems (``--strict``), or none is left for training; the folder holds something else;
            a worker ran out of memory.
    """
    folder, rows = check_output(args.output_dir), content.rows
    trial = replace(rows, frame=rows.frame.copy(), problems=list(rows.problems), notes=[])
    content.divide(trial)
    trainable = (trial.frame[SPLIT] == "train").any()
    if args.strict or not trainable:
        _refuse(trial.problems, "(--strict)" if trainable else "and none is left for training")
    if not trainable:
        raise ValueError("No row is in training.")
    settings = {name: value for name, value in vars(args).items() if name not in APART}
    fingerprint = _fingerprint(settings, content, store, rows_per_piece)
    done = read_prepared(folder)
    if done is not None:
        if done.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{folder} is finished, with other settings or data; name another folder (--output_dir), or remove it."
            )
        logger.info("%s is finished already.", folder)
        shutil.rmtree(folder.with_name(f"{folder.name}.incomplete"), ignore_errors=True)
        return folder
    with work_folder(folder, fingerprint) as work:
        stored, problems = _store_images(work, content, store, rows_per_piece, args.num_proc)
        rows.frame["__at__"] = range(len(rows.frame))
        rows.frame = rows.frame[rows.frame["__at__"].isin(stored["at"])].reset_index(drop=True)
        rows.problems += problems
        content.divide(rows)
        trainable = (rows.frame[SPLIT] == "train").any()
        if problems and (args.strict or not trainable):
            _forget(work, problems)
            listed = f" All are in {work / 'problems.csv'}; what has no problems is kept for the next time."
            _refuse(problems, "(--strict)" if trainable else "and no image is left for training", listed)
        about = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "image_column": store.image_column,
            "mask_column": store.mask_column,
            "level_columns": list(content.levels),
            "group_column": content.group_column,
            "image_root": None if store.embeds else content.root,
            "settings": {**settings, **asdict(store)},
        }
        _finish(work, content, store, stored, about)
        os.replace(work / "final", folder)
    logger.info("The data set is in %s", folder)
    return folder


def _refuse(problems: Sequence[Problem], why: str, listed: str = "") -> None:
    if problems:
        shown = "; ".join(
            " ".join(part for part in (found.split, f"row {found.row}", found.image) if part) + f": {found.problem}"
            for found in problems[:5]
        )
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{len(problems)} rows have problems {why}: {shown}{more}.{listed}")


def _fingerprint(settings: Mapping[str, Any], content: Content, store: Store, rows_per_piece: int) -> str:
    """What a folder is told by from another one: all that it depends on."""
    frame = content.rows.frame
    about = {
        "format": FORMAT,
        "rows_per_piece": rows_per_piece,
        "store": [type(store).__name__, asdict(store)],
        "columns": content.columns,
        "root": content.root,
        "sources": [[path, os.stat(path).st_size] for path in content.rows.sources],
        "tree": content.tree.to_dict() if content.tree else None,
        "problems": [problem._asdict() for problem in content.rows.problems],
        **settings,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    digest.update(frame.to_json(orient="split", force_ascii=False).encode())
    return digest.hexdigest()


def _store_images(
    work: Path, content: Content, store: Store, rows_per_piece: int, num_proc: int
) -> tuple[pd.DataFrame, list[Problem]]:
    """What is known of each stored image (``piece`` and what :func:`make_pieces` says), and the rows without one."""
    rows, folder = content.rows, work / "pieces"
    folder.mkdir(exist_ok=True)
    names = rows.frame[SOURCE].tolist() if rows.sources else rows.frame[store.columns].values.tolist()
    schema = _features(content, store, [*store.columns, *store.extra_columns]).arrow_schema
    maker = PieceMaker(folder, schema, store, content.root, rows.sources, content.source_columns)
    live = sys.stderr.isatty()
    with tqdm(total=len(names), unit="image", desc="preparing", disable=not live, smoothing=0.05) as bar:
        pieces = make_pieces(maker, names, rows_per_piece, num_proc, bar.update)
    entries = [(name, *entry) for name, piece in pieces.items() for entry in piece["rows"]]
    shown = rows.frame.reindex(columns=[SPLIT, ROW, IMAGE]).astype(object)
    problems = [
        Problem(split, int(row), image if isinstance(image, str) else "", kind, told)
        for piece in pieces.values()
        for at, kind, told in piece["problems"]
        for split, row, image in [shown.iloc[at]]
    ]
    return pd.DataFrame(entries, columns=["piece", "at", "width", "height", "num_bytes", "pixels"]), problems


def _forget(work: Path, problems: Sequence[Problem]) -> None:
    """Pieces with problems, and those that went into final, are made again when the files were fixed."""
    write_problems(work / "problems.csv", problems)
    shutil.rmtree(work / "final", ignore_errors=True)
    for file in (work / "pieces").glob("*.json"):
        if json.loads(file.read_text("utf-8"))["problems"] or not file.with_suffix(".arrow").exists():
            file.unlink()


def _features(content: Content, store: Store, names: Sequence[str] | None = None) -> Features:
    """The columns of the folder, or of a part of them, in order."""
    kinds = {name: Image() if store.embeds else Value("string") for name in store.columns}
    kinds |= {name: Value("string") for name in content.columns}
    kinds |= {name: Value(kind) for name, kind in store.extra_columns.items()}
    return Features({name: kinds[name] for name in names or kinds})


# ---- from finished pieces to the folder


def _finish(work: Path, content: Content, store: Store, stored: pd.DataFrame, about: Mapping[str, Any]) -> None:
    """Pieces into splits, and the files that describe the folder; ``about`` becomes prepared.json."""
    rows, tree, final = content.rows, content.tree, work / "final"
    if tree is None and content.levels:
        tree = hierarchy_from_table({level: rows.frame[level].tolist() for level in content.levels})[0]
    for kind, number in Counter(problem.kind for problem in rows.problems).most_common():
        logger.warning("left out: %d rows, %s", number, kind)
    splits = [split for split in SPLITS if (rows.frame[SPLIT] == split).any()]
    frame = rows.frame.set_index("__at__")
    features = _features(content, store)
    for name, entries in stored.groupby("piece"):
        piece = work / "pieces" / f"{name}.arrow"
        if piece.exists():  # else it was done before a kill
            where = frame[SPLIT].reindex(entries["at"]).to_numpy()
            for split in splits:
                if (where == split).any():
                    (final / split).mkdir(parents=True, exist_ok=True)
                    batches = _part(piece, features.arrow_schema, frame, entries["at"].to_numpy(), where == split)
                    write_arrow(final / split / f"data-{name}.arrow", features.arrow_schema, batches)
            piece.unlink()
    for split in splits:
        _describe_split(final / split, features, about["fingerprint"])
    notes = list(dict.fromkeys(rows.notes))
    for note in notes[:NOTES_SHOWN]:
        logger.warning("%s", note)
    if len(notes) > NOTES_SHOWN:
        logger.warning("... and %d more notes, all of them in stats.json.", len(notes) - NOTES_SHOWN)
    where = frame[SPLIT].reindex(stored["at"]).to_numpy()
    parts = {split: stored[where == split] for split in splits}
    stats = {
        "splits": {split: describe(frame.loc[part["at"]], part, content, tree) for split, part in parts.items()},
        "num_classes": dict(zip(tree.levels, tree.num_classes, strict=True)) if tree else {},
        "left_out": dict(sorted(Counter(problem.kind for problem in rows.problems).items())),
        "notes": notes,
    }
    if tree is not None:
        tree.save(final / "hierarchy.json")
    write_problems(final / "problems.csv", rows.problems)
    _write_json(final / "stats.json", stats, end="\n", indent=1)
    write_card(final / "README.md", content, bool(store.mask_column), features, stats)
    _write_json(final / "dataset_dict.json", {"splits": splits})
    _write_json(final / PREPARED_FILE, about, end="\n", indent=1, default=str)
    for split, facts in stats["splits"].items():
        logger.info("%s: %d images", split, facts["num_images"])


def _part(
    piece: Path, schema: pa.Schema, frame: pd.DataFrame, at: np.ndarray, wanted: np.ndarray
) -> Iterator[pa.RecordBatch]:
    """The entries of a piece that are ``wanted``, bool (entries,), with the other columns of their rows ``at``."""
    start = 0
    for batch in open_arrow(piece).to_batches():
        left = start + np.flatnonzero(wanted[start : start + batch.num_rows])
        images = batch.take(pa.array(left - start))
        start += batch.num_rows
        cells = frame.loc[at[left]]
        columns = [
            images.column(name)
            if name in batch.schema.names
            else pa.array(cells[name].tolist(), pa.string(), from_pandas=True)
            for name in schema.names
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _describe_split(folder: Path, features: Features, fingerprint: str) -> None:
    """The files beside a split's data, as ``Dataset.save_to_disk`` writes them."""
    DatasetInfo(features=features).write_to_directory(str(folder))
    state = {
        "_data_files": [{"filename": file.name} for file in sorted(folder.glob("*.arrow"))],
        "_fingerprint": hashlib.sha256(f"{fingerprint} {folder.name}".encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    _write_json(folder / "state.json", state, indent=2, sort_keys=True)


def _write_json(path: Path, content: Any, end: str = "", **options: Any) -> None:
    with atomic_write(path, sync=True) as file:
        file.write(json.dumps(content, ensure_ascii=False, **options) + end)
