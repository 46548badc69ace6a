"""Folders, archives, zips and hub repositories read alike; damage and hostile archives end in one line."""

import gzip
import io
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from configs.errors import UserError
from eval.datasets import files as module
from eval.datasets import hub, unpacked
from eval.datasets.files import Recorded, matching, open_files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAPLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


CONTENT = {
    "one/plain.csv": b"a,b\n",
    "one/terms.tsv.gz": gzip.compress(b"x\ty\n"),
    "one/splits.zip": zipped({"splits/human.csv": b"sequence\n", "splits/inner.txt.gz": gzip.compress(b"deep")}),
}


def write_folder(folder: Path) -> Path:
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, mode: str = "w:xz", prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in CONTENT.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["folder", "xz", "gz", "zip", "root"])
def test_a_folder_and_every_kind_of_archive_read_alike(kind: str, tmp_path: Path) -> None:
    place = {
        "folder": lambda: write_folder(tmp_path / "data"),
        "xz": lambda: write_tar(tmp_path / "data.tar.xz", prefix="./"),
        "gz": lambda: write_tar(tmp_path / "data.tar.gz", "w:gz"),
        "zip": lambda: (
            (tmp_path / "data.zip").write_bytes(zipped({"one/plain.csv": b"a,b\n"})) and tmp_path / "data.zip"
        ),
        "root": lambda: write_tar(tmp_path / "root" / "labels.tar.xz").parent,
    }[kind]()
    found = open_files(place)
    assert found.read("one/plain.csv") == b"a,b\n"
    assert found.has("one/plain.csv")
    assert not found.has("one/none.csv")
    with pytest.raises(UserError, match=r"holds no 'one/none\.csv'"):
        found.read("one/none.csv")
    if kind == "zip":
        return
    assert found.read("one/terms.tsv.gz") == b"x\ty\n"
    assert found.read("one/splits.zip/splits/human.csv") == b"sequence\n"
    assert found.read("one/splits.zip/splits/inner.txt.gz") == b"deep"
    assert found.has("one/splits.zip/splits/human.csv")
    assert not found.has("one/splits.zip/splits/dog.csv")
    assert set(CONTENT) <= set(found.names())
    assert found.names("one/splits.zip/s") == ["one/splits.zip/splits/human.csv", "one/splits.zip/splits/inner.txt.gz"]
    assert matching(found, "one/*.csv") == ["one/plain.csv"]
    assert matching(found, "one/plain.csv") == ["one/plain.csv"]


def test_an_archive_is_unpacked_once_whatever_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_tar(tmp_path / "data.tar.xz")
    opened = []
    real = unpacked.tarfile.open
    monkeypatch.setattr(unpacked.tarfile, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    first = open_files(archive)
    first.read("one/plain.csv"), first.read("one/terms.tsv.gz"), first.names()
    open_files(archive).read("one/plain.csv")
    assert len(opened) == 1


def test_several_threads_that_unpack_one_archive_all_succeed(tmp_path: Path, cache: Path) -> None:
    archive = write_tar(tmp_path / "data.tar.xz")
    read: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: read.append(open_files(archive).read("one/plain.csv"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [b"a,b\n"] * 6
    assert [path.name[0] for path in (cache / "unpacked").iterdir()] != ["."], "no scratch folder stays"
    assert len(list((cache / "unpacked").iterdir())) == 1


def test_own_files_of_a_folder_stand_before_those_of_its_archives(tmp_path: Path) -> None:
    write_tar(tmp_path / "root" / "labels.tar.xz")
    (tmp_path / "root" / "one").mkdir()
    (tmp_path / "root" / "one" / "plain.csv").write_bytes(b"mine")
    assert open_files(tmp_path / "root").read("one/plain.csv") == b"mine"


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/outside.txt", "one/../../outside.txt"])
def test_an_archive_that_would_write_outside_is_refused(name: str, tmp_path: Path, cache: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as archive:
        info = tarfile.TarInfo(name)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"bad"))
    with pytest.raises(UserError, match="lies outside"):
        open_files(tmp_path / "bad.tar.xz")
    assert not list((cache / "unpacked").iterdir())
    assert not list(tmp_path.rglob("outside.txt"))


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar.gz", "w:gz") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard"), (tarfile.FIFOTYPE, "pipe")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert open_files(tmp_path / "links.tar.gz").names() == []


def test_an_archive_beyond_the_limits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "MAX_FILES", 2)
    with pytest.raises(UserError, match="goes beyond"):
        open_files(write_tar(tmp_path / "many.tar.xz"))


