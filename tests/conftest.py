"""Fixtures shared by every test: real data where it is named, one Ray cluster per session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# No test may reach a hub or a telemetry server.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU are skipped, and say why, where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real structures, labels and teachers; skips where SAPLM_DATA does not name one."""
    folder = os.environ.get("SAPLM_DATA")
    if not folder:
        pytest.skip("SAPLM_DATA is not set: it names the folder of real structures")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"SAPLM_DATA={folder} is not a folder")
    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address of a local Ray cluster with two CPUs that every test of the session shares."""
    import ray

    context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = context.address_info["address"]
    yield context.address_info["address"]
    os.environ.pop("RAY_ADDRESS", None)
    ray.shutdown()
