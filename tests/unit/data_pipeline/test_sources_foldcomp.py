import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.source import SourceConfig
from data_pipeline.sources import Entry, configured_source, foldcomp_database, read_entry, read_named_entry
from data_pipeline.sources.foldcomp_database import FoldcompSource, Helper, stated_size
from data_pipeline.structure.chain import ATOM_NAMES, StructureError
from data_pipeline.structure.geometry import virtual_cb
from data_pipeline.structure.parse import parse_structure
from data_pipeline.synthetic.backbone import build_atoms

BACKBONE_TOLERANCE = 0.3
"""Angstrom: Foldcomp rounds torsion angles to 12 bits and anchors the chain every 25 residues; on AlphaFold models the
root mean square is 0.1 and the worst CA 1.3."""
PLDDT_TOLERANCE = 0.2
"""Foldcomp rounds to 255 steps between the lowest and the highest pLDDT, here 50 apart at most."""


def helix(length: int, seed: int) -> str:
    """PDB text of a poly-alanine helix with pLDDT as B-factors, as the AlphaFold database writes it."""
    generator = np.random.default_rng(seed)
    atoms = build_atoms(np.array([-63.0, -42.0]) + generator.normal(0, 3, (length, 2)))
    atoms = np.concatenate([atoms, virtual_cb(*atoms[:, :3].swapaxes(0, 1))[:, None]], axis=1)
    lines = []
    for residue in range(length):
        plddt = generator.uniform(50, 100)
        for atom, (x, y, z) in zip(ATOM_NAMES, atoms[residue], strict=True):
            lines.append(
                f"ATOM  {len(lines) + 1:5d}  {atom:<3} ALA A{residue + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
                f"  1.00{plddt:6.2f}           {atom[0]}  "
            )
    return "\n".join([*lines, f"TER   {len(lines) + 1:5d}      ALA A{length:4d}", "END", ""])


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {f"AF-P1234{i}-F1-model_v4": helix(40 + 10 * i, i) for i in range(4)}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> Path:
    """A database of four models, its lookup in another order than its index."""
    foldcomp = pytest.importorskip("foldcomp")
    return write_database(
        tmp_path_factory.mktemp("foldcomp") / "afdb",
        {name: foldcomp.compress(name, text) for name, text in texts.items()},
    )


def write_database(path: Path, contents: dict[str, bytes]) -> Path:
    data, index, lookup = b"", [], []
    for key, (name, content) in enumerate(contents.items()):
        index.append(f"{key}\t{len(data)}\t{len(content) + 1}\n")
        lookup.append(f"{key}\t{name}\t{key}\n")
        data += content + b"\0"
    path.write_bytes(data)
    path.with_name(f"{path.name}.index").write_text("".join(index))
    path.with_name(f"{path.name}.lookup").write_text("".join(lookup[::-1]))
    path.with_name(f"{path.name}.dbtype").write_bytes(bytes(4))
    return path


def fake(code: str, seconds: float = 5.0) -> Helper:
    """A helper that runs `code` instead of the library."""
    head = "import os, signal, struct, sys, time\n"
    return Helper((sys.executable, "-c", head + code), seconds)


ECHO = """
while header := sys.stdin.buffer.read(4):
    data = sys.stdin.buffer.read(struct.unpack("<I", header)[0])
    {act}
    sys.stdout.buffer.write(struct.pack("<BI", 0, len(data)) + data)
    sys.stdout.buffer.flush()
"""


def test_a_database_gives_the_models_it_was_made_of(database: Path, texts: dict[str, str]) -> None:
    entries = list(configured_source(SourceConfig(kind="foldcomp", path=database)).entries())
    assert [entry.name for entry in entries] == list(texts)
    for entry in entries:
        name, data = read_named_entry(entry)
        (original,) = parse_structure(texts[name].encode(), f"{name}.pdb")
        (chain,) = parse_structure(data, name)
        assert (chain.key, chain.sequence) == (original.key, original.sequence)
        assert (chain.facts.method, chain.facts.model_version) == ("predicted", "4")
        difference = chain.coordinates[:, :4] - original.coordinates[:, :4]
        assert np.sqrt((difference**2).sum(-1)).max() < BACKBONE_TOLERANCE
        assert chain.notes == ()
        assert np.abs(chain.bfactor - original.bfactor).max() < PLDDT_TOLERANCE


