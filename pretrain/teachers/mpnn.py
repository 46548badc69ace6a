"""The structure-only MPNN encoder (ProteinMPNN form, Dauparas et al. 2022) with weights from a numpy archive.

It sees backbone geometry only: no residue identity, and no sequence order either, because every edge between different
residues carries the positional feature of another chain. N residues, K neighbours, D width.
"""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor, nn

from configs.errors import UserError
from data_pipeline.schema import Sample
from data_pipeline.structure.geometry import virtual_cb
from data_pipeline.structure.place import place_atom

NUM_NEIGHBOURS = 64
"""Nearest residues by CA, the residue itself included."""
NUM_RBF = 16
RBF_RANGE = (2.0, 22.0)
"""Angstrom: first and last centre of the distance features."""
MESSAGE_SCALE = 30.0
"""Summed messages are divided by this, however many neighbours there are."""
SELF_POSITION, OTHER_POSITION = 32, 65
"""Rows of the positional table for the edge to itself and for every other edge."""
FOURTH_ATOM = (1.522, 1.927, -2.143)
"""Bond (Angstrom), angle and dihedral (radians) that place a virtual CB where the published model has the oxygen."""
_N, _CA, _C, _FOURTH, _CB = range(5)
_PAIRS = (
    (_CA, _CA), (_N, _N), (_C, _C), (_FOURTH, _FOURTH), (_CB, _CB), (_CA, _N), (_CA, _C), (_CA, _FOURTH), (_CA, _CB),
    (_N, _C), (_N, _FOURTH), (_N, _CB), (_CB, _C), (_CB, _FOURTH), (_FOURTH, _C), (_N, _CA), (_C, _CA), (_FOURTH, _CA),
    (_CB, _CA), (_C, _N), (_FOURTH, _N), (_CB, _N), (_C, _CB), (_FOURTH, _CB), (_C, _FOURTH),
)  # fmt: skip
"""Order of the 25 atom pairs (of the residue, of its neighbour) whose distances are edge features."""
FEATURE_ROWS = 512
"""Residues whose 400 distance features per edge are computed at a time: 52 MB."""


class MpnnLayer(nn.Module):
    """One round of messages to nodes, then to edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Linear maps of the concatenation (node, edge, neighbour) are applied per part: no [N, K, 3D] tensor is formed.
        self.node_message = nn.ModuleList(
            [nn.Linear(3 * width, width), nn.Linear(width, width), nn.Linear(width, width)]
        )
        self.edge_message = nn.ModuleList(
            [nn.Linear(3 * width, width), nn.Linear(width, width), nn.Linear(width, width)]
        )
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def forward(self, nodes: Tensor, edges: Tensor, neighbours: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D], [N, K, D], int64 [N, K], float [N, K, 1] -> new nodes and edges."""
        message = _message(self.node_message, nodes, edges, neighbours) * present
        nodes = self.norms[0](nodes + message.sum(1) / MESSAGE_SCALE)
        nodes = self.norms[1](nodes + self.narrow(F.gelu(self.widen(nodes))))
        edges = self.norms[2](edges + _message(self.edge_message, nodes, edges, neighbours))
        return nodes, edges


def _message(maps: nn.ModuleList, nodes: Tensor, edges: Tensor, neighbours: Tensor) -> Tensor:
    first, second, third = maps
    of_node, of_edge, of_neighbour = first.weight.chunk(3, dim=1)
    hidden = F.linear(edges, of_edge, first.bias)
    hidden += F.linear(nodes, of_node)[:, None]
    hidden += F.linear(nodes, of_neighbour)[neighbours]
    return third(F.gelu(second(F.gelu(hidden))))