def test_a_file_that_grows_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(bytes(10_000)))
    (tmp_path / "bomb.zip").write_bytes(zipped({"zeros": bytes(10_000)}))
    found = open_files(tmp_path)
    for name in ("bomb.txt.gz", "bomb.zip/zeros"):
        with pytest.raises(UserError, match="larger than"):
            found.read(name)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("cut.tar.xz", "one/plain.csv"), ("cut.zip", "cut.zip/member"), ("cut.txt.gz", "cut.txt.gz")],
)
def test_a_damaged_file_ends_in_one_line(name: str, asked: str, tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "whole.tar.xz")
    whole = (tmp_path / "whole.tar.xz").read_bytes()
    (tmp_path / "whole.tar.xz").unlink()
    damaged = {
        "cut.tar.xz": whole[: len(whole) // 2],
        "cut.zip": b"PK\x03\x04 no",
        "cut.txt.gz": gzip.compress(b"x" * 99)[:-9],
    }
    (tmp_path / name).write_bytes(damaged[name])
    with pytest.raises(UserError, match="fetch it again") as caught:
        open_files(tmp_path).read(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "one/../../secret", "../secret.zip/x"])
def test_paths_out_of_the_folder_are_not_there(path: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    (tmp_path / "secret").write_text("s")
    (tmp_path / "secret.zip").write_bytes(zipped({"x": b"s"}))
    assert not open_files(folder).has(path)
    with pytest.raises(UserError):
        open_files(folder).read(path)
    assert open_files(folder).names("../") == []


def test_a_single_file_is_a_place(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"a")
    found = open_files(tmp_path / "train.csv")
    assert (found.names(), found.read("train.csv")) == (["train.csv"], b"a")


@pytest.mark.parametrize("place", ["no/such/folder", "s3://bucket/key", "hf://datasets/only-one-word"])
def test_a_place_that_is_none_is_named(place: str) -> None:
    with pytest.raises(UserError, match=Path(place).name):
        open_files(place)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAPLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="SAPLM_CACHE"):
        open_files(write_tar(tmp_path / "data.tar.xz"))


def test_the_hash_of_what_was_read_depends_on_content_alone(tmp_path: Path) -> None:
    folder, archive = write_folder(tmp_path / "data"), write_tar(tmp_path / "data.tar.xz")
    first, second, third = (Recorded(open_files(place)) for place in (folder, archive, folder))
    first.read("one/plain.csv"), first.read("one/terms.tsv.gz")
    second.read("one/terms.tsv.gz"), second.read("one/plain.csv"), second.read("one/plain.csv")
    third.read("one/plain.csv")
    assert first.sha256() == second.sha256() != third.sha256()


def test_a_repository_of_the_hub_is_fetched_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, name: str, revision: str | None) -> object:
            assert (name, revision) == ("org/set", "v1")
            siblings = [type("S", (), {"rfilename": n}) for n in ("data/train-0.csv", "more.zip")]
            return type("I", (), {"sha": "c0ffee", "siblings": siblings})

    fetched = []

    def download(name: str, path: str, *, repo_type: str, revision: str) -> str:
        fetched.append((name, path, repo_type, revision))
        (tmp_path / "f").write_bytes(zipped({"x.csv": b"in zip"}) if path.endswith(".zip") else b"seq,label\n")
        return str(tmp_path / "f")

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    found = open_files("hf://datasets/org/set@v1")
    assert (found.has("data/train-0.csv"), found.has("data/none.csv"), fetched) == (True, False, [])
    assert found.read("data/train-0.csv") == b"seq,label\n"
    assert fetched == [("org/set", "data/train-0.csv", "dataset", "c0ffee")]
    assert found.read("more.zip/x.csv") == b"in zip"


def test_without_network_the_hub_cache_serves_and_its_lack_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def dataset_info(self, name: str, revision: str | None) -> object:
            raise ConnectionError("offline")

    monkeypatch.setattr(hub, "HfApi", Api)
    folder = write_folder(tmp_path / "snapshot")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(folder))
    assert open_files("hf://datasets/org/set").read("one/plain.csv") == b"a,b\n"

    def missing(name: str, **options: object) -> str:
        raise hub.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    with pytest.raises(UserError, match="cannot be reached"):
        open_files("hf://datasets/org/set")
