"""Campaigns: order, restart, failure; stages are a small probe program, and no Ray cluster is started."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cluster.campaign import expand, run_campaign, stage_hashes
from cluster.programs import ROOT
from cluster.stages import GRACE_SECONDS, last_line, log_tail
from configs.campaign import CampaignConfig, StageConfig
from configs.errors import UserError

PROBE = """
import os, sys, time
name, seconds, code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
journal = os.environ["PROBE_JOURNAL"]
def note(word):
    with open(journal, "a") as file:
        file.write(f"{word} {name} {os.getpid()}\\n")
note("start")
print("working on", name, flush=True)
time.sleep(seconds)
note("end")
sys.exit(code)
"""


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "campaign_probe.py").write_text(textwrap.dedent(PROBE))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("PROBE_JOURNAL", str(tmp_path / "journal"))
    # A set address is used as it is, so that no cluster is started; the probe does not connect.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    return tmp_path / "journal"


def test_stages_run_in_order_and_partners_together(journal: Path, tmp_path: Path) -> None:
    stages = (
        _stage("first"),
        _stage("long", seconds=0.6, after=("first",)),
        _stage("beside", alongside="long"),
        _stage("last", after=("long", "beside")),
    )
    assert run_campaign(_campaign(tmp_path, *stages)).exit_code == 0
    words = [tuple(line.split()[:2]) for line in journal.read_text().splitlines()]
    assert words[:2] == [("start", "first"), ("end", "first")]
    assert words.index(("start", "beside")) < words.index(("end", "long"))
    assert words[-2:] == [("start", "last"), ("end", "last")]
    assert "working on long" in (tmp_path / "root/logs/long.log").read_text()


def test_done_stages_are_skipped_and_a_change_reruns_what_follows(journal: Path, tmp_path: Path) -> None:
    first, second, third = _stage("first"), _stage("second", after=("first",)), _stage("third")
    run_campaign(_campaign(tmp_path, first, second, third))
    assert sorted(_started(journal)) == ["first", "second", "third"]
    journal.unlink()
    assert run_campaign(_campaign(tmp_path, first, second, third)).exit_code == 0
    assert not journal.exists()
    run_campaign(_campaign(tmp_path, _stage("first", seconds=0.01), second, third))
    assert _started(journal) == ["first", "second"]
    journal.unlink()
    run_campaign(_campaign(tmp_path, _stage("first", seconds=0.01), second, third), again=True)
    assert sorted(_started(journal)) == ["first", "second", "third"]


def test_a_changed_config_file_or_its_base_changes_the_hash(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 1\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\n")
    stage = StageConfig(name="one", command=("program", str(tmp_path / "top.yaml")))
    config = CampaignConfig(root=tmp_path, stages=(stage,))
    before = stage_hashes(config)
    assert stage_hashes(config) == before
    (tmp_path / "base.yaml").write_text("seed: 2\n")
    assert stage_hashes(config) != before


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (1, 1), (3, 1)])
def test_a_failure_ends_the_others_shows_the_log_and_is_run_again(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, expected: int
) -> None:
    stages = (
        _stage("good"),
        _stage("bad", seconds=0.3, code=code, after=("good",)),
        _stage("slow", seconds=60, after=("good",)),
    )
    began = time.monotonic()
    outcome = run_campaign(_campaign(tmp_path, *stages, _stage("never", after=("bad",))))
    assert outcome.exit_code == expected
    # The slow stage would take a minute; it is interrupted, for which it gets at most 15 seconds.
    assert time.monotonic() - began < 30
    printed = capsys.readouterr().out
    assert f"FAILED with exit code {code}" in printed
    assert "| working on bad" in printed
    assert str(tmp_path / "root/logs/bad.log") in printed
    assert "never" not in _started(journal)
    assert not any(_alive(int(line.split()[2])) for line in journal.read_text().splitlines())
    assert set(json.loads((tmp_path / "root/campaign.json").read_text())["stages"]) == {"good"}


def test_a_campaign_that_is_deaf_to_interrupts_can_still_end_its_stages_by_them(journal: Path, tmp_path: Path) -> None:
    stages = (_stage("bad", seconds=0.3, code=1), _stage("slow", seconds=60))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    began = time.monotonic()
    try:
        assert run_campaign(_campaign(tmp_path, *stages)).exit_code == 1
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < GRACE_SECONDS / 2
    assert "KeyboardInterrupt" in (tmp_path / "root/logs/slow.log").read_text()


def test_a_terminated_campaign_ends_its_stages(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text(
        f"root: {tmp_path}/root\nstages: [{{name: slow, command: [campaign_probe, slow, '60', '0']}}]\n"
    )
    campaign = subprocess.Popen(
        [sys.executable, "-m", "cluster", "run", str(tmp_path / "campaign.yaml")], cwd=ROOT, stderr=subprocess.PIPE
    )
    child = _wait_for_start(journal)
    campaign.send_signal(signal.SIGTERM)
    _, errors = campaign.communicate(timeout=30)
    assert campaign.returncode == 130
    assert b"Traceback" not in errors
    assert not _alive(child)


def test_two_campaigns_do_not_share_a_folder(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text(
        f"root: {tmp_path}/root\nstages: [{{name: slow, command: [campaign_probe, slow, '60', '0']}}]\n"
    )
    campaign = subprocess.Popen([sys.executable, "-m", "cluster", "run", str(tmp_path / "campaign.yaml")], cwd=ROOT)
    try:
        _wait_for_start(journal)
        with pytest.raises(UserError, match="is in use by another campaign"):
            run_campaign(_campaign(tmp_path, _stage("other")))
    finally:
        campaign.send_signal(signal.SIGTERM)
        campaign.wait(timeout=30)


def test_source_expands_to_nothing_or_to_the_given_structures(tmp_path: Path) -> None:
    stage = StageConfig(name="build", command=("data_pipeline", "build", "output={root}/shards", "{source}"))
    config = CampaignConfig(root=Path("r"), stages=(stage,))
    assert expand(stage, config) == ["data_pipeline", "build", "output=r/shards"]
    given = config.model_copy(update={"structures": Path("my pdbs")})
    assert expand(stage, given)[3:] == ["source.kind=files", "source.path=my pdbs"]


def test_structures_that_do_not_exist_are_a_users_error(tmp_path: Path) -> None:
    config = _campaign(tmp_path, _stage("one")).model_copy(update={"structures": tmp_path / "nothing"})
    with pytest.raises(UserError, match="no such file or folder"):
        run_campaign(config)


def test_an_unreadable_state_file_means_everything_runs(journal: Path, tmp_path: Path) -> None:
    run_campaign(_campaign(tmp_path, _stage("one")))
    (tmp_path / "root/campaign.json").write_text("{ cut off")
    run_campaign(_campaign(tmp_path, _stage("one")))
    assert _started(journal) == ["one", "one"]


def test_the_line_shown_is_the_last_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n\x1b[32mstep 1\x1b[0m\rstep 2\n(raylet) noise\n   \n~~~~~\n")
    assert last_line(log) == "step 2"
    assert log_tail(log, 2) == ["(raylet) noise", "~~~~~"]
    assert last_line(tmp_path / "missing") == ""


def _stage(
    name: str, seconds: float = 0.0, code: int = 0, after: tuple[str, ...] = (), alongside: str | None = None
) -> StageConfig:
    command = ("campaign_probe", name, str(seconds), str(code))
    return StageConfig(name=name, command=command, after=after, alongside=alongside)


def _campaign(folder: Path, *stages: StageConfig) -> CampaignConfig:
    return CampaignConfig(root=folder / "root", stages=stages)


def _started(journal: Path) -> list[str]:
    return [line.split()[1] for line in journal.read_text().splitlines() if line.startswith("start")]


def _wait_for_start(journal: Path) -> int:
    """Process id of the first stage, once it runs."""
    give_up = time.monotonic() + 30
    while not journal.exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    return int(journal.read_text().split()[2])


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
