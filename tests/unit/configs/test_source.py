from pathlib import Path

import pytest

from configs.build import BuildConfig
from configs.errors import UserError
from configs.loading import dump_config, load_config
from configs.source import SourceConfig

FILES = "configs/data/files.yaml"


def test_a_url_keeps_its_slashes_and_a_path_may_be_a_path(tmp_path: Path) -> None:
    config = load_config(BuildConfig, FILES, ["source.path=s3://bucket/a"])
    assert config.source.path == "s3://bucket/a"
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(BuildConfig, tmp_path / "again.yaml") == config
    assert SourceConfig(kind="files", path=Path("my pdbs")).path == "my pdbs"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["source.kind=accessions", "source.path="], "source.path is not set; add source.path=LIST.txt"),
        (["source.kind=foldcomp", "source.path=null"], "source.path is not set; add source.path=DATABASE"),
        (["source.structures=x"], "source.structures belongs to kind 'accessions'"),
        (["source.api=https://host/x"], r"must hold '{accession}'"),
        (["source.remote.atempts=3"], "did you mean 'attempts'"),
    ],
)
def test_fields_that_do_not_fit_are_mistakes_of_the_user(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(BuildConfig, FILES, settings)


def test_remote_settings_can_be_overridden() -> None:
    settings = ["source.remote.options={anon: true}", "source.remote.requests_per_second=null"]
    remote = load_config(BuildConfig, FILES, settings).source.remote
    assert remote.options == {"anon": True}
    assert remote.requests_per_second is None
