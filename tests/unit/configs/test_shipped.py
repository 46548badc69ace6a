"""Every configuration file that ships is valid."""

from pathlib import Path

import pytest

from configs.build import BuildConfig
from configs.campaign import CampaignConfig
from configs.evaluate import EvalConfig
from configs.loading import Config, load_config
from configs.service import ServeConfig
from configs.train import TrainConfig

FOLDER = Path(__file__).parents[3] / "configs"
MODELS: dict[str, type[Config]] = {
    "data": BuildConfig,
    "pretrain": TrainConfig,
    "eval": EvalConfig,
    "campaign": CampaignConfig,
    "service": ServeConfig,
}
FILES = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_shipped_config_is_valid(path: Path) -> None:
    assert load_config(MODELS[path.relative_to(FOLDER).parts[0]], path)


def test_the_control_differs_from_the_aligned_run_in_its_losses_alone() -> None:
    aligned, control = (
        load_config(TrainConfig, FOLDER / "pretrain" / f"demo_{name}.yaml") for name in ("align", "mlm")
    )
    differing = {name for name in TrainConfig.model_fields if getattr(aligned, name) != getattr(control, name)}
    assert differing == {"name", "losses", "selection"}
