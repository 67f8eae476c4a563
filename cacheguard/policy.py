"""Every knob of an entry: what it means, its default, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from .checks import exception_classes, flag, number_of, one_of
from .durations import DAY, FOREVER, Duration, seconds
from .errors import ConfigurationError

Rebuild: TypeAlias = Literal["mutex", "logical", "early"]


class Unset(Enum):
    """Type of the mark on a field that inherits its value."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET

_REBUILDS = ("mutex", "logical", "early")


class LoadBreaker(Protocol):
    """Says whether a load may begin, and is told how it went; a `Breaker`, or anything like it."""

    def enter(self) -> int:
        """Ask for a load; `Overloaded` if there must be none."""
        ...

    def leave(self, turn: int, error: BaseException | None, took: float) -> None:
        """The load has ended, after so many seconds; *turn* is what `enter` has returned."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How one kind of entry is cached. A field left unset inherits: call > decorator > namespace > guard > default.

    Durations are seconds (int or float), a `timedelta`, or text such as ``"250ms"``, ``"30s"``, ``"1h30m"``; ``None``
    means off. A value that cannot work raises `ConfigurationError` here, not at the first miss.
    """

    ttl: Duration | Callable[[Any], Duration | None] | Unset | None = UNSET
    """How long an entry is fresh, or a function of the value. Default 5 minutes; None: until invalidated."""
    jitter: float | Unset | None = UNSET
    """Ratio in [0, 1): each stored TTL is drawn from [ttl * (1 - jitter), ttl]. Default 0.1, so that keys stored
    together do not expire together."""
    null_ttl: Duration | Unset | None = UNSET
    """How long an absence is cached. Default 30 s: long enough to stop a scan, short enough for a row to appear."""
    not_found: type[Exception] | tuple[type[Exception], ...] | Unset = UNSET
    """Exceptions that mean "does not exist": cached for ``null_ttl`` and raised again. Default none."""
    rebuild: Rebuild | Unset = UNSET
    """``"mutex"`` (default): one loads, the others wait. ``"logical"``: the old value at once, one loads behind.
    ``"early"``: one reader reloads shortly before expiry (XFetch)."""
    stale_while_revalidate: Duration | Unset | None = UNSET
    """For this long after ``ttl`` the old value is served while it is reloaded (RFC 5861). Default off; a day under
    ``rebuild="logical"``."""
    stale_if_error: Duration | Unset | None = UNSET
    """For this long after ``ttl`` a failing load is answered with the old value (RFC 5861). Default 1 minute."""
    soft_timeout: Duration | Unset | None = UNSET
    """A load slower than this is answered with the old value, if there is one, and goes on behind. Default off."""
    hard_timeout: Duration | Unset | None = UNSET
    """A load slower than this loses its lease and its waiters get `LoadTimeout`. Default 30 s."""
    wait_timeout: Duration | Unset | None = UNSET
    """A waiter that waited this long loads for itself, without filling. Default off: all wait for one load."""
    error_backoff: tuple[Duration, Duration] | Unset | None = UNSET
    """First and longest pause after a failed load, doubling in between. Default 100 ms and 5 s."""
    l1_ttl: Duration | Unset | None = UNSET
    """How long the in-process tier may hold an entry. Default 1 minute; never beyond the entry's own end."""
    breaker: LoadBreaker | Unset | None = UNSET
    """A `Breaker`: while it is open, nothing is loaded, and who has nothing stale gets `Overloaded`. Share one among
    all that depend on the same database. Default none."""
    fallback: Any | Unset = UNSET
    """What a caller gets in place of `Overloaded` or `LoadTimeout`: a value, or a function of that error, which may be
    a coroutine function for ``async def``. It is not cached. The loader's own exceptions are not replaced. Default
    None: the error is raised; for the value None give ``lambda error: None``."""
    l1: bool | Unset = UNSET
    """Use the in-process tier. Default True."""
    l2: bool | Unset = UNSET
    """Use Redis. Default True."""

    def __post_init__(self) -> None:
        for name in _NAMES:
            value = getattr(self, name)
            if value is not UNSET:
                _CHECKS[name](value, name)

    def over(self, base: Policy) -> Policy:
        """This policy, with *base* where this one is silent."""
        own = {name: value for name in _NAMES if (value := getattr(self, name)) is not UNSET}
        return Policy(**{name: getattr(base, name) for name in _NAMES} | own)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Policy:
        """A policy from keyword options; `ConfigurationError` on a name that is no field."""
        for name in options:
            if name not in _NAMES:
                msg = f"unknown option {name!r}; a policy has: {', '.join(_NAMES)}"
                raise ConfigurationError(msg)
        return cls(**options)


class PolicyOptions(TypedDict, total=False):
    """The fields of a `Policy`, as keyword options."""

    ttl: Duration | Callable[[Any], Duration | None] | None
    jitter: float | None
    null_ttl: Duration | None
    not_found: type[Exception] | tuple[type[Exception], ...]
    rebuild: Rebuild
    stale_while_revalidate: Duration | None
    stale_if_error: Duration | None
    soft_timeout: Duration | None
    hard_timeout: Duration | None
    wait_timeout: Duration | None
    error_backoff: tuple[Duration, Duration] | None
    breaker: LoadBreaker | None
    fallback: Any
    l1_ttl: Duration | None
    l1: bool
    l2: bool


_NAMES = tuple(field.name for field in fields(Policy))


def _duration(value: object, name: str) -> None:
    if value is not None:
        seconds(value, name)


def _ttl(value: object, name: str) -> None:
    if not callable(value):
        _duration(value, name)


