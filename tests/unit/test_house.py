"""Rules of the house that a machine can check: who imports whom, sizes, and no pickle in what we read or write."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("configs", "data_pipeline", "pretrain", "eval", "cluster")
SHARD_CONTRACT = ("data_pipeline.schema", "data_pipeline.manifest", "data_pipeline.reader", "data_pipeline.derived")
STRUCTURE = "data_pipeline.structure"
SIMILARITY = tuple(
    f"data_pipeline.splits.{name}" for name in ("kmers", "components", "containment", "homologs", "fasta")
)
"""Functions of sequences alone: evaluation clusters and looks for leaks as a build does."""
CHECKPOINT_READING = ("pretrain.model", "pretrain.vocab", "pretrain.batch", "pretrain.checkpoints")
ALLOWED = {
    "configs": ("configs",),
    STRUCTURE: (STRUCTURE,),
    "data_pipeline": ("configs", "data_pipeline"),
    "pretrain": ("configs", STRUCTURE, *SHARD_CONTRACT, "pretrain"),
    "eval": ("configs", STRUCTURE, *SHARD_CONTRACT, *SIMILARITY, *CHECKPOINT_READING, "eval"),
    "cluster": ("configs", "cluster"),
}
MAY_TORCH_SAVE = ROOT / "pretrain" / "model" / "fair_esm.py"
"""Writes files for fair-esm, whose format is a pickle; its own test looks at every class that the pickle names."""
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def package_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return STRUCTURE if name.startswith(STRUCTURE) else name.split(".")[0]


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_package_may(path: Path) -> None:
    package = package_of(path)
    ours = [name for name in imports_of(ast.parse(path.read_text())) if name.split(".")[0] in PACKAGES]
    foreign = [name for name in ours if not any(within(name, prefix) for prefix in ALLOWED[package])]
    assert not foreign, f"{package} may import {ALLOWED[package]}"


def test_the_import_rule_sees_a_forbidden_import() -> None:
    tree = ast.parse("from pretrain.loop import train\nimport eval.runner")
    found = list(imports_of(tree))
    assert found == ["pretrain.loop", "eval.runner"]
    assert not any(within("pretrain.loop", prefix) for prefix in ALLOWED["eval"])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > MAX_FUNCTION_LINES]
    assert not long


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled_and_torch_loads_weights_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    modules = {name.split(".")[0] for name in imports_of(tree)}
    assert not modules & {"pickle", "cloudpickle", "joblib", "dill", "marshal"}
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        called = ast.unparse(call.func)
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if called == "torch.load":
            assert keywords.get("weights_only") == "True"
        if called in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False"
        assert called != "torch.save" or path == MAY_TORCH_SAVE, "artifacts are safetensors, json or npy"
