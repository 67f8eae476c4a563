"""Texts made by a template: ``"user:{user_id}"``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import partial
from operator import attrgetter, itemgetter
from string import Formatter
from typing import Any, NamedTuple, TypeAlias

from ..errors import KeyTemplateError
from ..protocol.names import TO_ESCAPE, escape
from .attributes import missing, no_item
from .parameters import VARIADIC, function_name, parameters_of, signature_of
from .shown import has_own_text, is_shown, shown, told
from .text import has_default, stated_classes, whole_number, without_address

_Render: TypeAlias = Callable[[Any], str]
_Complain: TypeAlias = Callable[[str], KeyTemplateError]

_FIELD = re.compile(r"([^.\[\]]*)((?:\.[^.\[\]]+|\[[^\[\]]+\])*)")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")
_CONVERSIONS: Mapping[str | None, Callable[[Any], Any]] = {"r": repr, "s": str, "a": ascii}
# The methods that a field's text comes from, by conversion.
_SOURCES = {"r": ("__repr__",), "a": ("__repr__",), "s": ("__str__", "__repr__")}
_A_FUNCTION = "it is a function, and its text does not tell it apart: pass what it returns"
_ALL_SOURCES = ("__format__", "__str__", "__repr__")


class TextTemplate:
    """A text with fields over the parameters of a function, in the language of `str.format`.

    Values are escaped, so that no value can pose as two fields; *escaped* turns that off, for texts that are compared
    but never become part of a key. *more* are names that count as parameters, too.
    """

    __slots__ = ("_pattern", "_steps", "_values", "fields", "literals", "plain_places")

    def __init__(
        self, template: str, fn: Callable[..., Any], *, escaped: bool = True, more: Iterable[str] = ()
    ) -> None:
        parameters = {**dict.fromkeys(more), **parameters_of(fn)}
        variadic = {name for name, each in signature_of(fn).parameters.items() if each.kind in VARIADIC}
        complain = partial(_complaint, template, fn, tuple(parameters))
        pattern: list[str] = []
        literals, plain = [""], escaped
        places: dict[str, int] = {}
        steps: list[tuple[int, _Render]] = []
        reads: list[_Render] = []
        for literal, name, spec, conversion in _parsed(template, complain):
            pattern.append(literal.replace("%", "%%"))
            literals[-1] += literal
            if name is not None:
                field = _field(name, spec or "", conversion, complain)
                if field.root not in parameters:
                    raise complain(f"{{{name}}} is no parameter")
                _check_annotation(field, parameters[field.root], complain)
                if field.root not in variadic:
                    _check_path(field, parameters[field.root], complain)
                pattern.append("%s")
                literals.append("")
                plain = plain and _is_plain(field)
                steps.append((places.setdefault(field.root, len(places)), _renderer(field, complain, escaped=escaped)))
                reads.append(partial(_careful, partial(_value, field), field, complain, False))  # noqa: FBT003
        self.fields: tuple[str, ...] = tuple(places)
        self._pattern = "".join(pattern)
        self._steps = tuple(steps)
        self.literals: tuple[str, ...] = tuple(literals)
        """What stands around the fields: before the first, between two, behind the last."""
        self.plain_places: tuple[int, ...] | None = tuple(place for place, _ in steps) if plain else None
        """Which of `fields` each field is; None if there is more in one than a parameter."""
        self._values = tuple(reads)

    def __repr__(self) -> str:
        return f"<TextTemplate {self._pattern!r} of {self.fields}>"

    @property
    def pattern(self) -> str:
        """The template without the names of its fields: two functions with the same one share their entries."""
        return self._pattern

    def text(self, arguments: Mapping[str, Any]) -> str:
        return self.text_of(*[arguments[name] for name in self.fields])

    def text_of(self, *values: Any) -> str:
        return self._pattern % tuple([render(values[place]) for place, render in self._steps])

    def values_of(self, *values: Any) -> list[Any]:
        """What the fields stand for, before it is made text; text, where a field has a conversion or a format."""
        return [read(values[place]) for (place, _), read in zip(self._steps, self._values, strict=True)]

    def text_with(self, texts: Iterable[str]) -> str:
        """The text with *texts* in the place of the fields."""
        return self._pattern % tuple(texts)

    @property
    def is_one_field(self) -> bool:
        """True if there is nothing but one field."""
        return self._pattern == "%s"


class _Field(NamedTuple):
    """A replacement field: ``{root.attribute[item]!conversion:spec}``."""

    name: str
    root: str
    path: tuple[Callable[[Any], Any], ...]
    steps: tuple[tuple[str | None, str | None], ...]
    """The same as attributes and items, one of each pair None."""
    conversion: str | None
    spec: str


def _complaint(template: str, fn: Callable[..., Any], parameters: tuple[str, ...], what: str) -> KeyTemplateError:
    known = ", ".join(parameters) or "none"
    return KeyTemplateError(f"template {template!r} of {function_name(fn)}: {what}; the parameters are: {known}")


def _parsed(template: object, complain: _Complain) -> list[tuple[str, str | None, str | None, str | None]]:
    if not isinstance(template, str) or not template:
        raise complain("it must be a text, and not empty")
    try:
        return list(Formatter().parse(template))
    except ValueError as error:
        raise complain(f"it is broken ({error})") from error


def _field(name: str, spec: str, conversion: str | None, complain: _Complain) -> _Field:
    match = _FIELD.fullmatch(name)
    if match is None:
        raise complain(f"{{{name}}} is broken")
    root, rest = match[1], match[2]
    if not root or root.isdigit():
        raise complain(f"{{{name}}} is positional, name a parameter")
    if conversion is not None and conversion not in _CONVERSIONS:
        raise complain(f"{{{name}!{conversion}}} has a conversion other than !r, !s and !a")
    if "{" in spec:
        raise complain(f"{{{name}}} has a field within its format")
    path = tuple(_step(step, name, complain) for step in _STEP.finditer(rest))
    steps = tuple((step[1], step[2]) for step in _STEP.finditer(rest))
    return _Field(name, root, path, steps, conversion, spec)


_NAMES = ("__name__", "__qualname__", "__module__")  # of a class: {cls.__name__}


def _step(step: re.Match[str], name: str, complain: _Complain) -> Callable[[Any], Any]:
    attribute, item = step[1], step[2]
    if attribute is None:
        return itemgetter(int(item) if item.isdecimal() else item)
    if attribute.startswith("_") and attribute not in _NAMES:
        raise complain(f"{{{name}}} reads the private attribute {attribute}")
    return attrgetter(attribute)


def _check_annotation(field: _Field, hint: Any, complain: _Complain) -> None:
    if field.path:
        return
    sources = _SOURCES.get(field.conversion or "", _ALL_SOURCES)
    for kind in stated_classes(hint):
        if has_default(kind, *sources):
            raise complain(
                f"{{{field.name}}} would be made of the default repr of {kind.__qualname__}, "
                f"use an attribute such as {{{field.root}.id}}"
            )


def _check_path(field: _Field, hint: Any, complain: _Complain) -> None:
    """Refuse what the annotation shows to be no attribute, before the first call fails."""
    attributes: list[str] = []
    for attribute, _ in field.steps:
        if attribute is None:
            break
        attributes.append(attribute)
    first_item = field.steps[0][1] if field.steps else None
    wrong = no_item(hint, first_item) if first_item is not None else missing(hint, attributes)
    if wrong is not None:
        raise complain(f"{{{field.name}}} cannot be made: {wrong}")


def _is_plain(field: _Field) -> bool:
    return not (field.path or field.conversion or field.spec)


def _renderer(field: _Field, complain: _Complain, *, escaped: bool) -> _Render:
    """How the value of the field's parameter becomes text."""
    plain = _is_plain(field)
    careful = partial(_careful, _readable if plain else partial(_formatted, field), field, complain, escaped)
    return partial(_quick, careful) if plain and escaped else careful


