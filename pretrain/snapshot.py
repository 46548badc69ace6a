"""One rank's pieces of a model and its optimizer at one step, and how the ranks make whole tensors of them on disk.

Taking a snapshot is a copy within each rank. Whole tensors are put together later, one at a time, where they are
written: that may be in a thread beside the training, so it speaks through a process group of its own.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoints import share_name
from pretrain.tensor_files import FileFacts, TensorFile


@dataclass(frozen=True)
class Piece:
    """What one rank holds of one tensor."""

    kind: str
    """`weights` or `optimizer`."""
    name: str
    owner: int
    """The rank that writes the tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    dtype: torch.dtype
    start: int
    """Where the values begin in the flattened whole."""
    values: Tensor | None
    """Flat; None where this rank holds nothing that the owner needs."""


@dataclass(frozen=True)
class Writers:
    """The ranks as those who write a checkpoint."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """A gloo group that nothing else uses; None in a world of one."""

    def exchange(self, value: object) -> list[Any]:
        """Every rank's small value, in rank order, on all ranks; also a barrier."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values


class Snapshot:
    """The pieces of all tensors, in the order in which every rank writes them; written once, and freed on the way."""

    def __init__(self, pieces: Iterable[Piece], writers: Writers, copy: bool) -> None:
        self._writers = writers
        self._pieces = deque(pieces)
        if copy:
            self._pieces = deque(_copied(piece) for piece in self._pieces)

    def write(self, folder: Path, rank: int) -> dict[str, FileFacts]:
        """Put this rank's own tensors together and write them; a collective of all writers.

        Raises:
            OSError: this rank could not write; the exchange with the others is finished before it is raised.
        """
        held = [(p.start, 0 if p.values is None else p.values.numel()) for p in self._pieces]
        # [rank][piece] -> (start, number of values)
        layout = self._writers.exchange(held)
        files = _Files(folder, rank, self._pieces)
        for number in range(len(held)):
            piece = self._pieces.popleft()
            whole = self._whole(piece, [ranks[number] for ranks in layout])
            if whole is not None:
                files.write(piece, whole)
        return files.finish()

    def _whole(self, piece: Piece, parts: Sequence[tuple[int, int]]) -> Tensor | None:
        """The whole tensor on its owner; on the others None, after sending what they hold."""
        rank, group = self._writers.rank, self._writers.group
        mine = None if piece.values is None else piece.values.detach().to("cpu", piece.dtype).contiguous()
        if rank != piece.owner:
            if mine is not None and mine.numel():
                dist.send(mine, piece.owner, group=group)
            return None
        others = [each for each, (_, size) in enumerate(parts) if size and each != rank]
        if mine is not None and not others:
            return mine.reshape(piece.shape)
        whole = torch.empty(math.prod(piece.shape), dtype=piece.dtype)
        if mine is not None:
            whole[piece.start : piece.start + mine.numel()] = mine
        for other in others:
            start, size = parts[other]
            dist.recv(whole[start : start + size], other, group=group)
        return whole.reshape(piece.shape)


class _Files:
    """A rank's two files; the first OSError is kept until the end, so that the other ranks are not left waiting."""

    def __init__(self, folder: Path, rank: int, pieces: Iterable[Piece]) -> None:
        self._folder, self._rank = folder, rank
        self._open: dict[str, TensorFile] = {}
        self._declared: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
        self._problem: OSError | None = None
        for piece in pieces:
            if piece.owner == rank:
                self._declared.setdefault(piece.kind, {})[piece.name] = (piece.dtype, piece.shape)

    def write(self, piece: Piece, whole: Tensor) -> None:
        self._try(lambda: self._file(piece.kind).write(piece.name, whole))

    def finish(self) -> dict[str, FileFacts]:
        facts = {}
        for kind, file in self._open.items():
            facts[share_name(kind, self._rank)] = self._try(file.finish)
        if self._problem is not None:
            raise self._problem
        return facts

    def _file(self, kind: str) -> TensorFile:
        if kind not in self._open:
            self._open[kind] = TensorFile(self._folder / share_name(kind, self._rank), self._declared[kind])
        return self._open[kind]

    def _try(self, work: Callable[[], Any]) -> Any:
        if self._problem is None:
            try:
                return work()
            except OSError as error:
                self._problem = error
                for file in self._open.values():
                    file.abandon()
        return None


def _copied(piece: Piece) -> Piece:
    if piece.values is None:
        return piece
    values = piece.values.detach().to("cpu", piece.dtype, copy=True)
    return Piece(piece.kind, piece.name, piece.owner, piece.shape, piece.dtype, piece.start, values)