def test_listing_is_lazy_and_needs_no_library(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(path: Path) -> Iterator[str]:
        for line in path.read_text().splitlines():
            read.append(line)
            yield line

    monkeypatch.setattr(foldcomp_database, "open_lines", counted)
    monkeypatch.setitem(sys.modules, "foldcomp", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert next(FoldcompSource(database, 5.0).entries()).name == "AF-P12340-F1-model_v4"
    # One line of the index, and the lookup up to that key: here all, because it is in reverse order.
    assert len(read) == 1 + 4


def test_accessions_can_be_taken_from_a_database(database: Path, tmp_path: Path) -> None:
    (tmp_path / "wanted.txt").write_text("P12342\nP99999\n")
    config = SourceConfig(kind="accessions", path=tmp_path / "wanted.txt", structures=database)
    found, missing = configured_source(config).entries()
    assert (found.name, missing.name) == ("AF-P12342-F1-model_v4", "AF-P99999-F1")
    assert read_entry(found).startswith(b"TITLE")


def test_damaged_entries_are_rejected_one_by_one(database: Path, tmp_path: Path) -> None:
    whole = [read_bytes(entry) for entry in FoldcompSource(database, 5.0).entries()]
    damaged = {
        "AF-P00001-F1-model_v4": whole[0],
        "AF-P00002-F1-model_v4": whole[1][: len(whole[1]) // 2],
        "AF-P00003-F1-model_v4": b"HTML" + whole[2][4:],
        "AF-P00004-F1-model_v4": whole[3],
    }
    entries = list(FoldcompSource(write_database(tmp_path / "damaged", damaged), 5.0).entries())
    reasons = []
    for entry in entries:
        try:
            read_entry(entry)
            reasons.append("")
        except StructureError as error:
            reasons.append(error.reason)
    assert reasons[0] == reasons[3] == ""
    assert reasons[1:3] == ["truncated", "not_a_structure"]


def read_bytes(entry: Entry) -> bytes:
    with open(entry.path, "rb") as file:
        file.seek(entry.offset)
        return file.read(entry.length - 1)


def test_an_entry_cut_anywhere_is_never_decompressed(database: Path, tmp_path: Path) -> None:
    whole = read_bytes(next(FoldcompSource(database, 5.0).entries()))
    assert stated_size(whole) == len(whole)
    assert all(stated_size(whole[:length]) > length for length in range(4, len(whole)))
    # A lowest pLDDT at the end is a zero byte of the entry itself.
    path = write_database(tmp_path / "zeros", {"AF-P12345-F1-model_v4": whole[:-1] + b"\0"})
    (entry,) = FoldcompSource(path, 5.0).entries()
    (chain,) = parse_structure(read_entry(entry), entry.name)
    assert chain.bfactor[-1] == chain.bfactor.min()


def test_a_crash_costs_one_entry() -> None:
    helper = fake(ECHO.format(act='data == b"bad" and os.kill(os.getpid(), signal.SIGSEGV)'))
    assert helper.decompress(b"one") == b"one"
    for _ in range(2):
        with pytest.raises(StructureError, match="SIGSEGV") as caught:
            helper.decompress(b"bad")
        assert caught.value.reason == "crashed"
        assert helper.decompress(b"x" * 1_000_000) == b"x" * 1_000_000
    helper.close()


def test_an_entry_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foldcomp_database, "_START_SECONDS", 0.0)
    monkeypatch.setattr(foldcomp_database, "_GRACE_SECONDS", 0.0)
    helper = fake(ECHO.format(act='data == b"slow" and time.sleep(60)'), seconds=0.4)
    start = time.monotonic()
    with pytest.raises(StructureError) as caught:
        helper.decompress(b"slow")
    assert caught.value.reason == "timed_out"
    assert time.monotonic() - start < 10
    monkeypatch.setattr(foldcomp_database, "_START_SECONDS", 30.0)
    assert helper.decompress(b"fast") == b"fast"
    helper.close()


def test_an_error_of_the_library_is_told_and_the_helper_starts_anew() -> None:
    helper = fake(
        """
while header := sys.stdin.buffer.read(4):
    data = sys.stdin.buffer.read(struct.unpack("<I", header)[0])
    process = str(os.getpid()).encode()
    sys.stdout.buffer.write(struct.pack("<BI", data == b"bad", len(process)) + process)
    sys.stdout.buffer.flush()
"""
    )
    first = helper.decompress(b"one")
    assert helper.decompress(b"two") == first
    with pytest.raises(StructureError, match="parse_error: Foldcomp: "):
        helper.decompress(b"bad")
    assert helper.decompress(b"one") != first
    helper.close()


def test_the_helpers_own_alarm_is_a_timeout_too() -> None:
    helper = fake(ECHO.format(act="os.kill(os.getpid(), signal.SIGALRM)"))
    with pytest.raises(StructureError) as caught:
        helper.decompress(b"x")
    assert caught.value.reason == "timed_out"


def test_half_an_answer_is_a_crash_and_an_interruption_starts_anew() -> None:
    helper = fake("sys.stdout.buffer.write(b'\\0\\xff\\0'); sys.stdout.flush(); sys.exit(3)")
    with pytest.raises(StructureError, match="exit code 3"):
        helper.decompress(b"x")
    helper = fake(ECHO.format(act='data == b"slow" and time.sleep(0.3)'))

    def interrupt(*arguments: object) -> None:
        raise StructureError("timed_out", "the time limit of the whole entry")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert helper.decompress(b"warm") == b"warm"
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(StructureError, match="time limit of the whole"):
            helper.decompress(b"slow")
        assert helper.decompress(b"next") == b"next"  # and not the late answer to the slow one
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        helper.close()


def test_the_worker_ends_with_its_parent() -> None:
    pytest.importorskip("foldcomp")
    command = [sys.executable, "-m", "data_pipeline.sources.foldcomp_worker", "5.0"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[3])
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


def test_a_database_that_does_not_fit_together_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    path = write_database(tmp_path / "db", {"AF-P12345-F1-model_v4": b"FCMPxxxx"})
    path.write_bytes(b"FC")
    with pytest.raises(UserError, match=r"db\.index goes beyond at line 1; the data file is cut"):
        list(FoldcompSource(path, 5.0).entries())
    path.write_bytes(b"FCMPxxxx\0")
    path.with_name("db.lookup").write_text("7\tother\t0\n")
    with pytest.raises(UserError, match="no name for key 0"):
        list(FoldcompSource(path, 5.0).entries())
    path.with_name("db.index").write_text("0\tx\n")
    with pytest.raises(UserError, match=r"db\.index:1: '0\\tx' does not hold key, offset and length"):
        list(FoldcompSource(path, 5.0).entries())
    path.with_name("db.index").write_text("")
    with pytest.raises(UserError, match="the database is empty"):
        list(FoldcompSource(path, 5.0).entries())
    os.unlink(path.with_name("db.index"))
    with pytest.raises(UserError, match=r"not a Foldcomp database; expected its data file with db\.index"):
        list(FoldcompSource(path, 5.0).entries())
    with pytest.raises(UserError, match="must be local"):
        configured_source(SourceConfig(kind="foldcomp", path="s3://bucket/db"))


def test_a_missing_library_comes_with_its_remedy(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install foldcomp"):
        list(FoldcompSource(database, 5.0).entries())