class MpnnEncoder(nn.Module):
    """Distance features of a k-nearest-neighbour graph, then message passing; nodes start at zero."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.position = nn.Linear(OTHER_POSITION + 1, NUM_RBF)
        self.features = nn.Linear(NUM_RBF * (1 + len(_PAIRS)), width, bias=False)
        self.norm_features = nn.LayerNorm(width)
        self.edges = nn.Linear(width, width)
        self.layers = nn.ModuleList([MpnnLayer(width) for _ in range(layers)])

    def forward(self, atoms: Tensor, neighbours: Tensor, present: Tensor) -> Tensor:
        """Node embeddings [N, D].

        Args:
            atoms: float32 [N, 5, 3] Angstrom: N, CA, C, fourth atom, CB.
            neighbours: int64 [N, K].
            present: bool [N, K]; false where a short chain has fewer than K.
        """
        rows = torch.arange(len(atoms)).split(FEATURE_ROWS)
        edges = torch.cat([self._edge_features(atoms, chunk, neighbours[chunk]) for chunk in rows])
        nodes = edges.new_zeros(len(atoms), edges.shape[-1])
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, neighbours, present[..., None].to(edges.dtype))
        return nodes

    def _edge_features(self, atoms: Tensor, rows: Tensor, neighbours: Tensor) -> Tensor:
        own, other = (list(x) for x in zip(*_PAIRS, strict=True))
        difference = atoms[rows][:, None, own] - atoms[:, other][neighbours]
        distance = (difference.square().sum(-1) + 1e-6).sqrt()
        centres = torch.linspace(*RBF_RANGE, NUM_RBF)
        width = (RBF_RANGE[1] - RBF_RANGE[0]) / NUM_RBF
        rbf = ((distance[..., None] - centres) / width).square_().neg_().exp_().flatten(2)
        position = torch.where(neighbours == rows[:, None], SELF_POSITION, OTHER_POSITION)
        encoded = self.position.weight.T[position] + self.position.bias
        return self.edges(self.norm_features(self.features(torch.cat([encoded, rbf], dim=-1))))


class MpnnTeacher:
    """The pretrained encoder as a teacher: no gradient, residues without a backbone left out."""

    kind = "mpnn"

    def __init__(self, encoder: MpnnEncoder, weights_sha256: str) -> None:
        self._encoder = encoder.eval().requires_grad_(False)
        self.width = encoder.edges.out_features
        self.weights_sha256 = weights_sha256

    def embed(self, sample: Sample) -> np.ndarray:
        return self.embed_many([sample])[0]

    def embed_many(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        results = [np.zeros((len(sample), self.width), dtype=np.float32) for sample in samples]
        backbones = [sample.angstrom()[sample.valid, :3] for sample in samples]
        filled = [number for number, backbone in enumerate(backbones) if len(backbone)]
        if not filled:
            return results
        graphs = [_nearest(backbones[number][:, 1]) for number in filled]
        offsets = np.cumsum([0, *(len(backbones[number]) for number in filled)])
        neighbours = np.concatenate([index + at for (index, _), at in zip(graphs, offsets[:-1], strict=True)])
        present = np.concatenate([mask for _, mask in graphs])
        atoms = np.concatenate([_five_atoms(backbones[number]) for number in filled]).astype(np.float32)
        with torch.inference_mode():
            nodes = self._encoder(*(torch.from_numpy(x) for x in (atoms, neighbours, present))).numpy()
        for number, start, stop in zip(filled, offsets[:-1], offsets[1:], strict=True):
            results[number][samples[number].valid] = nodes[start:stop]
        return results


def _five_atoms(backbone: np.ndarray) -> np.ndarray:
    """float64 [N, 5, 3] of N, CA, C [N, 3, 3], centred so that float32 holds it well."""
    n, ca, c = np.moveaxis(backbone - backbone[:, 1].mean(0), 1, 0)
    return np.stack([n, ca, c, place_atom(c, n, ca, *FOURTH_ATOM), virtual_cb(n, ca, c)], axis=1)


def _nearest(ca: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N, K] nearest residues, itself included, and which of them exist; absent ones are residue 0."""
    k = min(len(ca), NUM_NEIGHBOURS)
    neighbours, present = np.zeros((len(ca), NUM_NEIGHBOURS), dtype=np.int64), np.zeros((len(ca), NUM_NEIGHBOURS), bool)
    neighbours[:, :k] = cKDTree(ca).query(ca, k=np.arange(1, k + 1))[1]
    present[:, :k] = True
    return neighbours, present


def load_mpnn(path: Path) -> MpnnTeacher:
    """The encoder from its numpy archive (names of the published haiku parameters).

    Raises:
        UserError: not there, not a numpy archive, or not this model's arrays.
    """
    remedy = "teacher.weights must name the .npz of the structure-only MPNN encoder"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"teacher.weights {path}: no such file; {remedy}") from None
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"teacher.weights {path}: not a numpy archive ({error}); {remedy}") from None
    try:
        state = _state_of(arrays)
        encoder = MpnnEncoder(*arrays["W_e.b"].shape, layers=sum(name.endswith("norm1.scale") for name in arrays))
        encoder.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        detail = str(error).splitlines()[0]
        raise UserError(f"teacher.weights {path}: foreign or incomplete arrays ({detail}); {remedy}") from None
    return MpnnTeacher(encoder, hashlib.sha256(path.read_bytes()).hexdigest())


_LAYER_NAMES = {
    "W1": "node_message.0", "W2": "node_message.1", "W3": "node_message.2",
    "W11": "edge_message.0", "W12": "edge_message.1", "W13": "edge_message.2",
    "dense_W_in": "widen", "dense_W_out": "narrow", "norm1": "norms.0", "norm2": "norms.1", "norm3": "norms.2",
}  # fmt: skip
_FEATURE_NAMES = {
    "edge_embedding": "features",
    "norm_edges": "norm_features",
    "embedding_linear": "position",
    "W_e": "edges",
}
_KINDS = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}


def _state_of(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Our state dict of the published names, e.g. `enc_layer_1/~/enc1_W11.w` -> `layers.1.edge_message.0.weight`."""
    state = {}
    for name, array in arrays.items():
        module, kind = name.rsplit("/", 1)[-1].rsplit(".", 1)
        if module in _FEATURE_NAMES:
            target = _FEATURE_NAMES[module]
        else:
            layer, part = module.removeprefix("enc").split("_", 1)
            target = f"layers.{layer}.{_LAYER_NAMES[part]}"
        # haiku multiplies from the right: x @ w with w [in, out].
        state[f"{target}.{_KINDS[kind]}"] = torch.from_numpy(array.T.copy() if kind == "w" else array)
    return state
