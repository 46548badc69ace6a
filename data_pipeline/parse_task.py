"""What one Ray worker does with a batch of structure files: parse, filter, 3Di, graphs, facts -> a spool tar."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from configs.build import GraphConfig
from data_pipeline.quality import QUALITY_FACTS, chain_facts, reason_to_drop
from data_pipeline.schema import (
    MILLI_ANGSTROM,
    MISSING_COORDINATE,
    Graph,
    Sample,
    encode_arrays,
    encode_facts,
    to_milli_angstrom,
)
from data_pipeline.shards import KEY_PATTERN, TarWriter
from data_pipeline.sources import read_entry
from data_pipeline.spool import BatchTask, ChainRecord, ParsedBatch, Reject, write_columns
from data_pipeline.structure.chain import Chain, StructureError
from data_pipeline.structure.geometry import CA
from data_pipeline.structure.graphs import knn_graph, radius_graph
from data_pipeline.structure.parse import parse_structure
from data_pipeline.structure.threedi import encode_3di, encode_3di_many

UNEXPECTED = "parse_error"
NO_CLUSTER = -1


@dataclass
class _Tally:
    """What a batch collects on its way."""

    rejects: list[Reject] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def reject(self, path: str, chain: str, error: Exception) -> None:
        """Count an exception as a reject: no single structure may end a build."""
        if isinstance(error, StructureError):
            self.rejects.append(Reject(path, chain, error.reason, error.detail))
        else:
            self.rejects.append(Reject(path, chain, UNEXPECTED, f"{type(error).__name__}: {error}"))


def parse_batch(task: BatchTask) -> ParsedBatch:
    """Parse a batch into `<stem>.tar` and `<stem>.json`; the same bytes for the same files, whoever runs it."""
    tally = _Tally()
    chains = [chain for entry in task.entries for chain in _chains_of(entry, task, tally)]
    tokens = _encode_tokens(chains, tally)
    records = []
    with TarWriter(task.tar) as tar:
        for chain, token in zip(chains, tokens, strict=True):
            if token is None:
                continue
            try:
                records.append(_store(chain, token, task, tar, tally))
            except Exception as error:
                tally.reject(chain.facts.source, chain.facts.chain_label, error)
        size, _ = tar.commit()
    batch = ParsedBatch(size, len(task.entries), tuple(records), tuple(tally.rejects), dict(tally.seconds))
    write_columns(task, batch)
    return batch


def count_parsed(task: BatchTask) -> int:
    """Parse a batch; tells how many chains it keeps, since its columns stay on disk for a restart to find."""
    return len(parse_batch(task).chains)


def quantised(chain: Chain) -> Chain:
    """The chain with coordinates as they will be stored: tokens, graphs and facts are functions of the stored ones."""
    stored = to_milli_angstrom(chain.coordinates)
    coordinates = np.where(stored == MISSING_COORDINATE, np.nan, stored / MILLI_ANGSTROM)
    return replace(chain, coordinates=coordinates)


def build_graph(ca: np.ndarray, config: GraphConfig) -> Graph:
    """The configured graph over CA positions (float [N, 3], Angstrom, NaN where missing)."""
    if config.kind == "radius":
        assert config.radius is not None
        return Graph(*radius_graph(ca, config.radius, config.min_separation))
    assert config.neighbours is not None
    return Graph(*knn_graph(ca, config.neighbours, config.min_separation))


def _chains_of(entry: Any, task: BatchTask, tally: _Tally) -> list[Chain]:
    """The chains of one entry that pass the filters; everything else goes to the rejects."""
    try:
        with tally.timed("read"):
            data = read_entry(entry)
        with tally.timed("parse"):
            chains = [quantised(chain) for chain in parse_structure(data, entry.name)]
        if not chains:
            raise StructureError("no_protein", "no protein chain")
    except Exception as error:
        tally.reject(entry.name, "", error)
        return []
    kept = []
    for chain in chains:
        try:
            _check(chain, task)
            kept.append(chain)
        except Exception as error:
            tally.reject(entry.name, chain.facts.chain_label, error)
    return kept


def _check(chain: Chain, task: BatchTask) -> None:
    if not KEY_PATTERN.fullmatch(chain.key):
        raise StructureError(UNEXPECTED, f"key {chain.key!r} is no valid sample key")
    dropped = reason_to_drop(chain, task.filters)
    if dropped is not None:
        raise StructureError(*dropped)


def _encode_tokens(chains: Sequence[Chain], tally: _Tally) -> list[tuple[str, np.ndarray] | None]:
    """3Di letters and validity per chain, computed together; None for a chain that fails alone too."""
    with tally.timed("threedi"):
        try:
            return list(encode_3di_many([chain.coordinates for chain in chains]))
        except Exception:
            # One chain spoiled the batch: only it may be lost.
            return [_encode_alone(chain, tally) for chain in chains]


def _encode_alone(chain: Chain, tally: _Tally) -> tuple[str, np.ndarray] | None:
    try:
        return encode_3di(chain.coordinates)
    except Exception as error:
        tally.reject(chain.facts.source, chain.facts.chain_label, error)
        return None


def _store(chain: Chain, token: tuple[str, np.ndarray], task: BatchTask, tar: TarWriter, tally: _Tally) -> ChainRecord:
    letters, threedi_valid = token
    assert len(letters) == len(chain.sequence) == len(threedi_valid), chain.key
    with tally.timed("graphs"):
        graphs = {graph.name: build_graph(chain.coordinates[:, CA], graph) for graph in task.graphs}
    with tally.timed("facts"):
        facts = chain_facts(chain)
    with tally.timed("write"):
        sample = Sample(
            key=chain.key,
            sequence=chain.sequence,
            threedi=letters,
            coordinates=to_milli_angstrom(chain.coordinates),
            bfactor=chain.bfactor,
            valid=chain.backbone_valid,
            threedi_valid=threedi_valid,
            graphs=graphs,
            facts=facts,
            cluster=NO_CLUSTER,
            high_quality=False,
        )
        members = encode_facts(sample), encode_arrays(sample)
        offsets = tar.add(f"{chain.key}.json", members[0]), tar.add(f"{chain.key}.safetensors", members[1])
    return ChainRecord(
        key=chain.key,
        source=chain.facts.source,
        chain=chain.facts.chain_label,
        sequence=chain.sequence,
        facts_offset=offsets[0],
        facts_length=len(members[0]),
        arrays_offset=offsets[1],
        arrays_length=len(members[1]),
        quality={name: facts[name] for name in QUALITY_FACTS},
    )
