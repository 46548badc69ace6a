import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from configs.errors import UserError
from configs.source import SourceConfig
from data_pipeline.sources import Entry, configured_source, open_source, read_entry, read_named_entry, reading_ahead
from data_pipeline.sources.transport import file_system
from data_pipeline.structure.chain import StructureError
from tests.unit.data_pipeline.web import Fault, Web, remote, served, tar_bytes

FILES = {"ab/1abc.cif.gz": b"1abc", "ab/2abd.cif.gz": b"2abd", "b.pdb": b"b", "notes.txt": b"no", "ab/.x.pdb": b"no"}
NAMES = ["ab/1abc.cif.gz", "ab/2abd.cif.gz", "b.pdb"]
MODELS = {"AF-P12345-F1-model_v6.cif.gz": b"P12345", "AF-Q8W3K0-F1-model_v6.cif.gz": b"Q8W3K0"}
SIDE_FILES = {"AF-P12345-F1-predicted_aligned_error_v6.json.gz": b"{}", "AF-P12345-F1-confidence_v6.json.gz": b"{}"}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def web() -> Iterator[Web]:
    with served() as running:
        yield running


@pytest.fixture
def bucket() -> Iterator[str]:
    """URL of a folder in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    for name, content in FILES.items():
        memory.pipe(f"/bucket/{name}", content)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def contents(entries: list[Entry]) -> dict[str, bytes]:
    return {entry.name: read_entry(entry) for entry in entries}


def test_a_remote_folder_lists_like_a_local_one(bucket: str, tmp_path: Path) -> None:
    entries = list(open_source(bucket, remote=remote(tmp_path)).entries())
    assert [entry.name for entry in entries] == NAMES
    assert not (tmp_path / "cache").exists()
    assert contents(entries) == {name: FILES[name] for name in NAMES}
    assert all(entry.version.startswith(f"{len(FILES[entry.name])}|") for entry in entries)


def test_the_state_of_a_remote_file_is_part_of_its_entry(bucket: str, tmp_path: Path) -> None:
    before = next(open_source(bucket, remote=remote(tmp_path)).entries())
    assert read_entry(before) == b"1abc"
    fsspec.filesystem("memory").pipe("/bucket/ab/1abc.cif.gz", b"1ABC")
    after = next(open_source(bucket, remote=remote(tmp_path)).entries())
    assert before.version != after.version
    assert read_entry(after) == b"1ABC"


def test_remote_entries_are_small_values(bucket: str, tmp_path: Path) -> None:
    entries = list(open_source(bucket, remote=remote(tmp_path)).entries())
    assert pickle.loads(pickle.dumps(entries)) == entries
    assert len(pickle.dumps(entries)) - len(pickle.dumps(entries[:1])) < 2 * 200
    assert len({id(entry.reader) for entry in entries if "/" in entry.name}) == 1


def test_a_folder_url_of_this_machine_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "my files").mkdir()
    (tmp_path / "my files" / "a.pdb").write_bytes(b"a")
    url = (tmp_path / "my files").as_uri()
    config = SourceConfig(kind="files", path=url, remote=remote(tmp_path))
    (entry,) = configured_source(config).entries()
    assert (entry.name, read_entry(entry)) == ("a.pdb", b"a")
    assert not (tmp_path / "cache").exists()


def test_an_index_page_is_a_listing(web: Web, tmp_path: Path) -> None:
    page = '<a href="/">up</a><a href="?C=N;O=D">order</a><a href="{}">x</a><a href="{}">x</a>'
    web.put("mmCIF/", page.format("ab/", "b.pdb").encode(), Fault(503))
    web.put("mmCIF/ab/", page.format("2abd.cif.gz", "/mmCIF/ab/1abc.cif.gz").encode())
    for name in NAMES:
        web.put(f"mmCIF/{name}", FILES[name])
    for url in (web.url("mmCIF/"), web.url("mmCIF")):
        web.files.setdefault("mmCIF", web.files["mmCIF/"])
        web.etags.setdefault("mmCIF", '"x"')
        entries = list(open_source(url, remote=remote(tmp_path)).entries())
        assert [entry.name for entry in entries] == NAMES
    assert contents(entries) == {name: FILES[name] for name in NAMES}


def test_a_single_remote_file_is_a_source_of_one(web: Web, tmp_path: Path) -> None:
    url = web.put("x/1abc.cif.gz", b"1abc") + "?download=1"
    web.files["x/1abc.cif.gz?download=1"], web.etags["x/1abc.cif.gz?download=1"] = b"1abc", '"e"'
    (entry,) = open_source(url, remote=remote(tmp_path)).entries()
    assert (entry.name, entry.version, read_entry(entry)) == ("1abc.cif.gz", '4|"e"', b"1abc")


@pytest.mark.parametrize(("name", "mode"), [("UP000005640_9606_HUMAN_v6.tar", "w"), ("models.tar.gz", "w:gz")])
def test_a_remote_tar_is_fetched_once_and_read_in_the_cache(web: Web, tmp_path: Path, name: str, mode: str) -> None:
    url = web.put(name, tar_bytes(MODELS | SIDE_FILES, mode), Fault(cut_after=700), Fault(503))
    entries = list(open_source(url, remote=remote(tmp_path)).entries())
    assert contents(entries) == MODELS
    fetched = web.gets[name]
    assert list(open_source(url, remote=remote(tmp_path)).entries()) == entries
    assert web.gets[name] == fetched
    assert {len(entry.version) for entry in entries} == {64}


def test_tars_in_a_remote_folder_are_listed_in_order(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(5):
        memory.pipe(f"/tars/UP{number}_v6.tar", tar_bytes({f"AF-P0000{number}-F1-model_v6.cif.gz": b"x"}))
    memory.pipe("/tars/UP1.pdb", b"y")
    try:
        config = SourceConfig(kind="files", path="memory://tars", remote=remote(tmp_path))
        names = [entry.name for entry in configured_source(config).entries()]
        assert names == sorted(names)
        assert len(names) == 6
        # With a limit no archive is fetched before its turn.
        limited = SourceConfig(kind="files", path="memory://tars", limit=1, remote=remote(tmp_path / "other"))
        assert next(configured_source(limited).entries()).name == names[0]
        assert len(list((tmp_path / "other" / "cache").rglob("*.tar"))) == 1
    finally:
        memory.rm("/tars", recursive=True)


def test_a_list_names_files_by_url_or_relative_to_itself(web: Web, tmp_path: Path) -> None:
    web.put("ab/1abc.cif.gz", b"1abc")
    web.put("models.tar", tar_bytes(MODELS))
    absolute = web.put("else/2xyz.bcif", b"2xyz")
    host = web.address.removeprefix("http://")
    url = web.put("all.list", f"# mine\n./ab/1abc.cif.gz\n\nmodels.tar\n{absolute}\n".encode())
    expected = {f"{host}/else/2xyz.bcif": b"2xyz", "ab/1abc.cif.gz": b"1abc"}
    expected |= {f"models.tar/{name}": content for name, content in MODELS.items()}
    entries = list(open_source(url, remote=remote(tmp_path)).entries())
    assert [entry.name for entry in entries] == sorted(expected)
    assert contents(entries) == expected
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "1abc.cif.gz").write_bytes(b"local")
    (tmp_path / "some.csv").write_text(f'path,size\nab/1abc.cif.gz,5\n"{absolute}",4\n')
    entries = list(open_source(tmp_path / "some.csv", remote=remote(tmp_path)).entries())
    assert contents(entries) == {"ab/1abc.cif.gz": b"local", f"{host}/else/2xyz.bcif": b"2xyz"}


def test_a_line_that_names_no_structure_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a.pdb\nb.docx\n")
    with pytest.raises(UserError, match=r"x\.txt:2: 'b\.docx' names neither a structure file nor a tar"):
        list(open_source(tmp_path / "x.txt").entries())
    (tmp_path / "x.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="no structure files"):
        list(open_source(tmp_path / "x.txt").entries())


def test_a_file_that_cannot_be_had_is_a_reject_with_url_and_cause(web: Web, tmp_path: Path) -> None:
    web.put("busy.pdb", b"x", *[Fault(503)] * 9)
    web.put("x.list", b"busy.pdb\ngone.pdb\n")
    entries = list(open_source(web.url("x.list"), remote=remote(tmp_path, attempts=2)).entries())
    for entry, reason, cause in zip(entries, ("unreadable", "not_found"), ("HTTP 503", "HTTP 404"), strict=True):
        with pytest.raises(StructureError) as caught:
            read_entry(entry)
        assert caught.value.reason == reason
        assert entry.path in caught.value.detail
        assert cause in caught.value.detail
    assert web.gets["busy.pdb"] == 2


def test_a_place_that_cannot_be_reached_is_one_clear_mistake(web: Web, tmp_path: Path) -> None:
    settings = remote(tmp_path, attempts=2)
    nobody = "http://127.0.0.1:9"  # the discard port: nothing listens
    for url in (f"{nobody}/", f"{nobody}/a.pdb", f"{nobody}/a.tar", f"{nobody}/a.list"):
        with pytest.raises(UserError, match=r"cannot be reached after 2 attempts.*check address and network") as caught:
            list(open_source(url, remote=settings).entries())
        assert "\n" not in str(caught.value)
    for url in (web.url("no.tar"), web.url("folder/"), "memory://nothing"):
        with pytest.raises(UserError, match="there is nothing there"):
            list(open_source(url, remote=settings).entries())
    web.put("secret/", b"", *[Fault(403)] * 2)
    with pytest.raises(UserError, match="access refused"):
        list(open_source(web.url("secret/"), remote=settings).entries())
    web.put("empty/", b"<p>nothing</p>")
    with pytest.raises(UserError, match=r"shows no index pages, to a \.txt list"):
        list(open_source(web.url("empty/"), remote=settings).entries())
    web.put("other/", b'<a href="x.docx">x</a>')
    with pytest.raises(UserError, match="no structure files"):
        list(open_source(web.url("other/"), remote=settings).entries())


def test_a_missing_library_comes_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UserError, match="pip install s3fs"):
        file_system("s3://bucket/x", remote(tmp_path))
    with pytest.raises(UserError, match=r"allowed are a local path, http\(s\)://"):
        file_system("nonsense://x", remote(tmp_path))


def test_options_reach_the_protocols_file_system(tmp_path: Path) -> None:
    system, _ = file_system("memory://x", remote(tmp_path, options={"skip_instance_cache": True, "anon": True}))
    assert system.storage_options["anon"] is True


def write_list(folder: Path, text: str, name: str = "wanted.txt") -> Path:
    (folder / name).write_text(text)
    return folder / name


def prediction(web: Web, accession: str, *versions: int, **changes: object) -> None:
    """Answer of the API for an accession, with files of each version."""
    rows = []
    for version in versions:
        name = f"AF-{accession}-F1-model_v{version}"
        row = {"entryId": f"AF-{accession}-F1", "latestVersion": version, "uniprotAccession": accession}
        urls = {f"{form}Url": web.put(f"files/{name}.{form}", f"{name}.{form}".encode()) for form in ("cif", "bcif")}
        rows.append(row | urls | changes)
    web.put(f"api/{accession}", json.dumps(rows).encode())


def api_config(web: Web, path: Path, tmp_path: Path, **changes: object) -> SourceConfig:
    return SourceConfig(
        kind="accessions", path=path, api=web.url("api/{accession}"), remote=remote(tmp_path), **changes
    )


def test_the_version_of_a_model_is_the_one_that_the_api_names(web: Web, tmp_path: Path) -> None:
    prediction(web, "P12345", 6)
    prediction(web, "Q8W3K0", 4, 11, 9)
    path = write_list(tmp_path, "# wanted\nQ8W3K0\nAF-P12345-F1-model_v4\nP12345 \n")
    entries = list(configured_source(api_config(web, path, tmp_path)).entries())
    assert [entry.name for entry in entries] == ["AF-P12345-F1", "AF-Q8W3K0-F1"]
    assert not web.gets
    named = ["AF-P12345-F1-model_v6.cif", "AF-Q8W3K0-F1-model_v11.cif"]
    assert [read_named_entry(entry) for entry in entries] == [(name, name.encode()) for name in named]
    binary = list(configured_source(api_config(web, path, tmp_path, model_format="bcif")).entries())
    assert read_named_entry(binary[0])[0] == "AF-P12345-F1-model_v6.bcif"
    assert web.gets["api/P12345"] == 1  # the second time from the cache


def test_what_the_api_does_not_have_is_a_reject_by_accession(web: Web, tmp_path: Path) -> None:
    prediction(web, "P12346", 6, entryId="AF-P12346-2-F1")
    web.put("api/P12347", b"<html>")
    prediction(web, "P12348", 6, cifUrl=web.url("files/latest.cif"))
    web.put("api/P12349", b"[]")
    path = write_list(tmp_path, "P12345\nP12346\nP12347\nP12348\nP12349\n")
    entries = configured_source(api_config(web, path, tmp_path)).entries()
    reasons = ["not_found", "not_found", "unreadable", "unreadable", "not_found"]
    for entry, reason in zip(entries, reasons, strict=True):
        with pytest.raises(StructureError) as caught:
            read_entry(entry)
        assert caught.value.reason == reason, entry.name
        assert entry.name.split("-")[1] in caught.value.detail


def test_entries_are_read_ahead_in_order(web: Web, tmp_path: Path) -> None:
    accessions = [f"P1234{digit}" for digit in range(10)]
    for accession in accessions[1:]:
        prediction(web, accession, 6)
    entries = list(configured_source(api_config(web, write_list(tmp_path, "\n".join(accessions)), tmp_path)).entries())
    names = []
    for entry, read in reading_ahead(entries):
        try:
            names.append(read()[0])
        except StructureError as error:
            names.append(f"{entry.name} {error.reason}")
    assert names == ["AF-P12340-F1 not_found", *(f"AF-{a}-F1-model_v6.cif" for a in accessions[1:])]
    assert set(web.gets.values()) == {1}
    local = [Entry("a.pdb", str(write_list(tmp_path, "a", "a.pdb"))), Entry("b.pdb", str(tmp_path / "b.pdb"))]
    reads = [read for _, read in reading_ahead(local)]
    assert reads[0]() == ("a.pdb", b"a")
    with pytest.raises(StructureError, match="unreadable"):
        reads[1]()


def test_accessions_are_found_in_files_in_their_highest_version(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "AF-P12345-F1-model_v4.cif.gz").write_bytes(b"old")
    (folder / "UP1_v6.tar").write_bytes(tar_bytes(MODELS | {"AF-P99999-F1-model_v6.cif.gz": b"unwanted"}))
    (folder / "AF-A0A009DWB8-F2-model_v6.pdb").write_bytes(b"second fragment")
    table = "repId\tnMem\nP12345\t7\nA0A009DWB8\t1\nQ6GZX4\t3\n"
    config = SourceConfig(kind="accessions", path=write_list(tmp_path, table, "reps.tsv"), structures=folder)
    entries = {entry.name: entry for entry in configured_source(config).entries()}
    assert sorted(entries) == [
        "AF-A0A009DWB8-F2-model_v6.pdb",
        "AF-P12345-F1-model_v4.cif.gz",
        "AF-Q6GZX4-F1",
        "UP1_v6.tar/AF-P12345-F1-model_v6.cif.gz",
    ]
    assert read_entry(entries["UP1_v6.tar/AF-P12345-F1-model_v6.cif.gz"]) == b"P12345"
    with pytest.raises(StructureError) as caught:
        read_entry(entries["AF-Q6GZX4-F1"])
    assert caught.value.reason == "not_found"


def test_accessions_are_found_in_remote_tars(web: Web, tmp_path: Path) -> None:
    url = web.put("UP1_v6.tar", tar_bytes(MODELS | SIDE_FILES))
    path = write_list(tmp_path, "P12345\n")
    config = SourceConfig(kind="accessions", path=path, structures=url, remote=remote(tmp_path))
    assert contents(list(configured_source(config).entries())) == {"AF-P12345-F1-model_v6.cif.gz": b"P12345"}


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("P12345\n12345\n", "a.txt", r"a\.txt:2: '12345' is no UniProt accession"),
        ("header\nP12345\n", "a.txt", r"a\.txt:1: 'header'"),
        ("header,x\nP12345,1\nnope,2\n", "a.csv", r"a\.csv:3: 'nope'"),
        ("# nothing\n", "a.txt", "no accessions in it"),
    ],
)
def test_a_malformed_list_is_a_mistake_of_the_user(tmp_path: Path, text: str, name: str, message: str) -> None:
    config = SourceConfig(kind="accessions", path=write_list(tmp_path, text, name))
    with pytest.raises(UserError, match=message):
        list(configured_source(config).entries())


def test_a_list_of_other_proteins_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "models.tar").write_bytes(tar_bytes(MODELS))
    path = write_list(tmp_path, "Q6GZX4\n")
    config = SourceConfig(kind="accessions", path=path, structures=tmp_path / "models.tar")
    with pytest.raises(UserError, match=r"none of its 1 accessions is among source\.structures"):
        list(configured_source(config).entries())
