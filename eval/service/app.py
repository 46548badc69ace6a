"""The web application: the API, the pages, and the gate before both."""

import time
from collections.abc import Callable
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse

from eval.service.access import Tokens
from eval.service.api import Parts, make_router
from eval.service.board import Board
from eval.service.bodies import explain
from eval.service.guard import Guard

TITLE = "Evaluation"
AddPages = Callable[[FastAPI, Board, str], object]


def make_app(parts: Parts, token: str, add_pages: AddPages | None) -> FastAPI:
    """Everything that is served; pages are added by `add_pages(app, board, title)`."""
    config = parts.config
    app = FastAPI(title=TITLE, version="1", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    started = time.time()

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": explain(error.errors())}, 422)

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        """Whether the service and its queue answer."""
        parts.store.counts()
        return {"ok": True}

    @app.get("/api/metrics")
    def metrics() -> dict[str, Any]:
        """Numbers for monitoring."""
        queue = parts.store.queue()
        return {
            "uptime_seconds": round(time.time() - started, 1),
            "evaluations": dict.fromkeys(("queued", "running", "done", "failed"), 0) | parts.store.counts(),
            "steps_waiting": sum(task.state == "queued" for task in queue),
            "steps_running": sum(task.state == "running" for task in queue),
        }

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> str:
        """The routes as a plain page: nothing is loaded from elsewhere."""
        return _plain_docs(app.openapi())

    app.include_router(make_router(parts))
    if add_pages is not None:
        add_pages(app, parts.store, TITLE)
    app.add_middleware(
        Guard, tokens=Tokens(token), limits=config.limits, public_pages=config.public_pages, host=config.host
    )
    return app


def _plain_docs(schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(facts.get('description', ''))}</td></tr>"
        for path, methods in schema["paths"].items()
        for method, facts in methods.items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(schema['info']['title'])}: API</title>"
        f"<h1>API</h1><p>Described in full by <a href=/openapi.json>openapi.json</a>.</p><table>{rows}</table></html>"
    )
