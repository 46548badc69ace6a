"""The web page: each is made here from the board's present state, works without scripts, and loads one style sheet."""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from configs.labels import is_lower_better
from eval import comparison
from eval.service import comparing, curves, details, labels, views
from eval.service.board import Board
from eval.service.charts import legend_mark
from eval.service.significance import Compare, Comparisons, Test, paired_test

TEMPLATES = Path(__file__).parent / "templates"
STYLESHEET = TEMPLATES / "service.css"
NAVIGATION = (
    ("/", "Leaderboard"),
    ("/curves", "Curves"),
    ("/compare", "Compare"),
    ("/tasks", "Tasks"),
    ("/queue", "Queue"),
)
REFRESH_SECONDS = 10
MOST_LISTED = 100
"""Waiting or failed evaluations, and promotions, that one page lists."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_Text = Annotated[str, Query(max_length=200)]
_Runs = Annotated[tuple[_Text, ...], Query(max_length=500)]


class PageError(Exception):
    """What was asked for cannot be shown; the text says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Address:
    """The address of this page, from which links that change a part of it are made."""

    def __init__(self, path: str, items: Sequence[tuple[str, str]]) -> None:
        self._path, self._items = path, items

    def link(self, **changes: object) -> str:
        """The same address with these parts set, or left out where None."""
        kept = [(name, value) for name, value in self._items if name not in changes]
        kept += [(name, str(value)) for name, value in changes.items() if value is not None]
        return self._path + ("?" + urlencode(kept) if kept else "")


