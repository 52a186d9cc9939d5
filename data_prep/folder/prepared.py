"""Writing a prepared folder: a data set that ``datasets.load_from_disk`` reads, and what there is to know about it.

Images are checked and stored first, and splits drawn among the rows that are left, so that a broken image cannot take
the last one of a class out of training. Work is done in ``<output_dir>.incomplete``, which appears under its name in
one step; after a kill the same command resumes there. That folder holds ``pieces/`` (see pieces.py) and at the end
``final/``.
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Image, concatenate_datasets
from tqdm.auto import tqdm

from common.data.prepared import FORMAT, PREPARED_FILE, read_prepared
from common.data.problems import Problem, write_problems
from common.labels.table import hierarchy_from_table
from data_prep.parts.columns import IMAGE, ROW, SOURCE, SPLIT, SPLITS
from data_prep.parts.parallel import work_folder

from .card import Content, describe, write_card
from .images import Store
from .pieces import BATCH_BYTES, BATCH_ROWS, FACTS, PieceMaker, make_pieces

logger = logging.getLogger(__name__)

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

    Returns the folder as an absolute path. A kill loses at most ``rows_per_piece`` images a process.

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
        (work / "pieces").mkdir(exist_ok=True)
        names = rows.frame[store.columns].values.tolist() if rows.source is None else rows.frame[SOURCE].tolist()
        maker = PieceMaker(work / "pieces", store, content.root, rows.source)
        how = {"unit": "image", "desc": "preparing", "disable": not sys.stderr.isatty(), "smoothing": 0.05}
        with tqdm(total=len(names), **how) as bar:
            files = make_pieces(maker, names, rows_per_piece, args.num_proc, bar.update)
        stored = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
        broken = stored.select_columns(["at", "kind", "told"]).to_pandas().dropna()
        rows.frame["__at__"] = range(len(rows.frame))
        shown = rows.frame.reindex(columns=[SPLIT, ROW, IMAGE]).astype(object).fillna("").iloc[broken["at"]]
        found = zip(shown.values.tolist(), broken["kind"], broken["told"], strict=True)
        problems = [Problem(split, int(row), image, kind, told) for (split, row, image), kind, told in found]
        rows.frame = rows.frame.drop(index=broken["at"]).reset_index(drop=True)
        rows.problems += problems
        content.divide(rows)
        trainable = (rows.frame[SPLIT] == "train").any()
        if problems and (args.strict or not trainable):
            write_problems(work / "problems.csv", problems)
            for at in broken["at"] // rows_per_piece:  # made again, when the files were fixed
                (work / "pieces" / f"{at:05d}.arrow").unlink(missing_ok=True)
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
    frame, source = content.rows.frame, content.rows.source or Dataset(pa.table({}))
    about = {
        "format": FORMAT,
        "rows_per_piece": rows_per_piece,
        "store": [type(store).__name__, asdict(store)],
        "columns": content.columns,
        "root": content.root,
        "source": [[entry["filename"], os.stat(entry["filename"]).st_size] for entry in source.cache_files],
        "tree": content.tree.to_dict() if content.tree else None,
        "problems": list(map(str, content.rows.problems)),
        **settings,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    digest.update(frame.to_json(orient="split", force_ascii=False).encode())
    return digest.hexdigest()


# ---- from finished pieces to the folder


def _finish(work: Path, content: Content, store: Store, stored: Dataset, about: Mapping[str, Any]) -> None:
    """Rows into splits, and the files that describe the folder; ``about`` becomes prepared.json."""
    rows, tree, final = content.rows, content.tree, work / "final"
    if tree is None and content.levels:
        tree = hierarchy_from_table({level: rows.frame[level].tolist() for level in content.levels})[0]
    for kind, number in Counter(problem.kind for problem in rows.problems).most_common():
        logger.warning("left out: %d rows, %s", number, kind)
    notes = list(dict.fromkeys(rows.notes))
    for note in notes[:20]:
        logger.warning("%s", note)
    if notes[20:]:
        logger.warning("... and %d more notes, all of them in stats.json.", len(notes[20:]))
    facts = stored.select_columns(list(FACTS)).to_pandas()
    frame = rows.frame.set_index("__at__").reindex(facts["at"])  # without a split where the row is left out
    cells = {name: pa.array(frame[name].tolist(), pa.string(), from_pandas=True) for name in content.columns}
    images = stored.remove_columns(list(FACTS))
    data = concatenate_datasets([images, *([Dataset(pa.table(cells), fingerprint="cells")] if cells else [])], axis=1)
    kinds = {**data.features, **dict.fromkeys(store.held, Image())}
    features = Features({name: kinds[name] for name in (*store.columns, *content.columns, *store.extra_columns)})
    shutil.rmtree(final, ignore_errors=True)  # of a run that was killed
    stats: dict[str, Any] = {"splits": {}}
    for split in SPLITS:
        chosen = np.flatnonzero((frame[SPLIT] == split) & facts["kind"].isna().to_numpy())
        if len(chosen):
            entry = stats["splits"][split] = describe(frame.iloc[chosen], facts.iloc[chosen], content, tree)
            batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * len(chosen) // max(1, entry.get("num_bytes", 0))))
            part = data.select(chosen).select_columns(list(features)).with_format("arrow")
            _write_split(final / split, features, part.iter(batch_rows), about["fingerprint"])
            logger.info("%s: %d images", split, len(chosen))
    stats["num_classes"] = dict(zip(tree.levels, tree.num_classes, strict=True)) if tree else {}
    stats["left_out"] = dict(sorted(Counter(problem.kind for problem in rows.problems).items()))
    stats["notes"] = notes
    if tree is not None:
        tree.save(final / "hierarchy.json")
    write_problems(final / "problems.csv", rows.problems)
    _write_json(final / "stats.json", stats)
    write_card(final / "README.md", content, bool(store.mask_column), features, stats)
    _write_json(final / "dataset_dict.json", {"splits": list(stats["splits"])})
    _write_json(final / PREPARED_FILE, about, default=str)
    os.sync()  # against power cuts


def _write_split(folder: Path, features: Features, tables: Iterable[pa.Table], fingerprint: str) -> None:
    """What ``Dataset.save_to_disk`` writes, but for the paths of images, which lose their folders there."""
    folder.mkdir(parents=True)
    schema = features.arrow_schema
    with (folder / "data.arrow").open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata))
    DatasetInfo(features=features).write_to_directory(str(folder))
    state = {
        "_data_files": [{"filename": "data.arrow"}],
        "_fingerprint": hashlib.sha256(f"{fingerprint} {folder.name}".encode()).hexdigest()[:16],
        "_split": folder.name,
        **{"_format_columns": None, "_format_type": None, "_format_kwargs": {}, "_output_all_columns": False},
    }
    _write_json(folder / "state.json", state)


def _write_json(path: Path, content: Any, **options: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1, **options) + "\n", "utf-8")
