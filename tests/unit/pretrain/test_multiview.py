"""Multiview Contrast: views, loss, and that it learns."""

import numpy as np
import pytest
import torch

from configs.teacher import GearNetConfig, MultiviewConfig, TeacherConfig
from pretrain.teachers.multiview import MultiviewModel, draw_views, make_views, multiview_loss
from pretrain.teachers.residue_graph import protein_graph
from tests.unit.pretrain.chains import make_chain

TEACHER = TeacherConfig(gearnet=GearNetConfig(layers=2, width=32))
SAMPLES = [make_chain(60, seed) for seed in range(12)]


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    """One for each protein."""
    return [np.random.default_rng([seed, number]) for number in range(count)]


def test_views_are_a_function_of_each_proteins_generator() -> None:
    first, second, third = (make_views(SAMPLES[:3], MultiviewConfig(), generators(3, seed)) for seed in (1, 1, 2))
    assert torch.equal(first.graphs.types, second.graphs.types)
    assert torch.equal(first.graphs.adjacency.sources, second.graphs.adjacency.sources)
    assert first.graphs.sizes != third.graphs.sizes
    alone = make_views(SAMPLES[1:2], MultiviewConfig(), generators(3, 1)[1:2])
    assert alone.graphs.sizes == (first.graphs.sizes[1], first.graphs.sizes[4])


def test_proteins_without_a_backbone_have_no_views() -> None:
    views = make_views([make_chain(9, 1, tuple(range(9))), SAMPLES[0]], MultiviewConfig(), generators(2))
    assert len(views.graphs.sizes) == 2
    none = make_views([make_chain(9, 1, tuple(range(9)))], MultiviewConfig(), generators(1), with_lines=True)
    assert none.graphs.sizes == ()


def test_views_are_runs_of_residues_or_balls_of_the_configured_size() -> None:
    config = MultiviewConfig(crop_residues=30, ball_radius=9.0, edge_mask=0.0)
    views = make_views(SAMPLES, config, generators(len(SAMPLES)))
    runs = [size for size in views.graphs.sizes if size == 30]
    balls = []
    for sample in SAMPLES:
        ca = protein_graph(sample).positions
        balls += (np.linalg.norm(ca[:, None] - ca[None], axis=-1) <= 9.0).sum(1).tolist()
    assert 4 <= len(runs) < len(views.graphs.sizes)
    assert set(views.graphs.sizes) <= {30} | set(balls)


def test_a_chain_shorter_than_the_crop_is_taken_whole() -> None:
    config = MultiviewConfig(crop_residues=50, ball_radius=1000.0)
    views = make_views([make_chain(20, 1)], config, generators(1))
    assert views.graphs.sizes == (20, 20)


def test_overlapping_views_share_residues_and_others_need_not() -> None:
    chain = make_chain(400, 1)
    shared = {}
    for overlapping in (False, True):
        config = MultiviewConfig(crop_residues=20, ball_radius=8.0, overlapping=overlapping)
        pairs = [draw_views(chain, config, rng) for rng in generators(40)]
        shared[overlapping] = [len(set(a.residues) & set(b.residues)) > 0 for a, b in pairs]
    assert not all(shared[False])
    # Of 20 tries one misses with probability 0.9^20 = 0.1 at most, for views of a tenth of the chain.
    assert sum(shared[True]) > 0.8 * len(shared[True]) > sum(shared[False])


def test_half_of_the_views_keep_all_their_edges() -> None:
    config = MultiviewConfig(crop_residues=600, ball_radius=1e4, edge_mask=0.5)
    sample = make_chain(60, 1)
    whole = protein_graph(sample).edges.shape[1]
    edges = [view.edges.shape[1] for rng in generators(100) for view in draw_views(sample, config, rng)]
    kept = sum(count == whole for count in edges)
    # Standard deviation of 200 even odds: 7.
    assert 70 < kept < 130
    assert all(count < 0.7 * whole for count in edges if count != whole)


def test_the_edge_mask_removes_its_fraction_of_edges() -> None:
    sample = make_chain(600, 1)
    every, kept = (
        make_views(
            [sample], MultiviewConfig(crop_residues=600, ball_radius=1e4, edge_mask=mask, mask_odds=1.0), generators(1)
        )
        for mask in (0, 0.15)
    )
    fraction = len(kept.graphs.adjacency.sources) / len(every.graphs.adjacency.sources)
    # About 30,000 edges: the standard deviation of the fraction is 0.002.
    assert fraction == pytest.approx(0.85, abs=0.01)


def test_the_loss_is_the_info_nce_of_first_against_second_views() -> None:
    torch.manual_seed(0)
    model = MultiviewModel(TEACHER).eval()
    views = make_views(SAMPLES[:5], MultiviewConfig(temperature=0.1), generators(5))
    terms = multiview_loss(model, views)
    with torch.no_grad():
        first, second = model(views).chunk(2)
        logits = first @ second.T / 0.1
        target = torch.arange(5)
        expected = sum(torch.nn.functional.cross_entropy(x, target) for x in (logits, logits.T)) / 2
    # float32 losses of size 1
    assert terms.total(1).item() == pytest.approx(expected.item(), abs=1e-5)
    logged = terms.logged()
    assert logged["loss_multiview"] == pytest.approx(expected.item(), abs=1e-5)
    assert logged["accuracy_contrast"] == pytest.approx((logits.argmax(1) == target).float().mean().item())


@pytest.mark.parametrize("kind", ["gearnet", "gearnet_edge"])
def test_every_parameter_has_a_gradient(kind: str) -> None:
    torch.manual_seed(0)
    model = MultiviewModel(TEACHER.model_copy(update={"kind": kind}))
    views = make_views(SAMPLES[:4], MultiviewConfig(), generators(4), kind == "gearnet_edge")
    multiview_loss(model, views).total(1).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_training_makes_views_of_unseen_crops_recognisable() -> None:
    torch.manual_seed(0)
    model, config = MultiviewModel(TEACHER), MultiviewConfig()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for step in range(25):
        terms = multiview_loss(model, make_views(SAMPLES, config, generators(len(SAMPLES), step)))
        optimizer.zero_grad()
        terms.total(1).backward()
        optimizer.step()
        losses.append(terms.logged()["loss"])
    unseen = make_views(SAMPLES, config, generators(len(SAMPLES), 1000))
    with torch.no_grad():
        accuracy = multiview_loss(model.eval(), unseen).logged()["accuracy_contrast"]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    # Chance is 1 in 12.
    assert accuracy >= 0.5
