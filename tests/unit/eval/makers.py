"""Small real things for evaluation tests: chains with structure, a model, a run folder with checkpoints."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from configs.benchmarks import FeaturesConfig
from configs.loading import dump_config, validate
from configs.train import TrainConfig
from data_pipeline.schema import Sample, to_milli_angstrom
from data_pipeline.shards import write_shards
from data_pipeline.structure.chain import AMINO_ACIDS, THREEDI_STATES
from data_pipeline.structure.place import place_atom
from eval.data import Example
from eval.features import Features
from eval.models.checkpoint_model import CheckpointModel
from pretrain import checkpoints
from pretrain.model.alignment import AlignmentModel
from pretrain.model.shape import trunk_shape

HELIX, STRAND = (np.radians(-60.0), np.radians(-45.0)), (np.radians(-120.0), np.radians(130.0))


def backbone(states: str) -> np.ndarray:
    """float64 [N, 5, 3] ideal backbone of `H` (helix) and `E` (strand) residues, without CB."""
    atoms = [np.array([0.0, 0.0, 0.0]), np.array([1.458, 0.0, 0.0]), np.array([2.0, 1.42, 0.0])]
    for i in range(1, len(states)):
        psi = (HELIX if states[i - 1] == "H" else STRAND)[1]
        phi = (HELIX if states[i] == "H" else STRAND)[0]
        atoms.append(_place(atoms, 1.329, np.radians(116.6), psi))
        atoms.append(_place(atoms, 1.458, np.radians(121.7), np.pi))
        atoms.append(_place(atoms, 1.525, np.radians(111.0), phi))
    coordinates = np.full((len(states), 5, 3), np.nan)
    coordinates[:, :3] = np.array(atoms).reshape(-1, 3, 3)
    for i, state in enumerate(states):
        psi = (HELIX if state == "H" else STRAND)[1]
        oxygen = place_atom(*coordinates[i, :3], 1.231, np.radians(120.5), psi + np.pi)
        coordinates[i, 3] = oxygen
    return coordinates


def _place(atoms: list[np.ndarray], length: float, angle: float, dihedral: float) -> np.ndarray:
    return place_atom(atoms[-3], atoms[-2], atoms[-1], length, angle, dihedral)


def make_sample(key: str, cluster: int, seed: int, num_residues: int = 40) -> Sample:
    """Helices and strands whose residue types follow them, so that there is something to find."""
    random = np.random.default_rng(seed)
    blocks = random.choice(list("HE"), size=-(-num_residues // 8))
    states = "".join(np.repeat(blocks, 8))[:num_residues]
    letters = {"H": list("AELKMQ"), "E": list("VITYFW")}
    sequence = "".join(
        random.choice(letters[s]) if random.random() < 0.8 else random.choice(list(AMINO_ACIDS)) for s in states
    )
    threedi = np.where(np.array(list(states)) == "H", "V", "D")
    noise = random.random(num_residues) < 0.2
    threedi[noise] = random.choice(list(THREEDI_STATES), size=int(noise.sum()))
    coordinates = backbone(states)
    return Sample(
        key=key,
        sequence=sequence,
        threedi="".join(threedi),
        coordinates=to_milli_angstrom(coordinates),
        bfactor=np.zeros(num_residues, dtype=np.float32),
        valid=np.ones(num_residues, dtype=bool),
        threedi_valid=np.arange(num_residues) > 0,
        graphs={},
        facts={},
        cluster=cluster,
        high_quality=True,
    )


def make_example(key: str = "a_A", sequence: str = "MKTAYIAKQR", cluster: int = 0, seed: int = 0) -> Example:
    """A chain with random labels: for what does not look at structure."""
    random = np.random.default_rng(seed)
    n = len(sequence)
    return Example(
        key=key,
        sequence=sequence,
        coordinates=random.normal(scale=8.0, size=(n, 5, 3)),
        threedi=random.integers(-1, 20, size=n),
        secondary=random.integers(-1, 3, size=n),
        cluster=cluster,
    )


def write_test_shards(folder: Path, num_train: int = 12, num_test: int = 6) -> None:
    train = [make_sample(f"t{i:02d}_A", i // 2, seed=i) for i in range(num_train)]
    test = [make_sample(f"x{i:02d}_A", 100 + i // 2, seed=100 + i) for i in range(num_test)]
    write_shards(folder, {"train": train, "test": test}, samples_per_shard=8)


def train_config(
    runs: Path, shards: Path, structure: float = 0.5, family: str = "esm2", contrast: float = 0.5
) -> TrainConfig:
    tree = {
        "stage": "align",
        "name": "small",
        "runs": str(runs),
        "data": {"shards": str(shards), "max_residues": 128, "pack_tokens": 256},
        "trunk": {"family": family, "layers": 2, "width": 32, "heads": 4},
        "losses": {"structure": structure, "contrast": contrast, "projection_width": 16},
        "optimizer": {"steps": 20},
    }
    return validate(TrainConfig, tree, "test")


def make_model(config: TrainConfig, seed: int = 0) -> AlignmentModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AlignmentModel(trunk_shape(config.trunk), config.losses, 8 if config.losses.contrast else None)
        for parameter in model.parameters():
            # Away from the special values of an initialisation (zero biases, unit norms), which hide swapped tensors.
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def make_protein_model(config: TrainConfig, batch_tokens: int = 256, seed: int = 0) -> CheckpointModel:
    """A randomly initialised model behind the door that evaluation uses."""
    model = make_model(config, seed).requires_grad_(False)
    return CheckpointModel(model, f"small seed {seed}", "tiny", hashlib.sha256(bytes([seed])).hexdigest(), batch_tokens)


def make_features(config: TrainConfig, batch_tokens: int = 256, folder: Path | None = None) -> Features:
    return Features(make_protein_model(config, batch_tokens), FeaturesConfig(), batch_tokens, folder)


def write_checkpoint(config: TrainConfig, step: int, seed: int = 0, data_sha256: str = "0" * 64) -> Path:
    """A complete checkpoint of a randomly initialised model in the config's run folder."""
    run = config.runs / config.name
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_config(config))
    model = make_model(config, seed)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = {"step": step, "data_sha256": data_sha256}
    return checkpoints.save(run, step, dump_config(config), state, checkpoints.Share(weights, {}))
