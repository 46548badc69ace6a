"""Strict, typed configuration: YAML files with one `extends` key, dotted overrides, and "did you mean"."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import UserError

C = TypeVar("C", bound="Config")


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's scalars: only true and false are booleans (not `off` or `no`), and 1e-4 is a number."""


_Yaml.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


class Config(BaseModel):
    """Base of every configuration model: frozen, strictly typed, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), use_attribute_docstrings=True
    )


def load_config(model: type[C], path: Path | str, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file, follow its `extends` chain, apply overrides such as `split.seed=3`, and validate.

    Relative paths inside the file stay relative to the working directory (the repository root), except `extends`,
    which is relative to the file that holds it.

    Raises:
        UserError: a missing file, bad YAML, an unknown key (with the nearest allowed one), or a wrong type.
    """
    tree = _read_tree(Path(path), ())
    for override in overrides:
        _apply(tree, override)
    return validate(model, tree, str(path))


def validate(model: type[C], tree: dict[str, Any], where: str) -> C:
    """Build `model` from a plain tree of YAML values; `where` names the origin in error lines."""
    try:
        # JSON mode: strict about types, yet a path or a tuple may be written the way YAML writes it.
        return model.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(_explain(model, item) for item in error.errors())}") from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML text that `load_config` reads back to an equal object."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, width=100)


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: `extends` goes in a circle ({' -> '.join(map(str, seen))}); remove one of the links")
    try:
        tree = yaml.load(path.read_text(), Loader=_Yaml) or {}
    except FileNotFoundError:
        raise UserError(f"config {path}: no such file; {_files_nearby(path)}") from None
    except IsADirectoryError:
        raise UserError(f"config {path}: is a folder; name one of its .yaml files") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise UserError(f"config {path}: holds a {type(tree).__name__}; allowed: a mapping of keys to values")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    return _merge(_read_tree(path.parent / str(base), (*seen, path.resolve())), tree)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`: mappings merge key by key, everything else replaces."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"override {override!r}: allowed form is key.sub=value, e.g. split.seed=3")
    *parents, leaf = name.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    try:
        tree[leaf] = yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError:
        tree[leaf] = text


def _explain(model: type[BaseModel], item: Any) -> str:
    """One pydantic error as: key, what was got, what is allowed."""
    location = [str(part) for part in item["loc"]]
    name = ".".join(location) or "config"
    if item["type"] == "extra_forbidden":
        allowed = _allowed_keys(model, location[:-1])
        near = difflib.get_close_matches(location[-1], allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"
        return f"unknown key {name!r}; {hint}"
    if item["type"] == "missing":
        return f"missing key {name!r}; add it to the file or as an override {name}=..."
    got = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
    return f"{name}: {item['msg'].removeprefix('Value error, ')}{got}"


def _allowed_keys(model: type[BaseModel], parents: Sequence[str]) -> list[str]:
    """Field names of the model found by walking `parents` from `model`; through lists, unions and optional fields."""
    candidates: list[type[BaseModel]] = [model]
    for parent in parents:
        found = [c.model_fields[parent].annotation for c in candidates if parent in c.model_fields]
        candidates = [m for annotation in found for m in _models_in(annotation)] or candidates
    return sorted({field for candidate in candidates for field in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _files_nearby(path: Path) -> str:
    files = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, files, n=1)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"files there: {', '.join(files)}" if files else "see configs/ for the shipped ones"
