"""What a worker will hold in memory, part by part: the causes behind `--dry-run`'s figure."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from configs.train import TrainConfig
from pretrain.batch import Packed
from pretrain.deepspeed_settings import deepspeed_settings
from pretrain.model.encoder import Encoder
from pretrain.model.shape import TrunkShape

PROCESS_BYTES = 512 * 2**20
"""Python, torch and DeepSpeed with what they keep for themselves; measured on CPUs (0.35 GiB imported, the rest by the
start of DeepSpeed and the first steps)."""
ADAM_BYTES, COPY_BYTES = 8, 4
"""Per trained parameter: two float32 moments, and the float32 weights that DeepSpeed keeps beside its own."""
_PROBE_TOKENS = 64


@dataclass(frozen=True)
class Sizes:
    """Parameters of the model."""

    every: int
    trained: int
    largest_layer: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker by cause; on GPUs `process`, `start` and `snapshot` are host memory."""

    weights: int
    gradients: int
    optimizer: int
    """Float32 copies and moments."""
    gathered: int
    """ZeRO stage 3: layers that are whole at one moment."""
    bucket: int
    """Gradients that are averaged together: a buffer that stays."""
    copies: int
    """What communication or the optimizer copies of gradients at a time."""
    activations: int
    reference: int
    snapshot: int
    """Of a checkpoint that is written while training goes on."""
    start: int
    """At the start, before anything is divided: every worker builds the whole model, and reads whole weights."""
    process: int = PROCESS_BYTES

    @property
    def state(self) -> int:
        return self.weights + self.gradients + self.optimizer

    @property
    def training(self) -> int:
        """Of a step at its largest, without the process itself."""
        # Gathered layers and activations are gone when most gradients are there.
        return self.state + self.reference + self.bucket + max(self.gathered + self.activations, self.copies)

    @property
    def peak(self) -> int:
        """Of the whole process, on CPUs."""
        return self.process + max(self.start + self.reference, self.training + self.snapshot)


def predict_memory(config: TrainConfig, shape: TrunkShape, sizes: Sizes, tokens: int, reference: int) -> Memory:
    """The memory of one worker that has `tokens` in one forward pass.

    Args:
        reference: bytes of the frozen reference model.
    """
    engine, zero = config.engine, deepspeed_settings(config)["zero_optimization"]
    stage, workers = int(engine.zero_stage), engine.num_workers
    value = 4 if engine.precision == "fp32" else 2
    copies = 0 if stage == 0 and engine.precision == "fp32" else COPY_BYTES
    optimizer = sizes.trained * (copies + ADAM_BYTES) / (workers if stage >= 1 else 1)
    snapshot = 0
    if config.checkpoint.asynchronous and config.checkpoint.every < config.optimizer.steps:
        snapshot = (4 * sizes.every + ADAM_BYTES * sizes.trained) / workers
    return Memory(
        weights=int(sizes.every * value / (workers if stage >= 3 else 1)),
        gradients=int(sizes.trained * value / (workers if stage >= 2 else 1)),
        optimizer=int(optimizer),
        gathered=int(value * _gathered_elements(zero, sizes)) if stage == 3 and workers > 1 else 0,
        bucket=value * _bucket_elements(zero, stage, sizes),
        copies=int(_copied_bytes(zero, stage, workers, value, sizes)),
        activations=_activation_bytes(config, shape, tokens),
        reference=reference,
        snapshot=int(snapshot),
        start=4 * sizes.every * (2 if config.trunk and config.trunk.weights else 1),
    )


def _gathered_elements(zero: dict[str, Any], sizes: Sizes) -> float:
    """Parameters that are whole at the end of the forward pass, when most are.

    Those of the last layers, since a layer whose backward pass begins within the reuse distance is not given up: the
    distance ends at the root module, whose backward comes first and which holds every parameter.
    """
    kept = zero["stage3_max_reuse_distance"] + zero["stage3_prefetch_bucket_size"] + sizes.largest_layer
    return min(sizes.every, kept)


def _bucket_elements(zero: dict[str, Any], stage: int, sizes: Sizes) -> int:
    return min(sizes.trained, zero["reduce_bucket_size"]) if stage >= 2 else 0


def _copied_bytes(zero: dict[str, Any], stage: int, workers: int, value: int, sizes: Sizes) -> float:
    """Copies of gradients: flattened for averaging, or in float32 for the optimizer."""
    if stage == 0:
        return 4 * sizes.trained if workers > 1 or value == 2 else 0
    share = sizes.trained / workers
    if stage < 3:
        return 4 * share
    scattered = value * _bucket_elements(zero, stage, sizes) if zero["reduce_scatter"] else 0
    return max(scattered, 4 * min(share, zero["sub_group_size"]))


def _activation_bytes(config: TrainConfig, shape: TrunkShape, tokens: int) -> int:
    """What backward needs of a forward pass over the trunk and the heads."""
    dtype = torch.float32 if config.engine.precision == "fp32" else torch.bfloat16
    layer = saved_bytes(shape, dtype) * shape.width * tokens
    kept = layer * shape.layers
    if config.engine.activation_checkpointing:
        kept = dtype.itemsize * shape.width * tokens * shape.layers + layer
    # Gradients of a feed-forward network's inner units, before and after its non-linearity.
    passing = 2 * shape.inner_width * tokens * dtype.itemsize
    losses, heads = config.losses, 0
    if losses.structure or losses.contrast:
        heads += 4 * 4 * shape.width * tokens
    if losses.contrast:
        projected = min(shape.width, losses.projection_width)
        tiles = 4 * losses.contrast_tile * min(losses.contrast_tile, tokens)
        heads += (1 + len(config.more_teachers)) * (8 * 4 * projected * tokens + tiles)
    return int(kept + passing + heads)


def saved_bytes(shape: TrunkShape, dtype: torch.dtype) -> float:
    """Bytes that autograd keeps per token, layer and unit of width: counted in a forward pass of two narrow trunks."""
    width = 4 * shape.head_width
    counts = []
    for layers in (1, 2):
        narrow = replace(shape, layers=layers, width=width, heads=4)
        with torch.random.fork_rng(devices=[]):
            encoder = Encoder(narrow).to(dtype)
        counts.append(_saved_by(encoder))
    # ESM-C rounds its inner width up, by more in a narrow trunk than in a real one.
    return (counts[1] - counts[0]) / (_PROBE_TOKENS * width)


def _saved_by(encoder: Encoder) -> int:
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # The tensor is held too, lest its place be given to another one.
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    tokens = torch.full((_PROBE_TOKENS,), encoder.shape.alphabet.cls_id)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = encoder(Packed(tokens, (_PROBE_TOKENS,)))
    total = sum(nbytes for nbytes, _ in kept.values())
    del hidden
    return total
