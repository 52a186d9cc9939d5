"""Writing a prepared folder: a data set that ``datasets.load_from_disk`` reads, and what there is to know about it.

Work goes on in ``<output_dir>.incomplete`` and appears under its name in one step; the same command goes on where a
kill left off. That folder holds ``plan.arrow`` (a row for every image), ``state.json`` (the fingerprint of settings
and plan), ``shards/`` (see shards.py) and at the end ``final/``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from common.data.prepared import read_prepared
from common.data.problems import Problem, write_problems
from common.run.lock import RunLock
from data_prep.finish import Finisher
from data_prep.plan import Content, Plan
from data_prep.shards import Shard, ShardResult, Work, make_shards, read_result, write_arrow, write_text
from data_prep.stores import Store
from data_prep.tables import SPLIT

logger = logging.getLogger(__name__)


def check_output(output_dir: str | Path) -> Path:
    """The folder to write, as an absolute path; ValueError if something is there that is no prepared folder."""
    folder = Path(output_dir).absolute()
    if folder.exists() and read_prepared(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no prepared folder; name another one (--output_dir).")
    return folder


def write_prepared(
    output_dir: str | Path,
    content: Content,
    store: Store,
    *,
    num_proc: int,
    strict: bool = False,
    rows_per_shard: int = 1000,
) -> Path:
    """Look at every image, store it, and write the folder; or go on doing so, or find it done.

    Args:
        output_dir: the folder; it appears when it is finished.
        content: the rows.
        store: how images are stored.
        num_proc: processes.
        strict: any row that would be left out is an error instead.
        rows_per_shard: of a file of the data set; what is lost by a kill at most, times processes.

    Returns:
        The folder, as an absolute path.

    Raises:
        ValueError: with ``strict``, something is wrong with the data; the folder exists and holds something else;
            nothing is left for training; a worker ran out of memory.
    """
    folder = check_output(output_dir)
    if strict:
        _refuse_problems(content.rows.problems)
    if not (content.rows.frame[SPLIT] == "train").any():
        _refuse_problems(content.rows.problems, "and none is left for training")
        raise ValueError("No row is in training.")
    plan = Plan(content, store, rows_per_shard)
    done = read_prepared(folder)
    work_folder = folder.with_name(f"{folder.name}.incomplete")
    if done is not None:
        if done.get("fingerprint") != plan.fingerprint:
            raise ValueError(
                f"{folder} is finished, with other settings or data; name another folder (--output_dir), or remove it."
            )
        logger.info("%s is finished already.", folder)
        shutil.rmtree(work_folder, ignore_errors=True)
        return folder
    with RunLock(work_folder):
        _resume_or_start(work_folder, plan)
        plan.table = content.rows.frame = None  # the one is on the disk now, the other in plan.frame
        results = _store_images(work_folder, plan, content, store, num_proc)
        trainable = any(shard.split == "train" and result.rows for shard, result in results)
        if strict or not trainable:
            why = "(--strict)" if trainable else "and no image is left for training"
            _refuse_broken(work_folder, plan, results, why)
        Finisher(work_folder, plan, content, store, results).finish()
        os.replace(work_folder / "final", folder)
        shutil.rmtree(work_folder)
    return folder


def _refuse_problems(problems: Sequence[Problem], why: str = "(--strict)", listed: str = "") -> None:
    if problems:
        shown = "; ".join(f"{_where(problem)}: {problem.problem}" for problem in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{len(problems)} rows have problems {why}: {shown}{more}.{listed}")


def _refuse_broken(work_folder: Path, plan: Plan, results: Sequence[tuple[Shard, ShardResult]], why: str) -> None:
    """Shards with problems are forgotten, so that they are made again after files were mended."""
    problems = [problem for _, result in results for problem in plan.problems(result)]
    for shard, result in results:
        if result.problems:
            (work_folder / "shards" / f"{shard.name}.json").unlink()
    path = work_folder / "problems.csv"
    write_problems(path, problems)
    _refuse_problems(problems, why, f" All are in {path}; what is fine is kept for the next time.")


def _where(problem: Problem) -> str:
    return " ".join(part for part in (problem.split, f"row {problem.row}", problem.image) if part)


def _resume_or_start(folder: Path, plan: Plan) -> None:
    """Make the work folder ready: with what is finished if the settings are the same, else empty."""
    state = folder / "state.json"
    known = json.loads(state.read_text(encoding="utf-8")).get("fingerprint") if state.is_file() else None
    if known == plan.fingerprint:
        logger.info("Going on in %s.", folder)
    else:
        if known is not None:
            logger.warning("%s was begun with other settings or data; starting over.", folder)
        state.unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_arrow(folder / "plan.arrow", plan.table.schema, iter(plan.table.to_batches()))
        (folder / "shards").mkdir()
        write_text(state, json.dumps({"fingerprint": plan.fingerprint}))
    for leftover in [*folder.glob("*.tmp"), *folder.glob("*/*.tmp"), *folder.glob("final/*/*.tmp")]:
        leftover.unlink()


def _store_images(
    folder: Path, plan: Plan, content: Content, store: Store, num_proc: int
) -> list[tuple[Shard, ShardResult]]:
    work = Work(
        folder / "shards",
        folder / "plan.arrow",
        plan.schema,
        store,
        content.root,
        content.sources,
        dict(content.source_columns),
    )
    live = sys.stderr.isatty()
    with tqdm(total=len(plan.frame), unit="image", desc="preparing", disable=not live, smoothing=0.05) as bar:
        make_shards(work, plan.shards, num_proc, bar.update)
    return [(shard, read_result(folder / "shards", shard)) for shard in plan.shards]
