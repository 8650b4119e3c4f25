"""The HTTP application: routes, authorisation, limits and answers."""

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmtrain import __version__
from rmtrain.errors import InputError
from rmtrain.serving.batcher import Batcher, BatchLimits, QueueFullError, StoppedError
from rmtrain.serving.counters import Counters
from rmtrain.serving.forms import ClassifyForm, Embeddings, Form, RewardForm, VllmPooling, VllmScore
from rmtrain.serving.online import OnlineScorer
from rmtrain.serving.problems import problem, problem_of, problem_of_body

RETRY_SECONDS = "1"
_SMALL = 1 << 14  # bytes of a body read at once; a larger piece would delay other requests
_ABOUT = (
    "Rewards of one model, the same as from `rmtrain score`. `/reward` takes the requests of rmtrain, OpenRLHF, "
    "LLaMA-Factory and slime; the other routes follow vLLM and SGLang."
)
_logger = logging.getLogger("rmtrain")


@dataclass(frozen=True)
class ServerLimits:
    """The limits of a server."""

    batch: BatchLimits  # how requests are gathered, and how many may wait
    body_bytes: int  # maximum size of a request's body
    token: str = ""  # clients must send it as `Authorization: Bearer`; empty for none
    body_seconds: float = 30.0  # time limit for receiving a body


def make_app(scorer: OnlineScorer, limits: ServerLimits) -> ASGIApp:
    """The application of one model."""
    counters = Counters()
    batcher = Batcher(scorer, limits.batch, counters)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    app = FastAPI(title="rmtrain", version=__version__, description=_ABOUT, lifespan=lifespan)
    _add_forms(app, Desk(scorer, batcher, counters))

    @app.get("/health", summary="The model, if it is ready")
    async def health() -> Response:
        info = scorer.info
        limits = {"max_length": info.max_length, "dtype": info.dtype, "fingerprint": info.fingerprint}
        return JSONResponse({"status": "ok", "model": scorer.name, **limits})

    @app.get("/metrics", summary="Figures for Prometheus")
    async def metrics() -> Response:
        return PlainTextResponse(counters.text(batcher.rows_waiting), media_type="text/plain; version=0.0.4")

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        if "json" not in request.headers.get("content-type", ""):
            return problem(415, "the content type is not JSON", "send the header Content-Type: application/json")
        return problem_of_body(error.errors())

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        return problem(error.status_code, str(error.detail), "see /docs", dict(error.headers or {}))

    return Gate(app, limits, counters, frozenset(app.openapi()["paths"]))


_ROUTES: dict[str, tuple[Any, str | None]] = {  # the form of a path's requests, and what /docs says of it
    "/reward": (RewardForm, "Rewards, for requests of rmtrain, OpenRLHF, LLaMA-Factory and slime"),
    "/": (RewardForm, None),
    "/classify": (ClassifyForm, "As vLLM (`input`, `messages`) or SGLang (`text`)"),
    "/pooling": (VllmPooling, "As vLLM"),
    "/v1/embeddings": (Embeddings, "As SGLang, for verl"),
    "/score": (VllmScore, "As vLLM: prompts as `queries`, answers as `documents`"),
    "/v1/score": (VllmScore, None),
}


def _add_forms(app: FastAPI, desk: "Desk") -> None:
    """The routes that give rewards."""
    for path, (kind, summary) in _ROUTES.items():

        async def answer(form: kind, request: Request) -> Response:  # type: ignore[valid-type]
            return await desk.answer(form, request)

        name = path.rpartition("/")[2] or "reward"
        app.post(path, name=name, summary=summary, include_in_schema=summary is not None)(answer)


@dataclass(frozen=True)
class Desk:
    """Handles a request of any form: scores it and writes the answer."""

    scorer: OnlineScorer
    batcher: Batcher
    counters: Counters

    async def answer(self, form: Form, request: Request) -> Response:
        """The rewards in the form of the request, or its fault."""
        try:
            small = int(request.headers.get("content-length", _SMALL)) < _SMALL
            reader = self.scorer.reader
            rows = form.read(reader) if small else await run_in_threadpool(form.read, reader)
            scores = await _unless_gone(request, self.batcher, [group for group, _ in rows.groups])
        except InputError as error:
            return problem_of(error)
        except QueueFullError:
            full = f"{self.batcher.rows_waiting:,} rows are already waiting"
            return problem(429, full, "try again later", {"Retry-After": RETRY_SECONDS})
        except StoppedError:
            return problem(503, "the server is stopping", "try again later", {"Retry-After": RETRY_SECONDS})
        if scores is None:
            return Response(status_code=499)  # the client has disconnected
        answer = rows.answer(scores)
        self.counters.refused += len(answer.faults)
        self.counters.truncated += len(answer.truncated)
        if len(answer.faults) == rows.size:
            return problem_of(next(iter(answer.faults.values())))
        return JSONResponse(form.reply(answer, self.scorer.name))


async def _unless_gone(request: Request, batcher: Batcher, groups: list[Any]) -> list[Any] | None:
    """The scores of groups; None if the client disconnected before."""
    if not groups:
        return []
    scores = asyncio.ensure_future(batcher.submit(groups))
    gone = asyncio.ensure_future(request.receive())  # after the body, the next message is the end of the connection
    try:
        await asyncio.wait({scores, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await scores if scores.done() else None
    finally:
        scores.cancel()
        gone.cancel()
        await asyncio.gather(scores, gone, return_exceptions=True)


class Gate:
    """The middleware: checks the token and the size of the body, counts requests (those of `paths` by name), and
    answers unexpected errors."""

    def __init__(self, app: ASGIApp, limits: ServerLimits, counters: Counters, paths: frozenset[str]) -> None:
        self._app, self._limits, self._counters, self._paths = app, limits, counters, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            answer = self._refusal(scope)
            if answer is None:
                await self._app(scope, self._limited(receive), counted)
            else:
                await answer(scope, receive, counted)
        except Exception:
            _logger.exception("a request failed")
            if not status:
                await problem(500, "an unexpected error; see the server's log")(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._counters.answered(path, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        expected = f"Bearer {self._limits.token}".encode()
        given = headers.get(b"authorization", b"")
        if self._limits.token and scope["path"] != "/health" and not hmac.compare_digest(given, expected):
            hint = "send the header Authorization: Bearer TOKEN"
            return problem(401, "missing or wrong token", hint, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            return problem(413, self._too_much, "send fewer rows", {"Connection": "close"})
        return None

    @property
    def _too_much(self) -> str:
        return f"the body has more than {self._limits.body_bytes:,} bytes"

    def _limited(self, receive: Receive) -> Receive:
        taken, whole = 0, False
        end = asyncio.get_running_loop().time() + self._limits.body_seconds

        async def limited() -> Message:
            nonlocal taken, whole
            try:
                async with asyncio.timeout_at(None if whole else end):
                    message = await receive()
            except TimeoutError:
                seconds = f"{self._limits.body_seconds:g} seconds"
                raise HTTPException(408, f"the body did not arrive in {seconds}", {"Connection": "close"}) from None
            whole = whole or not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > self._limits.body_bytes:
                raise HTTPException(413, self._too_much, {"Connection": "close"})
            return message

        return limited
