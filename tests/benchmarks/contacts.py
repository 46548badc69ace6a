"""Whether attention of a trained model says more about contacts than that of the same model before training.

`python -m tests.benchmarks.contacts [FOLDER] [key=value ...]` builds the shards of all real chains in FOLDER (default:
a temporary one), trains `configs/pretrain/demo_base.yaml` on the train split with the masked-language and 3Di losses,
and fits ESM's contact regression anew on 20 chains of the train split for the trained weights and for those at the
start. Both are measured on the chains of the other splits, whose sequence clusters neither has seen. What FOLDER holds
already is kept: shards, and a run, which is continued or, where it is finished, only evaluated. A key=value overrides
the training's configuration.

`paired_p`: of the difference in `METRIC`, by bootstrap and by sign flips over sequence clusters, the larger of the two;
`difference` and `trained`, `untrained` are its mean over chains. The other metrics stand beside with their own p,
adjusted for their number (Holm).
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from configs.evaluate import ContactConfig, EvalConfig, EvalDataConfig
from configs.loading import load_config
from configs.train import TrainConfig
from data_pipeline.reader import ShardReader
from eval.data import EvalData, Example, load_data
from eval.features import Features
from eval.intervals import Measurement, holm, paired_difference
from eval.models.checkpoint_model import CheckpointModel
from eval.models.open import open_model
from eval.tasks.contact import TASK
from eval.tasks.protocol import Context
from pretrain.checkpoints import open_checkpoint
from pretrain.launch import train
from pretrain.model.alignment import AlignmentModel
from pretrain.model.shape import trunk_shape
from pretrain.run_folder import run_path
from tests.benchmarks._timing import report
from tests.benchmarks.gearnet import CONFIGS, build_shards

METRIC = "P@L_long"
"""The range and number of pairs that ESM reports first (Rao et al. 2021); chosen after trials on 60 chains."""
STEPS = 400
MAX_RESIDUES = 510
TEST_CHAINS, FIT_CHAINS = 300, 20
SAMPLES = 4000


def training(folder: Path, shards: Path, overrides: list[str]) -> TrainConfig:
    """The demo's model on sequences and 3Di states."""
    own = [
        "name=contacts",
        f"runs={folder}/runs",
        f"data.shards={shards}",
        "losses.structure=0.5",
        "losses.contrast=0",
        f"optimizer.steps={STEPS}",
        "engine.launcher=env",
        "engine.num_workers=1",
        "tracking.mlflow=false",
    ]
    return load_config(TrainConfig, CONFIGS / "pretrain/demo_base.yaml", own + overrides)


def held_out(shards: Path, config: EvalConfig) -> EvalData:
    """Chains of the train split to fit on, and of all other splits to measure on."""
    with ShardReader(shards) as reader:
        splits = [split for split in reader.splits if split != "train"]
        found = [load_data(reader, config.data.model_copy(update={"split": split}), config.seed) for split in splits]
    tests: tuple[Example, ...] = tuple(example for data in found for example in data.test)
    return replace(found[0], test=tests[:TEST_CHAINS])


def untrained(config: TrainConfig, trained: CheckpointModel) -> CheckpointModel:
    """The same shape with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = AlignmentModel(trunk_shape(config.trunk), config.losses, None).eval().requires_grad_(False)
    return CheckpointModel(model, "untrained", trained.description, "0" * 64, trained.batch_tokens)


def measured(model: CheckpointModel, data: EvalData, config: EvalConfig) -> dict[str, Measurement]:
    """Measurements of the contact task by metric."""
    outcome = TASK.run(Context(config, data, None, Features(model, batch_tokens=config.batch_tokens)))
    assert outcome.skipped is None, outcome.skipped
    return {m.metric: m for m in outcome.measurements}


def figures(first: dict[str, Measurement], second: dict[str, Measurement]) -> dict[str, object]:
    """Differences of the second to the first model in every metric."""
    found = {name: paired_difference([first[name]], [second[name]], SAMPLES, 0) for name in first}
    adjusted = dict(zip(found, holm([d.p_value for d in found.values()]), strict=True))
    chosen = found[METRIC]
    return {
        "metric": METRIC,
        "untrained": chosen.first,
        "trained": chosen.second,
        "difference": chosen.difference,
        "interval": [round(chosen.ci_low, 4), round(chosen.ci_high, 4)],
        "paired_p": chosen.p_value,
        "chains": chosen.num_examples,
        "clusters": chosen.num_clusters,
        "all": {name: [round(d.first, 4), round(d.second, 4), round(adjusted[name], 5)] for name, d in found.items()},
    }


def main() -> None:
    overrides = [word for word in sys.argv[1:] if "=" in word]
    named = [word for word in sys.argv[1:] if "=" not in word]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(named[0] if named else temporary)
        shards = build_shards(folder)
        config = training(folder, shards, overrides)
        if code := train(config):
            raise SystemExit(code)
        data_config = EvalDataConfig(shards=shards, max_residues=MAX_RESIDUES, max_fit_chains=FIT_CHAINS)
        settings = EvalConfig(data=data_config, contact=ContactConfig(fit_chains=FIT_CHAINS), device="cpu")
        data = held_out(shards, settings)
        newest = max((run_path(config) / "checkpoints").iterdir())
        trained = open_model(open_checkpoint(newest), settings)
        first, second = (measured(model, data, settings) for model in (untrained(config, trained), trained))
    report("contacts", {"steps": config.optimizer.steps, **figures(first, second)})


if __name__ == "__main__":
    main()
