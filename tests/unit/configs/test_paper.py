"""Preset `paper`: the published choices, as defaults that a config may overrule."""

from pathlib import Path
from typing import Any

import pytest

from configs.loading import dump_config, load_config, validate
from configs.losses import PAPER_DEFAULTS
from configs.train import TrainConfig


def make(**tree: Any) -> TrainConfig:
    base = {"stage": "align", "name": "x", "data": {"shards": "shards"}, "trunk": {"model": "esm2_t6_8M_UR50D"}}
    return validate(TrainConfig, base | tree, "test")


def test_the_paper_preset_sets_every_published_choice_and_nothing_else() -> None:
    plain, paper = make().model_dump(), make(preset="paper").model_dump()
    changed = {
        (section, key)
        for section in plain
        if isinstance(plain[section], dict)
        for key in plain[section]
        if plain[section][key] != paper[section][key]
    }
    # The own chain's residues are negatives in the default too.
    published = {(section, key) for section, values in PAPER_DEFAULTS.items() for key in values}
    assert changed == published - {("losses", "exclude_same_protein")}
    assert paper["losses"]["negatives"] == "rank"
    assert paper["losses"]["denominators"] == "published"


def test_a_key_that_is_given_wins_over_the_paper_preset() -> None:
    config = make(preset="paper", losses={"negatives": "pool"}, data={"shards": "s", "mask_unreliable": True})
    assert config.losses.negatives == "pool"
    assert config.data.mask_unreliable is True
    assert config.losses.denominators == "published"


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_resolved_config_reads_back_to_the_same(tmp_path: Path, preset: str) -> None:
    teachers = [{"kind": "mpnn", "weights": "m.npz"}]
    config = make(preset=preset, losses={"exclude_same_cluster": True}, more_teachers=teachers)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    again = load_config(TrainConfig, file)
    assert again == config
    assert dump_config(again) == dump_config(config)
