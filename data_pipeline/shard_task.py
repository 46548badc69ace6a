"""What one Ray worker does to write a shard: members from the parsed batches, placed and in order."""

import mmap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from data_pipeline.manifest import ShardFacts, write_atomically
from data_pipeline.placement import ShardTask
from data_pipeline.schema import place_facts
from data_pipeline.shards import PackedSample, write_shard
from data_pipeline.spool import map_table

_READ_COLUMNS = ["key", "residues", "facts_offset", "facts_length", "arrays_offset", "arrays_length", "stem"]


def write_planned_shard(task: ShardTask) -> ShardFacts:
    """Write the shard and its index, then a marker in the scratch folder so that a restart does not write it again."""
    scratch = Path(task.scratch)
    facts = write_shard(Path(task.output) / task.name, _samples(task), scratch)
    write_atomically(_marker(task), facts.model_dump_json().encode(), scratch)
    return facts


def finished_shard(task: ShardTask) -> ShardFacts | None:
    """What an earlier run of the same build wrote, if it is all there."""
    output = Path(task.output)
    try:
        facts = ShardFacts.model_validate_json(_marker(task).read_bytes())
        complete = (output / facts.name).stat().st_size == facts.bytes and (output / facts.index).is_file()
    except (FileNotFoundError, ValueError):
        return None
    return facts if complete else None


def _marker(task: ShardTask) -> Path:
    return Path(task.scratch) / f"{task.name}.json"


def _samples(task: ShardTask) -> Iterator[PackedSample]:
    table = map_table(Path(task.placed)).select(_READ_COLUMNS).take(pa.array(task.rows))
    with ExitStack() as stack:
        maps: dict[bytes, mmap.mmap] = {}
        placed = zip(table.to_pylist(), task.cluster.tolist(), task.high_quality.tolist(), strict=True)
        for row, cluster, high_quality in placed:
            stem = row["stem"]
            if stem not in maps:
                file = stack.enter_context((Path(task.parsed) / f"{stem.hex()}.tar").open("rb"))
                maps[stem] = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            data = maps[stem]
            facts = data[row["facts_offset"] : row["facts_offset"] + row["facts_length"]]
            arrays = data[row["arrays_offset"] : row["arrays_offset"] + row["arrays_length"]]
            members = place_facts(facts, cluster, high_quality), arrays
            yield PackedSample(row["key"], *members, row["residues"], cluster, high_quality)
