import dataclasses
import io
import os
import pickle
import random
import tarfile
from pathlib import Path

import pytest

from configs.errors import UserError
from data_pipeline.sources import Entry, open_source, read_entry
from data_pipeline.sources.archives import CompressedTarSource
from data_pipeline.structure.chain import StructureError

FILES = {
    "b/2xyz.cif.gz": b"second",
    "a.pdb": b"first",
    "b/notes.txt": b"not a structure",
    "b/c/3.bcif": b"third",
    "A.ENT": b"upper case",
    ".hidden.pdb": b"hidden",
    "b/manifest.json": b"{}",
    "empty.mmcif": b"",
}
NAMES = ["A.ENT", "a.pdb", "b/2xyz.cif.gz", "b/c/3.bcif", "empty.mmcif"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    return tmp_path / "in"


def write_tar(path: Path, mode: str, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.pdb")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def contents(entries: list[Entry]) -> dict[str, bytes]:
    return {entry.name: read_entry(entry) for entry in entries}


def test_a_folder_lists_its_structure_files_sorted_by_name(folder: Path) -> None:
    entries = list(open_source(folder).entries())
    assert [entry.name for entry in entries] == NAMES
    assert contents(entries) == {name: FILES[name] for name in NAMES}


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz"), ("tgz", "w:gz")])
def test_a_tar_lists_the_same_as_the_folder(tmp_path: Path, suffix: str, mode: str) -> None:
    archive = write_tar(tmp_path / f"x.{suffix}", mode, list(FILES.items()))
    entries = list(open_source(archive, cache=tmp_path / "cache").entries())
    assert [entry.name for entry in entries] == NAMES
    assert contents(entries) == {name: FILES[name] for name in NAMES}
    assert all(entry.length == len(FILES[entry.name]) for entry in entries)


def test_entries_travel_between_processes(folder: Path) -> None:
    entry = next(open_source(folder).entries())
    assert pickle.loads(pickle.dumps(entry)) == entry
    assert len(pickle.dumps(entry)) < 500
    assert all(isinstance(value, str | int | None) for value in dataclasses.asdict(entry).values())
    assert not hasattr(entry, "__dict__")


def test_of_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", "w", [("a.pdb", b"old"), ("a.pdb", b"newer")])
    assert contents(list(open_source(archive).entries())) == {"a.pdb": b"newer"}


def test_a_compressed_archive_is_unpacked_once_until_it_changes(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar.gz", "w:gz", [("a.pdb", b"old")])
    source = CompressedTarSource(archive, tmp_path / "cache")
    first = list(source.entries())
    (copy,) = (tmp_path / "cache").iterdir()
    written = copy.stat().st_ino
    assert list(source.entries()) == first
    assert copy.stat().st_ino == written
    assert copy.stat().st_mtime_ns == archive.stat().st_mtime_ns
    write_tar(archive, "w:gz", [("a.pdb", b"a newer and longer one")])
    assert contents(list(source.entries())) == {"a.pdb": b"a newer and longer one"}


def test_a_single_file_is_a_source_of_one(folder: Path) -> None:
    (entry,) = open_source(folder / "b/2xyz.cif.gz").entries()
    assert (entry.name, read_entry(entry)) == ("2xyz.cif.gz", b"second")


def test_what_is_not_there_or_not_known_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file or folder; set source\.path"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"ends in none of \.pdb"):
        open_source(tmp_path / "a.zip")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme.txt").touch()
    with pytest.raises(UserError, match="no structure files"):
        list(open_source(tmp_path / "none").entries())
    for name, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz")):
        archive = write_tar(tmp_path / name, mode, [("a.txt", b"x")])
        with pytest.raises(UserError, match="no structure files"):
            list(open_source(archive, cache=tmp_path / "cache").entries())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tar.xz", "w:xz"), ("x.tar.bz2", "w:bz2")]
)
def test_a_cut_archive_is_a_mistake_of_the_user_and_leaves_nothing(
    tmp_path: Path, name: str, mode: str, share: float
) -> None:
    content = random.Random(0).randbytes(50_000)
    archive = write_tar(tmp_path / name, mode, [("a.pdb", content), ("b.pdb", content[::-1])])
    data = archive.read_bytes()
    end = data.rstrip(b"\0") if name == "x.tar" else data
    archive.write_bytes(data[: int(share * len(end))])
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="damaged or cut"):
        list(open_source(archive, cache=cache).entries())
    assert not cache.exists() or not list(cache.iterdir())


def test_a_file_that_goes_away_after_listing_is_unreadable(folder: Path, tmp_path: Path) -> None:
    entry = next(open_source(folder).entries())
    Path(entry.path).unlink()
    with pytest.raises(StructureError) as caught:
        read_entry(entry)
    assert caught.value.reason == "unreadable"
    archive = write_tar(tmp_path / "x.tar", "w", [("a.pdb", b"0123456789")])
    (entry,) = open_source(archive).entries()
    archive.write_bytes(archive.read_bytes()[:515])
    with pytest.raises(StructureError) as caught:
        read_entry(entry)
    assert caught.value.reason == "unreadable"


MODEL = "AF-P12345-F1-model_v6.cif.gz"


def test_a_folder_of_tars_lists_their_structures_as_if_they_were_folders(tmp_path: Path) -> None:
    side_files = [("AF-P12345-F1-predicted_aligned_error_v6.json.gz", b"{}"), ("AF-P12345-F1-confidence_v6.json", b"")]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    write_tar(tmp_path / "in" / "UP000005640_9606_HUMAN_v6.tar", "w", [(MODEL, b"human"), *side_files])
    write_tar(tmp_path / "in" / "sub" / "UP000000625_83333_ECOLI_v6.tar.gz", "w:gz", [("b/2.cif", b"2"), *side_files])
    (tmp_path / "in" / "1.pdb").write_bytes(b"1")
    (tmp_path / "in" / "sub" / ".UP1.tar").write_bytes(b"hidden")
    entries = list(open_source(tmp_path / "in", cache=tmp_path / "cache").entries())
    assert contents(entries) == {
        "1.pdb": b"1",
        f"UP000005640_9606_HUMAN_v6.tar/{MODEL}": b"human",
        "sub/UP000000625_83333_ECOLI_v6.tar.gz/b/2.cif": b"2",
    }
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)


