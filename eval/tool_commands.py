"""Commands on sequences: `python -m eval embed` and `python -m eval tokens`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

_MODEL = typer.Argument(
    help="A run or checkpoint folder, a folder of transformers, hf:ORG/NAME, or callable:package.module:function."
)
_FASTA = typer.Argument(help="FASTA file of any size, plain or gzipped.")
_TOKENS = typer.Option("--batch-tokens", min=64, help="Tokens of one forward pass.")
_PRECISION = typer.Option("--precision", help="Of the forward passes; what is written is float32.")
_DEVICE = typer.Option("--device", help="Where the model runs.")
_QUIET = typer.Option("--quiet", help="No progress on stderr.")
Precisions = Literal["float32", "bfloat16"]
Devices = Literal["auto", "cpu", "cuda"]


def embed(
    checkpoint: Annotated[str, _MODEL],
    fasta: Annotated[Path, _FASTA],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write: .safetensors, .h5 or .npz.")],
    per_residue: Annotated[
        bool, typer.Option("--per-residue/--mean", help="A row for every residue, or their mean.")
    ] = False,
    file_format: Annotated[
        Literal["safetensors", "h5", "npz"] | None, typer.Option("--format", help="Default: by the file's name.")
    ] = None,
    batch_tokens: Annotated[int, _TOKENS] = 4096,
    precision: Annotated[Precisions, _PRECISION] = "float32",
    device: Annotated[Devices, _DEVICE] = "auto",
    quiet: Annotated[bool, _QUIET] = False,
) -> None:
    """Embed the sequences of a FASTA file."""
    from eval.embed import run_embed

    done = run_embed(
        checkpoint, fasta, output, per_residue, file_format, batch_tokens, precision, device, progress=not quiet
    )
    rows = done.num_residues if per_residue else done.num_sequences
    typer.echo(f"embedded {done.num_sequences:,} sequences, {rows:,} rows, {done.seconds:.1f} s: {done.path}")


def tokens(
    checkpoint: Annotated[str, _MODEL],
    fasta: Annotated[Path, _FASTA],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    batch_tokens: Annotated[int, _TOKENS] = 4096,
    precision: Annotated[Precisions, _PRECISION] = "float32",
    device: Annotated[Devices, _DEVICE] = "auto",
    quiet: Annotated[bool, _QUIET] = False,
) -> None:
    """Predict 3Di tokens of the sequences of a FASTA file, ready for a Foldseek database."""
    from eval.tokens import FOLDSEEK_COMMANDS, run_tokens

    done = run_tokens(checkpoint, fasta, output, batch_tokens, precision, device, progress=not quiet)
    typer.echo(
        f"predicted {done.num_residues:,} residues of {done.num_sequences:,} sequences, mean confidence "
        f"{done.mean_confidence:.2f}, {done.seconds:.1f} s: {done.folder}"
    )
    typer.echo(f"database: cd {done.folder} && {' && '.join(FOLDSEEK_COMMANDS)}")


def register(app: typer.Typer) -> None:
    """Add both commands to an application."""
    app.command(
        epilog="Examples:  python -m eval embed runs/align proteins.fasta.gz -o proteins.h5  |  "
        "python -m eval embed hf:facebook/esm2_t6_8M_UR50D proteins.fasta -o residues.safetensors --per-residue"
    )(embed)
    app.command(epilog="Example:  python -m eval tokens runs/align proteins.fasta.gz -o predicted")(tokens)
