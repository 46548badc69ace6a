from pathlib import Path

import pytest

from configs.evaluate import EvalConfig
from configs.loading import dump_config, load_config

FOLDER = Path(__file__).parents[3] / "configs" / "eval"
PRESETS = ("suite", "quick", "saesm2", "saprot", "pst")


def load(name: str) -> EvalConfig:
    return load_config(EvalConfig, FOLDER / f"{name}.yaml")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_loads_and_every_task_it_names_exists(name: str) -> None:
    from eval.tasks.registry import TASKS, tasks_named

    config = load(name)
    chosen = [task.name for task in tasks_named(config.tasks)]
    assert chosen
    assert set(config.probes) <= set(TASKS)
    assert set(config.probes) <= set(chosen)
    (reloaded,) = [EvalConfig.model_validate_json(config.model_dump_json())]
    assert reloaded == config, dump_config(config)


def test_the_saesm2_preset_is_the_published_division_of_its_15_tasks() -> None:
    config = load("saesm2")
    assert len(set(config.tasks)) == 15
    frozen = {name for name in config.tasks if config.probe_of(name).protocol == "frozen"}
    assert frozen == {"ppi_human", "ss3", "fold"}
    assert "contact_supervised" in config.tasks
    assert config.contact.preset == "published"


def test_the_saprot_preset_tunes_with_the_published_rate_and_epochs() -> None:
    config = load("saprot")
    assert {config.probe_of(name).trunk_learning_rate for name in config.tasks} == {2e-5}
    assert {name: config.probe_of(name).epochs for name in ("thermostability", "ppi_human", "metal_ion", "ec")} == {
        "thermostability": 200,
        "ppi_human": 10,
        "metal_ion": 50,
        "ec": 100,
    }
    assert config.probe_of("ppi_human").protocol == "full"


def test_the_pst_preset_uses_all_layers_and_linear_folds() -> None:
    config = load("pst")
    assert config.features.representation == "all_layers"
    heads = {name: config.probe_of(name) for name in config.tasks}
    assert {name for name, probe in heads.items() if probe.head == "linear"} == {"fold", "superfamily", "family"}
    assert heads["ec"].layers == 3
