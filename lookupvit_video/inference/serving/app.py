"""The addresses of the server: POST /predict, GET /health, GET /metrics."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Annotated, Any

import simplejson
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from lookupvit_video import __version__
from lookupvit_video.inference.serving.batching import Wish
from lookupvit_video.inference.serving.fetch import Fetcher
from lookupvit_video.inference.serving.metrics import CONTENT_TYPE
from lookupvit_video.inference.serving.receive import drop_rest, receive
from lookupvit_video.inference.serving.refusal import Refusal
from lookupvit_video.inference.serving.service import INTERNAL_ERROR, Service

logger = logging.getLogger(__name__)
App = Callable[..., Awaitable[None]]
PATHS = ("/predict", "/health", "/metrics", "/openapi.json")
_BODIES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "video/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"video": {"type": "string", "format": "binary"}}}
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"url": {"type": "string"}, "urls": {"type": "array", "items": {"type": "string"}}},
                }
            },
        },
    }
}


def build_app(service: Service, about: dict[str, Any]) -> FastAPI:
    """Return the application.

    Args:
        about: facts for /health.
    """
    fetchers: list[Fetcher] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        options = service.options
        fetchers.append(Fetcher(options.hosts, options.limits, options.receive))
        yield
        await fetchers.pop().close()

    app = FastAPI(title="LookupViT for video", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(app)

    @app.post("/predict", openapi_extra=_BODIES)
    async def predict(
        request: Request,
        topk: Annotated[int | None, Query(ge=1, le=1000, description="classes in the answer")] = None,
        grid: Annotated[str | None, Query(max_length=100, description="compressed grid or budget")] = None,
        name: Annotated[str | None, Query(max_length=200, description="of a video whose bytes are the body")] = None,
    ) -> Response:
        """Answer a video: its bytes as the body, a form with one file, or JSON with the address of one or several."""
        return await _predict(service, fetchers[0], request, service.wish(topk, grid), name)

    @app.get("/health")
    async def health() -> Response:
        """Say whether videos are answered."""
        state = {"status": "ok" if service.is_alive else "failed", **about, "in_progress": service.used}
        return json_response(state, 200 if service.is_alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Give all counts to Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return app


async def _predict(service: Service, fetcher: Fetcher, request: Request, wish: Wish, name: str | None) -> Response:
    options, start = service.options, perf_counter()
    with service.places():
        received = await receive(request, options.limits, options.receive, name)
        if received.inbox is not None:
            service.metrics.stages.labels("receive").observe(perf_counter() - start)
            answer = await service.answer(received.inbox, received.name, wish, request.is_disconnected)
            return json_response(answer.as_dict())
    with service.places(len(received.urls)):

        async def one(url: str) -> dict[str, Any]:
            start = perf_counter()
            inbox = await fetcher.fetch(url)
            service.metrics.stages.labels("receive").observe(perf_counter() - start)
            return (await service.answer(inbox, url, wish, request.is_disconnected)).as_dict()

        if not received.is_list:
            return json_response(await one(received.urls[0]))
        found = await asyncio.gather(*map(one, received.urls), return_exceptions=True)
        return json_response([_row(url, answer) for url, answer in zip(received.urls, found, strict=True)])


def _row(url: str, answer: dict[str, Any] | BaseException) -> dict[str, Any]:
    """Return an answer, or why there is none, as a line of ``lookupvit predict --json``."""
    if isinstance(answer, Refusal):
        return {**answer.as_dict(), "path": url}
    if isinstance(answer, BaseException):
        if isinstance(answer, Exception):
            logger.error("%s: no answer", url, exc_info=answer)
            return {"path": url, "error": INTERNAL_ERROR}
        raise answer
    return answer


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return JSON as ``lookupvit predict`` writes it; names in any bytes are escaped."""
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(simplejson.dumps(content), status, headers, "application/json")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refuse(request: Request, error: Refusal) -> Response:
        headers = {"Retry-After": "1"} if error.status == 503 else {}
        if error.is_closing:
            return await _closing(request, error.status, error.as_dict(), headers)
        return json_response(error.as_dict(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        line = {
            404: f"there is no such address here; there are {', '.join(PATHS)}",
            405: f"{request.method} is not for this address; POST a video to /predict, GET the others",
        }.get(error.status_code, error.detail)
        return await _closing(request, error.status_code, {"error": line}, error.headers or {})

    @app.exception_handler(RequestValidationError)
    async def refuse_query(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return await _closing(request, 400, {"error": f"{first['loc'][-1]}: {first['msg']}"})

    @app.exception_handler(Exception)
    async def report_bug(_: Request, error: Exception) -> Response:  # its traceback is logged by the server
        return json_response({"error": INTERNAL_ERROR}, 500, {"Connection": "close"})


async def _closing(request: Request, status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return the last response of a connection: the body of its request was not read to the end."""
    await drop_rest(request.receive)
    return json_response(content, status, {**(headers or {}), "Connection": "close"})


def counted(app: App, service: Service) -> App:
    """Return an ASGI app that counts the requests of another and their seconds."""

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        start, status = perf_counter(), 500
        path = scope["path"] if scope["path"] in PATHS else "other"  # as many series as there are paths

        async def send_counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_counted)
        finally:
            service.metrics.requests.labels(path, status).inc()
            service.metrics.seconds.labels(path).observe(perf_counter() - start)

    return respond
