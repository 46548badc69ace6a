"""The programs that can be sent to a cluster, and what their arguments mean."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from configs.build import BuildConfig
from configs.campaign import CampaignConfig
from configs.errors import UserError
from configs.evaluate import EvalConfig
from configs.loading import Config, load_config
from configs.train import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
"""The repository: working directory of every job."""
PACKAGED = "configs"
"""Paths into this folder travel with the job and stay relative."""
PATH_OPTIONS = ("-o", "--output")
VALUE_OPTIONS = (*PATH_OPTIONS, "--repo", "--license")
"""Options of programs that take a value; all others are flags."""


@dataclass(frozen=True)
class Program:
    """One command `python -m <words>`: its positional arguments in order, then overrides."""

    words: tuple[str, ...]
    positionals: tuple[Literal["config", "path", "word"], ...]
    config: type[Config] | None = None

    @property
    def name(self) -> str:
        return " ".join(self.words)


PROGRAMS = (
    Program(("data_pipeline", "build"), ("config",), BuildConfig),
    Program(("data_pipeline", "audit"), ("path",)),
    Program(("pretrain", "train"), ("config",), TrainConfig),
    Program(("pretrain", "derive"), ("word", "config", "path"), TrainConfig),
    Program(("eval", "run"), ("path", "config"), EvalConfig),
    Program(("eval", "release"), ("path", "path")),
    Program(("cluster", "run"), ("config",), CampaignConfig),
)


@dataclass(frozen=True)
class Call:
    """A program with arguments that mean the same wherever it runs."""

    program: Program
    config: str | None
    """Path of the configuration inside the repository."""
    arguments: tuple[str, ...]
    """What stands after `python -m <program>`."""


def resolve_call(arguments: Sequence[str], working_folder: Path) -> Call:
    """Check `pretrain train CONFIG [...]` as a user typed it in `working_folder`, and make its paths absolute.

    The configuration is loaded, so a mistake shows here and not in the job. Its relative paths, defaults included,
    become absolute overrides, because a job's own working directory is a temporary copy of the repository; only paths
    into `configs/` stay as they are, since they travel with it.

    Raises:
        UserError: an unknown program, missing arguments, or a configuration that does not load.
    """
    program = _find_program(arguments)
    positionals, overrides, options = _sort_arguments(program, arguments[len(program.words) :])
    resolved: list[str] = []
    config_name = None
    for kind, value in zip(program.positionals, positionals, strict=True):
        if kind == "config":
            config_name = _packaged_config(working_folder / value)
            resolved.append(config_name)
        else:
            resolved.append(str(working_folder / value) if kind == "path" else value)
    if program.config is not None:
        config_path = working_folder / positionals[program.positionals.index("config")]
        config = load_config(program.config, config_path, overrides)
        overrides = [*overrides, *absolute_overrides(config, working_folder)]
    return Call(program, config_name, (*resolved, *overrides, *_absolute_options(options, working_folder)))


def absolute_overrides(config: Config, working_folder: Path) -> list[str]:
    """Overrides `key.sub=/absolute/path` for every relative path of `config`.

    A path is a field of type Path, or a text with a `/` that names an existing file or folder. Templates (`{root}/...`)
    and paths into `configs/` are left alone.
    """
    found = []
    for name, value in _paths(config, ()):
        if isinstance(value, tuple):
            moved = [str(_absolute(item, working_folder)) for item in value]
            if moved != [str(item) for item in value]:
                found.append(f"{name}=[{', '.join(moved)}]")
        elif (moved := _absolute(value, working_folder)) != value:
            found.append(f"{name}={moved}")
    return found


def _paths(node: Any, parents: tuple[str, ...]) -> Iterator[tuple[str, Path | tuple[Path, ...]]]:
    if isinstance(node, BaseModel):
        for field in type(node).model_fields:
            yield from _paths(getattr(node, field), (*parents, field))
    elif isinstance(node, Path) or (isinstance(node, tuple) and node and all(isinstance(item, Path) for item in node)):
        yield ".".join(parents), node
    elif isinstance(node, str) and "/" in node and "://" not in node and Path(node).exists():
        yield ".".join(parents), Path(node)


def _absolute(path: Path, working_folder: Path) -> Path:
    stays = path.is_absolute() or str(path).startswith("{") or path.parts[:1] == (PACKAGED,)
    return path if stays else working_folder / path


def _find_program(arguments: Sequence[str]) -> Program:
    for program in PROGRAMS:
        if tuple(arguments[: len(program.words)]) == program.words:
            return program
    typed = " ".join(arguments[:2])
    names = [program.name for program in PROGRAMS]
    near = difflib.get_close_matches(typed, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(names)}"
    raise UserError(f"program {typed!r} is not known; {hint}")


def _sort_arguments(program: Program, rest: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Positional arguments, overrides, and options with their values."""
    positionals: list[str] = []
    overrides: list[str] = []
    options: list[str] = []
    waiting = list(rest)
    while waiting:
        word = waiting.pop(0)
        if word.startswith("-"):
            options.append(word)
            if word in VALUE_OPTIONS and waiting:
                options.append(waiting.pop(0))
        elif len(positionals) < len(program.positionals):
            positionals.append(word)
        else:
            overrides.append(word)
    if len(positionals) < len(program.positionals):
        missing = program.positionals[len(positionals)].upper()
        form = " ".join([program.name, *(kind.upper() for kind in program.positionals)])
        raise UserError(f"submit {program.name}: {missing} is missing; the form is `submit {form} [key.sub=value ...]`")
    return positionals, overrides, options


def _absolute_options(options: Sequence[str], working_folder: Path) -> list[str]:
    after_path_option = [False, *(option in PATH_OPTIONS for option in options)]
    return [
        str(working_folder / option) if is_path else option
        for option, is_path in zip(options, after_path_option, strict=False)
    ]


def _packaged_config(path: Path) -> str:
    """Name of a configuration file inside the repository, which is what a job receives."""
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError:
        raise UserError(
            f"config {path} lies outside the repository {ROOT}, and only the repository is sent to the cluster; "
            "copy it into configs/ or use overrides"
        ) from None
