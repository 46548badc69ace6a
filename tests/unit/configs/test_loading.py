"""Strict configuration: extends, overrides, and errors that name the remedy."""

from pathlib import Path

import pytest

from configs.build import BuildConfig
from configs.errors import UserError
from configs.loading import _apply, dump_config, load_config
from configs.train import TrainConfig


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_dumped_config_loads_to_an_equal_one(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "output: out\nsplit: {seed: 3}\n")
    config = load_config(BuildConfig, path, ["source.synthetic.seed=4", "graphs=[{name: a, kind: knn, neighbours: 3}]"])
    again = write(tmp_path, "b.yaml", dump_config(config))
    assert load_config(BuildConfig, again) == config
    assert (config.split.seed, config.source.synthetic.seed, config.graphs[0].neighbours) == (3, 4, 3)


def test_extends_lays_the_file_over_its_base_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "output: out\nsplit: {seed: 3, kmer: 4}\n")
    config = load_config(BuildConfig, write(tmp_path, "top.yaml", "extends: base.yaml\nsplit: {seed: 5}\n"))
    assert (config.split.seed, config.split.kmer) == (5, 4)


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    path = write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(UserError, match="circle"):
        load_config(BuildConfig, path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split.sead=3", "unknown key 'split.sead'; did you mean 'seed'"),
        ("spilt.seed=3", "did you mean 'split'"),
        ("graphs=[{name: a, kind: knn, neighbour: 3}]", "did you mean 'neighbours'"),
        ("split.seed=abc", "split.seed: Input should be a valid integer .*got 'abc'"),
        ("split.seed='3'", "valid integer"),
        ("source.kind=files", "source.path is not set; add source.path"),
        ("split.seed", "allowed form is key.sub=value"),
        ("output=", "output"),
    ],
)
def test_a_wrong_override_is_answered_with_key_value_and_remedy(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(BuildConfig, write(tmp_path, "a.yaml", "output: out\n"), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "holds a list"), ("a: [1\n", "not valid YAML"), ("split: {seed: 1}\n", "missing key 'output'")],
)
def test_a_broken_file_is_answered_with_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(BuildConfig, write(tmp_path, "a.yaml", text))


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, "demo.yaml", "output: out\n")
    with pytest.raises(UserError, match=r"did you mean .*demo\.yaml"):
        load_config(BuildConfig, tmp_path / "dmo.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trunk.model=esm2_t7"], "not known; allowed"),
        (["trunk.model=esm2_t6_8M_UR50D", "trunk.layers=3"], "fixes layers"),
        (["trunk.width=100"], "multiple of 2 x heads"),
        (["engine.num_workers=3"], "must be a multiple of engine.num_workers 3"),
        (["selection.mode=large"], "selection.reference is not set"),
        (["stage=reference", "selection.mode=large", "selection.reference=x"], "without selection"),
        (["losses.mlm=0", "losses.structure=0", "losses.contrast=0"], "at least one must be positive"),
        (["data.max_residues=4000"], "cannot hold"),
        (["trunk=null"], "needs `trunk`"),
    ],
)
def test_a_training_config_that_cannot_run_is_refused_before_anything_starts(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    text = "stage: align\nname: x\ndata: {shards: s}\ntrunk: {layers: 2, width: 32, heads: 4}\n"
    with pytest.raises(UserError, match=message):
        load_config(TrainConfig, write(tmp_path, "a.yaml", text), overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("no", "no"),
        ("1e-4", 1e-4),
        ("3", 3),
        ("-2.5E3", -2500.0),
        (".5", 0.5),
        ("true", True),
        ("2", 2),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(text: str, value: object) -> None:
    tree: dict[str, object] = {}
    _apply(tree, f"key={text}")
    assert tree["key"] == value
    assert type(tree["key"]) is type(value)
