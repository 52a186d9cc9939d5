"""What a prepared folder will hold, as far as it is known before any image is looked at, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import Features, Image, Value

from common.data.prepared import FORMAT
from common.data.problems import Problem
from common.model.hierarchy import Hierarchy
from data_prep.data_card import Card
from data_prep.rows import SPLITS, RowSet
from data_prep.shards import SOURCE, Shard, ShardResult
from data_prep.stores import Store
from data_prep.tables import ROW, SPLIT


@dataclass
class Content:
    """What a prepared folder will hold, as far as it is known before the images are looked at.

    Args:
        rows: with splits, clean paths and labels.
        columns: of the folder besides the images: level columns, group column, and others to keep.
        levels: the level columns, coarse to fine; none for masks.
        tree: the label tree if it is given; else the rows span it.
        group_column: or ``None``.
        root: folder of the images, without symbolic links; empty if ``sources`` hold them.
        sources: see :class:`data_prep.tables.Rows`.
        source_columns: image column of the folder -> its name in the sources.
        unseen: see :data:`data_prep.label_paths.UNSEEN`.
        card: what the data set card says.
        settings: everything that decides what is in the folder besides this and the store, as JSON.
    """

    rows: RowSet
    columns: Sequence[str]
    levels: Sequence[str]
    card: Card
    tree: Hierarchy | None = None
    group_column: str | None = None
    root: str = ""
    sources: tuple[str, ...] = ()
    source_columns: Mapping[str, str] = field(default_factory=dict)
    unseen: str = "blank"
    settings: Mapping[str, Any] = field(default_factory=dict)


class Plan:
    """A row for every image, ordered by split, and how it is divided into shards."""

    def __init__(self, content: Content, store: Store, rows_per_shard: int) -> None:
        frame = content.rows.frame
        order = pd.Categorical(frame[SPLIT], SPLITS).codes.argsort(kind="stable")
        self.frame = frame.iloc[order].reset_index(drop=True)
        self.image_column = store.image_column
        self.features = _features(content, store)
        self.schema = self.features.arrow_schema
        names = [SPLIT, ROW, *content.columns]
        names += [SOURCE] if content.sources else store.columns
        columns = {name: text_array(self.frame[name]) for name in dict.fromkeys(names)}
        self.table = pa.table(columns)
        self.shards = list(_divide(self.frame[SPLIT].tolist(), rows_per_shard))
        settings = {
            "format": FORMAT,
            "rows_per_shard": rows_per_shard,
            "features": str(self.features),
            "store": [type(store).__name__, asdict(store)],
            "root": content.root,
            "sources": [_file_state(path) for path in content.sources],
            "tree": content.tree.to_dict() if content.tree else None,
            "unseen": content.unseen,
            "problems": [asdict(problem) for problem in content.rows.problems],
            **content.settings,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table)
        digest.update(sink.getvalue())
        self.fingerprint = digest.hexdigest()

    def problems(self, result: ShardResult) -> list[Problem]:
        """What was wrong with rows of a shard, for people."""
        images = self.frame.get(self.image_column)
        return [
            Problem(
                self.frame[SPLIT].iloc[row],
                int(self.frame[ROW].iloc[row]),
                (images.iloc[row] if images is not None else None) or "",
                kind,
                told,
            )
            for row, kind, told in result.problems
        ]


def _features(content: Content, store: Store) -> Features:
    kinds: dict[str, Any] = {name: Image() if store.embeds else Value("string") for name in store.columns}
    kinds |= {name: Value("string") for name in content.columns}
    kinds |= {name: Value(kind) for name, kind in store.extra_columns.items()}
    return Features(kinds)


def text_array(column: pd.Series) -> pa.Array:
    """A column of a frame, text or numbers, for Arrow."""
    if pd.api.types.is_integer_dtype(column.dtype):
        return pa.array(column.to_numpy(), pa.int64())
    return pa.array(column.astype(object).where(column.notna(), None).tolist(), pa.string())


def _file_state(path: str) -> list[Any]:
    state = os.stat(path)
    return [path, state.st_size]


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
