"""The checked options of a guard and of single calls; an error names the option that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from os import PathLike
from types import MethodType
from typing import Any, Self, cast

from .checks import count, flag, listener, path_of, question, share
from .codec import Codec, CustomCodec, runs_code
from .durations import Duration, seconds
from .errors import ConfigurationError
from .events import StateChange
from .policy import Policy, Rules, resolve
from .protocol.envelope import Sealer
from .tiers.local import Eviction, check

MOST_CALL_POLICIES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a guard, checked."""

    l1_size: int
    l1_max_bytes: int | None
    l1_eviction: Eviction
    l1_copy: bool
    codec: Codec | None
    sealer: Sealer
    secrets: tuple[bytes, ...] = field(repr=False)  # checked by the sealer
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
    runs_code: str  # the name of a serializer that can run code while it reads, if entries are not signed; else ""

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
        """Check the options of `CacheGuard`; `ConfigurationError` names the option that cannot work."""
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
            secrets=() if secret is None else (secret,) if isinstance(secret, bytes) else tuple(secret),
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
    """The policy of a guard or a namespace; combines it with the options of a call."""

    def __init__(self, policy: object, over: Policy | None = None) -> None:
        if policy is None:
            policy = Policy()
        if not isinstance(policy, Policy):
            raise ConfigurationError(f"policy must be a Policy, got {policy!r}")
        self.policy: Policy = policy if over is None else policy.over(over)
        self.rules: Rules = resolve(self.policy)
        # Beside the rules, the options themselves: as long as they are kept, no other object has the identity of one.
        self._known: dict[tuple[Any, ...], tuple[Rules, tuple[Any, ...]]] = {}

    def of(self, options: Mapping[str, Any]) -> Rules:
        """Return the rules of a call with *options*, which are fields of `Policy`."""
        if not options:
            return self.rules
        name = tuple([(field, _told_apart(value)) for field, value in options.items()])
        known = self._known.get(name)
        if known is not None:
            return known[0]
        rules = resolve(Policy.of(options).over(self.policy))
        if len(self._known) < MOST_CALL_POLICIES:
            self._known[name] = rules, tuple(options.values())
        return rules


_PLAIN = frozenset({int, str, bool, type(None), timedelta})


def _told_apart(value: object) -> Any:
    """Return what stands for *value* in a dictionary, where ``0``, ``0.0`` and ``False`` are otherwise one key.

    Plain values are known by type and value, all others by identity.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is float:
        return kind, repr(value)  # 0.0 == -0.0
    if isinstance(value, tuple):
        return kind, *map(_told_apart, cast("tuple[object, ...]", value))
    if isinstance(value, MethodType):  # a new object each time that it is looked up
        return kind, id(value.__self__), id(value.__func__)
    return id(value)
