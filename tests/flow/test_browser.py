"""The service's pages in a real browser: headless Chromium through Playwright, against a real server on this machine.

With SAPLM_SCREENSHOTS=FOLDER the test writes pictures of the pages there, as the documentation shows them.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from eval.service.pages import add_pages
from tests.unit.eval.service.boards import MadeBoard, compare, make_board, make_results, paired_test

playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")

TITLE = "Evaluation (made-up example values)"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
DEADLINE_SECONDS = 20.0
PATHS = ("/", "/?metrics=all", "/curves", "/curves?metrics=task:contact", "/compare", "/tasks", "/tasks/ec", "/queue")
NASTY = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&amp;'


@dataclass
class Site:
    """The served pages, and the board behind them."""

    address: str
    board: MadeBoard


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server on a free port of 127.0.0.1."""
    board = make_board(tmp_path_factory.mktemp("board"))
    app = FastAPI(openapi_url=None)
    add_pages(app, board, TITLE, compare, paired_test)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", board)
    server.should_exit = True
    thread.join(DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Headless Chromium of this machine."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        pytest.skip("no Chromium: neither $CHROMIUM nor a program `chromium` on PATH")
    with playwright.sync_playwright() as api:
        # Without --no-sandbox Chromium does not start in containers whose user is root.
        chromium = api.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Watched:
    """A tab that records what must not happen: errors, and requests to any other host."""

    def __init__(self, browser: object, site: Site, size: dict[str, int], scripts: bool) -> None:
        self._context = browser.new_context(viewport=size, java_script_enabled=scripts, base_url=site.address)
        self.page = self._context.new_page()
        self.page.set_default_timeout(DEADLINE_SECONDS * 1000)
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda r: self.foreign.append(r.url) if not self._is_ours(site, r.url) else None)
        self.page.on("response", lambda r: self.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)

    @staticmethod
    def _is_ours(site: Site, address: str) -> bool:
        return address.startswith((site.address + "/", "data:"))

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *failure: object) -> None:
        self._context.close()
        if failure[0] is None:
            assert not self.errors
            assert not self.foreign

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def settle(self, path: str) -> None:
        """Open a leaderboard whose tests of the best values are done."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        self.page.goto(path)
        while self.page.get_by_text("still being tested").count():
            assert time.monotonic() < deadline, "the best values were not tested in time"
            self.page.reload()


def test_every_page_is_reached_by_clicking_and_says_where_it_is(browser: object, site: Site) -> None:
    with Watched(browser, site, DESKTOP, scripts=True) as tab:
        tab.page.goto("/")
        for name, heading in (
            ("Curves", "Metrics over training"),
            ("Compare", "Comparison of two checkpoints"),
            ("Tasks", "Tasks"),
            ("Queue", "Queue"),
            ("Leaderboard", "Leaderboard"),
        ):
            tab.page.get_by_role("navigation", name="Pages").get_by_role("link", name=name, exact=True).click()
            assert tab.page.get_by_role("heading", level=1).inner_text() == heading
            assert tab.page.locator("nav [aria-current=page]").inner_text() == name
            assert tab.page.title().endswith(TITLE)
        tab.page.get_by_role("link", name="EC number", exact=True).click()
        assert tab.page.get_by_role("heading", level=1).inner_text() == "EC number"
        assert "12 of 1,919 test proteins are similar" in tab.page.inner_text("main")


def test_the_leaderboard_filters_and_sorts(browser: object, site: Site) -> None:
    with Watched(browser, site, DESKTOP, scripts=True) as tab:
        rows = tab.page.locator("table.board tbody tr")
        tab.page.goto("/")
        assert rows.count() == 20
        tab.page.get_by_role("link", name="value ↓").click()
        first = _column(tab, 2)
        assert first == sorted(first), "the first click puts the better, smaller values above"
        assert tab.page.locator("[aria-sort=ascending]").count() == 1
        tab.page.locator("[aria-sort] a").click()
        assert _column(tab, 2) == first[::-1]
        tab.page.get_by_label("Search").fill("MLM-control")
        tab.page.get_by_role("button", name="Apply").click()
        assert rows.count() == 6
        tab.page.get_by_label("newest of each run").check()
        tab.page.get_by_role("button", name="Apply").click()
        assert rows.count() == 1
        tab.page.get_by_role("link", name="Reset").click()
        tab.page.get_by_label("Metrics").select_option(label="Function")
        tab.page.get_by_text("Runs: all 5").click()
        tab.page.get_by_label("esm2-8m-align", exact=True).check()
        tab.page.get_by_role("button", name="Apply").click()
        assert rows.count() == 6
        heads = tab.page.locator("table.board thead tr").first.inner_text().split("\t")
        assert [head.strip() for head in heads if head.strip()][2:] == [
            "EC number",
            "GO molecular function",
            "Localisation, 10 classes",
        ]


def _column(tab: Watched, index: int) -> list[float]:
    cells = tab.page.locator(f"table.board tbody td:nth-of-type({index}) .value").all_inner_texts()
    assert len(cells) > 5
    return [float(cell.strip(" ★")) for cell in cells]


def test_the_best_value_is_marked_only_where_it_is_significantly_best(browser: object, site: Site) -> None:
    with Watched(browser, site, DESKTOP, scripts=True) as tab:
        tab.settle("/?newest=1")
        best = tab.page.locator("td.best")
        assert 0 < best.count() < tab.page.locator("table.board .sort").count() - 2
        tab.settle("/?run=esm2-8m-align&metrics=task:ppi_human")
        assert best.count() == 0, "180 examples do not tell neighbouring checkpoints apart"


def test_two_checkpoints_are_compared(browser: object, site: Site) -> None:
    with Watched(browser, site, DESKTOP, scripts=True) as tab:
        tab.page.goto("/compare")
        tab.page.get_by_label("First").select_option(label="esm2-8m-align, step 0")
        tab.page.get_by_label("Second").select_option(label="esm2-8m-align, step 10,000")
        tab.page.get_by_role("button", name="Compare").click()
        assert "esm2-8m-align, step 10,000 against esm2-8m-align, step 0" in tab.page.inner_text("#outcome")
        long_range = tab.page.get_by_role("row", name="Contact P@L, long range")
        assert long_range.locator("td").last.inner_text() == "better"
        assert tab.page.get_by_role("img", name="Metrics where higher is better").count() == 1
        tab.page.get_by_role("link", name="Swap").click()
        assert long_range.locator("td").last.inner_text() == "worse"


def test_a_comparison_across_protocols_is_refused_in_words_and_its_table_stands_apart(
    browser: object, site: Site
) -> None:
    other = site.board.add(
        make_results("older-settings", 500, protocol_sha256="00c0ffee" * 8), created=1.0, finished=2.0
    )
    try:
        with Watched(browser, site, DESKTOP, scripts=True) as tab:
            tab.page.goto(f"/compare?first=1&second={other.id}")
            assert "has protocols" in tab.page.get_by_role("alert").inner_text()
            tab.page.goto("/")
            assert tab.page.locator("table.board").count() == 2
            tab.page.get_by_role("link", name="Show only protocol 00c0ffee").click()
            assert tab.page.locator("table.board tbody tr").count() == 1
            tab.page.get_by_role("button", name="Apply").click()
            assert tab.page.locator("table.board tbody tr").count() == 1, "filters keep the protocol"
            tab.page.get_by_role("link", name="Show the other protocols too").click()
            assert tab.page.locator("table.board").count() == 2
    finally:
        site.board.rows.remove(other)


def test_curves_show_chosen_metrics_with_the_same_numbers_as_a_table(browser: object, site: Site) -> None:
    with Watched(browser, site, DESKTOP, scripts=True) as tab:
        tab.page.goto("/curves")
        tab.page.get_by_label("Metrics").select_option(label="Contact")
        tab.page.get_by_role("button", name="Apply").click()
        charts = tab.page.get_by_role("img")
        assert charts.count() == 3
        # Three runs over six steps, and two models without steps.
        assert tab.page.locator("svg.chart").first.locator("g[class^=s]").count() == 5
        tab.page.locator("figure summary").first.click()
        assert tab.page.locator("figure").first.locator("tbody tr").count() == 8
        tab.page.get_by_text("Runs: all 5").click()
        tab.page.get_by_role("checkbox", name="esm2-8m-mlm-control").check()
        tab.page.get_by_role("button", name="Apply").click()
        assert tab.page.locator(".legend li").count() == 1


def test_the_queue_tells_states_reasons_and_decisions(browser: object, site: Site) -> None:
    with Watched(browser, site, DESKTOP, scripts=True) as tab:
        tab.page.goto("/queue")
        text = tab.page.inner_text("main")
        assert "1 running, 2 waiting, 1 failed, 20 done" in text
        assert "weights.safetensors has another sha256 than its manifest says" in text
        assert "1 significant gain, no significant loss" in text
        assert tab.page.locator("progress").get_attribute("value") == "6"
        assert tab.page.locator("meta[http-equiv=refresh]").count() == 1
        tab.page.get_by_role("link", name="Pause").click()
        assert tab.page.locator("meta[http-equiv=refresh]").count() == 0


def test_everything_works_without_javascript(browser: object, site: Site) -> None:
    with Watched(browser, site, DESKTOP, scripts=False) as tab:
        tab.page.goto("/")
        tab.page.locator("#q").fill("mlm-control")
        tab.page.get_by_role("button", name="Apply").click()
        assert tab.page.locator("table.board tbody tr").count() == 6
        tab.page.locator("thead a.sort").last.click()
        tab.page.get_by_role("link", name="Compare esm2-8m-mlm-control, step 10,000").click()
        assert "against esm2-8m-mlm-control, step 8,000" in tab.page.inner_text("#outcome")
        tab.page.get_by_role("link", name="Curves", exact=True).click()
        tab.page.locator("figure summary").first.click()
        assert tab.page.locator("figure tbody").first.is_visible()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_fit_the_window_and_have_landmarks_headings_and_names(
    browser: object, site: Site, size: dict[str, int]
) -> None:
    with Watched(browser, site, size, scripts=True) as tab:
        for path in PATHS:
            tab.page.goto(path)
            assert tab.overflow() <= 0, path
            found = tab.page.evaluate(_AUDIT)
            assert found == {"unnamed": [], "skipped": [], "repeated": [], "h1": 1, "main": 1, "lang": "en"}, path


_AUDIT = """() => {
  const text = id => document.getElementById(id)?.textContent || '';
  const name = e => (e.getAttribute('aria-label') || e.textContent || '').trim()
    || [...(e.labels || [])].map(l => l.textContent.trim()).join('')
    || (e.getAttribute('aria-labelledby') || '').split(' ').map(text).join('');
  const all = s => [...document.querySelectorAll(s)];
  const ids = all('[id]').map(e => e.id);
  const levels = all('h1, h2, h3').map(e => Number(e.tagName[1]));
  return {
    unnamed: all('a, button, input, select, summary, svg[role=img], [role=region], nav, progress, th[scope=row]')
      .filter(e => !name(e)).map(e => e.outerHTML.slice(0, 120)),
    skipped: levels.filter((level, i) => i > 0 && level > levels[i - 1] + 1),
    repeated: ids.filter((id, i) => ids.indexOf(id) !== i),
    h1: all('h1').length, main: all('main').length, lang: document.documentElement.lang,
  };
}"""


def test_the_keyboard_reaches_everything_and_focus_is_seen(browser: object, site: Site) -> None:
    with Watched(browser, site, DESKTOP, scripts=True) as tab:
        tab.page.goto("/")
        tab.page.keyboard.press("Tab")
        assert tab.page.evaluate("document.activeElement.innerText") == "Skip to content"
        assert tab.page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
        reached = set()
        for _ in range(14):
            tab.page.keyboard.press("Tab")
            kind, outline = tab.page.evaluate(
                "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"
            )
            reached.add(kind)
            assert outline == "solid", kind
        assert {"A", "SELECT", "INPUT", "SUMMARY", "BUTTON"} <= reached


def test_names_of_runs_are_text_whatever_they_hold(browser: object, site: Site) -> None:
    row = site.board.add(make_results(NASTY, 100))
    try:
        with Watched(browser, site, PHONE, scripts=True) as tab:
            for path in (*PATHS, f"/compare?second={row.id}", "/?q=%3Cscript%3Ealert(1)%3C/script%3E"):
                tab.page.goto(path)
                assert tab.page.title() != "owned"
                assert tab.page.locator("script, img, [onerror]").count() == 0, path
                assert tab.overflow() <= 0, path
            tab.page.goto("/")
            assert NASTY in tab.page.inner_text("table.board")
    finally:
        site.board.rows.remove(row)


def test_pictures_of_the_pages_are_written_where_asked(browser: object, site: Site, tmp_path: Path) -> None:
    folder = Path(os.environ.get("SAPLM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    pair = f"first={_id_of(site, 'esm2-8m-mlm-control')}&second={_id_of(site, 'esm2-8m-align')}"
    # Address, the last element in the picture, and pixels below it.
    shots = {
        "leaderboard": ("/", "table.board tbody tr:nth-of-type(12)", 0),
        "curves": ("/curves", "figure:nth-of-type(6)", 14),
        "comparison": (f"/compare?{pair}", ".versus", 0),
    }
    with Watched(browser, site, DESKTOP, scripts=True) as tab:
        for name, (path, last, margin) in shots.items():
            tab.settle(path)
            box = tab.page.locator(last).bounding_box()
            picture = folder / f"service-{name}.png"
            clip = {"x": 0, "y": 0, "width": DESKTOP["width"], "height": box["y"] + box["height"] + margin}
            tab.page.screenshot(path=picture, full_page=True, clip=clip)
            # Small enough for a documentation page, large enough not to be blank.
            assert 20_000 < picture.stat().st_size < 300_000


def _id_of(site: Site, run: str) -> int:
    return max(row.id for row in site.board.rows if row.run == run and row.state == "done")
