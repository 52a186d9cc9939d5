"""Writing a prepared folder: a data set that ``datasets.load_from_disk`` reads, and what there is to know about it.

Work is done in ``<output_dir>.incomplete``, which appears under its name in one step; after a kill the same command
resumes there. That folder holds ``plan.arrow`` (a row for every image), ``shards/`` (see shards.py) and at the end
``final/``. Every step can be repeated after a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import DatasetInfo
from tqdm.auto import tqdm

from common.data.prepared import FORMAT, PREPARED_FILE, read_prepared
from common.data.problems import Problem, write_problems
from common.files import atomic_write
from common.model.hierarchy import Hierarchy
from data_prep.parts.columns import SPLIT, SPLITS
from data_prep.parts.parallel import work_folder
from data_prep.rows.labels import settle_unseen, tree_of
from data_prep.rows.row_set import RowSet

from .card import describe, write_card
from .images import Store
from .plan import Content, Plan, Results, arrow_column
from .shards import ShardMaker, make_shards, open_arrow, read_result, write_arrow

logger = logging.getLogger(__name__)

NOTES_SHOWN = 20


def check_output(output_dir: str | Path) -> Path:
    """The folder to write, as an absolute path; ValueError if something else is there."""
    folder = Path(output_dir).absolute()
    if folder.exists() and read_prepared(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not a prepared folder; name another one (--output_dir).")
    return folder


def write_prepared(args: argparse.Namespace, content: Content, store: Store, rows_per_shard: int = 1000) -> Path:
    """Look at every image, store it, and write the folder; or resume doing so, or find it finished.

    Args:
        args: the command line; see :mod:`data_prep.sources.options`.
        content, store: the rows, and how their images are stored.
        rows_per_shard: of a file of the data set; what a kill loses at most, times processes.

    Returns:
        The folder, as an absolute path.

    Raises:
        ValueError: rows have problems (``--strict``), or none is left for training; the folder holds something else;
            a worker ran out of memory.
    """
    folder = check_output(args.output_dir)
    if args.strict:
        _refuse(content.rows.problems)
    if not (content.rows.frame[SPLIT] == "train").any():
        _refuse(content.rows.problems, "and none is left for training")
        raise ValueError("No row is in training.")
    plan = Plan(args, content, store, rows_per_shard)
    done = read_prepared(folder)
    if done is not None:
        if done.get("fingerprint") != plan.fingerprint:
            raise ValueError(
                f"{folder} is finished, with other settings or data; name another folder (--output_dir), or remove it."
            )
        logger.info("%s is finished already.", folder)
        shutil.rmtree(folder.with_name(f"{folder.name}.incomplete"), ignore_errors=True)
        return folder
    with work_folder(folder, plan.fingerprint) as work:
        if not (work / "plan.arrow").exists():
            write_arrow(work / "plan.arrow", plan.table.schema, plan.table.to_batches())
        plan.table = content.rows.frame = None  # the one is on the disk now, the other in plan.frame
        results = _store_images(work, plan, args.num_proc)
        trainable = any(shard.split == "train" and result.rows for shard, result in results)
        if args.strict or not trainable:
            _refuse_broken(work, plan, results, "(--strict)" if trainable else "and no image is left for training")
        _finish(work, plan, results, args.unseen)
        os.replace(work / "final", folder)
    logger.info("The data set is in %s", folder)
    return folder


def _refuse(problems: Sequence[Problem], why: str = "(--strict)", listed: str = "") -> None:
    if problems:
        shown = "; ".join(
            " ".join(part for part in (found.split, f"row {found.row}", found.image) if part) + f": {found.problem}"
            for found in problems[:5]
        )
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{len(problems)} rows have problems {why}: {shown}{more}.{listed}")


def _refuse_broken(work: Path, plan: Plan, results: Results, why: str) -> None:
    """Shards with problems are forgotten, so that they are made again when the files were fixed."""
    for shard, result in results:
        if result.problems:
            (work / "shards" / f"{shard.name}.json").unlink()
    problems = plan.problems(results)
    path = work / "problems.csv"
    write_problems(path, problems)
    _refuse(problems, why, f" All are in {path}; shards without problems are kept for the next time.")


def _store_images(work: Path, plan: Plan, num_proc: int) -> Results:
    content, folder = plan.content, work / "shards"
    folder.mkdir(exist_ok=True)
    maker = ShardMaker(
        folder,
        work / "plan.arrow",
        plan.features.arrow_schema,
        plan.store,
        content.root,
        content.rows.sources,
        dict(content.source_columns),
    )
    live = sys.stderr.isatty()
    with tqdm(total=len(plan.frame), unit="image", desc="preparing", disable=not live, smoothing=0.05) as bar:
        make_shards(maker, plan.shards, num_proc, bar.update)
    return [(shard, read_result(folder, shard)) for shard in plan.shards]


# ---- from finished shards to the folder


def _finish(work: Path, plan: Plan, results: Results, unseen: str) -> None:
    """Final labels, files in place, descriptions."""
    rows, tree = _final_labels(plan, [row for _, result in results for row in result.rows], unseen)
    problems = [*plan.content.rows.problems, *plan.problems(results), *rows.problems]
    for kind, number in pd.Series([problem.kind for problem in problems], dtype=object).value_counts().items():
        logger.warning("left out: %d rows, %s", number, kind)
    written = [split for split in SPLITS if (rows.frame[SPLIT] == split).any()]
    assert "train" in written, "labels are taken from validation and test only"
    for split in written:
        shards = [(shard, result) for shard, result in results if shard.split == split]
        _write_split(work / "shards", work / "final" / split, plan, shards, rows.frame)
    notes = list(dict.fromkeys([*plan.content.rows.notes, *rows.notes]))
    for note in notes[:NOTES_SHOWN]:
        logger.warning("%s", note)
    if len(notes) > NOTES_SHOWN:
        logger.warning("... and %d more notes, all of them in stats.json.", len(notes) - NOTES_SHOWN)
    stats = describe(plan, results, rows.frame, tree, problems)
    _write_descriptions(work / "final", plan, tree, problems, {**stats, "notes": notes})
    for split, facts in stats["splits"].items():
        logger.info("%s: %d images", split, facts["num_images"])


def _final_labels(plan: Plan, kept: Sequence[int], unseen: str) -> tuple[RowSet, Hierarchy | None]:
    """The rows that are left, with their row in the plan, and their tree; a class may have lost all its images."""
    content = plan.content
    rows = RowSet(plan.frame.iloc[kept].assign(__plan__=kept).reset_index(drop=True))
    if not content.levels or not len(rows.frame):
        return rows, content.tree
    settle_unseen(rows, content.levels, unseen)
    return rows, content.tree or tree_of(rows.frame, content.levels)[0]


def _write_split(shards: Path, folder: Path, plan: Plan, results: Results, final: pd.DataFrame) -> None:
    """Move the shards of a split into place, or write those anew whose labels or rows have changed."""
    folder.mkdir(parents=True, exist_ok=True)
    levels = list(plan.content.levels)
    labels = final.drop_duplicates("__plan__").set_index("__plan__")[levels]
    files = []
    for shard, result in results:
        left = [row in labels.index for row in result.rows]
        if not any(left):
            continue
        name = f"{shard.name}.arrow"
        files.append(name)
        if not (shards / name).exists():
            assert (folder / name).exists(), "a shard is either where it was made or in place"
        elif all(left) and labels.loc[result.rows].equals(plan.frame.loc[result.rows, levels]):
            os.replace(shards / name, folder / name)
        else:
            schema = plan.features.arrow_schema
            write_arrow(folder / name, schema, _amended(shards / name, schema, result.rows, labels))
            (shards / name).unlink()
    DatasetInfo(features=plan.features).write_to_directory(str(folder))
    state = {  # as Dataset.save_to_disk writes it
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": hashlib.sha256(f"{plan.fingerprint} {folder.name}".encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    _write_json(folder / "state.json", state, indent=2, sort_keys=True)


def _amended(source: Path, schema: pa.Schema, rows: Sequence[int], labels: pd.DataFrame) -> Iterator[pa.RecordBatch]:
    """A shard with other labels or fewer rows, in its batches, because of the memory."""
    start = 0
    for batch in open_arrow(source).to_batches():
        left = [at for at in range(batch.num_rows) if rows[start + at] in labels.index]
        new = labels.loc[[rows[start + at] for at in left]]
        start += batch.num_rows
        columns = dict(zip(batch.schema.names, batch.take(pa.array(left, pa.int64())).columns, strict=True))
        columns |= {level: arrow_column(new[level]) for level in labels.columns}
        yield pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)


def _write_descriptions(
    final: Path, plan: Plan, tree: Hierarchy | None, problems: Sequence[Problem], stats: Mapping[str, Any]
) -> None:
    content, store = plan.content, plan.store
    if tree is not None:
        tree.save(final / "hierarchy.json")
    write_problems(final / "problems.csv", problems)
    _write_json(final / "stats.json", stats, end="\n", indent=1)
    write_card(final / "README.md", plan, stats)
    about = {
        "format": FORMAT,
        "fingerprint": plan.fingerprint,
        "image_column": store.image_column,
        "mask_column": store.mask_column,
        "level_columns": list(content.levels),
        "group_column": content.group_column,
        "image_root": None if store.embeds else content.root,
        "settings": {**plan.settings, **asdict(store)},
    }
    _write_json(final / "dataset_dict.json", {"splits": list(stats["splits"])})
    _write_json(final / PREPARED_FILE, about, end="\n", indent=1, default=str)


def _write_json(path: Path, content: Any, end: str = "", **options: Any) -> None:
    with atomic_write(path, sync=True) as file:
        file.write(json.dumps(content, ensure_ascii=False, **options) + end)
