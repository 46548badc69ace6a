"""Command line of the package: `python -m pretrain train|derive|export|plot-selection`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from configs.loading import dump_config, load_config
from configs.train import TrainConfig

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML, e.g. configs/pretrain/demo_align.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Overrides, e.g. optimizer.steps=50.")
]
Form = Literal["fair-esm", "huggingface", "amplify"]
app = typer.Typer(
    help="Train protein language models, their teachers and reference models: shards -> checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
derive = typer.Typer(help="Write derived columns beside the shards.", no_args_is_help=True)
app.add_typer(derive, name="derive")


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved config and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory, steps per epoch and time, then stop.")
    ] = False,
) -> None:
    """Train the config's stage (teacher, reference or align) to RUNS/NAME/, continuing where a run stands.

    \b
    Examples:
      python -m pretrain train configs/pretrain/demo_align.yaml
      python -m pretrain train configs/pretrain/demo_mlm.yaml engine.launcher=env engine.num_workers=1
      python -m pretrain train configs/pretrain/saesm2_650M.yaml --dry-run
      torchrun --nproc-per-node 2 -m pretrain train configs/pretrain/demo_align.yaml engine.launcher=env
    """
    resolved = load_config(TrainConfig, config, overrides or ())
    if print_config:
        sys.stdout.write(dump_config(resolved))
        return
    if dry_run:
        from pretrain.estimate import print_estimate

        print_estimate(resolved)
        return
    from pretrain.launch import train as run_training

    raise typer.Exit(run_training(resolved))


@app.command("export")
def export_trunk(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, or a run's last good.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="esm2*.pt, a folder, or a .safetensors file; must not exist.")
    ],
    form: Annotated[Form, typer.Option(help="fair-esm (ESM-2), huggingface (all) or amplify (its own keys).")],
    contacts: Annotated[
        Path | None, typer.Option(help="Contact regression; default: the one RUN/eval refitted on these weights.")
    ] = None,
) -> None:
    """Write the trunk of a checkpoint for fair-esm, for transformers without remote code, or in AMPLIFY's keys.

    \b
    Examples:
      python -m pretrain export runs/saesm2-650M --form fair-esm -o export/esm2_t33_650M_sa.pt
      python -m pretrain export runs/saesm2-650M/checkpoints/step_00004883 --form huggingface -o export/saesm2-650M
      python -m pretrain export runs/saamplify-350M --form amplify -o export/saamplify-350M.safetensors
    """
    from pretrain.export import export

    written = export(checkpoint, form, output, contacts)
    typer.echo(f"wrote    {', '.join(map(str, written.paths))} ({written.num_bytes / 2**20:,.1f} MiB)")
    if form != "amplify":
        typer.echo(f"contacts {written.contacts or 'none fitted: where the form has a contact head, it is zeros'}")


@app.command("plot-selection")
def plot_selection_of_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, e.g. runs/align.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: RUN/selection.png.")] = None,
) -> None:
    """Draw which residues the loss selection kept over a run: by pLDDT, B-factor and secondary structure.

    \b
    Example:
      python -m pretrain plot-selection runs/align -o selection.png
    """
    from pretrain.selection_plot import plot_selection

    typer.echo(f"wrote {plot_selection(run, output)}")


@derive.command("teacher")
def derive_teacher_column(
    config: ConfigPath,
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder written by `data_pipeline build`.")],
    overrides: Overrides = None,
) -> None:
    """Embed every chain with the config's frozen teachers and write their columns beside the shards.

    \b
    Example:
      python -m pretrain derive teacher configs/pretrain/demo_align.yaml demo/shards
      python -m pretrain derive teacher CONFIG SHARDS derive.num_workers=8 derive.form=int8
    """
    resolved = load_config(TrainConfig, config, overrides or ())
    from pretrain.derive import derive_teacher

    derive_teacher(resolved, shards)


@derive.command("reference")
def derive_reference_column(
    config: ConfigPath,
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder written by `data_pipeline build`.")],
    overrides: Overrides = None,
) -> None:
    """Write what the config's reference model loses on every chain as the column `selection.column`.

    Training then needs no forward pass of the reference, at the price of an approximation: 3Di losses are means over
    `derive.masks` fixed masks, and contrast losses come from cached projections.

    \b
    Example:
      python -m pretrain derive reference CONFIG SHARDS selection.column=reference derive.masks=4
    """
    resolved = load_config(TrainConfig, config, overrides or ())
    from pretrain.derive import derive_reference

    derive_reference(resolved, shards)
