"""Tables as people have them, read as text: every script opens them here, so that a cell means the same everywhere.

1. A cell of a text file is what stands there (``007``, ``1.10`` and ``5E4`` stay), without spaces at its ends.
2. Numbers of a typed table (XLSX, Parquet, JSON, Arrow) are written in full, whole ones without a decimal point.
3. Blank cells, NaN, and the words of :data:`MISSING` are missing.
4. Fields are divided by comma, semicolon or tab, whichever fits the first lines best. Quotes enclose fields, but not
   between tabs: GBIF's files have single quotes in free text.
5. Files are UTF-8, UTF-16 with its mark, or else Windows-1252, which a note says.
"""

from __future__ import annotations

import csv
import glob
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .encoding import short_list, text_of

MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "-")
"""Cells that mean blank, as R, pandas, databases and people write them; ``None`` may be a class (no damage)"""

TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".xlsx")
TABLE_ENDINGS = (*TEXT_ENDINGS, ".json", ".jsonl", ".parquet")


@dataclass
class TextTable:
    """A table file."""

    columns: pa.Table  # of strings, empty where a cell is blank; in JSON also columns of lists or objects
    numbers: np.ndarray  # int64 (rows,), of each row in its file: from 0, without blank lines
    malformed: dict[int, str] = field(default_factory=dict)  # what is wrong with rows that are in no column
    notes: list[str] = field(default_factory=list)  # what people should know, one sentence an entry


def read_table(path: str | Path, fill_short: bool = False) -> TextTable:
    """Read a CSV, TSV, TXT, XLSX, JSON or JSON-lines file; columns of one name get their places added to it.

    Args:
        path: the file; its ending tells the kind, but not what divides fields.
        fill_short: a row with fewer fields than the first has blank ones at its end, instead of being malformed.

    Raises:
        ValueError: it does not exist or cannot be read at all.
    """
    path = Path(path)
    check_table_file(path)
    try:
        if path.suffix.lower() in (".json", ".jsonl"):
            return _read_json(path)
        return _read_workbook(path) if path.suffix.lower() == ".xlsx" else _read_delimited(path, fill_short)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is in no encoding that is known here (byte {error.start}); use UTF-8.") from error
    except (OSError, ValueError, KeyError, ImportError, pa.ArrowException) as error:  # what parsers of workbooks say
        raise ValueError(f"Cannot read the table {path}: {error}") from error


def check_table_file(path: str | Path, what: str = "table") -> None:
    """ValueError if a table does not exist, or is none by its ending."""
    if Path(path).suffix.lower() not in TABLE_ENDINGS:
        raise ValueError(f"The {what} {path} is none of {', '.join(TABLE_ENDINGS)}, by its ending.")
    if not (Path(path).is_file() or glob.glob(str(path))):
        raise ValueError(f"The {what} {path} does not exist.")


# ---- kinds of files


def _read_delimited(path: Path, fill_short: bool) -> TextTable:
    text, notes = _decode(path)
    delimiter = _delimiter(text, path.suffix.lower())
    dialect = {"delimiter": delimiter, "quoting": csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL}
    csv.field_size_limit(2**31 - 1)
    if delimiter != "\t" and '"' in text:
        _check_quotes(text, delimiter)
    lines = csv.reader(io.StringIO(text, newline=""), **dialect)
    rows = filter(any if fill_short else None, lines)
    header, numbers, malformed = next(rows, []), [], {}

    def fitting() -> Iterator[list[str]]:
        for number, row in enumerate(rows):
            row += [""] * (len(header) - len(row) if fill_short else 0)
            if len(row) == len(header):
                numbers.append(number)
                yield row
            else:
                told = f"it has {len(row)} fields, the first line {len(header)}"
                malformed[number] = f"{told} (it ends in line {lines.line_num})"

    schema, good = pa.schema([(name, pa.string()) for name in _unique(header)]), fitting()
    parts = [schema.empty_table()]
    while chunk := list(islice(good, 50_000)):
        parts.append(pa.table([pa.array(cells, pa.string()) for cells in zip(*chunk, strict=True)], schema=schema))
    return TextTable(pa.concat_tables(parts), np.array(numbers, dtype=np.int64), malformed, notes)


