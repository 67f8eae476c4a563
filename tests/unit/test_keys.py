"""Different calls have different texts, and the same call always has the same."""

from __future__ import annotations

import collections
import functools
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard.keys import TextTemplate, compile_key
from cacheguard.protocol.names import escape, namespace_scope, redis_key

BERLIN = ZoneInfo("Europe/Berlin")


class Plain:
    """Nothing but what every object has."""

    id = 7


class Shown:
    def __str__(self) -> str:
        return "shown"


class Formatted:
    def __format__(self, spec: str) -> str:
        return "formatted"


class Color(Enum):
    RED = 1
    BLUE = 2


class Other(Enum):
    RED = 1


class Word(StrEnum):
    HI = "hi"


class Mixed(str, Enum):  # noqa: UP042 - the older way to write it, which formats otherwise
    HI = "hi"


class Level(IntEnum):
    LOW = 1


class Right(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Point:
    x: int
    y: int = 0
    note: str = field(default="", repr=False)


@dataclass(repr=False)
class Silent:
    x: int


@attrs.define
class Box:
    size: int


class Row(msgspec.Struct):
    id: int


class Model(pydantic.BaseModel):
    id: int
    _note: str = pydantic.PrivateAttr("")


class Pair(NamedTuple):
    a: int
    b: int


class Named(str):
    __slots__ = ("__dict__",)


class Stamp(int):
    def __repr__(self) -> str:
        return f"Stamp({int(self)}, {self.nanoseconds})"

    nanoseconds = 0


class Interface(Protocol):
    def run(self) -> None: ...


class Abstract(ABC):
    @abstractmethod
    def run(self) -> None: ...


class Service:
    def find(self, user_id: int) -> None: ...

    @classmethod
    def of_class(cls, user_id: int) -> None: ...

    @staticmethod
    def static(user_id: int) -> None: ...


def get_user(user_id: int, lang: str = "en") -> None: ...


def anything(x: Any) -> None: ...


def text_of(value: Any) -> str:
    return compile_key(None, anything).text_of(value)


# ---- escaping


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain", "plain"),
        ("a b/c#d,é漢🎉", "a b/c#d,é漢🎉"),
        ("a:b", "a%3Ab"),
        ("{x}", "%7Bx%7D"),
        ("100%", "100%25"),
        ("\x00\n\x1f\x7f", "%00%0A%1F%7F"),
        ("\x80\x9f", "%C2%80%C2%9F"),
        ("\xa0", "\xa0"),
        ("\ud800", "%ED%A0%80"),
        ("", ""),
    ],
)
def test_only_what_could_end_a_field_is_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


# ---- Redis keys


@pytest.mark.parametrize("text", ["user:42", "", "a" * 250, "shop.f(x=i1)", "a%3Ab", "~|!"])
def test_short_plain_text_is_its_own_redis_key(text: str) -> None:
    assert redis_key("cg:shop:e:", text) == f"cg:shop:e:{text}"


@pytest.mark.parametrize(
    "text", ["a" * 251, "#", "#abc", "a b", "é", "a{b", "a}b", "\n", "a\n", "\ud800", "x" * 10_000]
)
def test_any_other_text_is_hashed(text: str) -> None:
    key = redis_key("p:", text)
    assert re.fullmatch(r"p:#[0-9a-f]{32}", key)
    assert key == redis_key("p:", text)


def test_the_hash_of_a_key_never_changes() -> None:
    assert redis_key("", "a b") == "#acc9227cc02e5f5c13e74125bce89499"


# ---- namespaces


@pytest.mark.parametrize(
    ("namespace", "prefix"),
    [
        ("shop", "cg:shop:e:"),
        (("shop",), "cg:shop:e:"),
        (("shop", "v2"), "cg:shop/v2:e:"),
        ("shop/v2", "cg:shop%2Fv2:e:"),
        ("a:{b}%\n", "cg:a%3A%7Bb%7D%25%0A:e:"),
        ("x" * 100, f"cg:{'x' * 100}:e:"),
    ],
)
def test_a_namespace_is_a_path_of_escaped_names(namespace: Any, prefix: str) -> None:
    assert namespace_scope(namespace).prefix == prefix


