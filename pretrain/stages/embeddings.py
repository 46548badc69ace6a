"""Where the contrast's teacher embeddings come from: derived columns, or the frozen teachers themselves."""

from collections.abc import Callable
from functools import partial

import numpy as np

from configs.errors import UserError
from configs.teacher import TeacherConfig
from configs.train import TrainConfig
from data_pipeline.derived import DerivedReader
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample
from pretrain.feed import chosen_chains

Source = Callable[[int, Sample], np.ndarray]
"""(number of the chain, its sample) -> [N, E] frozen embeddings of one teacher; rows without one are 0."""


class Embeddings:
    """The embeddings of every teacher of a config, in its order."""

    def __init__(self, sources: tuple[Source, ...], widths: tuple[int, ...]) -> None:
        self._sources = sources
        self.widths = widths
        """Features of each teacher."""

    def __call__(self, number: int, sample: Sample) -> tuple[np.ndarray, ...]:
        """[N, E] of every teacher, for chain `number` of the split."""
        return tuple(source(number, sample) for source in self._sources)


def open_embeddings(config: TrainConfig, reader: ShardReader) -> Embeddings | None:
    """What the config's teachers say of each chain; None without contrast.

    Raises:
        UserError: a column or weights that are not there or do not fit.
    """
    if not config.losses.contrast:
        return None
    sources = tuple(_source(teacher, config, reader) for teacher in _teachers(config).values())
    # Widths are those of the first chain: what is really there, whatever a config says.
    number = int(chosen_chains(reader, config.data)[0][0])
    sample = reader.sample(config.data.split, number)
    return Embeddings(sources, tuple(source(number, sample).shape[1] for source in sources))


def check_embeddings(config: TrainConfig, reader: ShardReader) -> None:
    """Look, without loading, at what the config's teachers need.

    Raises:
        UserError: a column or weights that are not there.
    """
    if not config.losses.contrast:
        return
    for key, teacher in _teachers(config).items():
        if teacher.column is not None:
            DerivedReader(reader, teacher.column, verify=config.data.verify).close()
        elif teacher.weights is None or not teacher.weights.exists():
            raise UserError(
                f"{key}.weights {teacher.weights}: not there; train stage `teacher` first, name {key}.column,"
                " or set losses.contrast=0"
            )


def _teachers(config: TrainConfig) -> dict[str, TeacherConfig]:
    more = {f"more_teachers.{k}": teacher for k, teacher in enumerate(config.more_teachers)}
    return {"teacher": config.teacher, **more}


def _source(teacher: TeacherConfig, config: TrainConfig, reader: ShardReader) -> Source:
    if teacher.column is not None:
        column = DerivedReader(reader, teacher.column, verify=config.data.verify)
        return partial(_column_rows, column, config.data.split)
    from pretrain.teachers.load import load_teacher

    online = load_teacher(teacher)
    return lambda _, sample: online.embed(sample)


def _column_rows(column: DerivedReader, split: str, number: int, _: Sample) -> np.ndarray:
    return column.embedding(split, number)
