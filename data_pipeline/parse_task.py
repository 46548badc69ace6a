"""What one Ray worker does with a batch of structure files: parse, filter, 3Di, graphs, facts -> a spool tar."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from configs.build import GraphConfig
from configs.errors import UserError
from data_pipeline.isolation import Guard
from data_pipeline.quality import QUALITY_FACTS, chain_facts, reason_to_drop, reliability_mask
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
from data_pipeline.sources import reading_ahead
from data_pipeline.sources.ahead import Read
from data_pipeline.spool import BatchTask, ParsedBatch, Reject, chain_table, sequence_digest, write_columns
from data_pipeline.structure.chain import Chain, StructureError
from data_pipeline.structure.frames import backbone_features
from data_pipeline.structure.geometry import CA, dihedrals
from data_pipeline.structure.graphs import GraphRequest, residue_graphs
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
    """Parse a batch into `<stem>.tar` and `<stem>.arrow`; the same bytes for the same files, whoever runs it."""
    tally = _Tally()
    chains: list[Chain] = []
    with Guard(task.journal, task.settings.seconds_per_structure) as guard:
        for entry, read in reading_ahead(task.entries):
            chains += _chains_of(entry.name, read, guard, task, tally)
    tokens = _encode_tokens(chains, tally)
    rows = []
    with TarWriter(task.tar) as tar:
        for chain, token in zip(chains, tokens, strict=True):
            if token is None:
                continue
            try:
                rows.append(_store(chain, token, task, tar, tally))
            except Exception as error:
                tally.reject(chain.facts.source, chain.facts.chain_label, error)
        size, _ = tar.commit()
    batch = ParsedBatch(size, len(task.entries), chain_table(rows), tuple(tally.rejects), dict(tally.seconds))
    write_columns(task, batch)
    return batch


def count_parsed(task: BatchTask) -> int:
    """Parse a batch; tells how many chains it keeps, since its columns stay on disk for a restart to find."""
    return parse_batch(task).chains.num_rows


def quantised(chain: Chain) -> Chain:
    """The chain with coordinates as they will be stored: tokens, graphs and facts are functions of the stored ones."""
    stored = to_milli_angstrom(chain.coordinates)
    coordinates = np.where(stored == MISSING_COORDINATE, np.nan, stored / MILLI_ANGSTROM)
    return replace(chain, coordinates=coordinates)


def build_graphs(ca: np.ndarray, graphs: Sequence[GraphConfig]) -> dict[str, Graph]:
    """The configured graphs over CA positions (float [N, 3], Angstrom, NaN where missing) by name."""
    requests = [GraphRequest(graph.kind, graph.radius, graph.neighbours, graph.min_separation) for graph in graphs]
    made = residue_graphs(ca, requests)
    return {graph.name: Graph(*arrays) for graph, arrays in zip(graphs, made, strict=True)}


def parse_file(data: bytes, name: str) -> list[Chain]:
    """The chains of one structure file, quantised as they will be stored."""
    return [quantised(chain) for chain in parse_structure(data, name)]


def _chains_of(path: str, read: Read, guard: Guard, task: BatchTask, tally: _Tally) -> list[Chain]:
    """The chains of one entry that pass the filters; everything else goes to the rejects."""
    try:
        with tally.timed("read"):
            name, data = read()
        with tally.timed("parse"):
            chains = guard.run(path, parse_file, data, name)
        if not chains:
            raise StructureError("no_protein", "no protein chain")
    except UserError:
        # The fault of no entry: e.g. a cache folder that cannot be written.
        raise
    except Exception as error:
        tally.reject(path, "", error)
        return []
    kept = []
    for chain in chains:
        try:
            _check(chain, task)
            kept.append(chain)
        except Exception as error:
            tally.reject(path, chain.facts.chain_label, error)
    return kept


def _check(chain: Chain, task: BatchTask) -> None:
    if not KEY_PATTERN.fullmatch(chain.key):
        raise StructureError(UNEXPECTED, f"key {chain.key!r} is no valid sample key")
    dropped = reason_to_drop(chain, task.settings.filters)
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


def _store(
    chain: Chain, token: tuple[str, np.ndarray], task: BatchTask, tar: TarWriter, tally: _Tally
) -> dict[str, Any]:
    """Append the chain's sample to the batch's tar; returns its row of small columns."""
    letters, threedi_valid = token
    settings = task.settings
    assert len(letters) == len(chain.sequence) == len(threedi_valid), chain.key
    with tally.timed("graphs"):
        graphs = build_graphs(chain.coordinates[:, CA], settings.graphs)
    with tally.timed("facts"):
        angles = dihedrals(chain.coordinates)
        stored_angles, frames = backbone_features(chain.coordinates, angles)
        facts = chain_facts(chain, angles)
        reliable = reliability_mask(chain, settings.reliability)
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
            reliable=reliable,
            dihedrals=stored_angles if settings.backbone_features else None,
            frames=frames if settings.backbone_features else None,
        )
        members = encode_facts(sample), encode_arrays(sample)
        offsets = tar.add(f"{chain.key}.json", members[0]), tar.add(f"{chain.key}.safetensors", members[1])
    return {
        "key": chain.key,
        "entry": chain.facts.entry,
        "source": chain.facts.source,
        "chain": chain.facts.chain_label,
        "digest": sequence_digest(chain.sequence),
        "residues": len(chain.sequence),
        "deposition_date": chain.facts.deposition_date,
        "facts_offset": offsets[0],
        "facts_length": len(members[0]),
        "arrays_offset": offsets[1],
        "arrays_length": len(members[1]),
        "stem": bytes.fromhex(task.stem),
        "sequence": chain.sequence,
        **{name: facts[name] for name in QUALITY_FACTS},
    }