@pytest.mark.parametrize("namespace", ["", "x" * 101, (), ("a", ""), ("a", 5), (b"a",)])
def test_a_namespace_that_is_no_name_is_a_mistake_of_configuration(namespace: Any) -> None:
    with pytest.raises(ConfigurationError, match="namespace must"):
        namespace_scope(namespace)


# ---- templates


def test_plain_values_read_as_themselves() -> None:
    key = compile_key("user:{user_id}", get_user)
    assert key.fields == ("user_id",)
    assert key.text({"user_id": 42, "lang": "en"}) == "user:42"
    assert key.text_of(42) == "user:42"
    assert key.text_of("ann") == "user:ann"


def test_no_value_can_pose_as_two_fields() -> None:
    key = compile_key("{user_id}:{lang}", get_user)
    assert key.text_of("b:c", "d") == "b%3Ac:d"
    assert key.text_of("b", "c:d") == "b:c%3Ad"


def test_fields_stand_in_any_order_and_more_than_once() -> None:
    key = compile_key("{lang}-{user_id}-{lang}", get_user)
    assert key.fields == ("lang", "user_id")
    assert key.text({"user_id": 1, "lang": "de"}) == "de-1-de"


def test_braces_and_percent_signs_of_the_template_are_its_own() -> None:
    key = compile_key("{{100%}}:{user_id}%s", get_user)
    assert key.text_of(1) == "{100%}:1%s"
    assert compile_key("all users", get_user).text_of() == "all users"


def test_attributes_items_conversions_and_formats_work_as_in_str_format() -> None:
    def find(user: Any, rows: Any, page: int) -> None: ...

    key = compile_key(
        "{user.id}|{rows[0]}|{rows[name]}|{rows[0].x}|{page:05d}|{page!r:>4}|{user.name!s}|{user.name!a}", find
    )
    user = type("User", (), {"id": 7, "name": "é:"})()

    class Rows(dict[Any, Any]):
        pass

    text = key.text({"user": user, "rows": Rows({0: Point(3), "name": "n"}), "page": 12})
    assert text == "7|Point(x=3, y=0)|n|3|00012|  12|é%3A|'\\xe9%3A'"


def test_arguments_without_names_of_their_own_are_reached_by_place_and_name() -> None:
    def find(*ids: int, **options: str) -> None: ...

    key = compile_key("{ids[1]}:{options[lang]}:{ids}", find)
    assert key.text({"ids": (1, 2), "options": {"lang": "de"}}) == "2:de:(1, 2)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (1.0, "1.0"),
        (-5, "-5"),
        (b"a:b", "b'a%3Ab'"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2024, 1, 2), "2024-01-02"),
        (Word.HI, "hi"),
        (Mixed.HI, "hi"),
        (Level.LOW, "1"),
        (Color.RED, "Color.RED"),
        (Named("a:b"), "a%3Ab"),
        (Shown(), "shown"),
        (Formatted(), "formatted"),
        ([1, "a"], "[1, 'a']"),
        ((1,), "(1,)"),
        ((), "()"),
        ({"a": [1]}, "%7B'a'%3A [1]%7D"),
        (set(), "set()"),
        ({3, 1, 2}, "%7B1, 2, 3%7D"),
        (frozenset({"b", "a"}), "frozenset(%7B'a', 'b'%7D)"),
        ([Named(" at 0x1>")], "[' at 0x1>']"),
        (" at 0x1>", " at 0x1>"),
        pytest.param(10**5000, hex(10**5000), id="huge"),
    ],
)
def test_a_value_is_written_as_format_shows_it(value: Any, text: str) -> None:
    assert compile_key("{x}", anything).text_of(value) == text
    assert TextTemplate("{x}", anything, escaped=False).text_of(value) == re.sub(
        "%(7B|7D|3A)", lambda match: chr(int(match[1], 16)), text
    )


