"""Residue graphs, their packing, and the GearNet teacher."""

import dataclasses

import numpy as np
import pytest
import torch

from configs.teacher import GearNetConfig
from pretrain.teachers import gearnet
from pretrain.teachers.gearnet import GearNet, GearNetTeacher
from pretrain.teachers.line_graph import line_graph
from pretrain.teachers.residue_graph import NUM_RELATIONS, pack_graphs, protein_graph
from tests.unit.pretrain.chains import make_chain

CONFIG = GearNetConfig(layers=2, width=8)


@pytest.fixture(scope="module", params=["gearnet", "gearnet_edge"])
def teacher(request: pytest.FixtureRequest) -> GearNetTeacher:
    torch.manual_seed(0)
    return GearNetTeacher(GearNet(CONFIG, request.param == "gearnet_edge"), "0" * 64)


def test_stored_graphs_give_the_same_edges_as_computed_ones() -> None:
    stored, computed = (protein_graph(make_chain(60, 1, (7,), stored)) for stored in (True, False))
    assert set(map(tuple, stored.edges.T.tolist())) == set(map(tuple, computed.edges.T.tolist()))


def test_sequence_relations_are_offsets_of_the_chain_even_around_missing_residues() -> None:
    graph = protein_graph(make_chain(8, 1, (3,)))
    assert graph.residues.tolist() == [0, 1, 2, 4, 5, 6, 7]
    source, target, relation = graph.edges
    sequence = relation <= 4
    offset = graph.residues[target[sequence]] - graph.residues[source[sequence]]
    assert (offset == relation[sequence] - 2).all()
    # 5 n - 6 pairs within distance 2 in n residues, less those with residue 3: itself and 4 neighbours, both ways.
    assert sequence.sum() == 5 * 8 - 6 - 9


def test_spatial_relations_join_residues_at_least_five_apart() -> None:
    graph = protein_graph(make_chain(60, 1))
    source, target, relation = graph.edges
    assert set(relation.tolist()) == set(range(NUM_RELATIONS))
    assert np.abs(source - target)[relation >= 5].min() == 5
    # Of the 10 nearest of all residues some are too near along the sequence.
    nearest = np.bincount(target[relation == 6], minlength=60)
    assert nearest.max() == 10
    assert 0 < nearest.min() < 10


def test_the_graph_of_some_residues_has_the_edges_among_them() -> None:
    sample = make_chain(30, 1, (5,))
    graph = protein_graph(sample)
    nodes = np.array([2, 3, 10, 11, 28, 29])
    part = protein_graph(sample, nodes)
    assert part.residues.tolist() == nodes.tolist()
    graph = dataclasses.replace(graph, edges=np.stack([*graph.residues[graph.edges[:2]], graph.edges[2]]))
    named = {(nodes[s], nodes[t], r) for s, t, r in part.edges.T.tolist()}
    inside = np.isin(graph.edges[:2], nodes).all(axis=0)
    assert named == set(map(tuple, graph.edges[:, inside].T.tolist()))


def test_packed_edges_stay_within_their_graphs() -> None:
    batch = pack_graphs([protein_graph(make_chain(n, n)) for n in (12, 30)])
    row = torch.repeat_interleave(torch.arange(42 * NUM_RELATIONS), batch.adjacency.starts.diff())
    assert (batch.graph[row // NUM_RELATIONS] == batch.graph[batch.adjacency.sources]).all()
    assert batch.sizes == (12, 30)


def test_chains_embedded_together_equal_chains_embedded_alone(teacher: GearNetTeacher) -> None:
    chains = [make_chain(25, 1), make_chain(40, 2, (0, 20))]
    for together, chain in zip(teacher.embed_many(chains), chains, strict=True):
        # float32 matrix products of other sizes; untrained edge messages are of size 100
        np.testing.assert_allclose(together, teacher.embed(chain), atol=1e-5, rtol=1e-5)
        assert together.shape == (len(chain), 8)


def test_rows_of_residues_without_backbone_are_zero_and_others_are_not(teacher: GearNetTeacher) -> None:
    chain = make_chain(40, 2, (0, 20))
    rows = teacher.embed(chain)
    assert (rows.any(axis=1) == chain.valid).all()


def test_a_chain_without_any_backbone_gives_zeros(teacher: GearNetTeacher) -> None:
    chain = make_chain(6, 1, tuple(range(6)))
    assert not teacher.embed(chain).any()


def test_embedding_depends_on_structure_and_on_residue_types(teacher: GearNetTeacher) -> None:
    chain = make_chain(40, 3)
    other_types = dataclasses.replace(chain, sequence=chain.sequence[::-1])
    other_fold = dataclasses.replace(make_chain(40, 4), sequence=chain.sequence)
    assert np.abs(teacher.embed(chain) - teacher.embed(other_types)).max() > 0.01
    assert np.abs(teacher.embed(chain) - teacher.embed(other_fold)).max() > 0.01


def test_a_line_graph_joins_edges_end_to_start_in_the_bin_of_their_angle() -> None:
    # A right angle at residue 1, seen from 2: 0 and 2 are 90 degrees apart there; 1 -> 0 after 0 -> 1 turns back.
    positions = np.array([[0.0, 0, 0], [3.8, 0, 0], [3.8, 3.8, 0]])
    target, source = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])
    line = line_graph(target * 7 + 2, source, 7, np.arange(3), positions, np.array([0, 3]))
    pairs = list(zip(source.tolist(), target.tolist(), strict=True))
    rows = torch.repeat_interleave(torch.arange(line.to_pairs.num_rows), line.to_pairs.starts.diff()).tolist()
    heard = {(pairs[s], pairs[r // 8]): r % 8 for r, s in zip(rows, line.to_pairs.sources.tolist(), strict=True)}
    assert all(before[1] == after[0] for before, after in heard)
    assert heard[(0, 1), (1, 2)] == 4
    assert heard[(0, 1), (1, 0)] == 0
    assert heard[(1, 1), (1, 2)] == 0
    assert len(heard) == sum(a[1] == b[0] for a in pairs for b in pairs)


def test_several_relations_of_one_pair_of_residues_share_what_they_hear() -> None:
    batch = pack_graphs([protein_graph(make_chain(60, 1))], with_lines=True)
    line = batch.line
    assert line.num_pairs < len(line.pair)
    first = {}
    for edge, pair in enumerate(line.pair.tolist()):
        ends = line.source[edge].item(), line.target[edge].item()
        assert first.setdefault(pair, ends) == ends


def test_embedding_in_parts_equals_embedding_at_once(teacher: GearNetTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    chains = [make_chain(n, n) for n in (25, 40, 60)]
    together = teacher.embed_many(chains)
    monkeypatch.setattr(gearnet, "RESIDUES_AT_ONCE", {False: 70, True: 70})
    for one, other in zip(together, teacher.embed_many(chains), strict=True):
        # float32 matrix products of other sizes; untrained edge messages are of size 100
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


def test_concatenated_states_end_with_those_of_the_last_layer() -> None:
    torch.manual_seed(0)
    network, chain = GearNet(CONFIG), make_chain(30, 1)
    last, every = (GearNetTeacher(network, "0" * 64, each) for each in ("last", "concat"))
    assert (last.width, every.width) == (8, 16)
    np.testing.assert_array_equal(every.embed(chain)[:, 8:], last.embed(chain))
