import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from configs.errors import UserError
from data_pipeline.sources import downloads as downloads_module
from data_pipeline.sources.downloads import Downloads, fetched_ahead
from data_pipeline.sources.pace import Pace
from data_pipeline.sources.transport import (
    InterruptedDownloadError,
    MissingError,
    RefusedError,
    open_stream,
    patiently,
    state_of,
)
from data_pipeline.structure.chain import StructureError
from tests.unit.data_pipeline.web import Fault, Web, remote, served

CONTENT = random.Random(0).randbytes(500_000)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def web() -> Iterator[Web]:
    with served() as running:
        yield running


def files_in(folder: Path) -> list[str]:
    """Names of cached files, records and parts, without locks."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.is_relative_to(folder / "locks"))


def test_a_file_is_fetched_once_and_recorded(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif.gz", CONTENT)
    downloads = Downloads(remote(tmp_path))
    assert downloads.read(url) == CONTENT
    assert downloads.read(url) == CONTENT
    assert downloads.fetch(url).read_bytes() == CONTENT
    assert web.gets["a.cif.gz"] == 1
    place = downloads.place_of(url)
    assert files_in(tmp_path / "cache") == [place.name, f"{place.name}.json"]


@pytest.mark.parametrize("status", [503, 500, 502, 429, 408])
def test_a_busy_server_is_asked_again(web: Web, tmp_path: Path, status: int) -> None:
    url = web.put("a.pdb", CONTENT, Fault(status), Fault(status))
    assert Downloads(remote(tmp_path)).read(url) == CONTENT
    assert web.gets["a.pdb"] == 3


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), (None, None)]
)
def test_the_pause_that_a_server_names_is_read(
    web: Web, tmp_path: Path, header: str | None, seconds: float | None
) -> None:
    url = web.put("a.pdb", CONTENT, Fault(429, {} if header is None else {"Retry-After": header}))
    with pytest.raises(InterruptedDownloadError) as caught, open_stream(url, 0, "", remote(tmp_path)):
        pass
    assert caught.value.retry_after == seconds


def test_a_named_pause_is_kept_within_reason(tmp_path: Path) -> None:
    pauses: list[float] = []
    asked = iter([7.0, 100_000.0])

    def action() -> str:
        pause = next(asked, None)
        if pause is not None:
            raise InterruptedDownloadError("busy", pause)
        return "done"

    assert patiently(action, remote(tmp_path), sleep=pauses.append) == "done"
    assert pauses == [7.0, 300.0]


def test_pauses_grow_and_are_random(tmp_path: Path) -> None:
    pauses: list[float] = []

    def fail() -> None:
        raise InterruptedDownloadError("no")

    with pytest.raises(InterruptedDownloadError):
        patiently(fail, remote(tmp_path, attempts=9, backoff_seconds=1.0), sleep=pauses.append)
    assert len(pauses) == 8
    assert all(0 <= pause <= min(60, 2**number) for number, pause in enumerate(pauses))
    assert len(set(pauses)) == len(pauses)


def test_what_is_not_there_is_asked_for_once(web: Web, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="HTTP 404"):
        Downloads(remote(tmp_path)).read(web.url("nothing.pdb"))
    assert web.gets["nothing.pdb"] == 1
    url = web.put("secret.pdb", b"", Fault(403))
    with pytest.raises(RefusedError, match="HTTP 403"):
        Downloads(remote(tmp_path)).read(url)
    assert web.gets["secret.pdb"] == 1
    assert files_in(tmp_path / "cache") == []


def test_a_cut_download_is_continued_where_it_broke(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif", CONTENT, Fault(cut_after=300_000), Fault(cut_after=100_000))
    assert Downloads(remote(tmp_path)).read(url) == CONTENT
    assert len(web.ranges) == 2
    # At most the chunk on its way is lost at each break.
    assert web.sent_bytes < len(CONTENT) + 3 * 2**16


def test_a_download_is_continued_by_a_later_process(web: Web, tmp_path: Path) -> None:
    url = web.put("a.tar", CONTENT, Fault(cut_after=300_000))
    with pytest.raises(InterruptedDownloadError):
        Downloads(remote(tmp_path, attempts=1)).fetch(url)
    assert any(name.endswith(".part") for name in files_in(tmp_path / "cache"))
    place = Downloads(remote(tmp_path)).fetch(url)
    assert place.read_bytes() == CONTENT
    assert len(web.ranges) == 1
    assert files_in(tmp_path / "cache") == [place.name, f"{place.name}.json"]


def test_parts_of_two_versions_are_never_joined(web: Web, tmp_path: Path) -> None:
    url = web.put("a.tar", CONTENT, Fault(cut_after=300_000))
    with pytest.raises(InterruptedDownloadError):
        Downloads(remote(tmp_path, attempts=1)).fetch(url)
    web.put("a.tar", CONTENT[::-1])
    assert Downloads(remote(tmp_path)).read(url) == CONTENT[::-1]


@pytest.mark.parametrize("changed", [False, True])
def test_a_whole_part_is_used_while_it_is_current(web: Web, tmp_path: Path, changed: bool) -> None:
    url = web.put("a.tar", CONTENT)
    downloads = Downloads(remote(tmp_path))
    version = state_of(url, downloads.config)
    place = downloads.fetch(url, version)
    # As a process leaves it that is killed between the last byte and the record.
    place.rename(place.with_name(f"{place.name}.part"))
    place.with_name(f"{place.name}.json").unlink()
    notes = {"total": len(CONTENT), "validator": web.etags["a.tar"]}
    place.with_name(f"{place.name}.part.json").write_text(json.dumps(notes))
    if changed:
        web.put("a.tar", CONTENT[::-1])
    content = downloads.read(url, state_of(url, downloads.config))
    assert content == (CONTENT[::-1] if changed else CONTENT)
    assert web.gets["a.tar"] == (2 if changed else 1)


def test_a_server_without_ranges_starts_anew(web: Web, tmp_path: Path) -> None:
    web.has_ranges = False
    url = web.put("a.cif", CONTENT, Fault(cut_after=300_000))
    assert Downloads(remote(tmp_path)).read(url) == CONTENT
    assert web.gets["a.cif"] == 2


def test_a_length_that_is_never_reached_is_an_error(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif", CONTENT, *[Fault(claimed_extra=10) for _ in range(10)])
    web.has_ranges = False
    with pytest.raises(InterruptedDownloadError, match=r"a\.cif"):
        Downloads(remote(tmp_path, attempts=3)).read(url)
    assert web.gets["a.cif"] == 3


def test_a_part_beyond_the_end_is_dropped(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif", CONTENT, Fault(claimed_extra=10))
    # The claimed length makes the whole file look like a part, whose rest the server then does not have (416).
    assert Downloads(remote(tmp_path)).read(url) == CONTENT


def test_attempts_count_only_failures_without_progress(web: Web, tmp_path: Path) -> None:
    url = web.put("a.tar", CONTENT, *[Fault(cut_after=2**16 + 1000) for _ in range(6)])
    assert Downloads(remote(tmp_path, attempts=2)).read(url) == CONTENT


def test_a_gzip_encoded_file_arrives_as_it_is_stored(web: Web, tmp_path: Path) -> None:
    import gzip

    stored = gzip.compress(CONTENT, mtime=0)
    url = web.put("a.cif.gz", stored, Fault(headers={"Content-Encoding": "gzip"}))
    assert Downloads(remote(tmp_path)).read(url) == stored


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "record"])
def test_a_damaged_copy_is_fetched_anew(web: Web, tmp_path: Path, damage: str) -> None:
    url = web.put("a.cif", CONTENT)
    downloads = Downloads(remote(tmp_path))
    place = downloads.fetch(url)
    if damage == "flip":
        changed = bytearray(CONTENT)
        changed[1000] ^= 1
        stat = place.stat()
        place.write_bytes(changed)
        os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif damage == "cut":
        place.write_bytes(CONTENT[:-1])
    elif damage == "gone":
        place.unlink()
    else:
        place.with_name(f"{place.name}.json").write_text("{")
    assert downloads.read(url) == CONTENT
    assert web.gets["a.cif"] == 2
    assert downloads.fetch(url).read_bytes() == CONTENT
    assert web.gets["a.cif"] == 2


def test_another_version_is_fetched_anew(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif", CONTENT)
    downloads = Downloads(remote(tmp_path))
    first = state_of(url, downloads.config)
    assert first.startswith("500000|")
    downloads.read(url, first)
    web.put("a.cif", b"new")
    assert downloads.read(url, state_of(url, downloads.config)) == b"new"
    assert web.gets["a.cif"] == 2


def test_a_server_that_only_knows_get_tells_the_state_too(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif", CONTENT)
    expected = state_of(url, remote(tmp_path))
    web.has_head = False
    assert state_of(url, remote(tmp_path)) == expected
    assert web.gets["a.cif"] == 1


def test_threads_share_one_download(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif", CONTENT)
    web.gate = threading.Event()
    with ThreadPoolExecutor(4) as executor:
        futures = [executor.submit(Downloads(remote(tmp_path)).read, url) for _ in range(4)]
        while not web.gets["a.cif"]:
            time.sleep(0.001)
        web.gate.set()
        assert all(future.result() == CONTENT for future in futures)
    assert web.gets["a.cif"] == 1


def test_processes_share_one_download(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif", CONTENT)
    web.gate = threading.Event()
    code = (
        "import sys; from pathlib import Path; from tests.unit.data_pipeline.web import remote;"
        "from data_pipeline.sources.downloads import Downloads;"
        "print(len(Downloads(remote(Path(sys.argv[1]))).read(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), url]
    root = Path(__file__).parents[3]
    workers = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    while not web.gets["a.cif"]:
        time.sleep(0.01)
    web.gate.set()
    assert [worker.communicate(timeout=60)[0].strip() for worker in workers] == ["500000"] * 2
    assert web.gets["a.cif"] == 1


def test_files_need_not_be_kept(web: Web, tmp_path: Path) -> None:
    url = web.put("a.cif", CONTENT)
    downloads = Downloads(remote(tmp_path, keep=False))
    assert downloads.read(url) == CONTENT
    assert files_in(tmp_path / "cache") == []
    assert downloads.read(url) == CONTENT
    assert web.gets["a.cif"] == 2


def test_a_full_disk_is_a_mistake_of_the_user(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = web.put("a.cif", CONTENT)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads_module, "_write", full)
    with pytest.raises(UserError, match=r"No space left on device; free space, or set source\.remote\.cache"):
        Downloads(remote(tmp_path)).read(url)


def test_a_time_limit_ends_the_attempts(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = web.put("a.cif", CONTENT)

    def interrupted(*arguments: object) -> None:
        raise StructureError("timed_out", "the signal came while bytes were read")

    monkeypatch.setattr(downloads_module, "_receive", interrupted)
    with pytest.raises(StructureError, match="timed_out"):
        Downloads(remote(tmp_path)).read(url)
    assert web.gets["a.cif"] == 1


def test_other_protocols_go_through_the_same_cache(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.cif", CONTENT)
    downloads = Downloads(remote(tmp_path))
    assert downloads.read("memory://bucket/a.cif", state_of("memory://bucket/a.cif", downloads.config)) == CONTENT
    memory.rm("/bucket", recursive=True)
    assert downloads.read("memory://bucket/a.cif") == CONTENT
    with pytest.raises(MissingError):
        downloads.read("memory://bucket/b.cif")


def test_archives_come_in_order_however_long_each_takes(web: Web, tmp_path: Path) -> None:
    urls = [(web.put(f"{i}.tar", bytes([i]) * 1000, *[Fault(503)] * (3 - i)), "") for i in range(4)]
    paths = list(fetched_ahead(Downloads(remote(tmp_path)), urls, 3))
    assert [path.read_bytes()[0] for path in paths] == [0, 1, 2, 3]


def test_requests_keep_to_the_rate_whatever_the_clock_does(tmp_path: Path) -> None:
    now, slept = [1000.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(tmp_path, 4.0, clock=lambda: now[0], sleep=sleep)
    for _ in range(9):
        pace.wait("https://host/a")
    assert now[0] == pytest.approx(1002.0)  # the first at once, eight more a quarter of a second apart
    pace.wait("https://other/a")
    assert now[0] == pytest.approx(1002.0)  # hosts do not wait for each other
    now[0] = 10.0
    slept.clear()
    now[0] -= 100_000
    pace.wait("https://host/a")
    assert not slept  # a reservation of a clock that was set back does not block for a day


def test_processes_share_one_rate(tmp_path: Path) -> None:
    now, waits = [1000.0], []
    paces = [Pace(tmp_path, 10.0, clock=lambda: now[0], sleep=waits.append) for _ in range(3)]
    for pace in paces:
        pace.wait("https://host/a")
    assert waits == pytest.approx([0.1, 0.2])
    Pace(tmp_path, None, sleep=waits.append).wait("https://host/a")
    assert len(waits) == 2
