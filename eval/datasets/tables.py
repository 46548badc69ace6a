"""Tables and FASTA files as publishers give them: CSV, TSV, JSON, JSON lines, Parquet, FASTA, LMDB of JSON."""

import csv
import importlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from configs.errors import UserError
from eval.datasets.records import Files

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
Row = dict[str, Any]
_WORDS = {
    "train": r"train(ing)?",
    "validation": r"valid(ation)?|val|dev",
    "test": r"test",
}
csv.field_size_limit(2**24)


def table(files: Files, path: str, columns: Sequence[str] = ()) -> list[Row]:
    """Rows of a table; of a Parquet file only the named columns are read, where it has them.

    Raises:
        UserError: the file is damaged, or of a kind that is not read.
    """
    content = files.read(path)
    name = path.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            return _parquet(content, columns)
        text = content.decode("utf-8-sig")
        if name.endswith((".csv", ".tsv", ".txt")):
            return list(csv.DictReader(io.StringIO(text), delimiter="," if name.endswith(".csv") else "\t"))
        if name.endswith(".json") and text.lstrip().startswith("["):
            return json.loads(text)
        if name.endswith((".json", ".jsonl", ".ndjson")):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as a table ({_line(error)}); fetch it again") from None
    raise UserError(f"{path}: not a kind of table that is read; allowed: {', '.join(SUFFIXES)}")


def column_of(rows: Sequence[Row], names: Sequence[str], path: str) -> str:
    """The first of the names that the table has as a column.

    Raises:
        UserError: it has none of them (the message names those it has), or no rows.
    """
    if not rows or not isinstance(rows[0], dict):
        raise UserError(f"{path}: holds no rows; fetch it again")
    for name in names:
        if name in rows[0]:
            return name
    raise UserError(f"{path}: has columns {', '.join(map(str, rows[0]))}; one of {', '.join(names)} is needed")


def fasta(files: Files, path: str) -> Iterator[tuple[str, str]]:
    """Header line without `>`, and sequence as written, of every entry."""
    header, parts = None, []
    for line in files.read(path).decode("utf-8", "replace").splitlines():
        if line.startswith(">"):
            if header is not None:
                yield header, "".join(parts)
            header, parts = line[1:].strip(), []
        else:
            parts.append(line.strip())
    if header is not None:
        yield header, "".join(parts)


def tables_of_split(files: Files, prefix: str, split: str) -> list[str]:
    """Tables whose name says that they belong to a split, as the hub's viewer decides: `train.csv`,
    `data/validation-00000-of-00001.parquet`, `fluorescence_valid.json`."""
    folder = f"{prefix}/" if prefix else ""
    word = re.compile(rf"(?:^|[^a-z])(?:{_WORDS[split]})(?:[^a-z]|$)", re.IGNORECASE)
    names = [name for name in files.names(folder) if name.removesuffix(".gz").endswith(SUFFIXES)]
    return [name for name in names if word.search(name[len(folder) :])]


def lmdb_rows(files: Files, path: str) -> list[Row]:
    """Rows of an LMDB file whose values are JSON, numbered from 0 under keys `length`, `0`, `1`, ... (SaProt's form).

    Raises:
        UserError: the library `lmdb` is not installed, or the file is not of that form.
    """
    try:
        lmdb = importlib.import_module("lmdb")
    except ImportError:
        raise UserError(
            f"{path}: an LMDB file, which needs the library lmdb (pip install lmdb); or convert it to JSON lines, one "
            "example a line, named train.jsonl, validation.jsonl, test.jsonl"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "data.mdb"
        place.write_bytes(files.read(path))
        try:
            with lmdb.open(str(place), subdir=False, readonly=True, lock=False) as env, env.begin() as view:
                length = int(view.get(b"length"))
                return [json.loads(view.get(str(i).encode())) for i in range(length)]
        except (lmdb.Error, TypeError, ValueError) as error:
            raise UserError(f"{path}: no LMDB of JSON values ({_line(error)}); convert it to JSON lines") from None


def _parquet(content: bytes, columns: Sequence[str]) -> list[Row]:
    file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
    chosen = [name for name in file.schema_arrow.names if name in columns]
    # Without both a sequence and a label all are read, so that the complaint about it names them.
    return file.read(columns=chosen if len(chosen) > 1 else None).to_pylist()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
