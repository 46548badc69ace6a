"""Command line of the package: `python -m pretrain train|derive`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from configs.loading import dump_config, load_config
from configs.train import TrainConfig

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML, e.g. configs/pretrain/demo_align.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Overrides, e.g. optimizer.steps=50.")
]
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


@derive.command("teacher")
def derive_teacher_column(
    config: ConfigPath,
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder written by `data_pipeline build`.")],
    overrides: Overrides = None,
) -> None:
    """Embed every chain with the config's frozen teacher and write the column `teacher.column` beside the shards.

    \b
    Example:
      python -m pretrain derive teacher configs/pretrain/demo_align.yaml demo/shards
      python -m pretrain derive teacher CONFIG SHARDS derive.num_workers=8 derive.form=int8
    """
    resolved = load_config(TrainConfig, config, overrides or ())
    from pretrain.derive import derive_teacher

    derive_teacher(resolved, shards)
