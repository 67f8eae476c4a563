"""One application each with FastAPI, Flask and Django, with or without the cache: prints what three calls answer.

Behind the answers stands how often something was loaded.

``python -m tests.support.sample_apps DATABASE [URL]``; without a URL nothing is cached. All run in one process.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import django
import flask
import httpx
from django.conf import settings
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from werkzeug.exceptions import NotFound

from cacheguard import CacheGuard

Decorate = Callable[..., Any]
Answers = list[Any]

CALLS = 3


class Patch(BaseModel):
    name: str | None = None
    age: int | None = None
    tags: list[str] = []


def uncached(*_: object, **__: object) -> Callable[[Any], Any]:
    return lambda fn: fn


def of_fastapi(cached: Decorate) -> Answers:
    app = FastAPI()

    @app.get("/item/{number}")
    @cached("api:item:{number}", not_found=HTTPException)  # type: ignore[untyped-decorator]  # any of two
    async def item(number: int) -> dict[str, int]:
        if number > 1:
            raise HTTPException(404, {"number": number}, {"X-Missing": str(number)})
        return {"number": number}

    @app.get("/patches", response_model_exclude_unset=True)
    @cached("api:patches")  # type: ignore[untyped-decorator]  # any of two
    def patches() -> list[Patch]:
        return [Patch(name=None), Patch(age=0, tags=[]), Patch()]

    @cached("api:rows")  # type: ignore[untyped-decorator]  # any of two
    async def rows() -> list[str]:
        return ["one", "two"]

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            for row in await rows():
                yield row

        return StreamingResponse(parts())

    async def ask() -> Answers:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            got = [await client.get(path) for path in ("/item/1", "/item/2", "/patches", "/stream") * CALLS]
        return [(each.status_code, each.text, each.headers.get("x-missing")) for each in got]

    return asyncio.run(ask())


def of_flask(cached: Decorate) -> Answers:
    app = flask.Flask("shop")

    @cached("web:row:{number}", not_found=NotFound)  # type: ignore[untyped-decorator]  # any of two
    def row(number: int) -> dict[str, int]:
        if number > 1:
            flask.abort(404, f"no row {number}")
        return {"number": number}

    @cached("web:rows")  # type: ignore[untyped-decorator]  # any of two
    def rows() -> list[str]:
        return ["one", "two"]

    def stream() -> flask.Response:
        def parts() -> Iterator[str]:
            yield from rows()

        return flask.Response(parts())

    app.add_url_rule("/row/<int:number>", view_func=row)
    app.add_url_rule("/stream", view_func=stream)
    client = app.test_client()
    got = [client.get(path) for path in ("/row/1", "/row/2", "/stream") * CALLS]
    return [(each.status_code, each.text) for each in got]


def of_django(cached: Decorate, database: str) -> Answers:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.support.sample_urls",
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": database}},
        USE_TZ=True,
    )
    django.setup()
    from django.test import Client

    from tests.support import sample_urls

    sample_urls.make(cached)
    client = Client(raise_request_exception=False)
    paths = ("/groups", "/with_permissions", "/group/first", "/group/none", "/stream")
    got = [client.get(path) for path in paths * CALLS]
    return [(each.status_code, each.getvalue().decode()) for each in got]


def main() -> None:
    database, *url = sys.argv[1:]
    loads = 0
    if not url:
        answers = [of_fastapi(uncached), of_flask(uncached), of_django(uncached, database)]
    else:
        # Rows of a database are objects of any class: they need a serializer.
        with CacheGuard(url[0]) as guard, CacheGuard(url[0], serializer=pickle) as pickling:
            answers = [of_fastapi(guard.cached), of_flask(guard.cached), of_django(pickling.cached, database)]
            loads = guard.stats().loads + pickling.stats().loads
    print(json.dumps([answers, loads]))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
