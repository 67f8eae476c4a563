"""Endpoints that take what belongs to one request are refused when they are decorated; what to do instead works."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Optional

import django.http
import fastapi
import flask
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response, UploadFile, WebSocket
from fastapi.security import SecurityScopes
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError


class OwnRequest(Request):
    """A class derived from one that is known."""


@pytest.fixture
def guard() -> Iterator[CacheGuard]:
    with CacheGuard("memory://") as guard:
        yield guard


def with_response(item: int, response: Response) -> int:
    raise NotImplementedError


def with_a_json_response(item: int, response: JSONResponse) -> int:
    raise NotImplementedError


async def with_tasks(item: int, tasks: BackgroundTasks) -> int:
    raise NotImplementedError


def with_a_task(item: int, task: BackgroundTask) -> int:
    raise NotImplementedError


def with_request(item: int, request: Request) -> int:
    raise NotImplementedError


async def with_own_request(item: int, request: OwnRequest) -> int:
    raise NotImplementedError


def with_connection(item: int, connection: HTTPConnection) -> int:
    raise NotImplementedError


def with_socket(item: int, socket: WebSocket) -> int:
    raise NotImplementedError


def with_annotated(item: int, response: Annotated[Response, "of FastAPI"]) -> int:
    raise NotImplementedError


def with_optional(item: int, tasks: Optional[BackgroundTasks] = None) -> int:  # noqa: UP045 - the old way, too
    raise NotImplementedError


def with_union(item: int, tasks: Annotated[BackgroundTasks | None, "of FastAPI"] = None) -> int:
    raise NotImplementedError


def by_keyword(item: int, *, response: Response) -> int:
    raise NotImplementedError


def with_upload(item: int, file: UploadFile) -> int:
    raise NotImplementedError


def with_uploads(item: int, files: Annotated[list[UploadFile] | None, "form"] = None) -> int:
    raise NotImplementedError


def with_scopes(item: int, scopes: SecurityScopes) -> int:
    raise NotImplementedError


def of_django(request: django.http.HttpRequest) -> int:
    raise NotImplementedError


def of_flask(request: flask.Request) -> int:
    raise NotImplementedError


@functools.wraps(with_response)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError


class Views:
    """A class of endpoints."""

    def get(self, item: int, response: Response) -> int:
        raise NotImplementedError


REFUSED = [
    with_response, with_a_json_response, with_tasks, with_a_task, with_request, with_own_request, with_connection,
    with_socket, with_annotated, with_optional, with_union, by_keyword, with_upload, with_uploads, with_scopes,
    of_django, of_flask, wrapped, Views.get,
]  # fmt: skip


@pytest.mark.parametrize("fn", REFUSED, ids=lambda fn: fn.__qualname__)
def test_what_belongs_to_one_request_is_refused_when_decorated(guard: CacheGuard, fn: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"belongs to one request: .*HTTPCacheMiddleware"):
        guard.cached(fn)
    with pytest.raises(ConfigurationError, match="belongs to one request"):
        guard.cached("fixed", ttl="1m")(fn)


def test_the_error_names_function_parameter_and_class(guard: CacheGuard) -> None:
    with pytest.raises(
        ConfigurationError, match=r"with_tasks takes tasks: BackgroundTasks, .*background tasks is lost"
    ):
        guard.cached("item:{item}")(with_tasks)


def test_a_response_is_refused_even_if_the_template_names_it(guard: CacheGuard) -> None:
    with pytest.raises(ConfigurationError, match="takes response: Response"):
        guard.cached("item:{item}:{response.status_code}")(with_response)


def test_a_request_is_taken_if_the_template_names_it(guard: CacheGuard) -> None:
    @guard.cached("page:{request.url.path}")
    def page(request: Request) -> str:
        return request.url.path

    scope = {"type": "http", "path": "/a", "headers": [], "query_string": b"", "server": ("shop.example", 80)}
    assert page(Request(scope)) == "/a"
    assert page(Request({**scope, "path": "/b"})) == "/b"


def test_other_parameters_are_taken(guard: CacheGuard) -> None:
    def service() -> str:
        return "service"

    @guard.cached("item:{item}")
    def of_dependency(item: int, found: Annotated[str, Depends(service)]) -> str:
        return f"{item} {found}"

    @guard.cached("unknown:{item}")
    def of_nothing_known(item: int, other: Nowhere) -> int:  # type: ignore[name-defined]  # noqa: F821 - on purpose
        return item

    assert of_dependency(1, "service") == "1 service"
    assert of_nothing_known(2, 3) == 2


async def test_what_to_do_instead_works_with_fastapi(guard: CacheGuard) -> None:
    app, loads, done = FastAPI(), [0], [0]

    @guard.cached("price:{item}", ttl="1m")
    async def price(item: int) -> int:
        loads[0] += 1
        return item * 100

    def note() -> None:
        done[0] += 1

    @app.get("/prices/{item}")
    async def show(item: int, response: fastapi.Response, tasks: fastapi.BackgroundTasks) -> int:
        response.headers["x-shop"] = "open"
        tasks.add_task(note)
        return await price(item)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client:
        answers = [await client.get("/prices/1") for _ in range(2)]
    assert [(answer.json(), answer.headers["x-shop"]) for answer in answers] == [(100, "open")] * 2
    assert (loads, done) == ([1], [2])
