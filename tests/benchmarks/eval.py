"""Masked marginals of real wild types: the fast way beside one forward pass for each position.

`python -m tests.benchmarks.eval`; needs SAPLM_DATA. One thread; CPU-time medians of interleaved rounds. Weights are
random (ESM-2's 8M shape): speed does not depend on them, and both ways must rank mutations alike whatever they are.

* `speedup_fp32`, `speedup_bf16`: over our own trunk run in float32 on one masked copy at a time;
* `speedup_fp32_transformers`: over transformers' EsmForMaskedLM, run so;
* `over_floor`: over bare forward passes of our trunk over all copies, packed, without a head;
* `spearman_difference`: largest change of any assay's Spearman between the loop and the fast way (float32);
  `spearman_difference_bf16`: change of the mean over assays between float32 and bfloat16, `..._bf16_worst` the largest
  change of any assay, at `--bf16-positions` of each wild type (an assay of few mutants has a coarse Spearman).
"""

import argparse
import csv
import io
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from configs.evaluate import EvalConfig
from configs.losses import LossConfig
from eval.marginals import WildType, marginal_tables
from eval.models.batches import batches_of
from eval.models.checkpoint_model import CheckpointModel, pack
from eval.models.open import open_model
from eval.models.protocol import RESIDUES, ProteinModel
from pretrain.model.alignment import AlignmentModel
from pretrain.model.export import write_huggingface_folder
from pretrain.model.shape import TrunkShape
from tests.benchmarks._chains import data_folder
from tests.benchmarks._timing import interleaved, report

SHAPE = TrunkShape("esm2", 6, 320, 20)
BATCH_TOKENS = 1280
WINDOW = 1022


@dataclass(frozen=True)
class Assay:
    """Measured mutations at some positions of a wild type."""

    wild_type: WildType
    mutants: tuple[tuple[int, str], ...]
    """Position and new residue."""
    scores: np.ndarray


def main() -> None:
    """Run the contest and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assays", type=int, default=20)
    parser.add_argument("--positions", type=int, default=8, help="Of each wild type, drawn once.")
    parser.add_argument("--bf16-positions", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    assays = read_assays(options.assays, options.positions)
    jobs = [assay.wild_type for assay in assays]
    model = random_model()
    with tempfile.TemporaryDirectory() as folder:
        write_huggingface_folder(model.model.trunk, Path(folder))
        peer = open_model(folder, EvalConfig(device="cpu", batch_tokens=BATCH_TOKENS))
    passes = bare_passes(model, jobs)
    timings = interleaved(
        {
            "ours": lambda: one_at_a_time(model, jobs),
            "transformers": lambda: one_at_a_time(peer, jobs),
            "fast": lambda: fast(model, jobs, "float32"),
            "bfloat16": lambda: fast(model, jobs, "bfloat16"),
            "bare": passes,
        },
        options.rounds,
    )
    seconds = {name: timing.cpu_seconds for name, timing in timings.items()}
    loop, ours, theirs = one_at_a_time(model, jobs), fast(model, jobs, "float32"), one_at_a_time(peer, jobs)
    more = read_assays(options.assays, options.bf16_positions)
    exact, rough = (spearmans(more, fast(model, [a.wild_type for a in more], p)) for p in ("float32", "bfloat16"))
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    report(
        "eval",
        {
            "speedup_fp32": seconds["ours"] / seconds["fast"],
            "speedup_fp32_transformers": seconds["transformers"] / seconds["fast"],
            "speedup_bf16": seconds["ours"] / seconds["bfloat16"],
            "bf16_matrix_units": "amx_bf16" in flags,
            "over_floor": seconds["fast"] / seconds["bare"],
            "spearman_difference": worst(spearmans(assays, loop), spearmans(assays, ours)),
            "spearman_difference_transformers": worst(spearmans(assays, theirs), spearmans(assays, ours)),
            "spearman_difference_bf16": abs(float(np.mean(exact) - np.mean(rough))),
            "spearman_difference_bf16_worst": worst(exact, rough),
            "wild_types": len(jobs),
            "residues": sum(len(job.sequence) for job in jobs),
            "masked_positions": sum(len(job.positions) for job in jobs),
            "cpu_seconds": {name: round(value, 3) for name, value in seconds.items()},
        },
    )


def random_model() -> CheckpointModel:
    """An ESM-2 of 8 million parameters as it is initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AlignmentModel(SHAPE, LossConfig(structure=0.0, contrast=0.0)).eval().requires_grad_(False)
    return CheckpointModel(model, "random", "esm2 6x320x20", "0" * 64, BATCH_TOKENS)


