"""A canonical text of an annotation: all that decides what stored bytes mean, and so another one for another release.

Modules are left out, so that a class may move; of two classes of one name they are in it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from .annotation import Facts, bare, field_names, fields_of, has_fields, is_alias, is_model, is_row, is_storable
from .state import anatomy_of, attributes_of

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAPPINGS: tuple[type[Any], ...] = (Mapping,)
_ROWS: tuple[type[Any], ...] = (list, tuple)
_SETS: tuple[type[Any], ...] = (set, frozenset)
_EMPTY_CELL = types.CellType()
_SIMPLE = (str, int, float, complex, bytes, bool, type(None))

# Written by hand, these take part in what an object is after it was made.
_HOOKS = (
    *("__init__", "__new__", "__post_init__", "__post_init_post_parse__", "__attrs_pre_init__", "__attrs_post_init__"),
    *("__setattr__", "__setstate__", "__getattr__", "model_post_init", "_missing_", "_generate_next_value_"),
)
_LIBRARIES = frozenset({"pydantic", "pydantic_core", "msgspec", "attr", "attrs", "enum", "typing", "annotated_types"})
_MODEL_HOOKS = ("validators", "field_validators", "root_validators", "model_validators", "computed_fields")


def outline_of(annotation: object, facts: Facts) -> str:
    """The text of *annotation*, of which *facts* are known."""
    return json.dumps(_Outliner(facts).of(annotation), sort_keys=True)


class _Outliner:
    def __init__(self, facts: Facts) -> None:
        self._names = facts.names
        everything = [*facts.classes, *facts.strange]
        twins = Counter(kind.__qualname__ for kind in everything)
        self._twins = {name for name, times in twins.items() if times > 1}
        self._met: dict[Any, int] = {}

    def of(self, annotation: Any) -> Any:
        notes = [stable(note) for note in getattr(annotation, "__metadata__", ())]
        plain = self._plain(annotation)
        return ["noted", plain, notes] if notes else plain

    def _plain(self, annotation: Any) -> Any:  # noqa: PLR0911 - a case for each kind of annotation
        wrapper = get_origin(annotation)
        if wrapper in (typing.Required, typing.NotRequired):
            return [str(wrapper), self.of(get_args(annotation)[0])]
        if is_alias(annotation):
            return ["alias", self._once(annotation, lambda: self.of(annotation.__value__))]
        annotation = bare(annotation)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return ["literal", sorted((stable(value) for value in arguments), key=_text)]
        if origin is Union or origin is types.UnionType:
            return ["union", sorted((self.of(each) for each in arguments), key=_text)]
        if is_alias(origin):
            return ["alias", self._once(origin, lambda: self.of(origin.__value__)), [self.of(a) for a in arguments]]
        if isinstance(origin, type):
            return ["of", self._class(origin), [self._argument(argument) for argument in arguments]]
        if isinstance(annotation, type):
            return self._class(annotation)
        if isinstance(annotation, typing.TypeVar):
            limits = [each for each in (annotation.__bound__, *annotation.__constraints__) if each is not None]
            return ["variable", annotation.__name__, self._once(annotation, lambda: [self.of(each) for each in limits])]
        return _described(annotation)

    def _argument(self, argument: Any) -> Any:
        return list(map(self.of, argument)) if isinstance(argument, _ROWS) else self.of(argument)

    def _once(self, thing: Any, outline: Any) -> Any:
        """The outline of *thing*, which may contain itself."""
        if thing in self._met:
            return ["again", self._met[thing]]
        self._met[thing] = len(self._met)
        return outline()

    def _class(self, kind: Any) -> Any:
        if not is_storable(kind):
            return self.name_of(kind)
        return self._once(kind, lambda: self._outlined(kind))

    def _outlined(self, kind: Any) -> Any:
        name = self.name_of(kind)
        if issubclass(kind, Enum):
            members = [[each, stable(member._value_)] for each, member in kind.__members__.items()]
            return ["enum", name, _bases(kind), members, _hooks(kind)]
        if not (has_fields(kind) or is_model(kind)):
            return ["class", name, _bases(kind), _hooks(kind)]
        hints = fields_of(kind, self._names)
        fields = [[field, self.of(hints.get(field, Any)), *_ways(kind, field)] for field in _all_fields(kind, hints)]
        return ["fields", name, _bases(kind), fields, _manner(kind), _hooks(kind)]

    def name_of(self, kind: Any) -> str:
        """The name of *kind*; with its module if there is another class of that name."""
        name: str = kind.__qualname__
        return f"{kind.__module__}:{name}" if name in self._twins else name


def _all_fields(kind: Any, hints: Mapping[str, Any]) -> Iterable[str]:
    declared = field_names(kind)
    others = [name for name, hint in hints.items() if name not in declared and get_origin(hint) is not typing.ClassVar]
    return (*declared, *others)


def _bases(kind: Any) -> list[str]:
    return [base.__qualname__ for base in kind.__mro__[1:-1]]


def _hooks(kind: Any) -> list[Any]:
    """The hand-written methods that take part in making an object, in all classes above."""
    found: list[Any] = []
    for base in kind.__mro__[:-1]:
        for name in _HOOKS:
            codes = [each.__code__ for each in written_in(base.__dict__.get(name))]
            if codes and _is_users(base):
                found.append([base.__qualname__, name, *map(_code, codes)])
    return found


def written_in(method: Any) -> list[types.FunctionType]:
    """The functions of the user's in *method*: itself, or those that a library calls in what it has made of it."""
    fn = getattr(method, "__func__", method)
    if not isinstance(fn, types.FunctionType) or _is_generated(fn.__code__):
        return []
    if not is_of_library(fn.__globals__.get("__name__", "")):
        return [fn]
    cells = [cell.cell_contents for cell in fn.__closure__ or () if cell != _EMPTY_CELL]
    return [each for cell in cells for each in written_in(cell)]


