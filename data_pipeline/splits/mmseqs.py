"""MMseqs2 as a program beside ours (Steinegger and Soeding, Nature Biotechnology 2017): clusters and homolog search.

The numbers of threads change neither hits nor clusters. The version may, so it is recorded with every result.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.csv

from configs.errors import UserError
from configs.splits import SplitConfig
from data_pipeline.splits.components import merge_clusters
from data_pipeline.splits.fasta import write_fasta
from data_pipeline.splits.homologs import Hits

PROGRAM = "mmseqs"
MAX_EVALUE = 1e-3
MAX_HITS = 1000
"""Hits kept of one query; larger families hold together through their members' other hits."""
MAX_LEAKS = 1_000_000
"""Chains looked at for one evaluation sequence."""
REMEDY = "install MMseqs2 (https://github.com/soedinglab/MMseqs2) or set the method to kmers"
_HIT_COLUMNS = {"query": "int64", "target": "int64", "fident": "float32", "qcov": "float32", "tcov": "float32"}
_ERROR_LINES = 3
_NO_KMERS = "No k-mer could be extracted"


class _NothingToCompare(UserError):
    """All sequences are too short, unknown or of low complexity: MMseqs2 stops where it should find nothing."""


def mmseqs_version() -> str | None:
    """What `mmseqs version` prints; None where no `mmseqs` is on the PATH.

    Raises:
        UserError: the program is there but does not run.
    """
    return _run(["version"]).strip() if shutil.which(PROGRAM) else None


def cluster_by_mmseqs(sequences: Iterable[str], count: int, config: SplitConfig, scratch: Path) -> np.ndarray:
    """int64 [count]: connected components of MMseqs2's links between sequences; their numbers mean nothing.

    The arguments are those of `linked_pairs`, and the number of sequences.
    """
    labels = np.arange(count)
    for first, second in linked_pairs(sequences, config, scratch):
        labels = merge_clusters(labels, first, second)
    return labels


def linked_pairs(
    sequences: Iterable[str], config: SplitConfig, scratch: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of sequences (int64, counted from 0) that MMseqs2 links, in portions; a sequence may be linked to itself.

    Args:
        sequences: read once, straight into a FASTA file.
        config: `mmseqs_mode` chooses between a search of all against all and MMseqs2's own cascade.
        scratch: folder for working files, which are removed.

    Raises:
        UserError: MMseqs2 is missing or fails; the message has its first lines.
    """
    with _workspace(scratch) as folder:
        if write_fasta(folder / "ours.fasta", sequences):
            _run(["createdb", "ours.fasta", "ours", "--dbtype", "1"], folder)
            yield from _links(folder, config)


def search_by_mmseqs(
    queries: Iterable[str],
    targets: Iterable[str],
    min_identity: float,
    coverage: float,
    sensitivity: float,
    scratch: Path,
) -> Hits:
    """Alignments of queries with targets of at least this identity, covering this fraction of the shorter sequence.

    Meant for many queries and few targets: MMseqs2 itself is asked for the queries that each target resembles, whose
    cost grows least with the queries.

    Raises:
        UserError: MMseqs2 is missing or fails; the message has its first lines.
    """
    parts = []
    with _workspace(scratch) as folder:
        counts = [write_fasta(folder / f"{name}.fasta", s) for name, s in (("ours", queries), ("theirs", targets))]
        if min(counts) > 0:
            for name in ("ours", "theirs"):
                _run(["createdb", f"{name}.fasta", name, "--dbtype", "1"], folder)
            wanted = ["--min-seq-id", min_identity, "-e", MAX_EVALUE, "-s", sensitivity]
            _search(folder, "theirs", "ours", wanted, folder / "hits.tsv", min(counts[0], MAX_LEAKS))
            for block in _blocks(folder / "hits.tsv", _HIT_COLUMNS):
                block["coverage"] = np.maximum(block.pop("qcov"), block.pop("tcov"))
                keep = block["coverage"] >= np.float32(coverage)
                parts.append({name: column[keep] for name, column in block.items()})
    # MMseqs2's target is our query.
    names = ("target", "query", "fident", "coverage")
    columns = [np.concatenate([np.empty(0), *(part[name] for part in parts)]) for name in names]
    order = np.lexsort((-columns[3], -columns[2], columns[1], columns[0]))
    query, target, identity, covered = (column[order] for column in columns)
    return Hits(query.astype(np.int64), target.astype(np.int64), identity.astype(np.float32), covered)


def _links(folder: Path, config: SplitConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    table = folder / "links.tsv"
    wanted = ["--min-seq-id", config.min_identity, "-e", MAX_EVALUE, "-s", config.sensitivity]
    if config.mmseqs_mode == "cluster":
        cover = ["-c", config.coverage, "--cov-mode", 0 if config.coverage_of == "both" else 1]
        try:
            _run(["cluster", "ours", "links", "tmp", "--cluster-mode", 1, *wanted, *cover, *_threads()], folder)
        except _NothingToCompare:
            return
        _run(["createtsv", "ours", "ours", "links", table.name, *_threads()], folder)
        for block in _blocks(table, {"query": "int64", "target": "int64"}):
            yield block["query"], block["target"]
        return
    _search(
        folder, "ours", "ours", [*wanted, *(["-c", config.coverage] if config.coverage_of == "both" else [])], table
    )
    for block in _blocks(table, _HIT_COLUMNS):
        # The better covered of two is the shorter one; where both had to be covered, this keeps every hit.
        keep = np.maximum(block["qcov"], block["tcov"]) >= np.float32(config.coverage)
        yield block["query"][keep], block["target"][keep]


def _search(folder: Path, queries: str, targets: str, wanted: list, table: Path, max_hits: int = MAX_HITS) -> None:
    options = ["--alignment-mode", 3, "--max-seqs", max_hits, *_threads()]
    try:
        _run(["search", queries, targets, "found", "tmp", *wanted, *options], folder)
    except _NothingToCompare:
        table.touch()
        return
    columns = ["--format-output", ",".join(_HIT_COLUMNS), *_threads()]
    _run(["convertalis", queries, targets, "found", table.name, *columns], folder)


@contextmanager
def _workspace(scratch: Path) -> Iterator[Path]:
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mmseqs-", dir=scratch) as folder:
        yield Path(folder)


def _blocks(table: Path, columns: dict[str, str]) -> Iterator[dict[str, np.ndarray]]:
    """The rows of MMseqs2's table, some MB at a time."""
    if not table.stat().st_size:
        return
    reader = pyarrow.csv.open_csv(
        table,
        read_options=pyarrow.csv.ReadOptions(column_names=list(columns)),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=columns),
    )
    for batch in reader:
        yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}


def _threads() -> list:
    return ["--threads", len(os.sched_getaffinity(0))]


def _run(arguments: list, folder: Path | None = None) -> str:
    """Standard output of one MMseqs2 command."""
    quiet = [] if arguments == ["version"] else ["-v", 1]
    command = [PROGRAM, *map(str, [*arguments, *quiet])]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise UserError(f"{PROGRAM} is not on the PATH; {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{PROGRAM} cannot be started ({error.strerror}); {REMEDY}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()][:_ERROR_LINES]
        said = " / ".join(lines) or "it said nothing"
        raise (_NothingToCompare if _NO_KMERS in done.stderr + done.stdout else UserError)(
            f"`{PROGRAM} {arguments[0]}` ended with exit code {done.returncode}: {said}; "
            "check memory and disk of the scratch folder, or set the method to kmers"
        )
    return done.stdout