def _flag(value: object, name: str) -> None:
    flag(name, value)


def _jitter(value: object, name: str) -> None:
    if value is None:
        return
    if not 0 <= number_of(value) < 1:
        msg = f"{name} must be a ratio in [0, 1), got {value!r}"
        raise ConfigurationError(msg)


def _not_found(value: Any, name: str) -> None:
    exception_classes(name, value)


def _rebuild(value: object, name: str) -> None:
    one_of(name, value, _REBUILDS)


def _backoff(value: Any, name: str) -> None:
    if value is None:
        return
    if not issubclass(type(value), tuple) or len(value) != 2:  # noqa: PLR2004 - a pair
        msg = f"{name} must be a pair (first, longest) of durations or None, got {value!r}"
        raise ConfigurationError(msg)
    first, longest = seconds(value[0], f"{name}[0]"), seconds(value[1], f"{name}[1]")
    if first > longest:
        msg = f"{name} must not start above its longest pause, got {value!r}"
        raise ConfigurationError(msg)


def _breaker(value: Any, name: str) -> None:
    if value is not None and not (callable(getattr(value, "enter", None)) and callable(getattr(value, "leave", None))):
        msg = f"{name} must be a Breaker or None, got {value!r}"
        raise ConfigurationError(msg)


def _anything(value: object, name: str) -> None:
    """Whatever the caller likes."""


_CHECKS: dict[str, Callable[[object, str], None]] = {
    "ttl": _ttl,
    "jitter": _jitter,
    "null_ttl": _duration,
    "not_found": _not_found,
    "rebuild": _rebuild,
    "stale_while_revalidate": _duration,
    "stale_if_error": _duration,
    "soft_timeout": _duration,
    "hard_timeout": _duration,
    "wait_timeout": _duration,
    "error_backoff": _backoff,
    "breaker": _breaker,
    "fallback": _anything,
    "l1_ttl": _duration,
    "l1": _flag,
    "l2": _flag,
}

DEFAULTS = Policy(
    ttl="5m",
    jitter=0.1,
    null_ttl="30s",
    not_found=(),
    rebuild="mutex",
    stale_while_revalidate=None,
    stale_if_error="1m",
    soft_timeout=None,
    hard_timeout="30s",
    wait_timeout=None,
    error_backoff=("100ms", "5s"),
    breaker=None,
    fallback=None,
    l1_ttl="60s",
    l1=True,
    l2=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A policy with nothing left to inherit, in seconds: what the engine reads."""

    ttl: float | Callable[[Any], Duration | None]
    jitter: float
    null_ttl: float | None
    not_found: tuple[type[Exception], ...]
    rebuild: Rebuild
    revalidate: float  # stale_while_revalidate, 0 when off
    if_error: float  # stale_if_error, 0 when off
    soft_timeout: float | None
    hard_timeout: float | None
    wait_timeout: float | None
    error_backoff: tuple[float, float] | None
    breaker: LoadBreaker | None
    fallback: Any
    l1_ttl: float
    l1: bool
    l2: bool

    @property
    def stale(self) -> float:
        """How long after its TTL an entry is kept, in seconds."""
        return max(self.revalidate, self.if_error)

    def ttl_of(self, value: object) -> float:
        """The TTL that *value* asks for, in seconds, before jitter."""
        ttl = self.ttl
        if not callable(ttl):
            return ttl
        asked = ttl(value)
        return FOREVER if asked is None else seconds(asked, "ttl(value)")


def _optional(value: Any, name: str, off: float) -> float:
    return off if value is None else seconds(value, name)


def _maybe(value: Any, name: str) -> float | None:
    return None if value is None else seconds(value, name)


def resolve(policy: Policy) -> Rules:
    """The numbers behind *policy*; `ConfigurationError` for fields that contradict each other."""
    p: Any = policy.over(DEFAULTS)
    logical = p.rebuild == "logical"
    ttl: Any = p.ttl if callable(p.ttl) else _optional(p.ttl, "ttl", FOREVER)
    rules = Rules(
        ttl=ttl,
        jitter=float(p.jitter or 0.0),
        null_ttl=_maybe(p.null_ttl, "null_ttl"),
        not_found=p.not_found if issubclass(type(p.not_found), tuple) else (p.not_found,),
        rebuild=p.rebuild,
        revalidate=_optional(p.stale_while_revalidate, "stale_while_revalidate", DAY if logical else 0.0),
        if_error=_optional(p.stale_if_error, "stale_if_error", 0.0),
        soft_timeout=_maybe(p.soft_timeout, "soft_timeout"),
        hard_timeout=_maybe(p.hard_timeout, "hard_timeout"),
        wait_timeout=_maybe(p.wait_timeout, "wait_timeout"),
        error_backoff=p.error_backoff and (seconds(p.error_backoff[0], ""), seconds(p.error_backoff[1], "")),
        breaker=p.breaker,
        fallback=p.fallback,
        l1_ttl=_optional(p.l1_ttl, "l1_ttl", FOREVER),
        l1=p.l1,
        l2=p.l2,
    )
    if rules.soft_timeout is not None and rules.hard_timeout is not None and rules.soft_timeout >= rules.hard_timeout:
        msg = f"soft_timeout must be below hard_timeout, got {p.soft_timeout!r} and {p.hard_timeout!r}"
        raise ConfigurationError(msg)
    if not rules.l1 and not rules.l2:
        msg = "l1=False and l2=False leave nothing to cache in; use `with guard.disabled()` to switch caching off"
        raise ConfigurationError(msg)
    return rules