def _check_quotes(text: str, delimiter: str) -> None:
    """ValueError if a quote that stands alone makes one cell of several rows."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    width = 0
    while True:
        first, wrong = lines.line_num + 1, False
        try:
            row = next(lines)
            width = width or len(row)
            inner = [line for cell in row for line in cell.splitlines()[1:-1]]
            wrong = width > 1 and any(line.count(delimiter) == width - 1 for line in inner)
        except StopIteration:
            return
        except csv.Error as error:
            wrong = lines.line_num > first or "end of data" in str(error)
        if wrong:
            where = (
                f'a quote (") in line {first} opens a cell that goes on to line {lines.line_num}, over what look like'
            )
            raise ValueError(f"{where} rows: take it out, or double it and put the cell in quotes")


def _decode(path: Path) -> tuple[str, list[str]]:
    """A file's text, and a note if its encoding was guessed."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16"), []
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        text = content.decode("cp1252")
        word = text[: error.start].split("\n")[-1][-20:] + text[error.start : error.start + 20].split("\n")[0].strip()
        return text, [f"{path} is not in UTF-8 and was read as Windows-1252: is {word!r} right?"]


def _delimiter(text: str, ending: str) -> str:
    """What divides most of the first lines into as many fields as the first of them has."""

    def fit(delimiter: str) -> tuple[int, int]:
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        lines = csv.reader(io.StringIO(text[:100_000], newline=""), delimiter=delimiter, quoting=quoting)
        widths = [len(row) for row in islice(filter(None, lines), 50)]
        return (widths.count(widths[0]), widths[0]) if widths and widths[0] > 1 else (0, 0)

    return max(",;\t" if ending == ".csv" else "\t,;", key=fit)


def _read_workbook(path: Path) -> TextTable:
    with pd.ExcelFile(path) as book:
        cells = book.parse(0, header=None, dtype=object, na_filter=False)
        names = book.sheet_names
    rows = [[text_of(cell) or "" for cell in row] for row in cells.itertuples(index=False)]
    header, *rows = [row for row in rows if any(row)] or [[]]
    notes = [f"{path} has {len(names)} sheets; the first, {names[0]!r}, was read."] if len(names) > 1 else []
    frame = pd.DataFrame(rows, columns=_unique(header), dtype=object)
    schema = pa.schema([(name, pa.string()) for name in frame])
    return TextTable(pa.Table.from_pandas(frame, schema, preserve_index=False), np.arange(len(rows)), {}, notes)


def _read_json(path: Path) -> TextTable:
    """One JSON object a line, or one list of them."""
    text, notes = _decode(path)
    lines = [line for line in text.split("\n") if line.strip()]
    entries = list(map(_parse, lines))
    if entries and (len(entries) == 1 or not isinstance(entries[0], dict)):
        whole = _parse(text)
        entries = whole if isinstance(whole, list) else entries if whole is None else [whole]
        if isinstance(whole, dict) and any(isinstance(value, list | dict) for value in whole.values()):
            raise ValueError(f"it holds one object with the keys {short_list(whole)}, and not an object for each row.")
    rows = {number: entry for number, entry in enumerate(entries) if isinstance(entry, dict)}
    malformed = {number: "it is not a JSON object" for number in range(len(entries)) if number not in rows}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = {name: _json_column([row.get(name) for row in rows.values()]) for name in names}
    return TextTable(pa.table(columns), np.array(list(rows), dtype=np.int64), malformed, notes)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_column(values: list[Any]) -> pa.Array:
    try:
        nested = any(isinstance(value, list | dict) for value in values)
        return pa.array(values) if nested else pa.array([text_of(value) or "" for value in values], pa.string())
    except pa.ArrowException:  # lists here and words there
        return pa.array([json.dumps(value) for value in values])


def _unique(header: Iterable[str]) -> list[str]:
    """Names of columns; one that is there twice gets its places, so that nobody takes one for the other."""
    names = [name.strip() for name in header]
    count = Counter(names)
    return [
        f"{name or 'nameless'} (column {at})" if count[name] > 1 or not name else name
        for at, name in enumerate(names, start=1)
    ]


# ---- cells


def blank_words(
    column: pa.ChunkedArray | pa.Array, missing: Sequence[str] = MISSING
) -> tuple[pa.ChunkedArray | pa.Array, dict[str, int]]:
    """A column of strings without spaces at their ends and null where missing; how often each word was found."""
    trimmed = pc.utf8_trim_whitespace(column)
    found = pc.is_in(trimmed, pa.array(["", *missing], trimmed.type))
    words = pc.value_counts(trimmed.filter(found)).to_pylist() if pc.any(found).as_py() else []
    counts = {entry["values"]: entry["counts"] for entry in words}
    return pc.if_else(found, pa.scalar(None, trimmed.type), trimmed) if counts else trimmed, counts


def blank_note(where: str, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What to tell about :func:`blank_words` of several columns: nothing if no word was found."""
    told = [
        f"{name} {sum(words.values())} (" + ", ".join(f"{word or 'empty'!r} {n}" for word, n in words.items()) + ")"
        for name, words in counts.items()
        if set(words) - {""}
    ]
    end = "; --missing_values changes the words."
    return [f"{where}: cells taken as blank: {', '.join(told[:20])}{end}"] if told else []
