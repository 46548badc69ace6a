"""The shipped configs of published sizes: consistent with each other, with the method's facts, and estimable."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from configs.loading import load_config
from configs.train import TrainConfig
from configs.trunk import PUBLISHED_SIZES
from pretrain.estimate import estimate
from pretrain.model.shape import TrunkShape, trunk_shape

FOLDER = Path(__file__).parents[3] / "configs" / "pretrain"
MODELS = ("saesm2_8M", "saesm2_35M", "saesm2_150M", "saesm2_650M", "saesm2_3B", "saamplify_120M", "saamplify_350M")
MODELS += ("saesmc_300M",)
PUBLISHED = ("saesm2_650M", "saamplify_350M", "saesm2_reference_150M", "saamplify_reference_120M")
CONTROLS = sorted(path.stem for path in (FOLDER / "controls").glob("*.yaml"))
CONFIGS = {
    path.relative_to(FOLDER).as_posix()[:-5]: load_config(TrainConfig, path) for path in FOLDER.rglob("sa*.yaml")
}
CONFIGS |= {f"controls/{name}": load_config(TrainConfig, FOLDER / "controls" / f"{name}.yaml") for name in CONTROLS}
REFERENCES = {str(config.runs / config.name): config for config in CONFIGS.values() if config.stage == "reference"}
PROTEINS_PER_PACK = 8
"""The published micro batch; eight of 240.5 residues fill a pack of 2,048 tokens."""
CHAINS, HIGH_QUALITY_CHAINS = 1_000_000, 250_000
"""What the files say that their steps were computed for."""


def parameters(shape: TrunkShape) -> float:
    """About the weights of all layers: 12 D^2 each in all families."""
    return 12 * shape.layers * shape.width**2


def test_every_model_and_every_published_trunk_up_to_3b_has_a_config() -> None:
    assert set(MODELS) <= CONFIGS.keys()
    trunks = {CONFIGS[name].trunk.model for name in MODELS}
    assert trunks == PUBLISHED_SIZES.keys() - {"esm2_t48_15B_UR50D"}
    assert all(CONFIGS[name].trunk.weights == "hub" for name in MODELS)


@pytest.mark.parametrize("name", [*MODELS, *(f"controls/{name}" for name in CONTROLS)])
def test_the_reference_is_one_that_ships_and_fits(name: str) -> None:
    config = CONFIGS[name]
    if config.selection.mode == "off":
        assert config.selection.reference is None
        return
    reference = REFERENCES[str(config.selection.reference)]
    ours, theirs = trunk_shape(config.trunk), trunk_shape(reference.trunk)
    assert ours.family == theirs.family
    # Published: 150M for 650M, 120M for 350M; the largest ratio.
    assert parameters(theirs) <= 0.35 * parameters(ours)
    assert reference.data.high_quality_only
    assert reference.teacher == config.teacher
    for loss in ("structure", "contrast"):
        assert not getattr(config.losses, loss) or getattr(reference.losses, loss), "excess needs the reference's loss"


def test_the_published_pairs_are_as_published() -> None:
    pairs = {
        CONFIGS[name].trunk.model: REFERENCES[str(CONFIGS[name].selection.reference)].trunk.model
        for name in ("saesm2_650M", "saesm2_3B", "saamplify_350M")
    }
    assert pairs == {
        "esm2_t33_650M_UR50D": "esm2_t30_150M_UR50D",
        "esm2_t36_3B_UR50D": "esm2_t30_150M_UR50D",
        "AMPLIFY_350M": "AMPLIFY_120M",
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyper_parameters_are_the_papers(name: str) -> None:
    config, reference = CONFIGS[name], "reference" in name
    optimizer, data = config.optimizer, config.data
    assert (optimizer.trunk_lr, optimizer.head_lr, optimizer.betas) == (1e-4, 1e-3, (0.9, 0.95))
    assert (optimizer.weight_decay, optimizer.clip) == (0.01, 1.0)
    assert (data.max_residues, data.mask_fraction) == (2046, 0.15)
    assert (config.losses.mlm, config.losses.structure, config.losses.contrast) == (1.0, 0.5, 0.5)
    assert (config.engine.num_workers, data.packs_per_pool, data.pools_per_step) == (8, 8, 64 if reference else 80)
    assert config.engine.precision == "bf16"
    assert (config.selection.mode, config.selection.ratio) == ("off" if reference else "large", 0.8)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_follow_from_epochs_and_chains_as_the_files_say(name: str) -> None:
    config = CONFIGS[name]
    chains, epochs = (HIGH_QUALITY_CHAINS, 200) if config.stage == "reference" else (CHAINS, 25)
    proteins = PROTEINS_PER_PACK * config.data.packs_per_pool * config.data.pools_per_step
    assert config.optimizer.steps == round(epochs * chains / proteins)
    assert config.optimizer.warmup_steps == round(2 * chains / proteins)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dry_run_gives_finite_figures_that_fit_a_gpu(name: str) -> None:
    config = CONFIGS[name]
    found = estimate(config)
    figures = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    numbers = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    assert all(math.isfinite(value) for value in numbers.values())
    assert found.step_flops > 0
    # The published runs had GPUs of 80 GB.
    assert 0 < found.memory.peak < 80e9
    assert found.tokens_per_step == 8 * 2048 * config.data.pools_per_step
    assert found.pools_per_epoch is None, "these name shards that do not ship"


def test_the_engine_suits_the_size() -> None:
    stages = {name: CONFIGS[name].engine.zero_stage for name in MODELS}
    assert all(stage in (0, 1) for name, stage in stages.items() if name != "saesm2_3B")
    assert stages["saesm2_3B"] == 3
    assert CONFIGS["saesm2_3B"].engine.activation_checkpointing


def test_the_teacher_is_one_that_ships() -> None:
    teacher = load_config(TrainConfig, FOLDER / "teacher_gearnet.yaml")
    for config in CONFIGS.values():
        assert config.teacher.weights == teacher.runs / teacher.name
        assert (config.teacher.kind, config.teacher.gearnet) == (teacher.teacher.kind, teacher.teacher.gearnet)
        assert config.data.shards == teacher.data.shards


def test_runs_have_names_of_their_own() -> None:
    names = [config.name for config in CONFIGS.values()]
    assert len(set(names)) == len(names)


def leaves(tree: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Values of a nested mapping by dotted path."""
    nested = [
        leaves(child, f"{at}{key}.") if isinstance(child, dict) else {f"{at}{key}": child}
        for key, child in tree.items()
    ]
    return {path: value for part in nested for path, value in part.items()}


