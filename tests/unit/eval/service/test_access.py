"""Tokens, rates and where the service may listen."""

import base64
import stat
from pathlib import Path

import pytest

from configs.errors import UserError
from eval.service.access import Rates, Tokens, check_host, read_token

TOKEN = "a-token-of-enough-characters"


def test_a_token_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    token = read_token(None, tmp_path)
    assert len(token) >= 40
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert read_token(None, tmp_path) == token


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [(TOKEN, 0o644, "others may read it"), ("short", 0o600, "holds no token"), ("", 0o600, "holds no token")],
)
def test_a_token_file_that_protects_nothing_is_refused(tmp_path: Path, content: str, mode: int, says: str) -> None:
    path = tmp_path / "mine"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(UserError, match=says):
        read_token(path, tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_token(tmp_path / "nowhere", tmp_path)


def test_other_machines_are_served_only_with_a_chosen_token(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_host(host, None)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(UserError, match="token_file is not set"):
            check_host(host, None)
        check_host(host, tmp_path / "token")


def test_only_the_token_is_accepted(tmp_path: Path) -> None:
    tokens = Tokens(TOKEN)
    assert tokens.is_bearer(f"Bearer {TOKEN}")
    for wrong in ("", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, f"Basic {TOKEN}", "Bearer \udc80"):
        assert not tokens.is_bearer(wrong)
    assert tokens.is_basic("Basic " + base64.b64encode(f"anyone:{TOKEN}".encode()).decode())
    for wrong in ("Basic !", "Basic", "Basic " + base64.b64encode(b"anyone:wrong").decode(), f"Bearer {TOKEN}"):
        assert not tokens.is_basic(wrong)


def test_rates_refill_evenly_and_are_kept_for_each_client() -> None:
    now = 100.0
    rates = Rates(60, lambda: now)
    assert [rates.wait_for("a") for _ in range(61)] == [0] * 60 + [1]
    assert rates.wait_for("b") == 0
    now += 1.0
    assert [rates.wait_for("a") for _ in range(2)] == [0, 1]
    slow = Rates(1, lambda: now)
    assert [slow.wait_for("a") for _ in range(2)] == [0, 60]


def test_clients_without_number_do_not_fill_the_memory() -> None:
    rates = Rates(1, lambda: 0.0)
    for number in range(10_050):
        rates.wait_for(str(number))
    assert len(rates._left) == 10_000
