"""QuerySets in the cache: a hit asks the database nothing, and no caller changes what another one gets."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test.utils import CaptureQueriesContext

from cacheguard.errors import CodecError
from cacheguard_django import CacheGuardCache, guard
from tests.integrations.django.conftest import Configure
from tests.integrations.django.shop.models import Label, Person

WHERES: dict[str, dict[str, Any]] = {
    "redis": {},
    "l1": {"OPTIONS": {"l1": True}},
    "memory": {"LOCATION": "memory://"},
    "memory and l1": {"LOCATION": "memory://", "OPTIONS": {"l1": True}},
    "typed": {"OPTIONS": {"l1": True, "serializer": None}},
}


@pytest.fixture(params=WHERES)
def anywhere(request: pytest.FixtureRequest, configure: Configure, database: None) -> CacheGuardCache:
    for number in range(3):
        Person.objects.create(name=f"p{number}").labels.set([Label.objects.create(text=f"l{number}")])
    return configure(**WHERES[request.param])


def queries(read: Callable[[], object]) -> int:
    with CaptureQueriesContext(connection) as context:
        read()
    return len(context)


def people() -> Any:
    return Person.objects.order_by("name")


def test_a_hit_of_a_function_asks_nothing_and_has_the_rows_that_were_cached(anywhere: CacheGuardCache) -> None:
    cached = guard().cached("people")(people)
    assert len(cached()) == 3
    Person.objects.create(name="later")
    for _ in range(2):
        read = cached()
        assert queries(lambda: len(cached())) == 0
        assert [each.name for each in read] == ["p0", "p1", "p2"]
        read[0].name = "spoilt"


def test_a_hit_of_djangos_own_api_asks_nothing(anywhere: CacheGuardCache) -> None:
    if anywhere.settings.guard["serializer"] is None:
        with pytest.raises(CodecError):  # only pickle takes models
            anywhere.set("rows", people())
        return
    anywhere.set("rows", people(), 60)
    anywhere.set("list", list(Person.objects.prefetch_related("labels").order_by("name")), 60)
    anywhere.set("dict", {"rows": people()}, 60)
    anywhere.get_or_set("default", people, 60)
    Person.objects.create(name="later")
    for _ in range(2):
        assert queries(lambda: len(anywhere.get("rows"))) == 0
        assert queries(lambda: [list(each.labels.all()) for each in anywhere.get("list")]) == 0
        assert queries(lambda: len(anywhere.get("dict")["rows"])) == 0
        assert queries(lambda: len(anywhere.get_many(["rows"])["rows"])) == 0
        assert queries(lambda: len(anywhere.get_or_set("default", people, 60))) == 0
        assert len(anywhere.get("rows")) == len(anywhere.get("default")) == 3
        anywhere.get("list")[0].name = "spoilt"
        assert [each.name for each in anywhere.get("list")] == ["p0", "p1", "p2"]


def test_a_queryset_that_a_coroutine_loads_is_evaluated_and_cached(cache: CacheGuardCache, database: None) -> None:
    Person.objects.create(name="p0")
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        return people()

    async def read() -> list[str]:
        return [each.name async for each in await cache.aget_or_set("rows", load, 60)]

    async def main() -> None:
        assert [await read(), await read()] == [["p0"], ["p0"]]

    asyncio.run(main())
    assert len(loads) == 1


@pytest.mark.parametrize("kind", ["iterator", "generator", "stream", "file", "cursor", "in a dict"])
@pytest.mark.parametrize("where", ["redis", "memory and l1"])
def test_what_can_be_read_only_once_is_refused(configure: Configure, tables: None, where: str, kind: str) -> None:
    anywhere = configure(**WHERES[where])

    def make() -> Any:
        if kind == "cursor":
            return connection.cursor()
        makers: dict[str, Callable[[], Any]] = {
            "iterator": lambda: people().iterator(),
            "generator": lambda: (each for each in [1]),
            "stream": lambda: StreamingHttpResponse(iter(["a"])),
            "file": lambda: FileResponse(io.BytesIO(b"a")),
            "in a dict": lambda: {"rows": people().iterator()},
        }
        return makers[kind]()

    ways: list[Callable[[], Any]] = [
        lambda: anywhere.set("k", make()),
        lambda: anywhere.add("k", make()),
        lambda: anywhere.set_many({"k": make()}),
        lambda: anywhere.get_or_set("k", make()),
        lambda: anywhere.get_or_set("k", make),
        lambda: asyncio.run(anywhere.aset("k", iter([1]) if kind == "cursor" else make())),
    ]
    for number, way in enumerate(ways):
        with pytest.raises(CodecError, match="read only once"):
            way()
        assert anywhere.get("k") is None, number
    anywhere.set("response", HttpResponse("a"))
    assert anywhere.get("response").content == b"a"
