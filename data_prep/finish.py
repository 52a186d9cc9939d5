"""From finished shards to a prepared folder: final labels, files in place, and what there is to know about them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyarrow as pa
from datasets import DatasetInfo

from common.data.prepared import FORMAT, PREPARED_FILE
from common.data.problems import Problem, write_problems
from common.model.hierarchy import Hierarchy
from data_prep.data_card import describe, write_card
from data_prep.label_paths import settle_unseen, tree_of
from data_prep.plan import Content, Plan, text_array
from data_prep.rows import SPLITS, RowSet
from data_prep.shards import Shard, ShardResult, open_arrow, write_arrow, write_text
from data_prep.stores import Store
from data_prep.tables import SPLIT

logger = logging.getLogger(__name__)

NOTES_SHOWN = 20


class Finisher:
    """From shards to a folder. Every step can be repeated, wherever a kill has stopped it."""

    def __init__(
        self,
        work_folder: Path,
        plan: Plan,
        content: Content,
        store: Store,
        results: Sequence[tuple[Shard, ShardResult]],
    ) -> None:
        self.shards, self.final = work_folder / "shards", work_folder / "final"
        self.plan, self.content, self.store, self.results = plan, content, store, results

    def finish(self) -> None:
        content, plan = self.content, self.plan
        kept = [row for _, result in self.results for row in result.rows]
        rows, tree = self._final_labels(kept)
        counts = rows.frame[SPLIT].value_counts()
        assert counts.get("train"), "labels are taken from validation and test only"
        problems = [
            *content.rows.problems,
            *(problem for _, result in self.results for problem in plan.problems(result)),
            *rows.problems,
        ]
        for kind, number in pd.Series([problem.kind for problem in problems], dtype=object).value_counts().items():
            logger.warning("left out: %d rows, %s", number, kind)
        written = [split for split in SPLITS if counts.get(split)]
        for split in written:
            self._write_split(split, rows.frame)
        self._write_descriptions(rows, tree, problems, written)

    def _final_labels(self, kept: Sequence[int]) -> tuple[RowSet, Hierarchy | None]:
        """The rows that are left and their labels: a class may have lost all its training images."""
        content = self.content
        frame = self.plan.frame.iloc[kept].copy()
        frame["__plan__"] = kept
        rows = RowSet(frame.reset_index(drop=True), self.store.image_column)
        if not content.levels or not len(frame):
            return rows, content.tree
        settle_unseen(rows, content.levels, content.unseen)
        return rows, content.tree or tree_of(rows.frame, content.levels)[0]

    def _write_split(self, split: str, final: pd.DataFrame) -> None:
        folder = self.final / split
        folder.mkdir(parents=True, exist_ok=True)
        labels = final.drop_duplicates("__plan__").set_index("__plan__")[list(self.content.levels)]
        before = self.plan.frame[list(self.content.levels)]
        files = []
        for shard, result in self.results:
            if shard.split != split or not result.rows:
                continue
            left = [row in labels.index for row in result.rows]
            if not any(left):
                continue
            name = f"{shard.name}.arrow"
            files.append(name)
            if not (self.shards / name).exists():
                assert (folder / name).exists(), "a shard is either where it was made or in place"
                continue
            same = all(left) and labels.loc[result.rows].equals(before.loc[result.rows])
            if same:
                os.replace(self.shards / name, folder / name)
            else:
                self._amend(self.shards / name, folder / name, result.rows, labels)
        self._write_state(split, folder, files)

    def _amend(self, source: Path, target: Path, rows: Sequence[int], labels: pd.DataFrame) -> None:
        """Write a shard again, with other labels or fewer rows; in its batches, for the sake of memory."""

        def batches() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in open_arrow(source).to_batches():
                left = [at for at in range(batch.num_rows) if rows[start + at] in labels.index]
                new = labels.loc[[rows[start + at] for at in left]]
                start += batch.num_rows
                columns = dict(zip(batch.schema.names, batch.take(pa.array(left, pa.int64())).columns, strict=True))
                columns |= {level: text_array(new[level]) for level in self.content.levels}
                yield pa.RecordBatch.from_arrays(list(columns.values()), schema=self.plan.schema)

        write_arrow(target, self.plan.schema, batches())
        source.unlink()

    def _write_state(self, split: str, folder: Path, files: Sequence[str]) -> None:
        """What ``Dataset.save_to_disk`` writes beside its Arrow files."""
        DatasetInfo(features=self.plan.features).write_to_directory(str(folder))
        state = {
            "_data_files": [{"filename": name} for name in files],
            "_fingerprint": hashlib.sha256(f"{self.plan.fingerprint} {split}".encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        write_text(folder / "state.json", json.dumps(state, indent=2, sort_keys=True))

    def _write_descriptions(
        self, rows: RowSet, tree: Hierarchy | None, problems: Sequence[Problem], splits: Sequence[str]
    ) -> None:
        content, final = self.content, self.final
        if tree is not None:
            tree.save(final / "hierarchy.json")
        write_problems(final / "problems.csv", problems)
        notes = list(dict.fromkeys([*content.rows.notes, *rows.notes]))
        for note in notes[:NOTES_SHOWN]:
            logger.warning("%s", note)
        if len(notes) > NOTES_SHOWN:
            logger.warning("... and %d more notes, all of them in stats.json.", len(notes) - NOTES_SHOWN)
        results = [(shard.split, result) for shard, result in self.results]
        stats = describe(rows.frame, content.levels, tree, content.group_column, results, problems)
        write_text(final / "stats.json", json.dumps({**stats, "notes": notes}, indent=1, ensure_ascii=False) + "\n")
        write_card(final / "README.md", content.card, stats, notes, self.plan.features, content.levels)
        about = {
            "format": FORMAT,
            "fingerprint": self.plan.fingerprint,
            "image_column": self.store.image_column,
            "mask_column": self.store.mask_column,
            "level_columns": list(content.levels),
            "group_column": content.group_column,
            "image_root": None if self.store.embeds else content.root,
            "settings": {**content.settings, **asdict(self.store)},
        }
        write_text(final / "dataset_dict.json", json.dumps({"splits": list(splits)}))
        write_text(final / PREPARED_FILE, json.dumps(about, indent=1, ensure_ascii=False, default=str) + "\n")
        for split in splits:
            logger.info("%s: %d images", split, stats["splits"][split]["num_images"])
