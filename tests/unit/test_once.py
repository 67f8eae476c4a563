"""What can be read only once, and what only looks like it."""

from __future__ import annotations

import asyncio
import collections
import configparser
import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import os
import queue
import re
import sqlite3
import tempfile
import threading
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO, Literal, NamedTuple, TextIO
from unittest.mock import AsyncMock, MagicMock, Mock

import attrs
import flask
import httpx
import msgspec
import pydantic
import pytest
import sqlalchemy
import werkzeug
from sqlalchemy.ext.asyncio import AsyncResult
from starlette.responses import FileResponse, JSONResponse, StreamingResponse

from cacheguard import CacheGuard, Policy
from cacheguard.codec.once import once, refuse
from cacheguard.errors import CodecError, ConfigurationError


class Own:
    """Its own iterator."""

    def __iter__(self) -> Own:
        return self

    def __next__(self) -> int:
        raise StopIteration


class OnlyNext:
    """No loop takes it, but `next` does."""

    def __next__(self) -> int:
        raise StopIteration


class Anew:
    """Every loop begins anew, whatever `next` does."""

    def __iter__(self) -> Iterator[int]:
        return iter([1])

    def __next__(self) -> int:
        return 1


class OwnAsync:
    def __aiter__(self) -> OwnAsync:
        return self

    async def __anext__(self) -> int:
        raise StopAsyncIteration


class ReRead:
    def __iter__(self) -> Iterator[int]:
        return iter([1])


class Lazy:
    def __await__(self) -> Generator[None]:
        yield


class Unread(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        return iter([b"a"])


class Store:
    """An object that owns a file, and has methods like a cursor."""

    def __init__(self) -> None:
        self.file = io.StringIO()

    def fetchall(self) -> list[int]:
        return []


def generator() -> Iterator[int]:
    yield from [1, 2]


async def pieces() -> AsyncIterator[int]:
    yield 1


@contextlib.contextmanager
def block() -> Iterator[int]:
    yield 1


def closed() -> io.StringIO:
    file = io.StringIO()
    file.close()
    return file


def rows() -> Any:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.StaticPool)
    return engine.connect().execute(sqlalchemy.text("select 1"))


def cursor() -> sqlite3.Cursor:
    return sqlite3.connect(":memory:").execute("select 1")


ONCE: dict[str, Callable[[], Any]] = {
    "generator": generator,
    "generator expression": lambda: (each for each in [1]),
    "async generator": pieces,
    "map": lambda: map(int, "12"),
    "zip": lambda: zip([1], [2], strict=True),
    "filter": lambda: filter(None, [1]),
    "enumerate": lambda: enumerate([1]),
    "reversed": lambda: reversed([1]),
    "iter": lambda: iter([1]),
    "iterator of a dict": lambda: iter({}.items()),
    "count": itertools.count,
    "tee": lambda: itertools.tee([1])[0],
    "finditer": lambda: re.finditer("a", "a"),
    "csv": lambda: csv.reader([]),
    "DictReader": lambda: csv.DictReader([]),
    "glob": lambda: Path("/").glob("nothing"),
    "scandir": lambda: os.scandir("/"),
    "a class with __iter__ and __next__": Own,
    "a class with __next__ alone": OnlyNext,
    "a class with __anext__": OwnAsync,
    "StringIO": io.StringIO,
    "BytesIO": io.BytesIO,
    "a closed file": closed,
    "TemporaryFile": tempfile.TemporaryFile,
    "NamedTemporaryFile": tempfile.NamedTemporaryFile,
    "SpooledTemporaryFile": tempfile.SpooledTemporaryFile,
    "sqlite3": cursor,
    "Result": rows,
    "ScalarResult": lambda: rows().scalars(),
    "MappingResult": lambda: rows().mappings(),
    "context manager": block,
    "StreamingResponse": lambda: StreamingResponse(map(str, [1])),
    "werkzeug": lambda: werkzeug.Response(map(str, [1])),
    "flask": lambda: flask.Response(map(str, [1])),
    "httpx, not read": lambda: httpx.Response(200, stream=Unread()),
    "an awaitable": Lazy,
}
AGAIN: dict[str, Callable[[], Any]] = {
    "list": list,
    "a class with __iter__": ReRead,
    "a class with a fresh iterator": Anew,
    "range": lambda: range(3),
    "views": {}.keys,
    "array": lambda: memoryview(b"a"),
    "path": Path,
    "MagicMock": MagicMock,
    "Mock": Mock,
    "AsyncMock": AsyncMock,
    "a store": Store,
    "a connection": lambda: sqlite3.connect(":memory:"),
    "an engine": lambda: sqlalchemy.create_engine("sqlite://"),
    "rows": lambda: rows().all(),
    "a frozen result": lambda: rows().freeze(),
    "a statement": lambda: sqlalchemy.select(1),
    "JSONResponse": lambda: JSONResponse({}),
    "FileResponse": lambda: FileResponse(__file__),
    "werkzeug": lambda: werkzeug.Response("a"),
    "flask": lambda: flask.Response(["a", "b"]),
    "httpx, read": lambda: httpx.Response(200, content=b"a"),
    "a client": httpx.Client,
    "a lock": threading.Lock,
    "a queue": queue.Queue,
    "a parser": configparser.ConfigParser,
    "a function": lambda: generator,
    "a class": lambda: Own,
    "a module": lambda: io,
    "a partial": lambda: functools.partial(generator),
    "an exit stack": contextlib.ExitStack,
}


