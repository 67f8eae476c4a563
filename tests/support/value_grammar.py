"""A grammar of types, written as the source of a module, and of values: for two processes and two releases of a class.

A module is text, so another process, or another release, can be made of it. A value is an expression in that module.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

HEADER = """from __future__ import annotations
import collections, enum, typing, dataclasses
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo
import attrs, msgspec, pydantic
from typing_extensions import TypedDict
T = TypeVar("T")
ANY = pydantic.ConfigDict(arbitrary_types_allowed=True)
def with_more(value, **more):
    for name, each in more.items():
        object.__setattr__(value, name, each)
    return value
"""

_SCALARS = {
    "int": ["0", "-5", "2**70", "True"],
    "float": ["1.5", "-0.0", "float('nan')", "3"],
    "str": ["''", "'ü'", "'1'"],
    "bool": ["True", "False"],
    "bytes": ["b''", "b'\\xff'"],
    "None": ["None"],
    "Decimal": ["Decimal('1.10')", "Decimal('-0')"],
    "datetime": [
        *("datetime(2024, 1, 1)", "datetime(2024, 7, 1, tzinfo=UTC)", "datetime(2024, 7, 1, tzinfo=ZoneInfo('UTC'))"),
        *("datetime(2020, 10, 25, 2, 30, tzinfo=ZoneInfo('Europe/Berlin'), fold=1)",),
    ],
    "date": ["date(2024, 2, 29)"],
    "time": ["time(1, 2, tzinfo=timezone(timedelta(hours=2), 'X'))", "time(1)"],
    "UUID": ["UUID(int=7)"],
    "Path": ["Path('/a')"],
    "Any": ["(1, [2])", "{'a': {1}}", "'x'", "collections.OrderedDict(b=1, a=2)"],
}
_HASHABLE = ("int", "str", "bool", "Decimal", "date", "UUID")


@dataclass(frozen=True)
class Kind:
    """A class of the grammar: its source, and how to make a value."""

    name: str
    style: str
    fields: tuple[tuple[str, str], ...]
    members: tuple[tuple[str, str], ...] = ()
    order: int = 0

    def source(self) -> str:
        """The class statement."""
        lines = [f"    {name}: {kind}" for name, kind in self.fields] or ["    pass"]
        heads = {
            "dataclass": f"@dataclass\nclass {self.name}:",
            "slots": f"@dataclass(slots=True)\nclass {self.name}:",
            "attrs": f"@attrs.define\nclass {self.name}:",
            "struct": f"class {self.name}(msgspec.Struct):",
            "array": f"class {self.name}(msgspec.Struct, array_like=True):",
            "model": f"class {self.name}(pydantic.BaseModel):\n    model_config = ANY",
            "extra": f"class {self.name}(pydantic.BaseModel):\n    model_config = ANY | {{'extra': 'allow'}}",
            "row": f"class {self.name}(TypedDict):",
            "part": f"class {self.name}(TypedDict, total=False):",
            "tuple": f"class {self.name}(NamedTuple):",
            "generic": f"@dataclass\nclass {self.name}(Generic[T]):",
            "enum": f"class {self.name}(enum.Enum):",
            "intenum": f"class {self.name}(enum.IntEnum):",
            "strenum": f"class {self.name}(enum.StrEnum):",
            "flag": f"class {self.name}(enum.Flag):",
        }
        if self.members:
            lines = [f"    {name} = {value}" for name, value in self.members]
        return "\n".join([heads[self.style], *lines])


STYLES = ("dataclass", "slots", "attrs", "struct", "array", "model", "extra", "row", "part", "tuple", "generic")
ENUMS = ("enum", "intenum", "strenum", "flag")


@dataclass
class Program:
    """A module of classes, an annotation, and values of it."""

    kinds: list[Kind] = field(default_factory=list[Kind])
    annotation: str = "int"
    values: list[str] = field(default_factory=list[str])

    def source(self) -> str:
        """The module: the classes, and a function that returns the value of a number."""
        kinds = "\n".join(kind.source() for kind in self.kinds)
        values = ",\n    ".join(f"lambda: {value}" for value in self.values)
        load = f"def load(number) -> {self.annotation}:\n    return VALUES[number]()\n"
        return f"{HEADER}\n{kinds}\nVALUES = [\n    {values}\n]\n{load}"


class Grammar:
    """Draws programs from a source of randomness."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._kinds: list[Kind] = []

    def program(self, values: int) -> Program:
        """A module with up to five classes, and *values* values of one annotation."""
        draw = self._draw
        for number in range(draw.randint(1, 5)):
            self._kinds.append(self._kind(number))
        annotation = self.annotation(3)
        return Program(self._kinds, annotation, [self.value(annotation, 4) for _ in range(values)])

    def _kind(self, number: int) -> Kind:
        draw, name = self._draw, f"K{number}"
        if draw.random() < 0.25:
            style = draw.choice(ENUMS)
            values = {
                "enum": ["1", "'a'", "(1, 'x')", "None"],
                "intenum": ["1", "2", "3"],
                "strenum": ["'a'", "'b'"],
                "flag": ["1", "2", "4"],
            }[style]
            return Kind(name, style, (), tuple((f"M{n}", value) for n, value in enumerate(values)))
        style = draw.choice(STYLES)
        names = [f"f{n}" for n in range(draw.randint(1, 4))]
        kinds = [self.annotation(1) for _ in names]
        if style == "generic":
            kinds[0] = "T"
        return Kind(name, style, tuple(zip(names, kinds, strict=True)))

    def annotation(self, room: int) -> str:
        """An annotation that names the classes so far."""
        draw = self._draw
        choices: list[Callable[[], str]] = [lambda: draw.choice(list(_SCALARS))]
        if self._kinds:
            choices += [self._named] * 3
        if room:
            inner = room - 1
            choices += [
                lambda: f"list[{self.annotation(inner)}]",
                lambda: f"tuple[{self.annotation(inner)}, {self.annotation(inner)}]",
                lambda: f"dict[{draw.choice(_HASHABLE)}, {self.annotation(inner)}]",
                lambda: f"set[{draw.choice(_HASHABLE)}]",
                lambda: f"typing.Union[{self.annotation(inner)}, {self.annotation(inner)}]",
                lambda: f"typing.Optional[{self.annotation(inner)}]",
                lambda: f"typing.Sequence[{self.annotation(inner)}]",
            ]
        return draw.choice(choices)()

    def _named(self) -> str:
        kind = self._draw.choice(self._kinds)
        return f"{kind.name}[int]" if kind.style == "generic" else kind.name

    def value(self, annotation: str, room: int) -> str:  # noqa: PLR0911 - a case for each kind of annotation
        """An expression for a value of *annotation*; sometimes one of another type."""
        draw = self._draw
        if draw.random() < 0.03:
            return draw.choice(draw.choice(list(_SCALARS.values())))
        if annotation in _SCALARS:
            return draw.choice(_SCALARS[annotation])
        if annotation == "T":
            return self.value("int", room)
        head, _, rest = annotation.partition("[")
        kind = next((each for each in self._kinds if each.name == head), None)
        if kind is not None:
            return self._instance(kind, room)
        arguments = _split(rest[:-1])
        if head == "typing.Optional":
            return "None" if draw.random() < 0.2 else self.value(arguments[0], room)
        if head == "typing.Union":
            return self.value(draw.choice(arguments), room)
        if head == "tuple":
            return f"({''.join(f'{self.value(each, room - 1)}, ' for each in arguments)})"
        many = range(draw.randint(0, 3) if room > 0 else 0)
        if head == "dict":
            return (
                f"{{{', '.join(f'{self.value_of(arguments[0])}: {self.value(arguments[1], room - 1)}' for _ in many)}}}"
            )
        if head == "set":
            return f"set([{', '.join(self.value_of(arguments[0]) for _ in many)}])"
        items = ", ".join(self.value(arguments[0], room - 1) for _ in many)
        return f"({items}{',' if items else ''})" if head == "typing.Sequence" and draw.random() < 0.5 else f"[{items}]"

    def value_of(self, scalar: str) -> str:
        """A value of exactly that scalar."""
        return self._draw.choice(_SCALARS[scalar])

    def _instance(self, kind: Kind, room: int) -> str:
        draw = self._draw
        if kind.members:
            name = f"{kind.name}.{draw.choice(kind.members)[0]}"
            return f"({name} | {kind.name}.{draw.choice(kind.members)[0]})" if kind.style == "flag" else name
        parts = [(name, self.value(each, room - 1)) for name, each in kind.fields]
        if kind.style == "part":
            parts = [each for each in parts if draw.random() < 0.7]
        made = ", ".join(f"{name}={value}" for name, value in parts)
        if kind.style in {"model", "extra"}:
            more = ", more=(1, 2)" if kind.style == "extra" and draw.random() < 0.3 else ""
            return f"{kind.name}.model_construct({made}{more})"
        if kind.style in {"dataclass", "generic"} and draw.random() < 0.15:
            return f"with_more({kind.name}({made}), note={draw.choice(_SCALARS['Any'])})"
        if kind.style == "generic" and draw.random() < 0.3:
            return f"{kind.name}[int]({made})"
        return f"{kind.name}({made})"


