"""The web app of `recsys serve`: recommendations by HTTP from whatever model its source holds at the moment.

It knows neither MLflow nor Prefect, and no user: whoever asks sends the history.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys import wording
from recsys.errors import InputError
from recsys.item_columns import Filter
from recsys.runtime import Recommendation
from recsys.served_model import ServedModel, Source, iso
from recsys.web_messages import (
    MOST_ANSWERED,
    Answer,
    Batch,
    BatchAnswer,
    BatchRow,
    Health,
    Item,
    Model,
    Question,
    Refusal,
    RegistryHealth,
)
from recsys.web_metrics import Outcome, WebMetrics

LARGEST_BODY = 8 << 20
"""Bytes of a request."""

_COUNTED = ("/recommend", "/recommend/batch")
_REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in (413, 422, 503)}


class NothingToServeError(Exception):
    """There is no model yet; why not is the message."""


def app_of(source: Source, threads: int = 2) -> FastAPI:
    """The app over a source of models. Models compute in so many threads, apart from the one that speaks HTTP."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="recommend")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown()

    app = FastAPI(
        title="recsys",
        description="Recommendations of the champion. One answer comes from one model, which it names.",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect has no words; every refusal is a sentence
    )
    metrics = WebMetrics(source)
    _add_refusals(app)
    _add_recommendations(app, source, metrics, pool)
    _add_watching(app, source, metrics)
    app.add_middleware(_Bounded)
    app.add_middleware(_Measured, metrics=metrics)
    return app


def _add_recommendations(app: FastAPI, source: Source, metrics: WebMetrics, pool: ThreadPoolExecutor) -> None:
    def answers(questions: Sequence[Question]) -> tuple[ServedModel, list[BatchRow]]:
        """All by the model that is current now."""
        model = source.current()
        if model is None:
            raise NothingToServeError(source.standing().sentence)
        rows = answer(model, questions)
        fallbacks = sum(bool(row.items) and row.items[0].source == "popular" for row in rows)
        metrics.count_fallbacks(fallbacks)
        return model, rows

    @app.post("/recommend", response_model=Answer, responses=_REFUSALS)
    async def recommend(question: Question, request: Request) -> Response:
        """The best items for one user."""

        def body() -> str:
            model, (row,) = answers([question])
            request.state.outcome = "answered" if row.items else "empty"
            return Answer(items=row.items, reason=row.reason, model=_name(model)).model_dump_json()

        return _json(await asyncio.get_running_loop().run_in_executor(pool, body))

    @app.post("/recommend/batch", response_model=BatchAnswer, responses=_REFUSALS)
    async def recommend_batch(batch: Batch) -> Response:
        """The best items for many users, all by one model: each is answered as it would be alone."""
        wanted = sum(question.k for question in batch.requests)
        if wanted > MOST_ANSWERED:
            raise HTTPException(
                422, f"the batch asks for {wanted:,} items, at most {MOST_ANSWERED:,} are given at once"
            )

        def body() -> str:
            model, rows = answers(batch.requests)
            return BatchAnswer(answers=rows, model=_name(model)).model_dump_json()

        return _json(await asyncio.get_running_loop().run_in_executor(pool, body))


def _add_watching(app: FastAPI, source: Source, metrics: WebMetrics) -> None:
    @app.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> Response:
        """200 while something can be served, though the registry be away; else 503."""
        found = health_of(source)
        return _json(found.model_dump_json(), 200 if found.status == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def answer(model: ServedModel, questions: Sequence[Question]) -> list[BatchRow]:
    """The answers in order. DataError for a category that the model does not know."""
    filters = [model.runtime.columns.filter(each.allow, each.exclude, each.categories) for each in questions]
    histories = [[*each.history, *each.session] for each in questions]
    answers = model.runtime.recommend(histories, max(each.k for each in questions), filters)
    return [
        BatchRow(items=_items(model, items[: each.k]), reason=None if items else _reason(chosen))
        for each, items, chosen in zip(questions, answers, filters, strict=True)
    ]


def health_of(source: Source) -> Health:
    """What `/health` says."""
    model, standing, now = source.current(), source.standing(), time.time()
    since_poll = None if standing.answered is None else max(0.0, now - standing.answered)
    return Health(
        status="ok" if model else "unavailable",
        version=model and model.version,
        digest=model and model.digest,
        as_of=model and model.as_of_text,
        age_seconds=None if model is None or model.as_of is None else max(0.0, now - model.as_of),
        since=model and iso(model.since),
        registry=RegistryHealth(state=standing.state, sentence=standing.sentence, seconds_since_poll=since_poll),
    )


def _items(model: ServedModel, items: Sequence[Recommendation]) -> list[Item]:
    columns = model.runtime.columns
    return [
        Item(item_id=i.item_id, score=i.score, source=i.source, title=columns.title(columns.code_of[i.item_id]))
        for i in items
    ]


def _reason(chosen: Filter) -> str:
    if chosen.allowed is not None and not len(chosen.allowed):
        return "no item that the model knows passes allow and categories"
    return "every item that may be answered is excluded or in the history already"


def _name(model: ServedModel) -> Model:
    return Model(version=model.version, digest=model.digest, as_of=model.as_of_text)


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


# --- what is refused ----------------------------------------------------------------------------------------------


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [_fault(each) for each in error.errors()]
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        return _refuse(422, "; ".join(faults[:3]) + more)

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> JSONResponse:
        return _refuse(422, str(error))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's word for a body at which json gives up without a place
            return _refuse(422, f"the request is no JSON that is read: {_gave_up(error.__cause__)}")
        return _refuse(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(NothingToServeError)
    async def nothing(request: Request, error: NothingToServeError) -> JSONResponse:
        return _refuse(503, f"there is no model to serve: {error}")


def _fault(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "json_invalid":
        return f"the request is no JSON: {fault['ctx']['error']}, at character {fault['loc'][-1]}"
    place = ".".join(str(part) for part in fault["loc"] if part != "body")
    return f"{place or 'the request'}: {fault['msg']}"


def _gave_up(cause: BaseException | None) -> str:
    if isinstance(cause, UnicodeDecodeError):
        return "it is no text in UTF-8"
    return "it is nested too deeply" if isinstance(cause, RecursionError) else "a number has too many digits"


def _refuse(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`headers`: what belongs to the status, as the methods that a 405 names."""
    return JSONResponse({"error": wording.plain(sentence, 500)}, status, headers)


class _Bounded:
    """Refuses a body that is too large, told or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and (len(told) > _MOST_DIGITS or int(told) > LARGEST_BODY):
            return await _too_large()(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST_BODY:
                raise HTTPException(413, _TOO_LARGE)
            return message

        return await self.app(scope, counted, send)


_MOST_DIGITS = 18
_TOO_LARGE = f"the request is larger than {LARGEST_BODY:,} bytes"


def _too_large() -> JSONResponse:
    return _refuse(413, _TOO_LARGE)


class _Measured:
    """Counts requests for recommendations by what became of them."""

    def __init__(self, app: ASGIApp, metrics: WebMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in _COUNTED:
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500
        state: dict[str, Outcome] = scope.setdefault("state", {})

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            outcome = _outcome(status) or state.get("outcome", "answered")
            self.metrics.count(scope["path"], outcome, time.perf_counter() - began)


def _outcome(status: int) -> Outcome | None:
    """None for an answer, which may be empty."""
    if status < 400:
        return None
    if status == 503:
        return "unavailable"
    return "refused" if status < 500 else "failed"
