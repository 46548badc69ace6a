"""Derived columns: a frozen teacher's embeddings of every chain, written once beside the shards."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.errors import UserError
from configs.train import TrainConfig
from data_pipeline.derived import DerivedReader, DerivedWriter
from data_pipeline.reader import ShardReader
from pretrain.teachers.load import load_teacher
from pretrain.teachers.protocol import Teacher

log = logging.getLogger("pretrain.derive")
BATCH_RESIDUES = 4096
"""Chains are embedded together up to this many residues."""
ARRAY = "embedding"


def derive_teacher(config: TrainConfig, shards: Path) -> None:
    """Write the column `teacher.column`: float16 `embedding` [N, width] of every chain of every split.

    A finished column of the same teacher is kept as it is; a column of another teacher is replaced.

    Raises:
        UserError: no column named, no teacher to load, or no shards.
    """
    name = config.teacher.column
    if name is None:
        raise UserError(
            f"teacher.column is not set: name the column to write, e.g. teacher.column={config.teacher.kind}"
        )
    teacher = load_teacher(config.teacher)
    facts = teacher_facts(teacher)
    with ShardReader(shards, verify=config.data.verify) as reader:
        if _is_current(reader, name, facts):
            log.info("derived column %s of %s is up to date", name, shards)
            return
        started = time.perf_counter()
        with DerivedWriter(reader, name, facts) as writer, _progress() as progress:
            total = sum(int(reader.index(split).residues.sum()) for split in reader.splits)
            task = progress.add_task(f"{teacher.kind} embeddings (residues)", total=total)
            for split in reader.splits:
                for number, embedding in _embeddings(reader, split, teacher):
                    writer.write(split, number, {ARRAY: _as_float16(embedding, teacher)})
                    progress.advance(task, len(embedding))
        seconds = time.perf_counter() - started
        log.info("derived column %s: %d residues in %.1f s, %.0f residues/s", name, total, seconds, total / seconds)


def teacher_facts(teacher: Teacher) -> dict[str, Any]:
    """What a column says of where its embeddings come from."""
    return {
        "teacher": teacher.kind,
        "weights_sha256": teacher.weights_sha256,
        "width": teacher.width,
        "dtype": "float16",
    }


def _as_float16(embedding: np.ndarray, teacher: Teacher) -> np.ndarray:
    largest = np.abs(embedding).max(initial=0.0)
    if not largest <= np.finfo(np.float16).max:
        raise UserError(
            f"teacher {teacher.kind}: an embedding of {largest:.3g} does not fit float16; its training diverged, "
            "train it again with a smaller optimizer.head_lr"
        )
    return embedding.astype(np.float16)


def _is_current(reader: ShardReader, name: str, facts: dict[str, Any]) -> bool:
    """Whether the column is finished, undamaged, and of this teacher."""
    try:
        with DerivedReader(reader, name) as column:
            if column.facts != facts or set(column.manifest.splits) != set(reader.splits):
                return False
            for split in reader.splits:
                for file in column.files(split):
                    file.bytes_at(0, 0)  # the first touch compares the whole file with its sha256
            return True
    except UserError as error:
        log.info("%s", error)
        return False


def _embeddings(reader: ShardReader, split: str, teacher: Teacher) -> Iterator[tuple[int, np.ndarray]]:
    """Number and embedding of every chain of a split, in order."""
    residues = reader.index(split).residues
    for numbers in _batches(residues.tolist()):
        samples = [reader.sample(split, number) for number in numbers]
        yield from zip(numbers, teacher.embed_many(samples), strict=True)


def _batches(residues: list[int]) -> Iterator[list[int]]:
    """Consecutive numbers whose residues fit BATCH_RESIDUES; a longer chain stands alone."""
    batch: list[int] = []
    held = 0
    for number, count in enumerate(residues):
        if batch and held + count > BATCH_RESIDUES:
            yield batch
            batch, held = [], 0
        batch.append(number)
        held += count
    if batch:
        yield batch


def _progress() -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True))
