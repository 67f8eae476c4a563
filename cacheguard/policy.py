"""The options of an entry: meaning, default, and reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, get_args

from .checks import exception_classes, flag, number_of, one_of, plain_function
from .codec.once import once
from .durations import DAY, FOREVER, Duration, any_seconds, seconds
from .errors import ConfigurationError

LEAST_SHARE = 1 / 128  # a key with less may have no counter of its own, or one that says little
Rebuild: TypeAlias = Literal["mutex", "logical", "early"]


class Unset(Enum):
    """Type of `UNSET`, the value of a field that inherits."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Hot:
    """What is different for keys that are hot in this process. Use it as ``Policy(hot=Hot(share=0.02))``.

    Whatever it says, an entry never outlives its own end, and an invalidation ends it as any other.

    Args:
        share: a key is hot if at least this share of all reads of the process is certainly its own. Reads count half
            after a minute. From 1/128 to 1; default 0.01.
        l1_ttl: how long L1 may hold the entry of a hot key, if that is longer than the policy's ``l1_ttl``. Default 5
            minutes.
        refresh_at: after this part of its TTL the first reader starts a reload in the background; all go on with the
            value that there is. In (0, 1]; 1: no earlier than others. Default 0.8.
    """

    share: float = 0.01
    l1_ttl: Duration = "5m"
    refresh_at: float = 0.8

    def __post_init__(self) -> None:
        if not LEAST_SHARE <= number_of(self.share) <= 1:
            raise ConfigurationError(f"Hot.share must be a ratio from 1/128 to 1, got {self.share!r}")
        seconds(self.l1_ttl, "Hot.l1_ttl")
        if not 0 < number_of(self.refresh_at) <= 1:
            raise ConfigurationError(f"Hot.refresh_at must be a ratio in (0, 1], got {self.refresh_at!r}")


@dataclass(frozen=True, slots=True)
class HotRules:
    """`Hot` with its durations in seconds, as the engine reads it."""

    share: float
    l1_ttl: float
    refresh_at: float

    def due_left(self, ttl: float) -> float:
        """How many seconds before the end of an entry with this TTL its reload is due."""
        return ttl * (1.0 - self.refresh_at)


class LoadBreaker(Protocol):
    """A `Breaker`, or any object with its two methods: decides if a load may begin, and records how it ended."""

    def enter(self) -> int:
        """Begin a load; raise `Overloaded` if it must not begin."""
        ...

    def leave(self, turn: int, error: BaseException | None, took: float) -> None:
        """Record that the load ended after *took* seconds; *turn* is the value that `enter` returned."""
        ...


@dataclass(frozen=True, slots=True)
class _Knob:
    """The definition of one field of `Policy`.

    Args:
        default: the value if the field is not set, as a user would write it.
        read: converts the field's name and a set value to the engine's form; raises `ConfigurationError` if the value
            cannot work.
        rule: the name of the field in `Rules`, if it differs.
        resolved: the default in the engine's form.
    """

    default: Any
    read: Callable[[str, Any], Any]
    rule: str
    resolved: Any


def _knob(read: Callable[[str, Any], Any], *, default: Any, rule: str = "") -> dict[str, _Knob]:
    return {"knob": _Knob(default, read, rule, read("default", default))}


def _seconds_or(off: float | None) -> Callable[[str, Any], float | None]:
    """Return a reader of durations; *off* is the result for None."""
    return lambda name, value: off if value is None else seconds(value, name)


def _ttl(name: str, value: Any) -> Any:
    if value is None:
        return FOREVER
    if callable(value):
        return plain_function(name, value, "of the value, a duration or None")
    return seconds(value, name)


def _ratio(name: str, value: Any) -> float:
    if value is None:
        return 0.0
    if not 0 <= number_of(value) < 1:
        raise ConfigurationError(f"{name} must be a ratio in [0, 1), got {value!r}")
    return float(value)


def _rebuild(name: str, value: Any) -> Rebuild:
    one_of(name, value, get_args(Rebuild))
    rebuild: Rebuild = value
    return rebuild


