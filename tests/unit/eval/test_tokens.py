"""FASTA to predicted 3Di: the head's states, with confidence, in files that Foldseek takes."""

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from configs.errors import UserError
from data_pipeline.structure.chain import THREEDI_STATES
from eval import tokens
from eval.models.checkpoint_model import checkpoint_model
from eval.tokens import FILES, predict_tokens, run_tokens
from eval.tool_commands import register
from tests.unit.eval.makers import train_config, write_checkpoint

RECORDS = {"b|1": "MKTAYIAKQRQISFVKSHFSRQ", "a": "ACDEFGHIKLMNPQRSTVWYX", "m": "M"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_checkpoint(train_config(folder, folder), 10)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text("".join(f">{name} words\n{s}\n" for name, s in RECORDS.items()))
    return path


def read(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text().splitlines()
    return [(name.removeprefix(">"), sequence) for name, sequence in zip(lines[::2], lines[1::2], strict=True)]


def test_states_and_confidence_are_the_heads(checkpoint: Path) -> None:
    model = checkpoint_model(checkpoint)
    for sequence, found, logits in zip(
        RECORDS.values(),
        predict_tokens(model, list(RECORDS.values())),
        model.threedi_logits(list(RECORDS.values())) or [],
        strict=True,
    ):
        p = logits.softmax(-1).numpy()
        assert found.states == "".join(THREEDI_STATES[i] for i in p.argmax(-1))
        np.testing.assert_array_equal(found.confidence, p.max(-1))
        assert len(found.states) == len(sequence)


def test_all_files_hold_the_same_sequences_in_the_same_order(
    checkpoint: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "window_residues", lambda *_: 25)
    folder = tmp_path / "out"
    done = run_tokens(str(checkpoint), fasta, folder, device="cpu", progress=False)
    expected = predict_tokens(checkpoint_model(checkpoint), list(RECORDS.values()))
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    assert read(folder / "aa.fasta") == list(RECORDS.items())
    assert read(folder / "3di.fasta") == [(n, t.states) for n, t in zip(RECORDS, expected, strict=True)]
    tables = {name: (folder / f"{name}.tsv").read_text().splitlines() for name in ("aa", "3di", "header")}
    assert tables["aa"] == [f"{i}\t{s}" for i, s in enumerate(RECORDS.values(), 1)]
    assert tables["3di"] == [f"{i}\t{t.states}" for i, t in enumerate(expected, 1)]
    assert tables["header"] == [f"{i}\t{name}" for i, name in enumerate(RECORDS, 1)]
    for line, name, threedi in zip(
        (folder / "confidence.tsv").read_text().splitlines(), RECORDS, expected, strict=True
    ):
        found, mean, values = line.split("\t")
        assert found == name
        # Two and four decimals are written.
        np.testing.assert_allclose([float(v) for v in values.split()], threedi.confidence, atol=0.00501)
        assert abs(float(mean) - threedi.confidence.mean()) < 1e-4
    total = np.concatenate([t.confidence for t in expected])
    assert abs(done.mean_confidence - total.mean()) < 1e-6
    assert {file.name for file in tmp_path.iterdir()} == {"in.fasta", "out"}


def test_a_result_is_replaced_but_nothing_else_is(checkpoint: Path, fasta: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run_tokens(str(checkpoint), fasta, folder, device="cpu", progress=False)
    (folder / "3di.fasta").write_text("old")
    run_tokens(str(checkpoint), fasta, folder, device="cpu", progress=False)
    assert len(read(folder / "3di.fasta")) == 3
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        run_tokens(str(checkpoint), fasta, folder, device="cpu", progress=False)
    assert (folder / "thesis.tex").exists()


def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path, fasta: Path) -> None:
    path = write_checkpoint(train_config(tmp_path, tmp_path, structure=0.0), 10)
    with pytest.raises(UserError, match="has no 3Di head"):
        run_tokens(str(path), fasta, tmp_path / "out", device="cpu", progress=False)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.part").exists()


def test_the_command_says_how_to_build_the_database(checkpoint: Path, fasta: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    arguments = ["tokens", str(checkpoint), str(fasta), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "foldseek tsv2db 3di.tsv db_ss --output-dbtype 0" in result.stdout
    assert result.stderr == ""