def test_an_unescaped_template_leaves_the_text_as_it_is() -> None:
    template = TextTemplate("{user_id}", get_user, escaped=False)
    assert template.text_of("a:b{c}") == "a:b{c}"
    assert "user_id" in repr(template)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("user:{id}", "{id} is no parameter"),
        ("user:{}", "positional"),
        ("user:{0}", "positional"),
        ("user:{user_id", "broken"),
        ("user:}", "broken"),
        ("user:{user_id[}", "broken"),
        ("user:{user_id.}", "broken"),
        ("user:{user_id]}", "broken"),
        ("user:{user_id!x}", "conversion"),
        ("user:{user_id:{lang}}", "within its format"),
        ("user:{user_id.__class__}", "private attribute __class__"),
        ("user:{user_id._secret}", "private attribute _secret"),
        ("user:{user_id[0].__dict__[x]}", "private attribute __dict__"),
        ("", "not empty"),
        (5, "must be a text"),
    ],
)
def test_a_template_that_does_not_fit_fails_when_compiled(template: Any, reason: str) -> None:
    with pytest.raises(KeyTemplateError, match=re.escape(reason)) as caught:
        compile_key(template, get_user)
    assert repr(template) in str(caught.value)
    assert "user_id, lang" in str(caught.value)


@pytest.mark.parametrize("hint", [Plain, Plain | None, list[Plain], typing.Optional[Plain]])  # noqa: UP045
def test_a_default_repr_that_the_annotation_foretells_fails_when_compiled(hint: Any) -> None:
    def find(user: Any) -> None: ...

    find.__annotations__["user"] = hint
    for template in ("{user}", "{user!r}", "{user!s}", "{user!a}", None):
        with pytest.raises(KeyTemplateError, match="default repr"):
            compile_key(template, find)
    if hint != list[Plain]:
        assert compile_key("{user.id}", find).text_of(Plain()) == "7"


@pytest.mark.parametrize(
    "hint", [object, Interface, Abstract, Any, Shown, Point, Callable, int, Sequence[int], "Missing", 5, Silent | None]
)
def test_an_annotation_that_foretells_nothing_is_no_obstacle(hint: Any) -> None:
    def find(user: Any) -> None: ...

    find.__annotations__["user"] = hint
    if hint not in (Shown, Point, int, Silent | None):
        assert compile_key("{user.id}", find).fields == ("user",)
    if hint is not Shown and hint != Silent | None:
        assert compile_key("{user}", find).fields == ("user",)
    if hint is not Shown:
        assert compile_key(None, find).fields == ("user",)


def test_a_class_may_be_shown_one_way_and_not_the_other() -> None:
    def find(user: Shown, moment: Formatted) -> None: ...

    assert compile_key("{user}:{user!s}:{moment}", find).text_of(Shown(), Formatted()) == "shown:shown:formatted"
    for template in ("{user!r}", "{moment!s}"):
        with pytest.raises(KeyTemplateError, match="default repr"):
            compile_key(template, find)


