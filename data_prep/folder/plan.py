"""What a prepared folder will hold, as far as it is known before any image is looked at, and its fingerprint."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pandas as pd
import pyarrow as pa
from datasets import Features, Image, Value

from common.data.prepared import FORMAT
from common.data.problems import Problem
from common.model.hierarchy import Hierarchy
from data_prep.parts.columns import IMAGE, ROW, SOURCE, SPLIT, SPLITS
from data_prep.rows.row_set import RowSet

from .images import Store
from .shards import Shard, ShardResult

APART = {"output_dir", "num_proc", "strict", "exclude_rows"}
"""Options that do not change what is in a folder, or whose effect is in the rows"""

Results = Sequence[tuple[Shard, ShardResult]]
"""Every shard, and what became of it"""


@dataclass
class Content:
    """What a prepared folder will hold.

    Args:
        title, text: of the data set card; paragraphs about where the data come from and how they were prepared.
        rows: with splits, clean paths and labels.
        columns: of the folder besides the images: level columns, group column, and others to keep.
        levels: the level columns, coarse to fine; none for masks.
        tree: the label tree if it is given; else the rows span it.
        group_column: or ``None``.
        root: folder of the images, without symbolic links; empty if the rows' sources hold them.
        source_columns: image column of the folder -> its name in the sources.
    """

    title: str
    text: str
    rows: RowSet
    columns: Sequence[str]
    levels: Sequence[str] = ()
    tree: Hierarchy | None = None
    group_column: str | None = None
    root: str = ""
    source_columns: Mapping[str, str] = field(default_factory=dict)


class Plan:
    """A row for every image, ordered by split, and how they are divided into shards.

    ``frame`` has the rows, ``table`` what workers need of them, ``settings`` the options that say what is in the
    folder; ``fingerprint`` is of all of these.
    """

    def __init__(self, args: argparse.Namespace, content: Content, store: Store, rows_per_shard: int) -> None:
        self.content, self.store = content, store
        self.settings = {name: value for name, value in vars(args).items() if name not in APART}
        rows = content.rows
        order = pd.Categorical(rows.frame[SPLIT], SPLITS).codes.argsort(kind="stable")
        self.frame = rows.frame.iloc[order].reset_index(drop=True)
        self.features = Features(
            {name: Image() if store.embeds else Value("string") for name in store.columns}
            | {name: Value("string") for name in content.columns}
            | {name: Value(kind) for name, kind in store.extra_columns.items()}
        )
        names = [SPLIT, ROW, *content.columns, *([SOURCE] if rows.sources else store.columns)]
        self.table = pa.table({name: arrow_column(self.frame[name]) for name in dict.fromkeys(names)})
        self.shards = _divide(self.frame[SPLIT].tolist(), rows_per_shard)
        self.fingerprint = self._fingerprint(rows_per_shard)

    def _fingerprint(self, rows_per_shard: int) -> str:
        content, store = self.content, self.store
        settings = {
            "format": FORMAT,
            "rows_per_shard": rows_per_shard,
            "features": str(self.features),
            "store": [type(store).__name__, asdict(store)],
            "root": content.root,
            "sources": [[path, os.stat(path).st_size] for path in content.rows.sources],
            "tree": content.tree.to_dict() if content.tree else None,
            "problems": [asdict(problem) for problem in content.rows.problems],
            **self.settings,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table)
        digest.update(sink.getvalue())
        return digest.hexdigest()

    def problems(self, results: Results) -> list[Problem]:
        """What was wrong with rows of shards, for people."""
        rows = self.frame.reindex(columns=[SPLIT, ROW, IMAGE]).astype(object)
        return [
            Problem(split, int(number), image if isinstance(image, str) else "", kind, told)
            for _, result in results
            for row, kind, told in result.problems
            for split, number, image in [rows.iloc[row]]
        ]


def arrow_column(column: pd.Series) -> pa.Array:
    """A column of a frame, text or whole numbers, for Arrow."""
    if pd.api.types.is_integer_dtype(column.dtype):
        return pa.array(column.to_numpy(), pa.int64())
    return pa.array(column.astype(object).where(column.notna(), None).tolist(), pa.string())


def _divide(splits: Sequence[str], rows_per_shard: int) -> list[Shard]:
    shards: list[Shard] = []
    start = 0
    for split in SPLITS:
        end = start + splits.count(split)
        while start < end:
            stop = min(start + rows_per_shard, end)
            shards.append(Shard(len(shards), split, start, stop))
            start = stop
    return shards
