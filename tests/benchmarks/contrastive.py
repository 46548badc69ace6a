"""The tiled residue InfoNCE against the dense one: time, memory, agreement; and its memory at 65,536 residues.

`python -m tests.benchmarks.contrastive [--rounds 3] [--skip-large]`. Forward and backward in float32 with one thread,
D = 512, no exclusions (the dense loss would need another N x N mask for them). Each pass runs in a fresh process after
a small warm-up; tiled and dense take turns. Memory is the growth of the process's peak resident set over that before
the pass, less the gradients that the pass leaves behind. The dense loss needs about 3 GB.

Keys: `memory_ratio` and `time_ratio` (CPU time) at N = 12,288, `max_difference` of loss and gradients
(absolute, and relative to the largest where that is below 1), `peak_mb_at_65536`; MB are 10^6 bytes.
"""

import argparse
import ctypes
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.losses.contrast import contrast_losses
from tests.benchmarks._timing import report

RESIDUES, MANY_RESIDUES, WARMUP_RESIDUES = 12_288, 65_536, 2_048
WIDTH = 512
TEMPERATURE = 0.07


def tiled(sequence: Tensor, structure: Tensor, log_scale: Tensor) -> Tensor:
    """The mean of both directions, in tiles."""
    losses = contrast_losses(sequence, structure, log_scale.exp())
    return 0.5 * (losses.sequence_to_structure.mean() + losses.structure_to_sequence.mean())


def dense(sequence: Tensor, structure: Tensor, log_scale: Tensor) -> Tensor:
    """The same by the matrix of all similarities and two cross entropies."""
    logits = log_scale.exp() * (sequence @ structure.T)
    target = torch.arange(len(logits))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


LOSSES = {"tiled": tiled, "dense": dense}


def measure(name: str, residues: int, keep: Path | None = None) -> dict[str, float]:
    """CPU seconds and peak MB of one pass in this process; its loss and gradients go to the file `keep`."""
    torch.set_num_threads(1)
    run_pass(name, WARMUP_RESIDUES)
    return run_pass(name, residues, keep)


def run_pass(name: str, residues: int, keep: Path | None = None) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    leaves = {}
    for side in ("sequence", "structure"):
        rows = torch.randn(residues, WIDTH, generator=generator)
        leaves[side] = rows.div_(rows.norm(dim=1, keepdim=True)).requires_grad_()
    # Rows that resemble their positives, as after some training, give gradients of both signs.
    with torch.no_grad():
        leaves["structure"].add_(leaves["sequence"])
        leaves["structure"].div_(leaves["structure"].norm(dim=1, keepdim=True))
    leaves["log_scale"] = torch.tensor(math.log(1 / TEMPERATURE), requires_grad=True)
    # Memory that earlier work freed must count again where this pass takes it.
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    # Writing 5 resets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    begun = time.process_time()
    loss = LOSSES[name](*leaves.values())
    loss.backward()
    seconds = time.process_time() - begun
    gradients = {side: leaf.grad for side, leaf in leaves.items()}
    peak = resident("VmHWM") - before - sum(gradient.nbytes for gradient in gradients.values())
    if keep is not None:
        save_file({"loss": loss.detach(), **gradients}, keep)
    return {"seconds": seconds, "peak_mb": peak / 1e6}


def resident(what: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the peak)."""
    return 1024 * int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def in_fresh_process(name: str, residues: int, keep: Path | None = None) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.contrastive", "--measure", name, "--residues", str(residues)]
    command += ["--keep", str(keep)] if keep else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name:>6} {residues:>6,} residues: {found['seconds']:7.2f} s CPU, {found['peak_mb']:8.1f} MB", flush=True)
    return found


def compare(rounds: int, folder: Path) -> dict[str, float]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LOSSES}
    for _ in range(rounds):
        for name, figures in found.items():
            figures.append(in_fresh_process(name, RESIDUES, folder / name))
    seconds, peaks = (
        {name: statistics.median(each[key] for each in figures) for name, figures in found.items()}
        for key in ("seconds", "peak_mb")
    )
    ours, theirs = load_file(folder / "tiled"), load_file(folder / "dense")
    differences = {}
    for name, tensor in theirs.items():
        largest = float(tensor.abs().max())
        # Gradients of a mean over 12,288 residues are small: they are compared in units of their largest.
        differences[name] = float((ours[name] - tensor).abs().max()) / min(1.0, largest)
        print(f"{name}: up to {largest:.1e}, differs by {differences[name]:.1e}")
    return {
        "memory_ratio": peaks["dense"] / peaks["tiled"],
        "time_ratio": seconds["tiled"] / seconds["dense"],
        "max_difference": max(differences.values()),
        "tiled_seconds": seconds["tiled"],
        "dense_seconds": seconds["dense"],
        "tiled_peak_mb": peaks["tiled"],
        "dense_peak_mb": peaks["dense"],
    }


def main() -> None:
    """Compare, then measure the large pool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="passes of each; medians are reported")
    parser.add_argument("--skip-large", action="store_true", help="leave out 65,536 residues (minutes of CPU time)")
    parser.add_argument("--measure", choices=list(LOSSES), help=argparse.SUPPRESS)
    parser.add_argument("--residues", type=int, default=RESIDUES, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.residues, options.keep)))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(options.rounds, Path(folder))
    if not options.skip_large:
        figures["peak_mb_at_65536"] = in_fresh_process("tiled", MANY_RESIDUES)["peak_mb"]
    report("contrastive", figures)


if __name__ == "__main__":
    main()