@pytest.mark.parametrize("kind", ONCE)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_can_be_read_once_is_known(kind: str) -> None:
    value = ONCE[kind]()
    assert once(value) is not None
    with pytest.raises(CodecError, match=r"^k is not cached: what its loader returned is an? .* read only once; \w"):
        refuse("k", value)


@pytest.mark.parametrize("kind", AGAIN)
def test_what_can_be_read_again_is_let_through(kind: str) -> None:
    value = AGAIN[kind]()
    assert once(value) is None
    refuse("k", value)
    refuse("k", [{"a": value}])


@dataclasses.dataclass
class Declared:
    a: Any = None
    b: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    a: Any = None


@attrs.define
class Attrs:
    a: Any = None


class Struct(msgspec.Struct):
    a: Any = None


class Untracked(msgspec.Struct, gc=False):
    a: Any = None


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    a: Any = None


class Named(NamedTuple):
    a: Any = None


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "[0]": lambda part: [part],
    "[1]": lambda part: (1, part),
    "['rows']": lambda part: {"rows": part},
    ".keys()": lambda part: {part: 1},
    "{…}": lambda part: {part},
    "[0]['a'][1][2]": lambda part: ({"a": [1, {2: part}]},),
    "[0] ": lambda part: collections.deque([part]),
    "['a']": lambda part: collections.defaultdict(list, a=part),
    ".rows  ": lambda part: types.SimpleNamespace(rows=part),
    "['a'] ": lambda part: types.MappingProxyType({"a": part}),
    ".maps[0]['a']": lambda part: collections.ChainMap({"a": part}),
    ".data[0]": lambda part: collections.UserList([part]),
    ".a": Declared,
    ".b[0].a": lambda part: Declared(b=[Declared(part)]),
    ".a ": Slotted,
    ".a  ": Attrs,
    ".a   ": Struct,
    ".a    ": Untracked,
    ".a     ": lambda part: Model(a=part),
    ".a[0].a": lambda part: Model(a=[Untracked(part)]),
    "[0]  ": Named,
    "[5000]": lambda part: [*({"a": 1} for _ in range(5000)), part],
}


