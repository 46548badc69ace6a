"""Clusters from a table of cluster and member: UniRef50, AFDB clusters, or what MMseqs2 and Foldseek write.

The table is streamed: of its lines only those that name one of our chains are kept, so that memory grows with the
chains at hand and not with the table.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from configs.errors import UserError
from configs.splits import SplitConfig
from data_pipeline.splits.components import merge_clusters

MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 2**22, 2**29
BLOCK_BYTES_PER_NAME = 32
"""Each block is looked up in a new hash table of our names, so the more names, the larger the blocks."""
PREDICTED = r"^af-(.+?)-f\d+(?:[-_.].*)?$"
"""AlphaFoldDB's names, `AF-<accession>-F<fragment>` and what may follow: the accession stands for them."""
UNIPROT_HEADER = r"^(?:sp|tr)\|([^|]+)\|.*$"
_DELIMITERS = ("\t", ",", " ")
_WANTED = "name a table of cluster and member, .gz or not"


@dataclass(frozen=True)
class Membership:
    """Clusters of S chains as a file tells them."""

    labels: np.ndarray
    """int64 [S], below S; their numbers mean nothing."""
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Names:
    """Distinct names of our chains, and which chains each stands for."""

    names: pa.LargeStringArray
    chains: np.ndarray
    """int64, chains by name."""
    starts: np.ndarray
    """int64 [names + 1], where the chains of each name begin in `chains`."""


