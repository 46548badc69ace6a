"""What one Ray worker does to write a shard: members from the parsed batches, placed and in order."""

import mmap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from data_pipeline.manifest import ShardFacts, write_atomically
from data_pipeline.placement import ShardTask
from data_pipeline.schema import place_facts
from data_pipeline.shards import PackedSample, write_shard


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
    with ExitStack() as stack:
        maps: dict[str, mmap.mmap] = {}
        for chain in task.samples:
            if chain.tar not in maps:
                file = stack.enter_context(Path(chain.tar).open("rb"))
                maps[chain.tar] = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            record, data = chain.record, maps[chain.tar]
            facts = data[record.facts_offset : record.facts_offset + record.facts_length]
            arrays = data[record.arrays_offset : record.arrays_offset + record.arrays_length]
            yield PackedSample(
                record.key,
                place_facts(facts, chain.cluster, chain.high_quality),
                arrays,
                len(record.sequence),
                chain.cluster,
                chain.high_quality,
            )