@pytest.mark.parametrize(
    "value", [Plain(), [Plain()], (1, Plain()), {"a": Plain()}, {Plain(): 1}, {Plain()}, Service().find, lambda: 0]
)
def test_a_default_repr_at_the_call_is_refused(value: Any) -> None:
    for template in ("{x}", "{x!r}", "{x!s:>5}", None):
        with pytest.raises(KeyTemplateError):
            compile_key(template, anything).text_of(value)


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("template", "value"),
    [("{x.id}", None), ("{x[0]}", []), ("{x[a]}", {}), ("{x:d}", "text"), ("{x}", Hostile()), ("{x}", [Hostile()])],
)
def test_a_value_that_has_no_text_is_an_error_that_names_the_field(template: str, value: Any) -> None:
    with pytest.raises(KeyTemplateError, match=re.escape(template)):
        compile_key(template, anything).text_of(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for template in ("{x}", None):
        with pytest.raises(KeyTemplateError):
            compile_key(template, anything).text_of(loop)


def test_a_callable_without_known_parameters_is_refused() -> None:
    with pytest.raises(KeyTemplateError, match="parameters are unknown"):
        compile_key("{x}", dict)


# ---- calls without a template


def test_a_call_reads_as_a_call() -> None:
    key = compile_key(None, get_user)
    assert key.fields == ("user_id", "lang")
    module = get_user.__module__
    assert key.text({"user_id": 42, "lang": "en"}) == f"{module}.get_user(user_id=i42,lang=sen)"
    assert key.text_of(42, "a:b,(c)=") == f"{module}.get_user(user_id=i42,lang=sa%3Ab%2C%28c%29%3D)"
    assert "get_user" in repr(key)


def test_further_arguments_are_part_of_the_call_in_any_order_of_names() -> None:
    def find(*ids: int, **options: Any) -> None: ...

    key = compile_key(None, find)
    one = key.text({"ids": (1, 2), "options": {"a": 1, "b": 2}})
    assert one == key.text({"ids": (1, 2), "options": {"b": 2, "a": 1}})
    assert one.endswith("find(ids=t(i1,i2),options=m(sa=i1,sb=i2))")


class Counted(dict[Any, Any]):
    pass


_named = Named("a")
_named_with_part = Named("a")
_named_with_part.__dict__["part"] = 1
_stamped = Stamp(1)
_stamped.nanoseconds = 5
_noted = Model(id=1)
_noted._note = "private"  # noqa: SLF001 - what users do within their models

_DIFFERENT: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    10**5000,
    1.0,
    float("nan"),
    -0.0,
    0.0,
    1 + 0j,
    complex(1, -0.0),
    "1",
    "",
    "None",
    "i1",
    "n",
    "\ud800",
    b"1",
    b"",
    bytearray(b"1"),
    Decimal(1),
    Decimal("1.0"),
    UUID(int=1),
    (),
    [],
    {},
    set(),
    frozenset(),
    (1,),
    [1],
    {1},
    frozenset({1}),
    {1: None},
    ((),),
    ("",),
    ("", ""),
    (1, 2),
    ((1, 2),),
    ((1,), 2),
    (1, (2,)),
    "(1,2)",
    {"a": 1, "b": 2},
    {"a": 2, "b": 1},
    {"a": "1,sb=i2"},
    {1.0: "x"},
    {"1": "x"},
    date(2024, 1, 1),
    datetime(2024, 1, 1),  # noqa: DTZ001
    datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    datetime(2024, 1, 1, tzinfo=BERLIN),
    datetime(2020, 10, 25, 2, tzinfo=BERLIN),
    datetime(2020, 10, 25, 2, tzinfo=BERLIN, fold=1),
    time(1),
    time(1, tzinfo=UTC),
    time(1, tzinfo=BERLIN),
    time(1, fold=1),
    timedelta(1),
    timedelta(0, 1),
    timedelta(0, 0, 1),
    range(3),
    range(0, 3, 2),
    slice(1),
    slice(1, None),
    slice("1"),
    re.compile("a" * 300),
    re.compile("a" * 299 + "b"),
    re.compile("a" * 300, re.IGNORECASE),
    Color.RED,
    Color.BLUE,
    Other.RED,
    Word.HI,
    Mixed.HI,
    "hi",
    Level.LOW,
    Right.READ,
    Right.READ | Right.WRITE,
    Right(0),
    Point(1),
    Point(1, 1),
    Point(1, 0, "note"),
    Silent(1),
    Box(1),
    Row(1),
    Model(id=1),
    Model(id=2),
    _noted,
    Pair(1, 2),
    Named("1"),
    _named,
    _named_with_part,
    Stamp(1),
    _stamped,
    Counted(),
    Counted({1: 2}),
    collections.OrderedDict({1: 2}),
    {1: 2},
    int,
    Point,
    Color,
    PurePosixPath("/a"),
    PurePosixPath("/b"),
    ip_address("10.0.0.1"),
    list[int],
]