def _quick(careful: _Render, value: object) -> str:
    """The plain numbers and texts that most keys are made of."""
    if type(value) is str:
        return escape(value) if TO_ESCAPE.search(value) else value
    return whole_number(value) if type(value) is int else careful(value)


def _careful(write: _Render, field: _Field, complain: _Complain, escaped: bool, value: Any) -> str:  # noqa: FBT001
    try:
        text = write(value)
    except Exception as error:
        kind = type(value).__qualname__
        raise complain(f"{{{field.name}}} cannot be made of a {kind} ({type(error).__name__}: {error})") from error
    return escape(text) if escaped else text


def _value(field: _Field, value: Any) -> Any:
    if field.conversion or field.spec:
        return _formatted(field, value)
    for step in field.path:
        value = step(value)
    return value


def _formatted(field: _Field, value: Any) -> str:
    for step in field.path:
        value = step(value)
    if not (field.conversion or field.spec):
        return _readable(value)
    if inspect.isroutine(value):
        raise ValueError(_A_FUNCTION)
    converted = _converted(field.conversion, value)
    text = format(converted, field.spec)
    if isinstance(value, str):
        return text
    return without_address(text) if is_shown(value) else told(value, text)


def _converted(conversion: str | None, value: Any) -> Any:
    if conversion is None:
        return value
    if is_shown(value):
        text = shown(value)
        return text.encode("ascii", "backslashreplace").decode("ascii") if conversion == "a" else text
    return _CONVERSIONS[conversion](value)


def _readable(value: Any) -> str:
    """*value* as `str.format` shows it, except for what would differ between processes."""
    if type(value) is int:
        return whole_number(value)
    if isinstance(value, Enum) and isinstance(value, (str, int, float)):
        return _readable(value.value)  # what format() makes of these depends on the Python version
    if isinstance(value, str):
        return format(value)
    if is_shown(value):
        return without_address(format(value)) if has_own_text(value) else shown(value)
    if inspect.isroutine(value):
        raise ValueError(_A_FUNCTION)
    return told(value, format(value))