def _is_generated(code: types.CodeType) -> bool:
    """True for what dataclass and attrs make of the fields."""
    return code.co_filename.startswith("<attrs") or code.co_qualname.startswith("__create_fn__")


def is_of_library(module: str) -> bool:
    """True for the modules of what makes classes with fields."""
    return module.partition(".")[0] in _LIBRARIES


def _is_users(base: Any) -> bool:
    return not is_of_library(base.__module__)


def _ways(kind: Any, name: str) -> list[Any]:  # noqa: PLR0911 - a case for each kind of class
    """What decides how the field *name* of *kind* is written and read, beside its type."""
    if is_model(kind):
        field = kind.model_fields.get(name)
        if field is None:
            private = kind.__private_attributes__.get(name)
            return ["private", *([] if private is None else _default(private.default, private.default_factory))]
        aliases = [field.alias, field.validation_alias, field.serialization_alias]
        others = (field.exclude, field.discriminator, field.validate_default, *field.metadata)
        told = [stable(each) for each in (*aliases, *others)]
        return [told, _default(field.default, field.default_factory)]
    if hasattr(kind, "__struct_fields__"):
        from msgspec.structs import fields

        each = next(field for field in fields(kind) if field.name == name)
        omits = kind.__struct_config__.omit_defaults
        return [each.encode_name, _default(each.default, each.default_factory) if omits else each.required]
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        declared = next((field for field in dataclasses.fields(kind) if field.name == name), None)
        if declared is None:  # an InitVar, or a field without an annotation of its own
            return []
        return [declared.init, declared.default is missing and declared.default_factory is missing]
    if hasattr(kind, "__attrs_attrs__"):
        attribute = next((each for each in kind.__attrs_attrs__ if each.name == name), None)
        if attribute is None:
            return []
        return [stable(part) for part in (attribute.init, attribute.validator, attribute.converter)]
    if is_row(kind):
        return [name in kind.__required_keys__]
    return []


def _default(default: Any, factory: Any) -> Any:
    """A default is part of what bytes mean where a value may be left out."""
    return [stable(default), stable(factory)]


def _manner(kind: Any) -> Any:
    """What decides how all fields of *kind* are written and read."""
    if is_model(kind):
        decorators = kind.__pydantic_decorators__
        hooks = [[name, sorted(getattr(decorators, name, {}))] for name in _MODEL_HOOKS]
        return [stable(dict(kind.model_config)), hooks]
    config = getattr(kind, "__struct_config__", None)
    if config is None:
        return []
    names = ("tag", "tag_field", "array_like", "omit_defaults", "forbid_unknown_fields")
    return [stable(getattr(config, name)) for name in names]


def stable(value: Any, room: int = 20) -> Any:  # noqa: PLR0911 - a case for each kind of value
    """*value* as something that every process writes alike."""
    if isinstance(value, Enum):
        return ["member", type(value).__qualname__, value._name_]
    if type(value) in _SIMPLE:
        return [type(value).__name__, repr(value)]
    if isinstance(value, type):
        return ["type", value.__qualname__]
    if _shows_too_little(type(value)) and room:
        held = attributes_of(value, anatomy_of(value.__class__))
        parts = [[name, stable(part, room - 1)] for name, part in sorted(held.items())]
        return ["object", type(value).__qualname__, parts]
    if isinstance(value, _MAPPINGS):
        return ["mapping", sorted(([stable(key, room), stable(part, room)] for key, part in value.items()), key=_text)]
    if isinstance(value, _ROWS):
        return [type(value).__name__, [stable(part, room) for part in value]]
    if isinstance(value, _SETS):
        return [type(value).__name__, sorted((stable(part, room) for part in value), key=_text)]
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    if code is not None:
        return ["function", _code(code)]
    return _described(value)


def _shows_too_little(kind: Any) -> bool:
    """True if a text of an instance may leave out what it consists of."""
    return has_fields(kind) or is_model(kind) or (kind.__repr__ is object.__repr__ and kind is not object)


def _described(value: Any) -> Any:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - code of the user
        text = ""
    return [type(value).__qualname__, _ADDRESS.sub("", text)]


def _code(code: types.CodeType) -> list[Any]:
    """What a function does: all of it, which is another for each version of Python."""
    constants = [_constant(each) for each in code.co_consts]
    return [code.co_qualname, code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _constant(value: Any) -> Any:
    return _code(value) if isinstance(value, types.CodeType) else stable(value)


def _text(outline: object) -> str:
    return json.dumps(outline, sort_keys=True)