def changed(name: str) -> set[str]:
    """Fields in which a control differs from the model it controls."""
    control, model = (leaves(CONFIGS[each].model_dump()) for each in (f"controls/{name}", "saesm2_650M"))
    return {path for path in control | model if control.get(path) != model.get(path)} - {"name"}


def test_each_control_changes_what_it_says_and_nothing_else() -> None:
    assert set(CONTROLS) == {"contrast", "lora", "mlm", "no_selection", "paper", "small_excess", "structure"}
    assert changed("mlm") == {"losses.structure", "losses.contrast", "selection.mode", "selection.reference"}
    assert changed("structure") == {"losses.mlm", "losses.contrast"}
    assert changed("contrast") == {"losses.mlm", "losses.structure"}
    assert changed("no_selection") == {"selection.mode", "selection.reference"}
    assert changed("small_excess") == {"selection.mode"}


def test_adapters_replace_the_trunks_own_training() -> None:
    config = CONFIGS["controls/lora"]
    assert config.trunk.lora is not None
    assert config.optimizer.trunk_lr == 10 * CONFIGS["saesm2_650M"].optimizer.trunk_lr


def test_the_papers_preset_resolves_to_the_published_choices() -> None:
    config = CONFIGS["controls/paper"]
    assert (config.losses.negatives, config.losses.denominators) == ("rank", "published")
    assert (config.losses.exclude_same_cluster, config.losses.exclude_same_protein) == (False, False)
    assert config.selection.scope == "rank"
    # Keys that are given win.
    given = load_config(TrainConfig, FOLDER / "controls" / "paper.yaml", ["losses.negatives=pool"])
    assert (given.losses.negatives, given.losses.denominators) == ("pool", "published")
