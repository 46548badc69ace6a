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
LARGEST_EXPONENT = 80.0
"""exp(-80) is the same as nothing beside 1, and a normal number: subnormal ones are five times as slow."""
EDGES_AT_ONCE = {"cpu": 1024, "cuda": 2**20}
"""Edges computed at a time: on a CPU their tensors stay in its cache (a factor of four), on a GPU they fill it."""


class MpnnLayer(nn.Module):
    """One round of messages to nodes, then to edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.node_message = nn.ModuleList(
            [nn.Linear(3 * width, width), nn.Linear(width, width), nn.Linear(width, width)]
        )
        self.edge_message = nn.ModuleList(
            [nn.Linear(3 * width, width), nn.Linear(width, width), nn.Linear(width, width)]
        )
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def summed(self, edges: Tensor, terms: "Terms | None", rows: slice, present: Tensor) -> Tensor:
        """Sums [R, D] over the neighbours of the messages to some nodes, before the last linear map."""
        hidden = _hidden(self.node_message, edges, terms, rows)
        # The last map is linear: it is applied once to the sum, not to each of K messages.
        return torch.bmm(present[rows, None], hidden.view(*present[rows].shape, -1))[:, 0]

    def updated_nodes(self, nodes: Tensor, summed: Tensor, present: Tensor) -> Tensor:
        """New nodes [N, D] of the old ones and the messages' sums over all N nodes."""
        last = self.node_message[2]
        message = F.linear(summed, last.weight) + present.sum(1, keepdim=True) * last.bias
        nodes = self.norms[0](nodes + message / MESSAGE_SCALE)
        return self.norms[1](nodes + self.narrow(F.gelu(self.widen(nodes))))

    def updated_edges(self, edges: Tensor, terms: "Terms", rows: slice) -> Tensor:
        """New edges [R * K, D] of the old ones."""
        return self.norms[2](self.edge_message[2](_hidden(self.edge_message, edges, terms, rows)).add_(edges))


class Terms:
    """What nodes add to the first linear map of the messages along edges, computed once per node.

    The map of the concatenation (node, edge, neighbour) is the sum of three maps, so no [N, K, 3D] tensor is formed.
    """

    def __init__(self, maps: nn.ModuleList, nodes: Tensor, neighbours: Tensor) -> None:
        of_node, _, of_neighbour = maps[0].weight.chunk(3, dim=1)
        self._own = F.linear(nodes, of_node, maps[0].bias)
        self._other = F.linear(nodes, of_neighbour)
        self._neighbours = neighbours

    def add_to(self, hidden: Tensor, rows: slice) -> Tensor:
        """Add the terms of some nodes' edges to [R * K, D] in place."""
        neighbours = self._neighbours[rows]
        hidden += self._other.index_select(0, neighbours.flatten())
        hidden.view(*neighbours.shape, -1).add_(self._own[rows, None])
        return hidden


def _hidden(maps: nn.ModuleList, edges: Tensor, terms: Terms | None, rows: slice) -> Tensor:
    """[R * K, D] after the second of three linear maps; no terms where all nodes are still zero."""
    of_edge = maps[0].weight.chunk(3, dim=1)[1]
    if terms is None:
        hidden = F.linear(edges, of_edge, maps[0].bias)
    else:
        hidden = terms.add_to(F.linear(edges, of_edge), rows)
    return F.gelu(maps[1](F.gelu(hidden)))


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
        present = present.to(atoms.dtype)
        step = EDGES_AT_ONCE[atoms.device.type] // neighbours.shape[1]
        blocks = [slice(at, min(at + step, len(atoms))) for at in range(0, len(atoms), step)]
        features = DistanceFeatures(self, atoms, neighbours)
        nodes = atoms.new_zeros(len(atoms), self.edges.out_features)
        stored: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            # Edges are updated when the next layer reads them, so that the last update, which none reads, is left out.
            before = self.layers[number - 1] if number else None
            for_edges = Terms(before.edge_message, nodes, neighbours) if before else None
            for_nodes = Terms(layer.node_message, nodes, neighbours) if before else None
            summed = []
            for block, rows in enumerate(blocks):
                if before is None or for_edges is None:
                    stored.append(features.edges(rows))
                else:
                    stored[block] = before.updated_edges(stored[block], for_edges, rows)
                summed.append(layer.summed(stored[block], for_nodes, rows, present))
            nodes = layer.updated_nodes(nodes, torch.cat(summed), present)
        return nodes


