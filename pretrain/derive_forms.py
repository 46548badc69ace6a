"""Forms in which embeddings are stored, and what they cost in accuracy against the teacher's float32."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open

from configs.errors import UserError
from configs.teacher import DeriveConfig
from data_pipeline.derived import COMPONENTS_NAME, decode_embedding, encode_embedding
from data_pipeline.manifest import write_atomically

_MADE_FOR = "made_for"


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: a product shared by several may differ in its last bit, and bytes must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Moments:
    """Sums over embeddings x from which principal components follow."""

    residues: int
    total: np.ndarray
    """float64 [W]: sum of x."""
    products: np.ndarray
    """float64 [W, W]: sum of x x^T."""

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Moments":
        """Of float [N, W]."""
        wide = torch.from_numpy(embeddings).double()
        return cls(len(wide), wide.sum(0).numpy(), (wide.T @ wide).numpy())

    def plus(self, other: "Moments") -> "Moments":
        return Moments(self.residues + other.residues, self.total + other.total, self.products + other.products)


@dataclass(frozen=True)
class Projection:
    """The first k principal components: z = (x - mean) C^T, and back x = mean + z C."""

    mean: np.ndarray
    """float32 [W]."""
    components: np.ndarray
    """float32 [k, W], orthonormal, of falling variance."""

    @classmethod
    def fitted(cls, moments: Moments, width: int) -> "Projection":
        """The components of largest variance; each one's largest entry is positive, so that its sign is settled."""
        mean = moments.total / moments.residues
        covariance = moments.products / moments.residues - np.outer(mean, mean)
        with one_thread():
            vectors = torch.linalg.eigh(torch.from_numpy(covariance)).eigenvectors.numpy()
        components = vectors[:, ::-1][:, :width].T
        largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
        components = components * np.sign(largest)
        return cls(mean.astype(np.float32), np.ascontiguousarray(components, dtype=np.float32))

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """float32 [N, W] -> [N, k]."""
        return (torch.from_numpy(embeddings - self.mean) @ torch.from_numpy(self.components).T).numpy()

    def restore(self, projected: np.ndarray) -> np.ndarray:
        """float32 [N, k] -> [N, W], as near as k components allow."""
        return self.mean + projected @ self.components

    def write(self, folder: Path, made_for: str, scratch: Path) -> None:
        """Write the column's file of components, which says for which settings it was made."""
        arrays = {"components": self.components, "mean": self.mean}
        write_atomically(folder / COMPONENTS_NAME, safetensors.numpy.save(arrays, {_MADE_FOR: made_for}), scratch)


def read_projection(folder: Path) -> Projection:
    """The components beside a column of form `pca`.

    Raises:
        UserError: there are none, or they are damaged.
    """
    try:
        arrays = safetensors.numpy.load((folder / COMPONENTS_NAME).read_bytes())
        return Projection(arrays["mean"], arrays["components"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder / COMPONENTS_NAME}: cannot be read ({error}); derive the column again") from None


def projection_sha256(folder: Path, made_for: str) -> str | None:
    """sha256 of the file of components, None where it is absent, damaged or of other settings."""
    path = folder / COMPONENTS_NAME
    try:
        with safe_open(path, framework="numpy") as file:
            fits = (file.metadata() or {}).get(_MADE_FOR) == made_for
        return hashlib.sha256(path.read_bytes()).hexdigest() if fits else None
    except (OSError, SafetensorError):
        return None


@dataclass(frozen=True)
class Form:
    """How one column stores embeddings."""

    dtype: Literal["float16", "int8"]
    projection: Projection | None

    @classmethod
    def of(cls, config: DeriveConfig, projection: Projection | None) -> "Form":
        if config.form == "pca":
            assert projection is not None
            return cls(config.pca_storage, projection)
        return cls(config.form, None)

    def encode(self, embedding: np.ndarray, present: np.ndarray) -> tuple[dict[str, np.ndarray], "Errors"]:
        """The stored arrays of a chain and their error.

        Args:
            embedding: float32 [N, W] of the teacher.
            present: bool [N]; rows of other residues are stored as zeros.

        Raises:
            UserError: a number that is not finite, or too large to store.
        """
        kept = embedding if self.projection is None else self.projection.project(embedding)
        kept = np.where(present[:, None], kept, np.float32(0))
        largest = np.abs(kept).max(initial=0.0)
        if not largest <= (np.finfo(np.float16).max if self.dtype == "float16" else np.finfo(np.float32).max):
            raise UserError(
                f"an embedding of {largest:.3g} does not fit {self.dtype}; the teacher's training diverged,"
                " train it again with a smaller optimizer.head_lr"
            )
        arrays = encode_embedding(kept, self.dtype)
        back = decode_embedding(arrays)[present]
        back = back if self.projection is None else self.projection.restore(back)
        return arrays, Errors.of(embedding[present], back)


@dataclass(frozen=True)
class Errors:
    """Sums over residues that compare stored embeddings with the teacher's."""

    residues: int = 0
    squared_error: float = 0.0
    squared: float = 0.0
    """Sum of the squares of the teacher's embeddings."""
    cosine: float = 0.0
    """Sum."""
    least_cosine: float = 1.0

    @classmethod
    def of(cls, teacher: np.ndarray, stored: np.ndarray) -> "Errors":
        """Of float [N, W] each; a row of zeros has no direction and its cosine counts as 1."""
        theirs, ours = teacher.astype(np.float64), stored.astype(np.float64)
        norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
        cosines = np.where(norms > 0, np.einsum("nw,nw->n", theirs, ours) / np.where(norms > 0, norms, 1), 1.0)
        return cls(
            len(theirs),
            float(np.square(theirs - ours).sum()),
            float(np.square(theirs).sum()),
            float(cosines.sum()),
            float(cosines.min(initial=1.0)),
        )

    @classmethod
    def total(cls, parts: Iterable["Errors"]) -> "Errors":
        """Added up in the order given, so that the same parts give the same last digit."""
        residues, squared_error, squared, cosine, least = 0, 0.0, 0.0, 0.0, 1.0
        for part in parts:
            residues += part.residues
            squared_error += part.squared_error
            squared += part.squared
            cosine += part.cosine
            least = min(least, part.least_cosine)
        return cls(residues, squared_error, squared, cosine, least)

    def figures(self) -> dict[str, Any]:
        """What a column's manifest states: over all residues with an embedding, against the teacher's float32."""
        return {
            "residues": self.residues,
            "relative_rms": (self.squared_error / self.squared) ** 0.5 if self.squared else 0.0,
            "cosine_mean": self.cosine / self.residues if self.residues else 1.0,
            "cosine_min": self.least_cosine,
        }
