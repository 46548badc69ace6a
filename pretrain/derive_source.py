"""What a derived column is computed from: a frozen teacher, or the frozen reference model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from configs.errors import UserError
from configs.teacher import DeriveConfig, TeacherConfig
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample
from pretrain.derive_forms import Errors, Form, read_projection
from pretrain.teachers.load import load_teacher
from pretrain.teachers.protocol import Teacher

Made = tuple[dict[str, np.ndarray], Errors]
"""A chain's stored arrays, and what their form costs in accuracy."""


class Maker(Protocol):
    """Computes what a column holds of chains of one split."""

    teacher: Teacher
    """Only where the column holds a teacher's embeddings."""

    def __call__(self, split: str, numbers: Sequence[int], samples: Sequence[Sample]) -> list[Made]:
        """The arrays of several chains, in their order; a function of the chains and their numbers in the split."""
        ...


class Source(Protocol):
    """Travels to the workers, which open it once; paths are relative to where derive was started."""

    what: str
    """What is computed, for people."""

    def open(self, column: Path, reader: ShardReader) -> Maker:
        """Load the model, on a GPU where there is one.

        Raises:
            UserError: the weights are not those of where derive was started.
        """
        ...


@dataclass(frozen=True)
class TeacherSource:
    """Embeddings of a teacher, in one of the forms."""

    teacher: TeacherConfig
    weights_sha256: str
    derive: DeriveConfig

    @property
    def what(self) -> str:
        return f"{self.teacher.kind} embeddings"

    def open(self, column: Path, reader: ShardReader) -> "TeacherMaker":
        teacher = load_teacher(self.teacher)
        if teacher.weights_sha256 != self.weights_sha256:
            raise UserError(
                f"teacher.weights {self.teacher.weights}: not the same here as where derive was started;"
                " name weights that all machines share"
            )
        if torch.cuda.is_available():
            teacher = teacher.to("cuda")
        return TeacherMaker(teacher, self.derive, column)


class TeacherMaker:
    """Embeds chains and encodes their embeddings."""

    def __init__(self, teacher: Teacher, derive: DeriveConfig, column: Path) -> None:
        self.teacher = teacher
        self._derive, self._column = derive, column

    def __call__(self, split: str, numbers: Sequence[int], samples: Sequence[Sample]) -> list[Made]:
        embeddings = self.teacher.embed_many(samples)
        return [self._form.encode(rows, sample.valid) for rows, sample in zip(embeddings, samples, strict=True)]

    @cached_property
    def _form(self) -> Form:
        # Components are fitted on embeddings of this same teacher, so they are there only later.
        projection = read_projection(self._column) if self._derive.form == "pca" else None
        return Form.of(self._derive, projection)
