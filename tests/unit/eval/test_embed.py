"""FASTA to embeddings: the whole file is checked first, comes out in order, and memory stays flat."""

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from safetensors import safe_open
from typer.testing import CliRunner

from configs.errors import UserError
from eval import embed as embedding
from eval.embed import embed_sequences, run_embed
from eval.fasta_stream import read_fasta_stream, scan_fasta, windows
from eval.models.checkpoint_model import checkpoint_model
from eval.tool_commands import register
from tests.unit.eval.makers import train_config, write_checkpoint

RECORDS = {"b|1": "MKTAYIAKQRQISFVKSHFSRQ", "a": "acdefghiklmnpqrstvwyx", "m": "M", "U2/x": "GSHMUACDEF" * 3, "é": "WW"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_checkpoint(train_config(folder, folder), 10)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def fasta(tmp_path: Path) -> Path:
    """Records with broken lines, a description, blank lines, Windows line ends and a stop."""
    lines = [f">{name} some words\r\n{s[:9]}\r\n\r\n{s[9:]}\r\n" for name, s in RECORDS.items()]
    return write(tmp_path / "in.fasta", "".join(lines).rstrip("\r\n") + "*\n")


def contents(path: Path) -> dict[str, np.ndarray]:
    """Embeddings, starts where there are, and names of any of the formats."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name] for name in file.files if name != "about.json"}
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {n: (file[n].asstr()[:] if n == "ids" else file[n][:]) for n in file}
    with safe_open(path, framework="np") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return found | {"ids": np.array(bytes(found["ids"]).decode().split("\n"))}


@pytest.mark.parametrize("per_residue", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "h5", "npz"])
def test_every_format_holds_the_same_in_input_order(
    checkpoint: Path, tmp_path: Path, suffix: str, per_residue: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Windows of a few residues: order must not depend on them.
    monkeypatch.setattr(embedding, "window_residues", lambda *_: 40)
    out = tmp_path / f"out.{suffix}"
    done = run_embed(str(checkpoint), fasta(tmp_path), out, per_residue, batch_tokens=64, device="cpu", progress=False)
    found = contents(out)
    assert found["ids"].tolist() == list(RECORDS)
    assert found["embeddings"].dtype == np.float32
    expected = embed_sequences(checkpoint_model(checkpoint), [s.upper() for s in RECORDS.values()], per_residue)
    rows = np.split(found["embeddings"], found["starts"][1:-1]) if per_residue else found["embeddings"]
    for one, wanted in zip(rows, expected, strict=True):
        # float32 rounding of another batching.
        np.testing.assert_allclose(one, wanted, atol=1e-5)
    assert (done.num_sequences, done.num_residues) == (5, sum(map(len, RECORDS.values())))
    assert [file.name for file in tmp_path.iterdir()] != [], "written"
    assert {file.name for file in tmp_path.iterdir()} == {"in.fasta", out.name}, "nothing else is left"


def test_the_file_says_which_weights_made_it(checkpoint: Path, tmp_path: Path) -> None:
    model, paths = checkpoint_model(checkpoint), [tmp_path / f"out.{s}" for s in ("safetensors", "h5", "npz")]
    for path in paths:
        run_embed(str(checkpoint), fasta(tmp_path), path, device="cpu", progress=False)
    with safe_open(paths[0], framework="np") as file:
        assert file.metadata()["weights_sha256"] == model.weights_sha256
    with h5py.File(paths[1]) as file:
        assert file.attrs["weights_sha256"] == model.weights_sha256
    with np.load(paths[2]) as file:
        assert json.loads(file["about.json"])["weights_sha256"] == model.weights_sha256


def test_gzipped_files_are_read_as_they_are(tmp_path: Path) -> None:
    plain = fasta(tmp_path)
    packed = write(tmp_path / "in.anything", gzip.compress(plain.read_bytes()))
    assert list(read_fasta_stream(packed)) == list(read_fasta_stream(plain))
    assert scan_fasta(packed) == scan_fasta(plain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no sequence"),
        ("\n\n", "holds no sequence"),
        (">a\nMK\n>b\nMK\n>a\nMM\n", r"in.fasta:5: the name 'a' stands twice"),
        (">a\nMK\n>b\nM1K\n", r"in.fasta:4: '1' in 'M1K' is no residue"),
        (">a\nMK-\n", r"in.fasta:2: '-' in"),
        (">a\nM*K\n", r"in.fasta:2: '\*' in"),
        (">a\nM*\nKK\n", r"in.fasta:1: 'a' has a `\*` before its end"),
        (">a\n>b\nMK\n", r"in.fasta:1: 'a' has no residues"),
        (">a\nMK\n>b\n*\n", r"in.fasta:3: 'b' has no residues"),
        ("MK\n", r"in.fasta:1: 'MK' comes before any header"),
        (">\nMK\n", r"in.fasta:1: a header without a name"),
        (b"\x1f\x8b\x08\x00 broken", "damaged gzip"),
        (b">a\n\xff\xfe\n", "is no residue"),
        (">a\n" + "M" * 30 + "\n", r"in.fasta:1: 'a' has 30 residues, the model takes at most 20"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        scan_fasta(write(tmp_path / "in.fasta", text), max_residues=20)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        scan_fasta(tmp_path / "none.fasta")


def test_nothing_is_computed_or_left_when_a_late_line_is_bad(checkpoint: Path, tmp_path: Path) -> None:
    bad = write(tmp_path / "in.fasta", ">a\nMKT\n" * 1 + ">b\nM?K\n")
    with pytest.raises(UserError, match=r"in.fasta:4"):
        run_embed(str(checkpoint), bad, tmp_path / "out.h5", device="cpu", progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["in.fasta"]


def test_an_interrupted_run_leaves_no_file_of_the_final_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding, "embed_sequences", broken)
    for suffix in ("safetensors", "h5", "npz"):
        with pytest.raises(KeyboardInterrupt):
            run_embed(str(checkpoint), fasta(tmp_path), tmp_path / f"out.{suffix}", device="cpu", progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["in.fasta"]


def test_duplicate_names_are_found_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval import fasta_stream

    monkeypatch.setattr(fasta_stream, "_FRESH_IDS", 4)
    names = [f"n{i}" for i in range(100)]
    text = "".join(f">{name}\nMK\n" for name in names)
    assert scan_fasta(write(tmp_path / "good.fasta", text)).num_sequences == 100
    for name in ("n0", "n50", "n99"):
        with pytest.raises(UserError, match=f"{name!r} stands twice"):
            scan_fasta(write(tmp_path / "bad.fasta", text + f">{name}\nMK\n"))


def test_windows_hold_neighbours_up_to_their_size(tmp_path: Path) -> None:
    found = [[record.name for record in window] for window in windows(fasta(tmp_path), 45)]
    assert found == [["b|1", "a", "m"], ["U2/x", "é"]]
    assert [len(window) for window in windows(fasta(tmp_path), 1)] == [1] * 5


def test_the_format_follows_the_name_or_is_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allowed: safetensors, h5, npz"):
        run_embed(str(checkpoint), fasta(tmp_path), tmp_path / "out.txt", device="cpu", progress=False)
    run_embed(str(checkpoint), fasta(tmp_path), tmp_path / "out.txt", file_format="h5", device="cpu", progress=False)
    with h5py.File(tmp_path / "out.txt") as file:
        assert file["embeddings"].shape == (5, 32)


def test_the_command_writes_reports_and_shows_progress(checkpoint: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(
        app, ["embed", str(checkpoint), str(fasta(tmp_path)), "-o", str(tmp_path / "out.npz"), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    assert "embedded 5 sequences" in result.stdout
    assert "embed: 5 of 5 sequences" in result.stderr
