"""What bfloat16 gains on this CPU in the two kernels that most of an ESM-2's time goes to: products and attention.

`python -m tests.benchmarks.bf16`: shapes of the 8M model (1,280 tokens; 20 heads of 16), one thread, medians of
interleaved rounds in CPU time; ratios are float32's time over bfloat16's.

* `products`: of each kind of layer; `attention`: by length, rotation included, as `packed_attention` runs it without
  gradients; `attention_torch`: torch's fused kernel in both.
* `attention_share`: of float32's time of a layer's products and attention, by length.
"""

import torch

from pretrain.model.attention import Layout, RotaryTable, packed_attention
from pretrain.model.linear import product
from tests.benchmarks._timing import interleaved, report

TOKENS, WIDTH, HEADS = 1280, 320, 20
PRODUCTS = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
LENGTHS = (256, 426, 1000)
ROUNDS, CALLS = 15, 10
TYPES = (torch.float32, torch.bfloat16)


def seconds(make) -> tuple[float, float]:
    """CPU time of a call in float32 and in bfloat16; `make(dtype)` gives the call."""
    calls = {str(dtype): make(dtype) for dtype in TYPES}
    repeated = {name: lambda call=call: [call() for _ in range(CALLS)] for name, call in calls.items()}
    timings = interleaved(repeated, ROUNDS)
    single, half = (timings[name].cpu_seconds / CALLS for name in calls)
    return single, half


def of_product(inputs: int, outputs: int):
    def make(dtype: torch.dtype):
        x, weight = torch.randn(TOKENS, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        return lambda: product(x, weight)

    return make


def of_attention(length: int):
    layout = Layout.of([length], RotaryTable(WIDTH // HEADS), torch.device("cpu"))

    @torch.no_grad()
    def attend(qkv: torch.Tensor):
        packed_attention(qkv.clone(), layout)

    def make(dtype: torch.dtype):
        qkv = torch.randn(length, 3, HEADS, WIDTH // HEADS).to(dtype)
        return lambda: attend(qkv)

    return make


def of_torchs_attention(length: int):
    def make(dtype: torch.dtype):
        query, key, value = (torch.randn(1, HEADS, length, WIDTH // HEADS).to(dtype) for _ in range(3))
        return lambda: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)

    return make


def main() -> None:
    """Time the kernels and print the ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    products = {name: seconds(of_product(*shape)) for name, shape in PRODUCTS.items()}
    attention = {length: seconds(of_attention(length)) for length in LENGTHS}
    torchs = {length: seconds(of_torchs_attention(length)) for length in LENGTHS}
    layer = sum(single for single, _ in products.values()) / TOKENS
    share = {n: (single / n) / (single / n + layer) for n, (single, _) in attention.items()}
    report(
        "bf16",
        {
            "products": {name: round(single / half, 2) for name, (single, half) in products.items()},
            "attention": {str(n): round(single / half, 2) for n, (single, half) in attention.items()},
            "attention_torch": {str(n): round(single / half, 2) for n, (single, half) in torchs.items()},
            "attention_share": {str(n): round(value, 2) for n, value in share.items()},
        },
    )


if __name__ == "__main__":
    main()