class Pages:
    """Templates, style sheet and remembered comparisons of one service."""

    def __init__(self, board: Board, title: str, compare: Compare, test: Test) -> None:
        self.board = board
        self.comparisons = Comparisons(compare, test)
        self.style = STYLESHEET.read_bytes()
        # The name changes with the content, so that browsers may keep it for ever.
        self.stylesheet = f"/static/service-{hashlib.sha256(self.style).hexdigest()[:12]}.css"
        self.environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters |= {
            "seconds": labels.seconds_text,
            "moment": labels.time_text,
            "p": labels.p_text,
            "breakable": lambda name: Markup("<wbr>").join(re.split(r"(?<=[/_.])", name)),
            "signed": lambda value: f"{value:+.4g}",
            "metric": lambda name: labels.full_title(*name.split("/", 1)) if "/" in name else name,
        }
        self.environment.globals |= {
            "site": title,
            "navigation": NAVIGATION,
            "stylesheet": self.stylesheet,
            "key_of": legend_mark,
            "refresh_seconds": None,
        }

    def render(self, request: Request, template: str, status: int = 200, **values: object) -> HTMLResponse:
        """A page with the parts that every page has."""
        base = request.scope.get("root_path", "").rstrip("/")
        path = request.url.path.removeprefix(base)
        here = "/" + path.split("/")[1]
        has_api = any(getattr(route, "path", "") == "/docs" for route in request.app.routes)
        values = {"base": base, "has_api": has_api, "here": here, "now": labels.time_text(time.time()), **values}
        return HTMLResponse(self.environment.get_template(template).render(values), status, HEADERS)

    def leaderboard(self, request: Request, choice: views.Choice, protocol: str) -> HTMLResponse:
        """One table for each protocol; the chosen or newest one in full."""
        entries = views.entries_of(self.board)
        every = views.protocols_of(entries)
        shown = [_chosen(every, protocol)] if protocol else every
        _check_sort(choice, shown)
        base = request.scope.get("root_path", "").rstrip("/")
        folders = {entry.id: self.board.folder_of(entry.id) for entry in entries}
        boards = [
            views.leaderboard(
                one, choice if number == 0 else _preview(choice, one), self.comparisons, folders,
                views.PAGE_ROWS if number == 0 else views.PREVIEW_ROWS,
            )
            for number, one in enumerate(shown)
        ]  # fmt: skip
        address = Address(f"{base}/", request.query_params.multi_items())
        return self.render(
            request,
            "leaderboard.html.j2",
            boards=boards,
            choice=choice,
            runs=views.runs_of(entries),
            metric_choices=views.metric_choices(every),
            query=address,
            protocol=protocol,
            one_of=bool(protocol) and len(every) > 1,
            sort_head=lambda board, key, title, rows, kind: _sort_head(
                choice if board is boards[0] else None, address, key, title, rows, kind
            ),
        )

    def curves(self, request: Request, metrics: str, runs: frozenset[str], protocol: str) -> HTMLResponse:
        """Charts of the chosen metrics over steps."""
        entries = views.entries_of(self.board)
        every = views.protocols_of(entries)
        chosen = _chosen(every, protocol) if protocol else (every[0] if every else None)
        found = curves.curves(chosen, views.chosen_names(chosen, metrics), runs) if chosen else None
        return self.render(
            request,
            "curves.html.j2",
            protocol=chosen,
            protocols=every,
            curves=found,
            metrics=metrics,
            runs=views.runs_of(chosen.entries) if chosen else [],
            chosen_runs=runs,
            metric_choices=views.metric_choices([chosen] if chosen else []),
        )

    def comparison(self, request: Request, first: str, second: str) -> HTMLResponse:
        """Two evaluations side by side; those that stand nearest where none is named."""
        entries = views.entries_of(self.board)
        by_id = {str(entry.id): entry for entry in entries}
        for asked in (first, second):
            if asked and asked not in by_id:
                raise PageError(404, f"No evaluation {asked!r} has results.")
        one, other = comparing.pair_of(entries, by_id.get(first), by_id.get(second))
        page = None
        if one and other:
            folders = (self.board.folder_of(one.id), self.board.folder_of(other.id))
            page = comparing.comparison(one, other, folders, self.comparisons)
        runs = views.runs_of(entries)
        choices = [
            (run, [(str(e.id), comparing.choice_label(e, entries)) for e in entries if e.results.run == run])
            for run in runs
        ]
        sides = comparing.sides(one, other) if one and other else []
        return self.render(
            request, "comparison.html.j2", choices=choices, first=one, second=other, page=page, sides=sides
        )

    def tasks(self, request: Request) -> HTMLResponse:
        """All tasks by group."""
        return self.render(request, "tasks.html.j2", groups=details.task_summaries(views.entries_of(self.board)))

    def task(self, request: Request, name: str) -> HTMLResponse:
        """One task and its results."""
        page = details.task_page(name, views.entries_of(self.board))
        if page is None:
            raise PageError(404, f"No evaluation knows a task {name!r}.")
        return self.render(request, "task.html.j2", page=page)

    def queue(self, request: Request, live: bool) -> HTMLResponse:
        """What runs, waits, failed and was decided."""
        return self.render(
            request,
            "queue.html.j2",
            queue=details.queue(self.board),
            promotions=self.board.promotions()[:MOST_LISTED],
            most=MOST_LISTED,
            refresh_seconds=REFRESH_SECONDS if live else None,
        )


