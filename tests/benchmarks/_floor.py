"""The matrix products that a training step cannot do without, run bare: no bias, no activation, no autograd."""

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from pretrain.batch import Batch
from pretrain.model.shape import TrunkShape
from tests.benchmarks._timing import interleaved

Products = Callable[[], object]
MATCH_ROUNDS = 5
LARGEST = 20 * 1024**2
"""Numbers: the attention of 20 heads over the longest chain."""


def gemm_floor(shape: TrunkShape, pools: list[Batch]) -> dict[str, Products]:
    """`floor` runs every product of a step on each pool the fastest way found, `floor_torch` by torch's own functions.

    All products share their operands' and results' memory, so no time goes into getting it.
    """
    fastest: list[Products] = []
    plain: list[Products] = []
    for pool in pools:
        for rows, inputs, outputs, count in linear_shapes(shape, pool):
            for ways in linear_products(rows, inputs, outputs):
                plain += [ways[0]] * count
                fastest += [quickest(ways)] * count
        for n in pool.packed.lengths:
            for ways in attention_products(n, shape.heads, shape.head_width):
                plain += [ways[0]] * shape.layers
                fastest += [quickest(ways)] * shape.layers
    return {"floor": partial(run_all, fastest), "floor_torch": partial(run_all, plain)}


def run_all(products: list[Products]) -> None:
    for product in products:
        product()


@cache
def quickest(ways: tuple[Products, ...]) -> Products:
    """The one that takes least CPU time, side by side."""
    timings = interleaved({str(i): way for i, way in enumerate(ways)}, rounds=MATCH_ROUNDS)
    return ways[int(min(timings, key=lambda i: timings[i].cpu_seconds))]


def linear_shapes(shape: TrunkShape, pool: Batch) -> list[tuple[int, int, int, int]]:
    """(rows, inputs, outputs, how many) of the linear layers of an ESM-2 trunk and its head on the masked rows."""
    tokens, masked, width = len(pool.packed.tokens), len(pool.masked_index), shape.width
    layer = [(width, 3 * width), (width, width), (width, shape.inner_width), (shape.inner_width, width)]
    return [
        *((tokens, inputs, outputs, shape.layers) for inputs, outputs in layer),
        (masked, width, width, 1),
        (masked, width, len(shape.alphabet), 1),
    ]


@cache
def linear_products(rows: int, inputs: int, outputs: int) -> list[tuple[Products, ...]]:
    """Forward, input gradient and weight gradient of one linear layer, each by torch.mm and by oneDNN."""
    x, w, y = buffer(0, rows, inputs), buffer(1, outputs, inputs), buffer(2, rows, outputs)
    x_out, w_out, y_out = (buffer(3, *t.shape) for t in (x, w, y))
    return [
        (partial(torch.mm, x, w.t(), out=y_out), partial(onednn, x, w)),
        (partial(torch.mm, y, w, out=x_out), partial(onednn, y, w.t())),
        (partial(torch.mm, y.t(), x, out=w_out), partial(onednn, y.t(), x.t())),
    ]


@cache
def attention_products(n: int, heads: int, head_width: int) -> list[tuple[Products, ...]]:
    """Of one chain in one layer: QK^T, PV, gradients of P, V, Q and K; all heads in one call or head by head."""
    rows, scores = buffer(0, heads, n, head_width), buffer(1, heads, n, n)
    rows_out, scores_out = buffer(2, heads, n, head_width), buffer(3, heads, n, n)
    turned = rows.transpose(1, 2)
    one, one_out = scores[0], scores_out[0]

    def head_by_head(a: list[Tensor], b: list[Tensor], out: list[Tensor]) -> Products:
        return partial(run_all, [partial(torch.mm, *each[:2], out=each[2]) for each in zip(a, b, out, strict=True)])

    outer = (
        partial(torch.bmm, rows, turned, out=scores_out),
        head_by_head(list(rows), list(turned), [one_out] * heads),
        partial(run_all, [partial(onednn, row, row) for row in rows]),
    )
    inner = (
        partial(torch.bmm, scores, rows, out=rows_out),
        head_by_head([one] * heads, list(rows), list(rows_out)),
        partial(run_all, [partial(onednn, one, row.t()) for row in rows]),
    )
    inner_turned = (
        partial(torch.bmm, scores.transpose(1, 2), rows, out=rows_out),
        head_by_head([one.t()] * heads, list(rows), list(rows_out)),
        partial(run_all, [partial(onednn, one.t(), row.t()) for row in rows]),
    )
    return [outer, inner, outer, inner_turned, inner, inner_turned]


def onednn(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def buffer(place: int, *size: int) -> Tensor:
    """A view of this size of one of four stretches of memory, each as large as the largest operand."""
    return stretch(place)[: math.prod(size)].view(size)


@cache
def stretch(place: int) -> Tensor:
    """float32 [LARGEST], random."""
    return torch.randn(LARGEST, generator=torch.Generator().manual_seed(place))