def test_names_come_in_one_order_whatever_the_folders(tmp_path: Path) -> None:
    names = ["a/b.pdb", "a.pdb", "a-b/c.pdb", "a/b/c.pdb", "ab.pdb", "a0/1.cif", "B/1.cif", "a.b/x.pdb", "a/b-c.pdb"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write_tar(tmp_path / "a.tar", "w", [("x.pdb", b""), ("0/x.pdb", b"")])
    listed = [entry.name for entry in open_source(tmp_path).entries()]
    assert listed == sorted([*names, "a.tar/x.pdb", "a.tar/0/x.pdb"])


def test_a_mirror_is_listed_only_as_far_as_it_is_read(tmp_path: Path) -> None:
    for middle in ("ab", "cd", "ef"):
        (tmp_path / middle).mkdir()
        (tmp_path / middle / f"1{middle}x.cif.gz").touch()
    (tmp_path / "zz.tar").write_bytes(b"not a tar")
    entries = open_source(tmp_path).entries()
    assert [next(entries).name for _ in range(2)] == ["ab/1abx.cif.gz", "cd/1cdx.cif.gz"]
    assert next(entries).name == "ef/1efx.cif.gz"
    with pytest.raises(UserError, match=r"zz\.tar: the archive is damaged or cut"):
        next(entries)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.pdb").touch()
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="locked: Permission denied; make it readable"):
        list(open_source(tmp_path).entries())


def test_a_link_in_a_circle_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.pdb").touch()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "b.pdb").symlink_to(tmp_path / "sub" / "a.pdb")
    assert [entry.name for entry in open_source(tmp_path).entries()] == ["b.pdb", "sub/a.pdb"]


def test_entries_of_a_relative_path_are_readable_from_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entries = list(open_source("in").entries())
    monkeypatch.chdir("/")
    assert contents(entries) == {name: FILES[name] for name in NAMES}