def add_pages(
    app: FastAPI, board: Board, title: str, compare: Compare = comparison.compare, test: Test = paired_test
) -> Pages:
    """Give the service its pages: `/`, /curves, /compare, /tasks, /tasks/NAME, /queue and one style sheet."""
    pages = Pages(board, title, compare, test)

    def answer(request: Request, make: Callable[[], HTMLResponse]) -> HTMLResponse:
        try:
            return make()
        except PageError as error:
            heading = "Not found" if error.status == 404 else "This cannot be shown"
            return pages.render(request, "message.html.j2", error.status, heading=heading, text=str(error))

    # Plain functions: they run in worker threads, so that a slow comparison does not hold up other requests.
    @app.get("/", include_in_schema=False)
    def leaderboard(
        request: Request,
        run: _Runs = (),
        metrics: _Text = "main",
        q: _Text = "",
        newest: _Text = "",
        sort: _Text = "rank",
        order: _Text = "",
        protocol: _Text = "",
        page: _Text = "1",
    ) -> HTMLResponse:
        def make() -> HTMLResponse:
            number = int(page) if page.isascii() and page.isdigit() and 0 < len(page) < 7 and int(page) > 0 else None
            if number is None:
                raise PageError(400, f"page {page!r} is not a positive whole number.")
            if order not in ("", "asc", "desc"):
                raise PageError(400, f"order {order!r} is neither 'asc' nor 'desc'.")
            down = None if order == "" else order == "desc"
            choice = views.Choice(frozenset(run), metrics, q, newest == "1", sort, down, number)
            return pages.leaderboard(request, choice, protocol)

        return answer(request, make)

    @app.get("/curves", include_in_schema=False)
    def curves_page(
        request: Request,
        run: _Runs = (),
        metrics: _Text = "main",
        protocol: _Text = "",
    ) -> HTMLResponse:
        return answer(request, lambda: pages.curves(request, metrics, frozenset(run), protocol))

    @app.get("/compare", include_in_schema=False)
    def comparison_page(request: Request, first: _Text = "", second: _Text = "") -> HTMLResponse:
        return answer(request, lambda: pages.comparison(request, first, second))

    @app.get("/tasks", include_in_schema=False)
    def tasks(request: Request) -> HTMLResponse:
        return answer(request, lambda: pages.tasks(request))

    @app.get("/tasks/{name}", include_in_schema=False)
    def task(request: Request, name: str) -> HTMLResponse:
        return answer(request, lambda: pages.task(request, name))

    @app.get("/queue", include_in_schema=False)
    def queue(request: Request, live: _Text = "1") -> HTMLResponse:
        return answer(request, lambda: pages.queue(request, live != "0"))

    @app.get(pages.stylesheet, include_in_schema=False)
    def stylesheet() -> Response:
        kept = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        return Response(pages.style, media_type="text/css", headers=kept)

    return pages


def _chosen(every: Sequence[views.Protocol], key: str) -> views.Protocol:
    found = next((one for one in every if one.key == key), None)
    if found is None:
        raise PageError(404, f"No evaluation has protocol {key!r}.")
    return found


def _check_sort(choice: views.Choice, shown: Sequence[views.Protocol]) -> None:
    known = {"rank", "name", "step"} | {"/".join(name) for one in shown for name in one.names}
    if shown and choice.sort not in known:
        raise PageError(400, f"sort {choice.sort!r} is not a column of this table.")


def _preview(choice: views.Choice, protocol: views.Protocol) -> views.Choice:
    """The first rows of a protocol below the chosen one, sorted by the same column where it has it."""
    has = choice.sort in ("rank", "name", "step") or tuple(choice.sort.split("/", 1)) in protocol.names
    sort, down = (choice.sort, choice.descending) if has else ("rank", None)
    return views.Choice(choice.runs, choice.metrics, choice.text, choice.newest, sort, down)


def _sort_head(choice: views.Choice | None, address: Address, key: str, title: str, rows: int, kind: str) -> Markup:
    """A heading that sorts by its column; plain where the table is only a preview (`choice` None)."""
    span, name = Markup(' rowspan="{}"').format(rows) if rows > 1 else "", escape(title)
    if choice is None:
        return Markup('<th scope="col"{} class="{}">{}</th>').format(span, kind, name)
    down = choice.descending
    if down is None:
        down = "/" in key and not is_lower_better(key.split("/", 1)[1])
    is_sorted = choice.sort == key
    sort = Markup(' aria-sort="{}"').format("descending" if down else "ascending") if is_sorted else ""
    arrow = (" ▾" if down else " ▴") if is_sorted else ""
    turned = ("asc" if down else "desc") if is_sorted else None
    link = address.link(sort=key, order=turned, page=None)
    return Markup('<th scope="col"{}{} class="{}"><a class="sort" href="{}">{}{}</a></th>').format(
        span, sort, kind, link, name, arrow
    )