class DistanceFeatures:
    """Edge features from the distances of all pairs of atoms of two residues."""

    def __init__(self, encoder: MpnnEncoder, atoms: Tensor, neighbours: Tensor) -> None:
        self._encoder = encoder
        width = (RBF_RANGE[1] - RBF_RANGE[0]) / NUM_RBF
        self._neighbours = neighbours
        # Distances are computed in units of the radial functions' width.
        self._atoms = (atoms / width).permute(2, 0, 1).contiguous()
        self._least = 1e-6 / width**2
        self._centres = torch.linspace(*RBF_RANGE, NUM_RBF, device=atoms.device) / width
        at_position, at_distance = encoder.features.weight.split([NUM_RBF, NUM_RBF * len(_PAIRS)], dim=1)
        # Here the 25 pairs stand in the order of the two atoms' numbers.
        order = sorted(range(len(_PAIRS)), key=_PAIRS.__getitem__)
        self._weight = at_distance.unflatten(1, (len(_PAIRS), NUM_RBF))[:, order].flatten(1)
        positions = encoder.position.weight.T[[SELF_POSITION, OTHER_POSITION]] + encoder.position.bias
        self._of_self, self._of_other = positions @ at_position.T

    def edges(self, rows: slice) -> Tensor:
        """First edge states [R * K, D] of some residues."""
        neighbours = self._neighbours[rows]
        squared: Tensor | None = None
        for axis in self._atoms:
            difference = axis[rows, None, :, None] - axis[neighbours][:, :, None, :]
            squared = difference.square_() if squared is None else squared.addcmul_(difference, difference)
        assert squared is not None
        distance = squared.add_(self._least).sqrt_().flatten(0, 1).flatten(1)
        radial = (distance[..., None] - self._centres).square_().clamp_(max=LARGEST_EXPONENT).neg_().exp_()
        radial = radial.flatten(1)
        own = torch.arange(rows.start, rows.stop, device=neighbours.device)[:, None]
        position = torch.where((neighbours == own)[..., None], self._of_self, self._of_other).flatten(0, 1)
        embedded = torch.addmm(position, radial, self._weight.T)
        return self._encoder.edges(self._encoder.norm_features(embedded))


class MpnnTeacher:
    """The pretrained encoder as a teacher: no gradient, residues without a backbone left out."""

    kind = "mpnn"

    def __init__(self, encoder: MpnnEncoder, weights_sha256: str) -> None:
        self._encoder = encoder.eval().requires_grad_(False)
        self._device = torch.device("cpu")
        self.width = encoder.edges.out_features
        self.weights_sha256 = weights_sha256

    def embed(self, sample: Sample) -> np.ndarray:
        return self.embed_many([sample])[0]

    def to(self, device: torch.device | str) -> "MpnnTeacher":
        """The same teacher, computing on `device`."""
        self._device = torch.device(device)
        self._encoder.to(self._device)
        return self

    def embed_many(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        results = [np.zeros((len(sample), self.width), dtype=np.float32) for sample in samples]
        filled = [(result, sample) for result, sample in zip(results, samples, strict=True) if sample.valid.any()]
        if self._device.type == "cpu":
            # A chain fills the cache already, and one by one its embedding cannot depend on the others.
            for result, sample in filled:
                result[sample.valid] = self._nodes([sample])
        elif filled:
            nodes = np.split(self._nodes([s for _, s in filled]), np.cumsum([s.valid.sum() for _, s in filled])[:-1])
            for (result, sample), part in zip(filled, nodes, strict=True):
                result[sample.valid] = part
        return results

    def _nodes(self, samples: Sequence[Sample]) -> np.ndarray:
        """float32 [N, width] of the residues with a backbone of chains that have some, laid side by side."""
        backbones = [sample.angstrom()[sample.valid, :3] for sample in samples]
        graphs = [_nearest(backbone[:, 1]) for backbone in backbones]
        offsets = np.cumsum([0, *map(len, backbones)])
        neighbours = np.concatenate([index + at for (index, _), at in zip(graphs, offsets[:-1], strict=True)])
        present = np.concatenate([mask for _, mask in graphs])
        atoms = np.concatenate([_five_atoms(backbone) for backbone in backbones]).astype(np.float32)
        with torch.inference_mode():
            inputs = (torch.from_numpy(x).to(self._device) for x in (atoms, neighbours, present))
            return self._encoder(*inputs).cpu().numpy()


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
