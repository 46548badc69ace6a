"""Residue graphs, their packing, and the GearNet teacher."""

import dataclasses

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.teacher import GearNetConfig, TeacherConfig
from pretrain.teachers.gearnet import GearNet, GearNetTeacher
from pretrain.teachers.load import load_teacher
from pretrain.teachers.residue_graph import NUM_RELATIONS, pack_graphs, protein_graph
from tests.unit.pretrain.chains import make_chain

CONFIG = GearNetConfig(layers=2, width=8)


@pytest.fixture(scope="module")
def teacher() -> GearNetTeacher:
    torch.manual_seed(0)
    return GearNetTeacher(GearNet(CONFIG), "0" * 64)


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
    assert np.bincount(target[relation == 6]).tolist() == [10] * 60


def test_a_subgraph_keeps_the_edges_among_its_nodes() -> None:
    graph = protein_graph(make_chain(30, 1))
    nodes = np.array([2, 3, 10, 11])
    part = graph.subgraph(nodes)
    named = {(nodes[s], nodes[t], r) for s, t, r in part.edges.T.tolist()}
    inside = np.isin(graph.edges[:2], nodes).all(axis=0)
    assert named == set(map(tuple, graph.edges[:, inside].T.tolist()))


def test_packed_edges_stay_within_their_graphs() -> None:
    batch = pack_graphs([protein_graph(make_chain(n, n)) for n in (12, 30)])
    row, source = batch.adjacency.as_tensor()
    assert (batch.graph[row // NUM_RELATIONS] == batch.graph[source]).all()
    assert batch.sizes == (12, 30)


def test_chains_embedded_together_equal_chains_embedded_alone(teacher: GearNetTeacher) -> None:
    chains = [make_chain(25, 1), make_chain(40, 2, (0, 20))]
    for together, chain in zip(teacher.embed_many(chains), chains, strict=True):
        # float32 matrix products of other sizes
        np.testing.assert_allclose(together, teacher.embed(chain), atol=1e-5)
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


@pytest.mark.parametrize("kind", ["gearnet", "mpnn"])
def test_a_teacher_without_weights_is_a_user_error(kind: str, tmp_path) -> None:
    with pytest.raises(UserError, match=r"teacher\.weights is not set"):
        load_teacher(TeacherConfig(kind=kind))
    with pytest.raises(UserError, match="missing"):
        load_teacher(TeacherConfig(kind=kind, weights=tmp_path / "missing"))