@pytest.mark.parametrize("place", HOLDERS)
@pytest.mark.parametrize("kind", ["generator", "StringIO", "sqlite3", "StreamingResponse", "flask"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_in_a_value_is_found_and_its_place_named(place: str, kind: str) -> None:
    with pytest.raises(
        CodecError, match=re.escape(f"k is not cached: {place.strip()} of what its loader returned is ")
    ):
        refuse("k", HOLDERS[place](ONCE[kind]()))


def test_a_coroutine_in_a_value_is_found_and_closed() -> None:
    async def later() -> None: ...

    for value in (later(), [later()]):
        with pytest.raises(CodecError, match="coroutine"):
            refuse("k", value)


def test_a_future_in_a_value_is_read_as_often_as_one_likes() -> None:
    loop = asyncio.new_event_loop()
    future: asyncio.Future[int] = loop.create_future()
    refuse("k", [future])
    with pytest.raises(CodecError, match="awaitable"):
        refuse("k", future)
    loop.close()


def test_values_that_contain_themselves_and_deep_ones_are_looked_through() -> None:
    loop: list[Any] = []
    loop.append(loop)
    refuse("k", loop)
    loop.append(generator())
    with pytest.raises(CodecError, match=re.escape("[1] of what")):
        refuse("k", loop)
    deep: list[Any] = [generator()]
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(CodecError, match="generator"):
        refuse("k", deep)
    while deep and isinstance(deep[0], list):  # the interpreter would free it by recursion
        deep = deep[0]


SHOWN: dict[str, Any] = {
    "Iterator": Iterator[int],
    "bare Iterator": Iterator,
    "Generator": Generator[int],
    "AsyncIterator": AsyncIterator[int],
    "AsyncGenerator": AsyncGenerator[int],
    "IO": IO[str],
    "TextIO": TextIO,
    "BinaryIO": BinaryIO,
    "BytesIO": io.BytesIO,
    "map": map,
    "cursor": sqlite3.Cursor,
    "Result": sqlalchemy.Result[Any],
    "ScalarResult": sqlalchemy.ScalarResult[int],
    "AsyncResult": AsyncResult[Any],
    "StreamingResponse": StreamingResponse,
    "OnlyNext": OnlyNext,
    "Optional": Iterator[int] | None,
    "text": "Iterator[int] | None",
    "Annotated": Annotated[Iterator[int], 1],
    "several": Iterator[int] | Generator[int],
    "list of iterators": list[Iterator[int]],
    "dict of files": dict[str, IO[bytes]],
}
NOT_SHOWN: dict[str, Any] = {
    "list": list[int],
    "Iterable": Iterable[int],
    "Sequence": Sequence[int],
    "Any": Any,
    "None": None,
    "a name that nobody knows": "Nowhere",
    "one of two": list[int] | Iterator[int],
    "a class": type[Iterator[int]],
    "a function": Callable[[], Iterator[int]],
    "a literal": Literal["a"],
    "a variable": typing.TypeVar("T"),
    "a mock": MagicMock,
    "FileResponse": FileResponse,
    "begins anew": Anew,
}


@pytest.mark.parametrize("kind", SHOWN)
def test_an_annotation_that_shows_it_is_refused_when_decorating(kind: str) -> None:
    def plain() -> Any: ...

    async def coroutine() -> Any: ...

    class Shop:
        def method(self) -> Any: ...

    with CacheGuard() as guard:
        for function in (plain, coroutine, Shop.method):
            function.__annotations__["return"] = SHOWN[kind]
            for decorated in (function, functools.partial(function)):
                with pytest.raises(ConfigurationError, match="read only once and is never cached; return"):
                    guard.cached("k")(decorated)


@pytest.mark.parametrize("kind", NOT_SHOWN)
def test_an_annotation_that_may_mean_data_is_let_through(kind: str) -> None:
    def plain() -> Any: ...

    plain.__annotations__["return"] = NOT_SHOWN[kind]
    with CacheGuard() as guard:
        guard.cached("k")(plain)


def test_generator_functions_are_refused_in_every_form() -> None:
    class Called:
        def __call__(self) -> Iterator[int]:
            yield 1

        def method(self) -> Iterator[int]:
            yield 1

        @staticmethod
        def static() -> Iterator[int]:
            yield 1

        @classmethod
        def of_class(cls) -> Iterator[int]:
            yield 1

    forms: list[Any] = [generator, pieces, functools.partial(generator), Called(), Called().method, Called.method]
    forms += [vars(Called)["static"], vars(Called)["of_class"]]
    with CacheGuard() as guard:
        for each in forms:
            with pytest.raises(ConfigurationError, match="generator"):
                guard.cached("k")(each)


def test_a_decorator_may_make_a_list_of_a_generator() -> None:
    @functools.wraps(generator)
    def listed() -> Any:
        return list(generator())

    @functools.wraps(generator)
    def handed_on() -> Any:
        return generator()

    with CacheGuard() as guard:
        assert guard.cached("listed")(listed)() == [1, 2]
        with pytest.raises(CodecError, match="generator"):
            guard.cached("handed on")(handed_on)()


def test_a_coroutine_function_is_not_taken_for_what_it_returns() -> None:
    async def later() -> int:
        return 1

    def hands_on() -> Coroutine[Any, Any, int]:
        return later()

    with CacheGuard() as guard:
        guard.cached("k")(later)
        guard.cached("k")(hands_on)


def test_a_fallback_for_all_callers_must_be_readable_again() -> None:
    with pytest.raises(ConfigurationError, match="fallback must be a value for every caller"):
        Policy(fallback=iter([1]))
    Policy(fallback=[])
    Policy(fallback=lambda _: iter([1]))


def test_the_output_of_a_command_is_a_file() -> None:
    with os.popen("true") as output:
        assert once(output) == ("a file", "return its content: read()")
