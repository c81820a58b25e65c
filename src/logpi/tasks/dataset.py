"""Rows from where users keep them: JSON Lines, JSON, CSV, Parquet, a list of dicts, a Hugging Face dataset."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from logpi.errors import InputError, did_you_mean, missing_extra

COMMENTS = re.compile(r"\A(?:#.*\n)+")  # some data sets begin their JSON with them


class Row(dict[str, Any]):
    """A row's columns by name, and the line of its file that it begins on, where rows have lines."""

    line: int | None = None


Source = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


def read_rows(source: Source) -> list[Row]:
    """Read every row of a file, an iterable of dicts or a Hugging Face dataset; raise InputError where it cannot.

    Files: .jsonl, .json (a list of objects), .csv, .tsv (sentence pairs without a header: columns "source" and
    "target", further ones are left out), .txt (one row, its column "text"), .pos and .neg (a row a line, columns "text"
    and "label", 1 or 0), each also as .gz, and .parquet.
    """
    rows = _rows_of_file(existing_file(source)) if isinstance(source, str | os.PathLike) else _rows_in_memory(source)
    if not rows:
        raise InputError(f"{name_of(source)}: holds no rows; a dataset needs at least one")
    return rows


def name_of(source: Source) -> str:
    """Return what errors call the source: its path, or ``dataset`` for rows in memory."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "dataset"


def place_of(source: Source, index: int) -> str:
    """Return what errors call a row: ``file:line`` in JSON Lines, else the source and the row's number."""
    name = name_of(source)
    if not isinstance(source, str | os.PathLike) or ".jsonl" not in Path(source).suffixes:
        return f"{name}: row {index}"
    data = Path(source).expanduser().read_bytes()
    text = (gzip.decompress(data) if Path(source).suffix == ".gz" else data).decode("utf-8-sig")
    lines = [number for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return f"{name}:{lines[index]}"


def _rows_in_memory(source: Iterable[Mapping[str, Any]]) -> list[Row]:
    if isinstance(source, Mapping):
        keys = ", ".join(map(str, source))
        raise InputError(f"dataset: a dict ({keys}) where a list of rows is needed; pass one split, or a list of dicts")
    if all(hasattr(source, name) for name in ("column_names", "__len__", "__getitem__")):
        rows: Iterable[Any] = (source[index] for index in range(len(source)))  # type: ignore[index, arg-type]
    elif isinstance(source, Iterable):
        rows = source
    else:
        raise InputError(f"dataset: cannot read rows from a {type(source).__name__}; pass a path or a list of dicts")
    return [_checked(row, f"dataset: row {index}") for index, row in enumerate(rows)]


def existing_file(source: str | os.PathLike[str]) -> Path:
    """Return the path of a file that exists; raise InputError with the nearest name where it does not."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise InputError(f"{source}: a folder, not a file; name one of the files in it")
    if not path.exists():
        if not path.parent.is_dir():
            raise InputError(f"{source}: no such file, and no folder {path.parent}")
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.6)
        raise InputError(f"{source}: no such file." + (f' Did you mean "{path.parent / near[0]}"?' if near else ""))
    return path


def _rows_of_file(path: Path) -> list[Row]:
    zipped = path.suffix.lower() == ".gz"
    extension = (path.with_suffix("") if zipped else path).suffix.lower()
    if extension == ".parquet" and not zipped:
        return _rows_of_parquet(path)
    if extension not in READERS:
        known = [*READERS, *(f"{name}.gz" for name in READERS), ".parquet"]
        raise InputError(f'{path}: unknown extension "{extension}".{did_you_mean(extension, known)}')
    try:
        data = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); copy or compress it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte {data[error.start]:#04x} is not UTF-8; save it as UTF-8") from error
    return list(READERS[extension](text, path))


def _rows_of_jsonl(text: str, path: Path) -> Iterator[Row]:
    lines = text.split("\n")  # not splitlines: U+2028 may stand inside a JSON string
    for number, line in enumerate(lines, start=1):
        if line.strip():
            hint = " (the last line; is the file cut short?)" if number == len(lines) else ""
            yield _checked(_parsed(line, path, number, hint), f"{path}:{number}: the row", number)


def _rows_of_json(text: str, path: Path) -> Iterator[Row]:
    text = COMMENTS.sub(lambda found: "\n" * found.group().count("\n"), text)  # line numbers stay
    if not text.strip():
        return
    hint = " (one object a line? then name it .jsonl)" if text.lstrip().startswith("{") else ""
    rows = _parsed(text, path, 1, hint)
    if not isinstance(rows, list):
        raise InputError(f"{path}:1: holds {_kind(rows)} where a list of objects is needed{hint}")
    for index, row in enumerate(rows):
        yield _checked(row, f"{path}: row {index}")


def _rows_of_csv(text: str, path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        header = next(reader, [])
        repeated = {name for name in header if header.count(name) > 1}
        if repeated:
            raise InputError(f"{path}:1: the header names {', '.join(sorted(repeated))} more than once; rename one")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                need = f"the header has {len(header)} ({', '.join(header)})"
                raise InputError(f"{path}:{line}: {len(cells)} cells where {need}; quote cells that hold commas")
            if cells:
                yield _checked(dict(zip(header, cells)), f"{path}:{line}: the row", line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{line}: not valid CSV: {error}") from error


def _rows_of_tsv(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            cells = [cell.strip() for cell in line.split("\t")]
            if len(cells) < 2 or not all(cells[:2]):
                raise InputError(f"{path}:{number}: {line!r:.60} is no pair; each line is source, a tab, target")
            yield _checked(dict(zip(("source", "target"), cells)), f"{path}:{number}: the row", number)


def _rows_of_txt(text: str, path: Path) -> list[Row]:
    return [Row(text=text)] if text.strip() else []


def _rows_of_pos(text: str, path: Path) -> list[Row]:
    return [Row(text=line.strip(), label=1) for line in text.split("\n") if line.strip()]


def _rows_of_neg(text: str, path: Path) -> list[Row]:
    return [Row(row, label=0) for row in _rows_of_pos(text, path)]


def _rows_of_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "data", f"reading {path}") from error
    try:
        return [Row(row) for row in parquet.read_table(path).to_pylist()]
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from error


def _parsed(text: str, path: Path, first_line: int, hint: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{path}:{line}: not valid JSON: {error.msg} at column {error.colno}{hint}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or thousands of brackets
        raise InputError(f"{path}:{first_line}: not valid JSON: {error}") from error


def _checked(row: Any, place: str, line: int | None = None) -> Row:
    """Return the row with sound text: a lone surrogate would fail much later, inside the tokenizer."""
    if not isinstance(row, Mapping):
        raise InputError(f"{place} is {_kind(row)} where an object (column: value) is needed")
    for column, value in row.items():
        if surrogate := _lone_surrogate([column, value]):
            raise InputError(f"{place} has a lone surrogate ({surrogate!a}) in {column!a:.40}; repair the text")
    found = Row(row)
    found.line = line
    return found


def _lone_surrogate(value: Any) -> str | None:
    unseen = [value]
    while unseen:
        item = unseen.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError as error:
                return item[error.start]
        elif isinstance(item, Mapping):
            unseen += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            unseen += item
    return None


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


READERS = {
    ".jsonl": _rows_of_jsonl,
    ".json": _rows_of_json,
    ".csv": _rows_of_csv,
    ".tsv": _rows_of_tsv,
    ".txt": _rows_of_txt,
    ".pos": _rows_of_pos,
    ".neg": _rows_of_neg,
}
