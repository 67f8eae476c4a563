"""The exceptions that frameworks answer with 404: the same answer with and without the cache, in every process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from flask import Flask, abort
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteException
from starlette.responses import JSONResponse
from starlette.routing import Route
from werkzeug.exceptions import Gone, NotFound

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError

Decorate = Callable[..., Any]
Answers = list[tuple[int, Any]]


class Patch(BaseModel):
    name: str | None = None
    age: int | None = None


class NoSuchItem(HTTPException):
    def __init__(self, item: str) -> None:
        super().__init__(404, {"item": item}, {"X-Item": item})
        self.item = item


def uncached(*_: object, **__: object) -> Callable[[Any], Any]:
    return lambda fn: fn


@pytest.fixture(params=["memory", "redis"])
def guards(request: pytest.FixtureRequest, redis_url: str) -> Iterator[list[CacheGuard]]:
    """Two, which stand for two processes."""
    made = [CacheGuard("memory://" if request.param == "memory" else redis_url) for _ in range(2)]
    yield made
    for guard in made:
        guard.close()


def equal_with_and_without(guards: list[CacheGuard], ask: Callable[[Decorate], Answers]) -> None:
    expected = ask(uncached)
    for guard in guards:
        for _ in range(3):
            assert ask(guard.cached) == expected


def got(app: Any, paths: Sequence[str]) -> list[httpx.Response]:
    """The answers of an ASGI application."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(ask())


def fastapi_answers(decorate: Decorate) -> Answers:
    app = FastAPI()

    @app.get("/missing/{item}")
    @decorate("missing:{item}", not_found=HTTPException)  # type: ignore[untyped-decorator]  # any of two
    async def missing(item: str) -> dict[str, str]:
        raise HTTPException(404, f"no {item}")

    @app.get("/own/{item}")
    @decorate("own:{item}", not_found=NoSuchItem)  # type: ignore[untyped-decorator]  # any of two
    def own(item: str) -> dict[str, str]:
        raise NoSuchItem(item)

    @app.get("/patch", response_model_exclude_unset=True)
    @decorate("patch")  # type: ignore[untyped-decorator]  # any of two
    async def patch() -> Patch:
        return Patch(name=None)

    @app.get("/patches", response_model_exclude_unset=True)
    @decorate("patches")  # type: ignore[untyped-decorator]  # any of two
    def patches() -> list[Patch]:
        return [Patch(age=1), Patch()]

    answers = got(app, ("/missing/1", "/own/1", "/patch", "/patches") * 3)
    return [(each.status_code, (each.json(), each.headers.get("x-item"))) for each in answers]


def test_fastapi_answers_as_without_a_cache(guards: list[CacheGuard]) -> None:
    assert [status for status, _ in fastapi_answers(uncached)] == [404, 404, 200, 200] * 3
    equal_with_and_without(guards, fastapi_answers)


def starlette_answers(decorate: Decorate) -> Answers:
    @decorate("page:{item}", not_found=StarletteException)  # type: ignore[untyped-decorator]  # any of two
    async def page(item: str) -> str:
        raise StarletteException(410, headers={"X-Gone": item})

    async def endpoint(request: Any) -> JSONResponse:
        return JSONResponse(await page(request.path_params["item"]))

    answers = got(Starlette(routes=[Route("/{item}", endpoint)]), ("/1",) * 3)
    return [(each.status_code, (each.text, each.headers.get("x-gone"))) for each in answers]


def test_starlette_answers_as_without_a_cache(guards: list[CacheGuard]) -> None:
    equal_with_and_without(guards, starlette_answers)


def flask_answers(decorate: Decorate) -> Answers:
    app = Flask("shop")

    @decorate("row:{number}", not_found=(NotFound, Gone))  # type: ignore[untyped-decorator]  # any of two
    def row(number: int) -> str:
        if number == 1:
            abort(404, "no such page")
        raise Gone(description=f"gone: {number}")

    app.add_url_rule("/<int:number>", view_func=row)
    client = app.test_client()
    answers = [client.get(f"/{number}") for number in (1, 2) * 3]
    return [(each.status_code, each.text) for each in answers]


def test_flask_answers_as_without_a_cache(guards: list[CacheGuard]) -> None:
    assert [status for status, _ in flask_answers(uncached)] == [404, 410] * 3
    equal_with_and_without(guards, flask_answers)


def after_a_key_error(key: str, call: Callable[[], object]) -> None:
    try:
        dict[str, int]()[key]
    except KeyError:
        call()


def test_no_caller_sees_the_exception_of_another(guards: list[CacheGuard]) -> None:
    @guards[0].cached("mine", not_found=HTTPException)
    def mine() -> None:
        raise HTTPException(404)

    seen: list[BaseException] = []
    for caller in ("a", "b"):
        with pytest.raises(HTTPException) as caught:
            after_a_key_error(caller, mine)
        seen.append(caught.value)
    assert seen[0] is not seen[1]
    assert [repr(each.__context__) for each in seen] == ["KeyError('a')", "KeyError('b')"]


def test_a_class_that_cannot_be_made_of_a_text_is_refused_where_nothing_is_loaded(guards: list[CacheGuard]) -> None:
    with pytest.raises(ConfigurationError, match=r"HTTPException .*put a class first"):

        @guards[0].cached("item:{item}", not_found=HTTPException, validate=lambda item: item > 0)
        def item(item: int) -> None: ...

    @guards[0].cached("own:{item}", not_found=NoSuchItem, validate=lambda item: item > 0)
    def own(item: int) -> None: ...

    with pytest.raises(NoSuchItem) as caught:
        own(-1)
    assert caught.value.status_code == 404
