"""Two gloo ranks with uneven rows give what one rank gives: collectives, selection, losses and gradients."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from configs.losses import PAPER_DEFAULTS, LossConfig, SelectionConfig
from pretrain import distributed
from pretrain.distributed import gather_rows, gather_values, rows_of
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.reference import online_reference
from pretrain.losses.selection import keep_mask
from tests.unit.pretrain.pools import make_batch, make_leaves, make_outputs, share

LENGTHS, PROTEINS = [40, 25, 60, 35], [0, 1, 1, 4]
"""Protein 1 stands on both ranks in some cases; 1 and 4 are of one cluster."""
CASES = {"uneven": (1, 15), "one_rank_empty": (0, 0), "tail_empty": (4, 22), "as_many_proteins": (2, 15)}
"""Chains and masked tokens that rank 0 holds of the pool; rank 1 has the rest."""
LARGE = SelectionConfig(mode="large", ratio=0.8, reference=Path("reference"))
VARIANTS = {
    "default": ({}, 1),
    "nothing_excluded": ({"exclude_same_cluster": False}, 1),
    "own_chain_excluded": ({"exclude_same_cluster": False, "exclude_same_protein": True}, 1),
    "all_excluded": ({"exclude_same_protein": True}, 1),
    "two_teachers": ({}, 2),
    "published_denominators": ({"denominators": "published"}, 1),
    "paper": (PAPER_DEFAULTS["losses"], 1),
}
"""Options of the losses, and the number of teachers."""
EXACT = [
    *(("default", case) for case in CASES),
    *((variant, "uneven") for variant in ("nothing_excluded", "own_chain_excluded", "all_excluded", "two_teachers")),
    # The mean over ranks of sums per protein: the pool's, where the ranks have as many proteins.
    ("published_denominators", "as_many_proteins"),
]
"""Variants and cases in which the world size makes no difference."""


def pool_results(variant: str, case: str | None, rank: int) -> dict[str, torch.Tensor]:
    """Losses and gradients in float32 of the whole pool (case None) or of one rank's share of it."""
    options, teachers = VARIANTS[variant]
    config = LossConfig(contrast_tile=32, **options)
    scope = "rank" if variant == "paper" else "pool"
    selection = LARGE.model_copy(update={"scope": scope})
    batch = make_batch(LENGTHS, seed=5, proteins=PROTEINS)
    known = make_leaves(batch, 7, 9.0, teachers=teachers)
    leaves = make_leaves(batch, 6, 14.0, teachers=teachers)
    mine = batch
    if case is not None:
        at, masked = CASES[case]
        cuts = (slice(0, at), slice(0, masked)) if rank == 0 else (slice(at, len(LENGTHS)), slice(masked, None))
        mine, leaves = share(batch, leaves, *cuts)
        _, known = share(batch, known, *cuts)
    outputs = make_outputs({name: leaf.float() for name, leaf in leaves.items()})
    reference = make_outputs({name: leaf.float() for name, leaf in known.items()}, gradient=False)
    terms = alignment_terms(outputs, mine, config, selection, online_reference(reference, mine, config))
    terms.total(distributed.world_size()).backward()
    logged = {f"logged.{name}": torch.tensor(value) for name, value in terms.logged().items()}
    return logged | {f"gradient.{name}": leaf.grad for name, leaf in outputs.leaves.items()}