def _backoff(name: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not issubclass(type(value), tuple) or len(value) != 2:  # noqa: PLR2004 - a pair
        raise ConfigurationError(f"{name} must be a pair (first, longest) of durations or None, got {value!r}")
    first, longest = seconds(value[0], f"{name}[0]"), seconds(value[1], f"{name}[1]")
    if first > longest:
        raise ConfigurationError(f"{name} must not start above its longest pause, got {value!r}")
    return first, longest


def _breaker(name: str, value: Any) -> LoadBreaker | None:
    if value is not None and not (callable(getattr(value, "enter", None)) and callable(getattr(value, "leave", None))):
        raise ConfigurationError(f"{name} must be a Breaker or None, got {value!r}")
    breaker: LoadBreaker | None = value
    return breaker


def _hot(name: str, value: Any) -> HotRules | None:
    if value is None or value is False:
        return None
    hot = Hot() if value is True else value
    if not isinstance(hot, Hot):
        raise ConfigurationError(f"{name} must be a Hot, True, False or None, got {value!r}")
    return HotRules(float(hot.share), seconds(hot.l1_ttl, "Hot.l1_ttl"), float(hot.refresh_at))


def _fallback(name: str, value: Any) -> Any:
    found = None if callable(value) else once(value)
    if found is not None:
        raise ConfigurationError(
            f"{name} must be a value for every caller, or a function, got {found[0]}, which can be read only once"
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How one kind of entry is cached. A field left unset inherits: call > decorator > namespace > guard > default.

    Durations are seconds (int or float), a `timedelta`, or text such as ``"250ms"``, ``"30s"``, ``"1h30m"``; ``None``
    means off. The longest is 365 days, the shortest a millisecond. A value that cannot work raises `ConfigurationError`
    here, not at the first miss.
    """

    ttl: Duration | Callable[[Any], Duration | None] | Unset | None = field(
        default=UNSET, metadata=_knob(_ttl, default="5m")
    )
    """How long an entry is fresh, or a function of the value that returns it. Default 5 minutes; None: until it is
    invalidated, at most 365 days. If a function asks for more than that, this is logged once."""
    jitter: float | Unset | None = field(default=UNSET, metadata=_knob(_ratio, default=0.1))
    """Ratio in [0, 1): each stored TTL is drawn from [ttl * (1 - jitter), ttl]. Default 0.1, so that keys stored
    together do not expire together."""
    null_ttl: Duration | Unset | None = field(default=UNSET, metadata=_knob(_seconds_or(None), default="30s"))
    """How long an absence is cached. Default 30 s: long enough to stop a scan, short enough for a row to appear."""
    not_found: type[Exception] | tuple[type[Exception], ...] | Unset = field(
        default=UNSET, metadata=_knob(exception_classes, default=())
    )
    """Exceptions that mean "does not exist": cached for ``null_ttl`` and raised again. Default none."""
    rebuild: Rebuild | Unset = field(default=UNSET, metadata=_knob(_rebuild, default="mutex"))
    """``"mutex"`` (default): one caller loads, the others wait. ``"logical"``: all get the old value at once, one load
    runs in the background. ``"early"``: one reader reloads shortly before expiry (XFetch)."""
    stale_while_revalidate: Duration | Unset | None = field(
        default=UNSET, metadata=_knob(_seconds_or(None), default=None, rule="revalidate")
    )
    """For this long after ``ttl``, the old value is served while it is reloaded (RFC 5861). Default off; one day with
    ``rebuild="logical"``."""
    stale_if_error: Duration | Unset | None = field(
        default=UNSET, metadata=_knob(_seconds_or(0.0), default="1m", rule="if_error")
    )
    """For this long after ``ttl``, the old value is served if the load fails (RFC 5861). Default 1 minute."""
    soft_timeout: Duration | Unset | None = field(default=UNSET, metadata=_knob(_seconds_or(None), default=None))
    """If a load takes longer than this, its callers get the old value, if there is one, and the load continues in the
    background. Default off."""
    hard_timeout: Duration | Unset | None = field(default=UNSET, metadata=_knob(_seconds_or(None), default="30s"))
    """If a load takes longer than this, it loses its lease and its waiters get `LoadTimeout`. Default 30 s."""
    wait_timeout: Duration | Unset | None = field(default=UNSET, metadata=_knob(_seconds_or(None), default=None))
    """A caller that has waited this long loads for itself, without a fill. Default off: all wait for one load."""
    error_backoff: tuple[Duration, Duration] | Unset | None = field(
        default=UNSET, metadata=_knob(_backoff, default=("100ms", "5s"))
    )
    """First and longest pause after a failed load, doubling in between. Default 100 ms and 5 s."""
    l1_ttl: Duration | Unset | None = field(default=UNSET, metadata=_knob(_seconds_or(FOREVER), default="60s"))
    """How long L1 may hold an entry. Default 1 minute; never longer than the entry's own lifetime."""
    breaker: LoadBreaker | Unset | None = field(default=UNSET, metadata=_knob(_breaker, default=None))
    """A `Breaker`: while it is open, nothing is loaded, and a caller without a stale value gets `Overloaded`. Share one
    among all loaders that use the same database. Default none."""
    fallback: Any | Unset = field(default=UNSET, metadata=_knob(_fallback, default=None))
    """The answer that a caller gets instead of `Overloaded` or `LoadTimeout`: a value, or a function of that error (for
    ``async def`` also a coroutine function). It is not cached. The loader's own exceptions are not replaced. Default
    None: the error is raised; to return None, give ``lambda error: None``."""
    hot: Hot | bool | Unset | None = field(default=UNSET, metadata=_knob(_hot, default=None))
    """What is different for hot keys: a longer life in L1 and an earlier refresh, as `Hot` says. True: its defaults.
    Default off."""
    l1: bool | Unset = field(default=UNSET, metadata=_knob(flag, default=True))
    """Use L1. Default True."""
    l2: bool | Unset = field(default=UNSET, metadata=_knob(flag, default=True))
    """Use Redis. Default True."""

    def __post_init__(self) -> None:
        for name, knob in _KNOBS.items():
            value = getattr(self, name)
            if value is not UNSET:
                knob.read(name, value)

    def over(self, base: Policy) -> Policy:
        """Return this policy with its unset fields taken from *base*."""
        own = {name: value for name in _NAMES if (value := getattr(self, name)) is not UNSET}
        return Policy(**{name: getattr(base, name) for name in _NAMES} | own)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Policy:
        """Make a policy from keyword options; `ConfigurationError` if a name is not a field."""
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
    hot: Hot | bool | None
    l1: bool
    l2: bool


_KNOBS: dict[str, _Knob] = {each.name: each.metadata["knob"] for each in fields(Policy)}
_NAMES = tuple(_KNOBS)

DEFAULTS = Policy(**{name: knob.default for name, knob in _KNOBS.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A policy with all fields set and durations in seconds, as the engine reads it."""

    ttl: float | Callable[[Any], Duration | None]
    jitter: float
    null_ttl: float | None
    not_found: tuple[type[Exception], ...]
    rebuild: Rebuild
    revalidate: float  # stale_while_revalidate; 0 when off, a day if unset under rebuild="logical"
    if_error: float  # stale_if_error, 0 when off
    soft_timeout: float | None
    hard_timeout: float | None
    wait_timeout: float | None
    error_backoff: tuple[float, float] | None
    breaker: LoadBreaker | None
    fallback: Any
    l1_ttl: float
    hot: HotRules | None
    l1: bool
    l2: bool

    @property
    def stale(self) -> float:
        """The stale window: how long an entry is kept after its TTL, in seconds."""
        return max(self.revalidate, self.if_error)

    def ttl_of(self, value: object) -> float:
        """Return the TTL of *value* in seconds, before jitter; a function may ask for more than `FOREVER`."""
        ttl = self.ttl
        if not callable(ttl):
            return ttl
        asked = ttl(value)
        return FOREVER if asked is None else any_seconds(asked, "ttl(value)")


def resolve(policy: Policy) -> Rules:
    """Return the rules of *policy*; `ConfigurationError` if fields contradict each other."""
    values: dict[str, Any] = {}
    for name, knob in _KNOBS.items():
        value = getattr(policy, name)
        values[knob.rule or name] = knob.resolved if value is UNSET else knob.read(name, value)
    if values["revalidate"] is None:
        values["revalidate"] = DAY if values["rebuild"] == "logical" else 0.0
    rules = Rules(**values)
    if rules.soft_timeout is not None and rules.hard_timeout is not None and rules.soft_timeout >= rules.hard_timeout:
        p = policy.over(DEFAULTS)
        raise ConfigurationError(
            f"soft_timeout must be below hard_timeout, got {p.soft_timeout!r} and {p.hard_timeout!r}"
        )
    if not rules.l1 and not rules.l2:
        raise ConfigurationError(
            "l1=False and l2=False leave nothing to cache in; use `with guard.disabled()` to switch caching off"
        )
    return rules