def test_no_two_different_arguments_have_the_same_text() -> None:
    texts = [text_of(value) for value in _DIFFERENT]
    assert len(set(texts)) == len(texts)
    nested = [text_of(["nested", value]) for value in _DIFFERENT]
    assert len({*texts, *nested}) == 2 * len(texts)


def test_equal_collections_have_the_same_text_whatever_their_order() -> None:
    assert text_of({"a": {3, 1, 2}, "b": 1}) == text_of({"b": 1, "a": {2, 3, 1}})
    assert text_of(frozenset({"x", "y", "z"})) == text_of(frozenset({"z", "x", "y"}))


class Describes:
    """Two of these may describe themselves alike: its repr is in angle brackets."""

    def __repr__(self) -> str:
        return "<User: Ann>"


class Shortens:
    def __repr__(self) -> str:
        return "array([0, 0, ..., 0])"

    def __len__(self) -> int:
        return 1000


class LooksOwn(int):
    def __repr__(self) -> str:
        return object.__repr__(self)


@pytest.mark.parametrize(
    "value",
    [Describes(), Shortens(), memoryview(b"x"), LooksOwn(1), iter([]), Hostile()],
    ids=lambda value: type(value).__name__,
)
def test_a_repr_that_does_not_identify_is_refused(value: Any) -> None:
    with pytest.raises(KeyTemplateError, match="argument x cannot become part of a key"):
        text_of(value)


class Derived(Service):
    pass


def test_a_method_needs_a_template_that_tells_its_objects_apart() -> None:
    for method in (Service.find, Service().find):
        with pytest.raises(KeyTemplateError, match=r"\{self.tenant\}"):
            compile_key(None, method)
    assert compile_key("user:{self.id}:{user_id}", Service.find).text_of(Plain(), 42) == "user:7:42"


def test_a_function_may_call_its_first_parameter_self() -> None:
    def find(self: int) -> None: ...

    assert compile_key(None, find).text_of(1).endswith("find(self=i1)")


def test_class_methods_and_static_methods_need_no_template() -> None:
    raw = Service.__dict__["of_class"].__func__
    key = compile_key(None, raw)
    assert key.text_of(Service, 1).endswith(f".Service.of_class(cls=T{Service.__module__}.Service,user_id=i1)")
    assert key.text_of(Service, 1) != key.text_of(Derived, 1)
    assert compile_key(None, Service.static).text_of(1).endswith("Service.static(user_id=i1)")


def test_a_class_method_of_two_classes_is_two_functions() -> None:
    assert compile_key(None, Service.of_class).text_of(1) != compile_key(None, Derived.of_class).text_of(1)


@pytest.mark.parametrize("fn", [lambda x: x, functools.partial(get_user, 1)])
def test_a_function_without_a_name_needs_a_template(fn: Any) -> None:
    with pytest.raises(KeyTemplateError, match="no name of its own"):
        compile_key(None, fn)
    assert compile_key("all", fn).text_of() == "all"


def test_a_decorated_function_keeps_its_name_and_parameters() -> None:
    @functools.wraps(get_user)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    text = compile_key(None, wrapper).text_of(1, "en")
    assert text.startswith(f"{get_user.__module__}.get_user[")  # there is a function of that name without the decorator
    assert text.endswith("](user_id=i1,lang=sen)")


def test_a_template_may_name_a_class() -> None:
    class Shop:
        @classmethod
        def find(cls, row: int) -> int:
            return row

    keys = compile_key("{cls.__name__}:{cls.__qualname__}:{row}", Shop.find.__func__)  # type: ignore[attr-defined]
    assert keys.text({"cls": Shop, "row": 1}).startswith("Shop:")