def _split(arguments: str) -> list[str]:
    """The arguments between the brackets of an annotation."""
    found, depth, begin = list[str](), 0, 0
    for place, sign in enumerate(arguments):
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            found.append(arguments[begin:place].strip())
            begin = place + 1
    return [*found, arguments[begin:].strip()]


def next_release(kind: Kind, draw: random.Random) -> Kind:
    """*kind* with one change that decides what its bytes mean."""
    if kind.members:
        members = list(kind.members)
        if kind.style in {"intenum", "flag"} or draw.random() < 0.5:
            members[0], members[1] = (members[0][0], members[1][1]), (members[1][0], members[0][1])
        else:
            members = members[:-1]
        return replace(kind, members=tuple(members))
    fields = list(kind.fields)
    place = draw.randrange(len(fields))
    name, annotation = fields[place]
    changes = [
        lambda: fields.__setitem__(place, (f"{name}_new", annotation)),
        lambda: fields.__setitem__(place, (name, f"list[{annotation}]")),
        lambda: fields.append(("added", "int")),
        lambda: fields.__delitem__(place) if len(fields) > 1 else fields.append(("added", "str")),
    ]
    if len(fields) > 1 and kind.style != "generic":
        changes.append(lambda: fields.insert(0, fields.pop()))
    draw.choice(changes)()
    if kind.style in {"row", "part"} and draw.random() < 0.3:
        return replace(kind, style="part" if kind.style == "row" else "row")
    return replace(kind, fields=tuple(fields))