def one_at_a_time(model: ProteinModel, jobs: list[WildType]) -> list[np.ndarray]:
    """A forward pass for each position, which is the published recipe."""
    tables = []
    for job in jobs:
        table = np.full((len(job.sequence), len(RESIDUES)), np.nan)
        for position in job.positions:
            table[position] = model.masked_log_probs([(job.sequence, np.array([position]))])[0][0].numpy()
        tables.append(table)
    return tables


def fast(model: CheckpointModel, jobs: list[WildType], precision: str) -> list[np.ndarray]:
    """All positions of all wild types together."""
    return marginal_tables(model, jobs, "masked", WINDOW, BATCH_TOKENS, precision)


def bare_passes(model: CheckpointModel, jobs: list[WildType]):
    """Forward passes over all copies, whose tokens are there already."""
    copies = []
    for job in jobs:
        for position in job.positions.tolist():
            tokens = model.tokens_of(job.sequence)
            tokens[position + 1] = model.alphabet.mask_id
            copies.append(tokens)
    packs = [
        pack([copies[i] for i in batch], torch.device("cpu"))
        for batch in batches_of([len(tokens) for tokens in copies], BATCH_TOKENS)
    ]

    @torch.inference_mode()
    def run() -> None:
        for packed in packs:
            model.encoder(packed)

    return run


def spearmans(assays: list[Assay], tables: list[np.ndarray]) -> np.ndarray:
    """Of log p(mutant) - log p(wild type) with the measured effect, for each assay."""

    def of(assay: Assay, table: np.ndarray) -> float:
        wild = assay.wild_type.sequence
        effects = [table[p, RESIDUES.index(new)] - table[p, RESIDUES.index(wild[p])] for p, new in assay.mutants]
        return float(spearmanr(effects, assay.scores).statistic)

    return np.array([of(assay, table) for assay, table in zip(assays, tables, strict=True)])


def worst(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference."""
    return float(np.abs(first - second).max())


def read_assays(number: int, positions: int) -> list[Assay]:
    """The first distinct wild types by name that fit the window, and some of their mutated positions."""
    fastas, tables = {}, {}
    with tarfile.open(data_folder() / "benchmarks" / "proteingym_single_sites.tar.xz") as archive:
        for member in archive:
            folder, stem = Path(member.name).parent.name, Path(member.name).stem
            if folder in ("fasta", "mutant") and member.isfile():
                (fastas if folder == "fasta" else tables)[stem] = archive.extractfile(member).read().decode()
    generator, found = np.random.default_rng(0), {}
    for name in sorted(fastas.keys() & tables.keys()):
        sequence = "".join(fastas[name].splitlines()[1:]).upper()
        rows = [(row["mutant"], float(row["score"])) for row in csv.DictReader(io.StringIO(tables[name]))]
        fitting = [(int(m[1:-1]) - 1, m[0], m[-1], score) for m, score in rows]
        fitting = [f for f in fitting if f[0] < len(sequence) and sequence[f[0]] == f[1] and f[2] in RESIDUES]
        sites = sorted({f[0] for f in fitting})
        if sequence in found or len(sequence) > WINDOW or len(sites) < 30 or set(sequence) - set(RESIDUES):
            continue
        chosen = set(generator.choice(sites, min(positions, len(sites)), replace=False).tolist())
        kept = [f for f in fitting if f[0] in chosen]
        found[sequence] = Assay(
            WildType(sequence, np.array(sorted(chosen))),
            tuple((f[0], f[2]) for f in kept),
            np.array([f[3] for f in kept]),
        )
        if len(found) == number:
            break
    return list(found.values())


if __name__ == "__main__":
    main()
