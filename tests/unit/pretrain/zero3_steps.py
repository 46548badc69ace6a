"""`python -m tests.unit.pretrain.zero3_steps FOLDER`: one rank of steps under ZeRO-3, without and with recomputation.

Prints one JSON object: per setting the losses, the gradient norms and the bytes that the forward kept for backward.
"""

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from configs.train import TrainConfig
from pretrain.engine import World, build_engine, join_world
from pretrain.model.execution import apply_execution
from pretrain.sampler import Position
from pretrain.stages.align import AlignStage
from tests.unit.pretrain.training import make_config

NUM_STEPS = 3


def train(config: TrainConfig, world: World) -> dict[str, list[float]]:
    stage = AlignStage(config)
    apply_execution(stage.model, config.engine, world.device)
    engine = build_engine(stage.model, config, world)
    engine.set_learning_rate(1.0)
    found: dict[str, list[float]] = {"loss": [], "grad_norm": [], "kept_bytes": []}
    batches = stage.batches(Position(), world.rank, world.size)
    for step in range(1, NUM_STEPS + 1):
        kept: dict[int, int] = {}

        def count(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            terms = stage.loss(engine.module, next(batches).batch, step)
        engine.backward(terms.total(world.size))
        engine.step()
        found["loss"].append(terms.logged()["loss"])
        found["grad_norm"].append(engine.grad_norm)
        found["kept_bytes"].append(sum(kept.values()))
    return found


def settings(folder: Path, **overrides: Any) -> TrainConfig:
    return make_config(
        folder,
        engine__num_workers=2,
        engine__deepspeed=str(folder / "partition_all.json"),
        trunk__layers=4,
        **overrides,
    )


def main() -> None:
    folder = Path(sys.argv[1])
    world = join_world(settings(folder).engine)
    found = {str(on): train(settings(folder, engine__activation_checkpointing=on), world) for on in (False, True)}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
