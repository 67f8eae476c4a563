"""What a reader makes of bytes depends on nothing but the bytes: not on the process or the day."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Generic, Self, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    WrapValidator,
    field_validator,
    model_validator,
)

from cacheguard.codec import codec_for
from cacheguard.codec.typed import TypedCodec
from tests.support.portrait import portrait

T = TypeVar("T")
HERE = {"name": "here"}


def with_place(text: str) -> str:
    return text if text.endswith(HERE["name"]) else text + HERE["name"]


@dataclasses.dataclass
class PostInit:
    a: str

    def __post_init__(self) -> None:
        self.a = with_place(self.a)


@dataclasses.dataclass
class Made:
    a: int
    where: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.where = HERE["name"]


class Below(Made):
    pass


@dataclasses.dataclass
class Private:
    a: int
    _where: str = dataclasses.field(default_factory=lambda: HERE["name"])


@dataclasses.dataclass
class Default(Generic[T]):
    a: T

    def __post_init__(self) -> None:
        self.__dict__["a"] = with_place("a")


class ModelOfMade(BaseModel):
    made: Made


class Factory(BaseModel):
    a: int = 0
    where: str = Field(default_factory=lambda: HERE["name"])


class Factories(BaseModel):
    metadata: list[Factory] = []
    first: Factory = Field(default_factory=Factory)


class FieldValidator(BaseModel):
    a: str

    @field_validator("a")
    @classmethod
    def _checked(cls, value: str) -> str:
        return with_place(value)


class ModelValidator(BaseModel):
    a: str
    where: str = ""

    @model_validator(mode="after")
    def _checked(self) -> ModelValidator:
        self.where = HERE["name"]
        return self


class WithAnnotated(BaseModel):
    default: Annotated[str, AfterValidator(with_place)]


class InMetadata(BaseModel):
    metadata: Annotated[list[Annotated[str, BeforeValidator(with_place)]], Field(min_length=1)]


class PrivateFactory(BaseModel):
    a: int
    _where: str = PrivateAttr(default_factory=lambda: HERE["name"])


class PrivateSet(BaseModel):
    a: int
    _where: str = PrivateAttr()

    def model_post_init(self, _context: object, /) -> None:
        self._where = HERE["name"]


class Constructor(BaseModel):
    a: str

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.a = with_place(self.a)


@pydantic.dataclasses.dataclass
class PydanticPost:
    a: str

    def __post_init__(self) -> None:
        self.a = with_place(self.a)


class StructPost(msgspec.Struct):
    a: str

    def __post_init__(self) -> None:
        self.a = with_place(self.a)


class StructOfList(msgspec.Struct):
    a: list[str]

    def __post_init__(self) -> None:
        if HERE["name"] not in self.a:
            self.a.append(HERE["name"])


@attrs.define
class AttrsPost:
    a: str
    where: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.where = HERE["name"]


@attrs.define
class AttrsPrivate:
    a: int
    _where: str = attrs.field(factory=lambda: HERE["name"])


@attrs.define
class AttrsPre:
    a: list[str]

    def __attrs_pre_init__(self) -> None:
        HERE["made"] = "yes"


class One(BaseModel):
    x: int


class Two(BaseModel):
    x: int


class Chosen(BaseModel):
    part: Annotated[
        Annotated[One, Tag("here")] | Annotated[Two, Tag("there")], Discriminator(lambda _value: HERE["name"])
    ]


class Wrapped(BaseModel):
    a: Annotated[str, WrapValidator(lambda value, handler: with_place(handler(value)))]


class OfData(BaseModel):
    a: int
    where: str = Field(default_factory=lambda data: f"{HERE['name']} {data['a']}")


@dataclasses.dataclass
class New:
    a: int

    def __new__(cls, *_given: Any) -> Self:
        made = object.__new__(cls)
        made.__dict__["where"] = HERE["name"]
        return made


IMPURE: list[tuple[Any, Callable[[], Any]]] = [
    (PostInit, lambda: PostInit("x")),
    (list[PostInit], lambda: [PostInit("x")]),
    (dict[str, PostInit] | None, lambda: {"a": PostInit("x")}),
    (Made, lambda: Made(1)),
    (Below, lambda: Below(1)),
    (Private, lambda: Private(1)),
    (Default[int], lambda: Default(1)),
    (ModelOfMade, lambda: ModelOfMade(made=Made(1))),
    (Factory, Factory),
    (Factories, lambda: Factories(metadata=[Factory(a=1)])),
    (Factories, lambda: Factories(metadata=[Factory(a=1, where="x")], first=Factory(where="y"))),
    (FieldValidator, lambda: FieldValidator(a="x")),
    (ModelValidator, lambda: ModelValidator(a="x")),
    (WithAnnotated, lambda: WithAnnotated(default="x")),
    (InMetadata, lambda: InMetadata(metadata=["x"])),
    (PrivateFactory, lambda: PrivateFactory(a=1)),
    (PrivateSet, lambda: PrivateSet(a=1)),
    (Constructor, lambda: Constructor(a="x")),
    (Chosen, lambda: Chosen.model_validate({"part": {"x": 1}})),
    (Wrapped, lambda: Wrapped(a="x")),
    (OfData, lambda: OfData(a=1)),
    (New, lambda: New(1)),
    (PydanticPost, lambda: PydanticPost("x")),
    (StructPost, lambda: StructPost("x")),
    (StructOfList, lambda: StructOfList(["x"])),
    (AttrsPost, lambda: AttrsPost("x")),
    (AttrsPrivate, lambda: AttrsPrivate(1)),
    (AttrsPre, lambda: AttrsPre(["x"])),
]


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    yield
    HERE.clear()
    HERE["name"] = "here"


NAMES = [str(annotation) for annotation, _ in IMPURE]


@pytest.mark.parametrize(("annotation", "make"), IMPURE, ids=NAMES)
def test_what_a_constructor_would_ask_for_is_not_asked_for_by_a_reader(
    annotation: Any, make: Callable[[], Any]
) -> None:
    codec = codec_for(annotation)
    value = make()
    payload = codec.encode(value)
    HERE["name"] = "there"
    assert portrait(codec.decode(payload)) == portrait(value)


class Checked(BaseModel):
    id: int = Field(gt=0)
    name: str = Field(max_length=20)
    tags: list[str] = Field(default_factory=list)
    metadata: dict[str, int] = {}
    type: str = "x"
    more: list[int] = Field(default_factory=lambda: [1])
    _seen: dict[str, int] = PrivateAttr(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _stripped(cls, value: str) -> str:
        if not value:
            raise ValueError("a name, please")
        return value.strip()

    @model_validator(mode="after")
    def _ordered(self) -> Checked:
        if self.id < len(self.name):
            raise ValueError(f"{self.id} is too small")
        return self

    def model_post_init(self, _context: object, /) -> None:
        self._seen["id"] = self.id


class Around(BaseModel):
    first: Checked
    url: pydantic.HttpUrl
    at: Annotated[str, AfterValidator(str.strip)]
    second: Checked | None = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", self.a.strip())


@dataclasses.dataclass
class Lower:
    a: int

    def __post_init__(self) -> None:
        self.a = max(self.a, 0)


class StructChecked(msgspec.Struct):
    a: int

    def __post_init__(self) -> None:
        if self.a < 0:
            raise ValueError("a")


@attrs.define
class AttrsChecked:
    a: int = attrs.field(validator=attrs.validators.instance_of(int), converter=int)

    @a.validator
    def _positive(self, attribute: Any, value: int) -> None:
        if value < 0:
            raise ValueError(f"{attribute.name}: {value}")


@pytest.mark.parametrize(
    "annotation", [Checked, list[Checked], Around, Frozen, Lower, StructChecked, AttrsChecked, list[AttrsChecked]]
)
def test_hooks_that_only_check_what_they_are_given_leave_the_fast_form(annotation: Any) -> None:
    codec = codec_for(annotation)
    assert isinstance(codec, TypedCodec)
    assert codec.has_plain_form


class Shuffled(BaseModel):
    a: list[str]

    @field_validator("a")
    @classmethod
    def _unique(cls, value: list[str]) -> list[str]:
        return list(set(value))


class Counting(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def _counted(cls, value: int) -> int:
        cls.count += 1  # type: ignore[attr-defined]
        return value


class Calling(BaseModel):
    a: int

    @model_validator(mode="after")
    def _all(self) -> Calling:
        self.update()
        return self

    def update(self) -> None:
        self.a = len(HERE["name"])


@pytest.mark.parametrize("annotation", [Shuffled, Counting, Calling, FieldValidator, Made, StructPost])
def test_hooks_that_may_do_anything_else_do_not(annotation: Any) -> None:
    codec = codec_for(annotation)
    assert isinstance(codec, TypedCodec)
    assert not codec.has_plain_form
