"""Classes of every kind that functions return, for the matrix of values; both processes import them."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import pathlib
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, NotRequired, Self, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeAliasType

if typing.TYPE_CHECKING:
    from tests.support.value_late import Late

T = TypeVar("T")
U = TypeVar("U")


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Mixed(enum.Enum):
    NUMBER = 1
    TEXT = "one"
    NOTHING = None
    PAIR = (1, "a")


class Planet(enum.Enum):
    EARTH = (5.97e24, 6.37e6)

    def __init__(self, mass: float, radius: float) -> None:
        self.mass, self.radius = mass, radius


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    HI = "hi"


class Tone(str, enum.Enum):  # noqa: UP042 - what people have
    SOFT = "soft"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Named(enum.Enum):
    ONE = "same"
    ALIAS = "same"  # noqa: PIE796 - an alias


@dataclass
class Point:
    x: int
    y: float = 0.0


@dataclass
class Point3(Point):
    z: int = 0


@dataclass(frozen=True)
class Frozen:
    id: int
    tags: frozenset[str] = frozenset()


@dataclass(slots=True)
class Slots:
    id: int
    name: str = ""


@dataclass(slots=True, frozen=True, kw_only=True)
class Tight:
    id: int


@dataclass
class Private:
    id: int
    _secret: str = "s"
    __hidden: int = 3

    def hide(self, value: int) -> Self:
        self.__hidden = value
        return self


@dataclass
class Counted:
    id: int
    total: int = field(init=False, default=0)
    start: dataclasses.InitVar[int] = 0
    kind: ClassVar[str] = "counted"

    def __post_init__(self, start: int) -> None:
        self.total = start + 1


class Base:
    def __init__(self) -> None:
        self.perms: list[str] = []


@dataclass
class WithBase(Base):
    id: int
    role = "user"

    def __post_init__(self) -> None:
        super().__init__()


@dataclass
class Lazy:
    id: int

    @functools.cached_property
    def double(self) -> int:
        return self.id * 2


@dataclass
class ById:
    id: int
    name: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.id == other.id

    def __hash__(self) -> int:
        return self.id


@dataclass
class Anything:
    value: Any = None
    rows: list = field(default_factory=list)  # type: ignore[type-arg]
    more: dict = field(default_factory=dict)  # type: ignore[type-arg]


@dataclass
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list)


@dataclass
class Order:
    lines: list[Point | Slots]
    at: datetime
    total: Decimal
    where: pathlib.Path | None = None
    level: Level | int = 0
    words: dict[str, Tone | str] = field(default_factory=dict)


@dataclass
class Page(Generic[T]):
    items: list[T]
    next: str | None = None


@dataclass
class Both(Generic[T, U]):
    one: T
    two: U


class Label(str):  # noqa: SLOT000 - what people have
    pass


class Number(int):
    pass


class Ids(list[int]):
    owner: str = ""


class Settings(dict[str, int]):
    pass


class Ratio(float):
    pass


class Couple(tuple[int, int]):  # noqa: SLOT001 - what people have
    pass


class Pt(NamedTuple):
    x: int
    y: int = 0


class Nested(NamedTuple):
    at: Pt
    colour: Colour


Untyped = collections.namedtuple("Untyped", "a b")  # noqa: PYI024 - the untyped kind is the point


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Partial(TypedDict, total=False):
    a: int
    at: datetime


class Deep(TypedDict):
    movie: Movie
    points: list[Point]
    rest: Any


@attrs.define
class Box:
    size: int
    tags: list[str] = attrs.field(factory=list)


@attrs.define
class Hidden:
    id: int
    _private: str = "p"


@attrs.define(slots=False)
class Open:
    id: int


@attrs.frozen(cache_hash=True)
class Hashed:
    id: int


@attrs.frozen(cache_hash=True, slots=False)
class HashedOpen:
    id: int


@attrs.define
class Upper:
    name: str = attrs.field(converter=str.upper, eq=str.lower)  # type: ignore[misc]  # mypy wants a plain function


@attrs.define
class Holder:
    content: Box | Hidden | Colour


class Row(msgspec.Struct):
    id: int
    colours: set[Colour] = set()


class Thin(msgspec.Struct, array_like=True, frozen=True):
    id: int
    name: str = ""


class Renamed(msgspec.Struct, rename="camel", omit_defaults=True):
    user_name: str = ""
    age: int = 0


class Roomy(msgspec.Struct, dict=True):
    id: int


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Checked(msgspec.Struct):
    x: int
    seen: int = 0

    def __post_init__(self) -> None:
        self.seen += 1


class Pair(msgspec.Struct, Generic[T]):
    one: T
    two: T


class User(pydantic.BaseModel):
    id: int
    name: str | None = None
    tags: list[str] = []


class Patch(pydantic.BaseModel):
    name: str | None = None
    age: int | None = None


class Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    id: int


class Noted(pydantic.BaseModel):
    id: int
    _note: str = pydantic.PrivateAttr("")
    _seen: list[int] = pydantic.PrivateAttr(default_factory=list)


class Aliased(pydantic.BaseModel):
    user_name: str = pydantic.Field(alias="userName")


class Times(pydantic.BaseModel):
    at: datetime | None = None
    raw: bytes = b""
    where: pathlib.Path | None = None
    any: Any = None
    number: int | Level = 0
    text: str | Tone = ""


class Validated(pydantic.BaseModel):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def shout(cls, value: str) -> str:
        return f"{value}!"


class Envelope(pydantic.BaseModel, Generic[T]):
    data: T


class Names(pydantic.RootModel[list[str]]):
    pass


class Frost(pydantic.BaseModel, frozen=True):
    id: int


class Zoo(pydantic.BaseModel):
    animal: Annotated[CatModel | DogModel, pydantic.Field(discriminator="kind")]


class CatModel(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class DogModel(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


class Shouting(pydantic.BaseModel):
    first: str

    @pydantic.computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def loud(self) -> str:
        return self.first.upper()


class Secret(pydantic.BaseModel):
    password: pydantic.SecretStr


class Linked(pydantic.BaseModel):
    url: pydantic.AnyUrl


class Owner(pydantic.BaseModel):
    point: Point
    box: Patch


@pydantic_dataclass
class Strict:
    id: int
    at: date | None = None


@dataclass
class HasModel:
    patch: Patch


class Plain:
    def __init__(self, id: int) -> None:  # noqa: A002 - what people have
        self.id = id


class Closed:
    __slots__ = ("id",)

    def __init__(self, id: int) -> None:  # noqa: A002 - what people have
        self.id = id


@dataclass
class HasPlain:
    plain: Plain


@dataclass
class Cyclic:
    me: Cyclic | None = None


class Failure(Exception):  # noqa: N818 - what people have
    pass


Points = TypeAliasType("Points", list[Point])
Rows = TypeAliasType("Rows", list[T], type_params=(T,))
Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | str | int | None")
UserId = typing.NewType("UserId", int)
MaybePoint = typing.Optional[Point]  # noqa: UP045 - the old spelling


@dataclass
class Shop:
    id: int

    # Nobody calls these: what they are annotated with is asked for.

    def itself(self) -> Self:
        raise NotImplementedError

    def branches(self) -> list[Self]:
        raise NotImplementedError

    def other(self) -> Shop | None:
        raise NotImplementedError


def of_kind(kind: type[T], key: int) -> T | None:
    raise NotImplementedError  # nobody calls this one, either


def many_of_kind(kind: type[T]) -> Iterable[T]:
    raise NotImplementedError


def late() -> Late:
    from tests.support.value_late import Late as Found

    return Found(1)


def late_list() -> list[Late] | None:
    return [late(), late()]


def local_class(decorate: Callable[[Callable[[], Any]], Any]) -> Any:
    """A function decorated inside of another, which returns classes that are defined there."""

    @dataclass
    class Line:
        x: int

    @dataclass
    class Bill:
        lines: list[Line]

    def find() -> Bill:
        return Bill([Line(1)])

    return decorate(find)
