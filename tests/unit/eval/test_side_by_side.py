"""Forward passes side by side: the same results in the same order, and torch's threads as they were."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.marginals import WildType, marginal_tables
from eval.models.side_by_side import CPU_TOKENS, batch_tokens_on, side_by_side
from tests.unit.eval.makers import make_protein_model, train_config

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_as_many_threads_as_torch_has(threads: int) -> None:
    seen, allowed, meeting = set(), set(), threading.Barrier(threads)

    def work(number: int) -> int:
        # All threads have to be here at once, or the barrier breaks.
        if number < threads:
            meeting.wait(30)
        seen.add(threading.get_ident())
        allowed.add(torch.get_num_threads())
        assert not torch.is_grad_enabled()
        return number**2

    assert list(side_by_side(work, range(20), CPU)) == [number**2 for number in range(20)]
    assert len(seen) == threads
    assert allowed == {1}
    assert torch.get_num_threads() == threads
    assert in_a_new_thread(torch.get_num_threads) == threads


def in_a_new_thread(ask):
    found = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()
    return found[0]


def test_few_passes_share_all_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert list(side_by_side(lambda _: torch.get_num_threads(), range(2), CPU)) == [2, 2]
        assert list(side_by_side(lambda _: torch.get_num_threads(), range(1), CPU)) == [4]
        assert list(side_by_side(lambda _: 0, [], CPU)) == []
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_out_and_what_waits_is_not_begun(threads: int) -> None:
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        list(side_by_side(work, range(1000), CPU))
    assert len(begun) < 30
    assert torch.get_num_threads() == threads


def test_only_cpus_have_their_passes_cut() -> None:
    assert batch_tokens_on(CPU, 10**6) == CPU_TOKENS
    assert batch_tokens_on(CPU, 100) == 100
    assert batch_tokens_on(torch.device("cuda"), 10**6) == 10**6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_gives_the_same_on_any_number_of_threads(precision: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), size=n)) for n in (30, 7, 41, 22, 35, 60, 12, 50)]
    model = replace(make_protein_model(train_config(tmp_path, tmp_path)), batch_tokens=64).at(precision)
    jobs = [(sequence, np.array([1, 4])) for sequence in sequences]
    wild_types = [WildType(sequence, np.array([0, 5])) for sequence in sequences]

    def everything() -> list[torch.Tensor]:
        tables = marginal_tables(model, wild_types, "masked", 1022, 64, precision)
        found = (model.hidden(sequences), model.log_probs(sequences), model.masked_log_probs(jobs))
        return [*(one for part in found for one in part), *map(torch.from_numpy, tables)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(2)
        together = everything()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(alone, together, strict=True))
