"""The HTTP API: evaluations, results, comparison, queue, embeddings and tokens."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from configs.errors import UserError
from configs.service import ServeConfig
from eval.service.board import State
from eval.service.bodies import MAX_ID, NewEvaluation, Sequences, read_body, read_sequences
from eval.service.desk import Desk, Work
from eval.service.identity import identify, one_line
from eval.service.promotion import Compare
from eval.service.store import QueueFull, Store

Id = Annotated[int, PathParameter(ge=1, le=MAX_ID)]
Named = Annotated[int, Query(ge=1, le=MAX_ID)]
RETRY_SECONDS = "30"


@dataclass(frozen=True)
class Parts:
    """What the routes work with."""

    config: ServeConfig
    store: Store
    desk: Desk
    protocol: str
    wake: Callable[[], None]
    cancel: Callable[[int], bool]
    compare: Compare
    embed: Callable[[Literal["mean", "residues"]], Work]
    tokens: Work


def make_router(parts: Parts) -> APIRouter:
    """All routes below /api."""
    router = APIRouter(prefix="/api")
    _add_evaluations(router, parts)
    _add_results(router, parts)
    _add_sequences(router, parts)
    return router


def checkpoint_path(text: str, roots: tuple[Path, ...]) -> Path:
    """The folder that a client names, its links followed.

    Raises:
        HTTPException: it lies elsewhere than below `roots`, whether it exists or not.
    """
    try:
        path = Path(text).resolve()
        inside = any(path.is_relative_to(root.resolve()) for root in roots)
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise HTTPException(403, "checkpoint: allowed are folders below watch.runs of the service's configuration")
    return path


def _add_evaluations(router: APIRouter, parts: Parts) -> None:
    store = parts.store

    @router.post("/evaluations", openapi_extra=_json_body(NewEvaluation), responses={201: {}, 403: {}, 429: {}})
    async def add_evaluation(request: Request) -> JSONResponse:
        """Queue a checkpoint. 201: it is new (or queued again); 200: it was there already. Either way once."""
        _check_json(request)
        asked = read_body(NewEvaluation, await request.body())

        def enqueue() -> tuple[int, bool]:
            path = checkpoint_path(asked.checkpoint, parts.config.watch.runs)
            limit = parts.config.limits.max_queued
            return store.enqueue(identify(path), parts.protocol, asked.priority, asked.again, limit)

        try:
            evaluation, is_new = await run_in_threadpool(enqueue)
        except QueueFull:
            raise HTTPException(429, "the queue is full; come back later", {"Retry-After": RETRY_SECONDS}) from None
        except (UserError, OSError) as error:
            raise HTTPException(422, one_line(error)) from None
        parts.wake()
        row = await run_in_threadpool(store.evaluation, evaluation)
        return JSONResponse(asdict(row), 201 if is_new else 200)

    @router.get("/evaluations")
    def list_evaluations(
        state: State | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
    ) -> list[dict[str, Any]]:
        """Evaluations, newest first."""
        rows = [row for row in store.evaluations() if state is None or row.state == state]
        return [asdict(row) for row in rows[offset : offset + limit]]

    @router.get("/evaluations/{evaluation}")
    def get_evaluation(evaluation: Id) -> dict[str, Any]:
        """One evaluation with its steps."""
        row = _known(store, evaluation)
        return {**asdict(row), "tasks": [asdict(task) for task in store.tasks(evaluation)]}

    @router.delete("/evaluations/{evaluation}")
    def cancel_evaluation(evaluation: Id) -> dict[str, Any]:
        """End an evaluation that waits or runs; what it has measured is kept."""
        _known(store, evaluation)
        if not parts.cancel(evaluation):
            raise HTTPException(409, f"evaluation {evaluation} has ended already")
        return asdict(store.evaluation(evaluation))

    @router.get("/queue")
    def get_queue() -> list[dict[str, Any]]:
        """Steps that run or wait, in the order in which they will run."""
        return [asdict(task) for task in store.queue()]

    @router.get("/promotions")
    def get_promotions() -> list[dict[str, Any]]:
        """Decisions about versions of registered models, newest first."""
        return [asdict(row) for row in store.promotions()]


def _add_results(router: APIRouter, parts: Parts) -> None:
    store = parts.store

    @router.get("/results")
    def get_results() -> list[dict[str, Any]]:
        """Results of all evaluations that have some, by run and step."""
        return [
            {"evaluation": asdict(row), "results": results.model_dump(mode="json")} for row, results in store.results()
        ]

    @router.get("/compare")
    def compare(first: Named, second: Named) -> dict[str, Any]:
        """Second evaluation minus first: paired differences with intervals and corrected p-values."""
        folders = [store.folder_of(_known(store, one).id) for one in (first, second)]
        try:
            found = parts.compare(*folders)
        except UserError as error:
            raise HTTPException(409, one_line(error)) from None
        return {
            "first": first,
            "second": second,
            "metrics": {name: asdict(difference) for name, difference in found.items()},
        }


def _add_sequences(router: APIRouter, parts: Parts) -> None:
    async def answer(request: Request, model: int | None, work: Work) -> StreamingResponse:
        limits = parts.config.limits
        content_type = request.headers.get("content-type", "")
        body = await request.body()
        sequences = await run_in_threadpool(read_sequences, content_type, body, limits.max_residues)
        checkpoint = await run_in_threadpool(_checkpoint_of, parts.store, model)
        if parts.desk.is_full:
            raise HTTPException(429, "the model is busy; come back later", {"Retry-After": RETRY_SECONDS})
        return StreamingResponse(parts.desk.stream(checkpoint, sequences, work), media_type="application/x-ndjson")

    @router.post("/embed", openapi_extra=_sequence_body())
    async def embed(
        request: Request, model: Named | None = None, per: Literal["mean", "residues"] = "mean"
    ) -> StreamingResponse:
        """Embeddings by an evaluated checkpoint (default: the newest): a line per protein, mean or per residue."""
        return await answer(request, model, parts.embed(per))

    @router.post("/tokens", openapi_extra=_sequence_body())
    async def tokens(request: Request, model: Named | None = None) -> StreamingResponse:
        """3Di states predicted from sequence, with the confidence of every residue: a line per protein."""
        return await answer(request, model, parts.tokens)


def _known(store: Store, evaluation: int) -> Any:
    try:
        return store.evaluation(evaluation)
    except KeyError:
        raise HTTPException(404, f"no evaluation {evaluation}") from None


def _checkpoint_of(store: Store, evaluation: int | None) -> str:
    """Folder of an evaluated checkpoint that is still there."""
    rows = store.evaluations() if evaluation is None else [_known(store, evaluation)]
    rows = [row for row in rows if row.state == "done"]
    if not rows:
        raise HTTPException(409, "that checkpoint is not evaluated (yet); see /api/evaluations?state=done")
    try:
        identify(Path(rows[0].checkpoint))
    except (UserError, OSError) as error:
        raise HTTPException(410, one_line(error)) from None
    return rows[0].checkpoint


def _check_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps a form of another site from asking: only JSON, and that is asked for beforehand.
        raise HTTPException(415, "allowed content type: application/json")


def _json_body(model: Any) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def _sequence_body() -> dict[str, Any]:
    schema = Sequences.model_json_schema(ref_template="#/components/schemas/{model}")
    sequence = schema.pop("$defs")["Sequence"]
    schema["properties"]["sequences"]["items"] = sequence
    content = {"application/json": {"schema": schema}, "text/x-fasta": {"schema": {"type": "string"}}}
    return {"requestBody": {"required": True, "content": content}}
