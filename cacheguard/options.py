"""What a guard and its callers may ask for, checked; what cannot work is said by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from os import PathLike, fspath
from typing import Any, Self, cast

from .codec import Codec, CustomCodec, runs_code
from .current_load import check_tag
from .durations import Duration, seconds
from .errors import ConfigurationError
from .events import StateChange
from .policy import Policy, Rules, resolve
from .protocol.envelope import Sealer
from .tiers.local import Eviction, check

MOST_CALL_POLICIES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a guard was asked for, checked."""

    l1_size: int
    l1_max_bytes: int | None
    l1_eviction: Eviction
    l1_copy: bool
    codec: Codec | None
    sealer: Sealer
    operation_timeout: float
    max_loads: int
    load_wait: float
    load_queue: int
    max_absences: int
    raise_unreachable: bool
    from_replicas: bool
    outbox: str | None
    audit: float
    alone: Callable[[], object]
    on_state_change: Callable[[StateChange], object] | None
    runs_code: str  # the name of a serializer that runs what it reads, signed by nobody; "" without one

    @classmethod
    def of(
        cls,
        *,
        l1_size: int,
        l1_max_bytes: int | None,
        l1_eviction: Eviction,
        l1_copy: bool,
        serializer: Any,
        secret: bytes | Sequence[bytes] | None,
        max_value_bytes: int,
        compression: str | None,
        compress_above: int,
        operation_timeout: Duration,
        max_loads: int,
        load_wait: Duration,
        load_queue: int,
        max_absences: int,
        on_unreachable: str,
        read_from: str,
        outbox: str | PathLike[str] | None,
        alone: Callable[[], object] | None,
        audit: float,
        on_state_change: Callable[[StateChange], object] | None,
    ) -> Self:
        """The options of `CacheGuard`, checked; `ConfigurationError` names the one that cannot work."""
        check(l1_size, l1_max_bytes, l1_eviction)
        if on_unreachable not in ("queue", "raise"):
            raise ConfigurationError(f"on_unreachable must be 'queue' or 'raise', got {on_unreachable!r}")
        if read_from not in ("master", "replica"):
            raise ConfigurationError(f"read_from must be 'master' or 'replica', got {read_from!r}")
        unsigned = secret is None and runs_code(serializer)
        return cls(
            l1_size=l1_size,
            l1_max_bytes=l1_max_bytes,
            l1_eviction=l1_eviction,
            l1_copy=flag("l1_copy", l1_copy),
            codec=None if serializer is None else CustomCodec(serializer),
            sealer=Sealer(
                secret=secret,
                compression=compression,
                compress_above=compress_above,
                max_value_bytes=max_value_bytes,
            ),
            operation_timeout=seconds(operation_timeout, "operation_timeout"),
            max_loads=count("max_loads", max_loads),
            load_wait=seconds(load_wait, "load_wait"),
            load_queue=count("load_queue", load_queue),
            max_absences=count("max_absences", max_absences),
            raise_unreachable=on_unreachable == "raise",
            from_replicas=read_from == "replica",
            outbox=path_of("outbox", outbox),
            audit=share("audit", audit),
            alone=question("alone", alone),
            on_state_change=listener("on_state_change", on_state_change),
            runs_code=getattr(serializer, "__name__", type(serializer).__name__) if unsigned else "",
        )


class Policies:
    """The policy of a guard or a namespace, and the rules that a call's own options make of it."""

    def __init__(self, policy: object, over: Policy | None = None) -> None:
        if policy is None:
            policy = Policy()
        if not isinstance(policy, Policy):
            raise ConfigurationError(f"policy must be a Policy, got {policy!r}")
        self.policy = policy if over is None else policy.over(over)
        self.rules = resolve(self.policy)
        self._known: dict[tuple[tuple[str, Any], ...], Rules] = {}

    def of(self, options: Mapping[str, Any]) -> Rules:
        """The rules of a call with *options*, which are fields of `Policy`."""
        if not options:
            return self.rules
        try:
            name = tuple(options.items())
            known = self._known.get(name)
        except TypeError:  # an option without a hash
            return resolve(Policy.of(options).over(self.policy))
        if known is None:
            known = resolve(Policy.of(options).over(self.policy))
            if len(self._known) < MOST_CALL_POLICIES:
                self._known[name] = known
        return known


def flag(name: str, value: object) -> bool:
    """*value* if it is a bool."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")
    return value


def share(name: str, value: object) -> float:
    """*value* if it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"{name} must be a share from 0 to 1, got {value!r}")
    return float(value)


def path_of(name: str, value: object) -> str | None:
    """*value* as the path of a file; None stays None."""
    if value is None:
        return None
    if not isinstance(value, str | PathLike):
        raise ConfigurationError(f"{name} must be the path of a file or None, got {value!r}")
    path = fspath(cast("str | PathLike[str]", value))
    if not path or path == ":memory:":
        raise ConfigurationError(f"{name} must be the path of a file or None, got {value!r}")
    return path


def count(name: str, value: object) -> int:
    """*value* if it is a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number >= 1, got {value!r}")
    return value


def texts(keys: Iterable[Any]) -> list[str]:
    """*keys*, each once; `TypeError` if one of them is no text."""
    if isinstance(keys, str):
        raise TypeError(f"keys must be several texts, got the text {keys!r}")
    names = list(dict.fromkeys(keys))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a key must be text, got {name!r}")
    return names


def tags_of(tags: Sequence[str]) -> tuple[str, ...]:
    """*tags*, each once; `TypeError` or `ValueError` if one of them is none."""
    if isinstance(tags, str):
        raise TypeError(f"tags must be several texts, got the text {tags!r}")
    for tag in tags:
        check_tag(tag)
    return tuple(dict.fromkeys(tags))


def check_loader(loader: object) -> None:
    """`TypeError` if *loader* cannot be called."""
    if not callable(loader):
        raise TypeError(f"loader must be a function, got {loader!r}")


def check_usable(usable: object) -> None:
    """`TypeError` if *usable* can say nothing of a value."""
    if usable is not None and (not callable(usable) or iscoroutinefunction(usable)):
        raise TypeError(f"usable must be a plain function of the cached value, got {usable!r}")


def check_change(change: object) -> None:
    """`TypeError` if *change* makes no new value of an old one."""
    if not callable(change) or iscoroutinefunction(change):
        raise TypeError(f"change must be a plain function of the value, got {change!r}")


def listener(name: str, value: Any) -> Callable[[StateChange], object] | None:
    """*value* if it is a plain function of one parameter, or None."""
    if value is not None and (not callable(value) or iscoroutinefunction(value)):
        raise ConfigurationError(f"{name} must be a plain function of a StateChange or None, got {value!r}")
    told: Callable[[StateChange], object] | None = value
    return told


def question(name: str, value: Any) -> Callable[[], object]:
    """*value* if it is a plain function; None is one that says no."""
    if value is None:
        return bool
    if not callable(value) or iscoroutinefunction(value):
        raise ConfigurationError(f"{name} must be a plain function without parameters, got {value!r}")
    asked: Callable[[], object] = value
    return asked