def read_membership(keys: pa.ChunkedArray, entries: pa.ChunkedArray, config: SplitConfig) -> Membership:
    """Clusters of chains from `config.membership`.

    A line names a chain by its key, its entry, or (for predicted models) its UniProt accession; case does not matter.
    A chain named in several clusters joins them. A header is a line like any other: it names no chain.

    Raises:
        UserError: the file cannot be read, a line has the wrong number of columns (the message names file and line),
            no line names any of the chains, or a chain is missing and `membership_missing` is `error`.
    """
    assert config.membership is not None
    path, count = config.membership, len(keys)
    names = _names(keys, entries)
    matches, clusters, lines = _matches(path, names, config)
    if count and not len(matches):
        raise UserError(
            f"{path}: none of its {lines} lines names one of the {count} chains, e.g. {keys[0].as_py()!r} or "
            f"{names.names[0].as_py()!r}; check split.member_column (now {config.member_column}) and that it is the "
            "table of these structures"
        )
    # One (chain, cluster) pair for every chain that a matched name stands for.
    number = (names.starts[1:] - names.starts[:-1])[matches]
    nth = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    chain = names.chains[np.repeat(names.starts[matches], number) + nth]
    cluster = np.repeat(clusters, number)
    # A cluster is stood for by one of its chains, so that labels stay below the number of chains.
    representative = np.zeros(int(clusters.max(initial=-1)) + 1, dtype=np.int64)
    representative[cluster[::-1]] = chain[::-1]
    labels = merge_clusters(np.arange(count), chain, representative[cluster])
    named = np.zeros(count, dtype=bool)
    named[chain] = True
    missing = np.flatnonzero(~named)
    if len(missing) and config.membership_missing == "error":
        examples = ", ".join(keys[int(i)].as_py() for i in missing[:3])
        raise UserError(
            f"{path}: {len(missing)} of {count} chains are not in it, e.g. {examples}; allowed by "
            "split.membership_missing=own_cluster or one_cluster"
        )
    if len(missing) and config.membership_missing == "one_cluster":
        labels = merge_clusters(labels, missing, np.full(len(missing), missing[0]))
    pairs = np.unique(chain * len(representative) + cluster)
    facts = {
        "membership": str(path),
        "membership_sha256": _sha256(path),
        "lines": lines,
        "chains_named": int(named.sum()),
        "chains_missing": len(missing),
        "membership_missing": config.membership_missing,
        "chains_in_several_clusters": int((np.bincount(pairs // max(len(representative), 1), minlength=1) > 1).sum()),
    }
    return Membership(labels, facts)


def normalized(names: pa.Array) -> pa.Array:
    """Names as they are compared: lower case; AlphaFoldDB's names and UniProt's headers cut down to the accession."""
    lower = pc.ascii_lower(names)
    return pc.replace_substring_regex(
        pc.replace_substring_regex(lower, pattern=PREDICTED, replacement=r"\1"),
        pattern=UNIPROT_HEADER,
        replacement=r"\1",
    )


def _names(keys: pa.ChunkedArray, entries: pa.ChunkedArray) -> _Names:
    # Cast last: of a sliced array, pyarrow 25 lowers the letters of a cast one to zero bytes.
    columns = [normalized(column).cast(pa.large_string()).combine_chunks() for column in (keys, entries)]
    both = pa.chunked_array(columns).combine_chunks()
    encoded = both.dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    chains = np.tile(np.arange(len(keys)), 2)
    # A predicted model's key and entry come down to one accession.
    once = np.append(np.ones(len(keys), dtype=bool), codes[: len(keys)] != codes[len(keys) :])
    codes, chains = codes[once], chains[once]
    starts = np.searchsorted(np.sort(codes), np.arange(len(encoded.dictionary) + 1))
    return _Names(encoded.dictionary, chains[np.argsort(codes, kind="stable")], starts)


def _matches(path: Path, names: _Names, config: SplitConfig) -> tuple[np.ndarray, np.ndarray, int]:
    """Names found (int64), number of the cluster of each (int64), and the lines of the file."""
    found, clusters, lines = [np.empty(0, dtype=np.int64)], [pa.array([], pa.large_string())], 0
    for cluster, member in _blocks(path, config, len(names.names)):
        lines += len(member)
        places = pc.index_in(normalized(member), value_set=names.names)
        ours = pc.is_valid(places)
        of_ours = cluster.filter(ours)
        if pc.any(pc.equal(of_ours, "")).as_py():
            nameless = member.filter(ours).filter(pc.equal(of_ours, ""))[0]
            raise UserError(
                f"{path}: the line of member {nameless} names no cluster in column {config.cluster_column}; "
                "check split.cluster_column"
            )
        found.append(places.filter(ours).to_numpy(zero_copy_only=False).astype(np.int64))
        clusters.append(of_ours)
    encoded = pa.chunked_array(clusters, pa.large_string()).combine_chunks().dictionary_encode()
    return np.concatenate(found), encoded.indices.to_numpy().astype(np.int64), lines


def _blocks(path: Path, config: SplitConfig, num_names: int) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Columns cluster and member, block by block."""
    delimiter, columns = table_form(path)
    wanted = {"cluster": config.cluster_column, "member": config.member_column}
    for name, column in wanted.items():
        if column > columns:
            raise UserError(
                f"{path}: split.{name}_column is {column}, but line 1 has {columns} column(s) parted by "
                f"{delimiter!r}; allowed: 1 to {columns} (tab, comma or space part columns)"
            )
    fields = {name: f"f{column - 1}" for name, column in wanted.items()}
    block_bytes = int(np.clip(BLOCK_BYTES_PER_NAME * num_names, MIN_BLOCK_BYTES, MAX_BLOCK_BYTES))
    try:
        reader = pyarrow.csv.open_csv(
            str(path),
            read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=True, block_size=block_bytes),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(fields.values()),
                column_types=dict.fromkeys(fields.values(), pa.large_string()),
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            yield batch.column(fields["cluster"]), batch.column(fields["member"])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(_damage(path, delimiter, columns, error)) from None


def table_form(path: Path) -> tuple[str, int]:
    """Delimiter and number of columns, by the first line.

    Raises:
        UserError: the file is missing, empty or no text.
    """
    first = next(_lines(path), "")
    if not first.strip():
        raise UserError(f"{path}: is empty or begins with an empty line; allowed: lines of cluster and member")
    delimiter = next((d for d in _DELIMITERS if d in first), _DELIMITERS[0])
    return delimiter, first.count(delimiter) + 1


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, .gz or not."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"split.membership {path}: cannot be read ({error}); name a table of cluster and member, .gz or not"
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"split.membership {path}: is no text; name a table of cluster and member, .gz or not"
        ) from None


def _damage(path: Path, delimiter: str, columns: int, error: Exception) -> str:
    """Words about a file that pyarrow gave up on, with the line where one is to blame."""
    for number, line in enumerate(_lines(path), start=1):
        found = line.count(delimiter) + 1
        if line and found != columns:
            return (
                f"{path}:{number}: has {found} column(s) parted by {delimiter!r}, line 1 has {columns}; "
                "mend the line or remove it"
            )
    return f"{path}: cannot be read as a table ({' '.join(str(error).split())}); fetch it again or mend it"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