def primitive_results(rank: int) -> dict[str, torch.Tensor]:
    """What the collectives themselves return on a rank that holds 3 (rank 0) or 1 rows."""
    tensor = torch.arange(6.0).view(3, 2) if rank == 0 else torch.tensor([[9.0, 8.0]])
    tensor.requires_grad_()
    pool = gather_rows(tensor)
    # Each rank weighs the gathered rows differently; the owner must receive the sum of both.
    (pool * (rank + 1) * torch.arange(1.0, 5.0)[:, None]).sum().backward()
    excess = torch.tensor([0.5, 3.0, 1.0]) if rank == 0 else torch.tensor([2.0])
    (rows,) = rows_of([len(excess)], excess.device)
    return {
        "pool": pool.detach(),
        "gradient": tensor.grad,
        "kept": keep_mask(excess, 0.5, "large").float(),
        "values": gather_values(excess, rows),
    }


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {f"primitive/{name}": value for name, value in primitive_results(rank).items()}
    for variant, case in [*EXACT, ("paper", "uneven")]:
        found = pool_results(variant, case, rank)
        results |= {f"{variant}, {case}/{name}": value for name, value in found.items()}
    safetensors.torch.save_file({k: v.contiguous() for k, v in results.items()}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(run_rank, (str(folder),), nprocs=2, start_method="spawn")
    return [safetensors.torch.load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


def of(results: list[dict], case: str, name: str) -> list[torch.Tensor]:
    return [each[f"{case}/{name}"] for each in results]


def test_gathered_rows_are_every_ranks_in_order(two_ranks: list[dict]) -> None:
    for pool in of(two_ranks, "primitive", "pool"):
        assert pool.tolist() == [[0, 1], [2, 3], [4, 5], [9, 8]]
    for values in of(two_ranks, "primitive", "values"):
        assert values.tolist() == [0.5, 3.0, 1.0, 2.0]


def test_the_gradient_of_gathered_rows_returns_summed_to_their_owner(two_ranks: list[dict]) -> None:
    first, second = of(two_ranks, "primitive", "gradient")
    assert first.tolist() == [[3, 3], [6, 6], [9, 9]]
    assert second.tolist() == [[12, 12]]


def test_selection_takes_the_largest_of_both_ranks(two_ranks: list[dict]) -> None:
    first, second = of(two_ranks, "primitive", "kept")
    assert first.tolist() == [0, 1, 0]
    assert second.tolist() == [1]


@pytest.mark.parametrize(("variant", "case"), EXACT)
def test_two_ranks_equal_one_rank_in_every_loss_and_statistic(two_ranks: list[dict], variant: str, case: str) -> None:
    alone = pool_results(variant, None, 0)
    names = [name for name in alone if name.startswith("logged.")]
    assert {"logged.loss_mlm", "logged.loss_structure", "logged.loss_contrast"} < set(names)
    for name in names:
        for got in of(two_ranks, f"{variant}, {case}", name):
            # float32 sums in another order
            assert got.item() == pytest.approx(alone[name].item(), abs=1e-5), name


@pytest.mark.parametrize(("variant", "case"), EXACT)
def test_averaged_gradients_of_two_ranks_equal_those_of_one_rank(
    two_ranks: list[dict], variant: str, case: str
) -> None:
    alone = pool_results(variant, None, 0)
    for name in (name for name in alone if name.startswith("gradient.")):
        parts = of(two_ranks, f"{variant}, {case}", name)
        if "log_scale" in name:
            assert torch.stack(parts).mean().item() == pytest.approx(alone[name].item(), abs=1e-5)
            continue
        # A rank's own outputs have no gradient on the other rank: the average over ranks is half of it.
        torch.testing.assert_close(torch.cat(parts) / 2, alone[name], rtol=0, atol=1e-5)
        # Not vacuous: what is compared is far larger than the tolerance.
        assert alone[name].abs().max() > 1e-4


@pytest.mark.parametrize("rank", [0, 1])
def test_with_the_published_options_each_rank_has_the_gradients_of_its_share_alone(
    two_ranks: list[dict], rank: int
) -> None:
    alone = [pool_results("paper", "uneven", each) for each in (0, 1)]
    for name in (name for name in alone[rank] if name.startswith("gradient.")):
        got = of(two_ranks, "paper, uneven", name)[rank]
        # float32, the same sums divided by products in another order
        torch.testing.assert_close(got, alone[rank][name], rtol=1e-5, atol=1e-7)
    for name in ("logged.loss", "logged.loss_mlm", "logged.loss_structure", "logged.loss_contrast"):
        mean = (alone[0][name] + alone[1][name]).item() / 2
        assert of(two_ranks, "paper, uneven", name)[rank].item() == pytest.approx(mean, abs=1e-5)


def test_without_a_process_group_the_world_is_one_rank() -> None:
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    tensor = torch.randn(3, 2)
    assert gather_rows(tensor) is tensor
