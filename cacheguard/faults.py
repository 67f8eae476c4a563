"""The kinds of Redis errors, and the treatment of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """A kind of Redis error; `Unreachable.fault` holds it."""

    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    OUT_OF_MEMORY = "out of memory"
    MISCONF = "not saving"
    NO_REPLICAS = "no replicas"
    READONLY = "read-only"
    LOADING = "loading"
    BUSY = "busy"
    MASTER_DOWN = "master down"
    CLUSTER_DOWN = "cluster down"
    MOVED = "moved"
    ASK = "ask"
    TRY_AGAIN = "try again"
    NO_SCRIPT = "no script"
    WRONG_TYPE = "wrong type"
    MAX_CLIENTS = "max clients"
    GARBAGE = "garbage"
    LOST = "connection lost"
    REFUSED = "connection refused"
    TIMEOUT = "timeout"
    NAME = "unknown host"
    TLS = "tls"
    NO_MASTER = "no master"
    POOL = "pool exhausted"
    LEFT_ALONE = "circuit open"
    OTHER = "other"


class Remedy(StrEnum):
    """The first reaction to a fault. Even if it fails, a reader never sees the fault: it continues without Redis."""

    RETRY = "retry"
    """Send the call once more at once: with what was missing, or over a new connection."""
    REDISCOVER = "rediscover"
    """Find the current master, then send the call there."""
    BYPASS = "bypass"
    """Continue without Redis for this call."""
    QUEUE = "queue"
    """Reads still work. A failed invalidation is pending, and its key is published as dirty: every process ignores what
    is stored under it."""
    GIVE_UP = "give up"
    """A retry is useless: for one second, this process attempts no connection."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """The treatment of a fault.

    Args:
        first: the first remedy.
        counts: True if the server's circuit breaker counts it as a failure.
        doubtful: True if one such fault opens the breaker until a probe succeeds: each costs a whole timeout.
    """

    first: Remedy
    counts: bool = False
    doubtful: bool = False


TREATMENTS: dict[Fault, Treatment] = {
    Fault.AUTHENTICATION: Treatment(Remedy.GIVE_UP, counts=True),
    Fault.PERMISSION: Treatment(Remedy.QUEUE),
    Fault.OUT_OF_MEMORY: Treatment(Remedy.BYPASS),  # reads and invalidations still work; leases and fills do not
    Fault.MISCONF: Treatment(Remedy.QUEUE),
    Fault.NO_REPLICAS: Treatment(Remedy.QUEUE),
    Fault.READONLY: Treatment(Remedy.REDISCOVER),
    Fault.LOADING: Treatment(Remedy.BYPASS, counts=True),
    Fault.BUSY: Treatment(Remedy.BYPASS, counts=True),
    Fault.MASTER_DOWN: Treatment(Remedy.REDISCOVER, counts=True),
    Fault.CLUSTER_DOWN: Treatment(Remedy.REDISCOVER),  # a node that answers this is healthy itself
    Fault.MOVED: Treatment(Remedy.REDISCOVER),
    Fault.ASK: Treatment(Remedy.RETRY),
    Fault.TRY_AGAIN: Treatment(Remedy.RETRY),
    Fault.NO_SCRIPT: Treatment(Remedy.RETRY),
    Fault.WRONG_TYPE: Treatment(Remedy.BYPASS),  # the key belongs to another program: a miss
    Fault.MAX_CLIENTS: Treatment(Remedy.BYPASS, counts=True),
    Fault.GARBAGE: Treatment(Remedy.BYPASS, counts=True),
    Fault.LOST: Treatment(Remedy.RETRY, counts=True),
    Fault.REFUSED: Treatment(Remedy.BYPASS, counts=True),
    Fault.TIMEOUT: Treatment(Remedy.BYPASS, counts=True, doubtful=True),
    Fault.NAME: Treatment(Remedy.BYPASS, counts=True),
    Fault.TLS: Treatment(Remedy.GIVE_UP, counts=True),
    Fault.NO_MASTER: Treatment(Remedy.BYPASS, counts=True),
    Fault.POOL: Treatment(Remedy.BYPASS),
    Fault.LEFT_ALONE: Treatment(Remedy.BYPASS),
    Fault.OTHER: Treatment(Remedy.BYPASS),
}

# By the server's error word, anywhere in the text: in 6.2 a script wraps the error of the command inside it.
_WORDS = {
    "NOAUTH": Fault.AUTHENTICATION,
    "WRONGPASS": Fault.AUTHENTICATION,
    "NOPERM": Fault.PERMISSION,
    "OOM": Fault.OUT_OF_MEMORY,
    "MISCONF": Fault.MISCONF,
    "NOREPLICAS": Fault.NO_REPLICAS,
    "READONLY": Fault.READONLY,
    "LOADING": Fault.LOADING,
    "BUSY": Fault.BUSY,
    "MASTERDOWN": Fault.MASTER_DOWN,
    "CLUSTERDOWN": Fault.CLUSTER_DOWN,
    "MOVED": Fault.MOVED,
    "ASK": Fault.ASK,
    "TRYAGAIN": Fault.TRY_AGAIN,
    "NOSCRIPT": Fault.NO_SCRIPT,
    "WRONGTYPE": Fault.WRONG_TYPE,
}
_WORD = re.compile(rf"(?<![\w-])-?({'|'.join(_WORDS)})(?!\w)")
# By the client's classes, the narrowest first: where redis-py has a class, it removes the server's word from the text.
_CLASSES = {
    "AuthenticationError": Fault.AUTHENTICATION,
    "AuthenticationWrongNumberOfArgsError": Fault.AUTHENTICATION,
    "AuthorizationError": Fault.AUTHENTICATION,
    "NoPermissionError": Fault.PERMISSION,
    "OutOfMemoryError": Fault.OUT_OF_MEMORY,
    "ReadOnlyError": Fault.READONLY,
    "BusyLoadingError": Fault.LOADING,
    "MasterDownError": Fault.MASTER_DOWN,
    "ClusterDownError": Fault.CLUSTER_DOWN,
    "MovedError": Fault.MOVED,
    "AskError": Fault.ASK,
    "TryAgainError": Fault.TRY_AGAIN,
    "NoScriptError": Fault.NO_SCRIPT,
    "MasterNotFoundError": Fault.NO_MASTER,
    "InvalidResponse": Fault.GARBAGE,
    "ProtocolError": Fault.GARBAGE,
    "SSLError": Fault.TLS,
    "gaierror": Fault.NAME,
    "ConnectionRefusedError": Fault.REFUSED,
    "TimeoutError": Fault.TIMEOUT,
    "ConnectionError": Fault.LOST,
    "OSError": Fault.LOST,
}
_TEXTS = (
    ("max number of clients", Fault.MAX_CLIENTS),
    ("AuthenticationError", Fault.AUTHENTICATION),  # quoted from the answer of the sentinels
    ("invalid username-password pair", Fault.AUTHENTICATION),
    ("invalid password", Fault.AUTHENTICATION),
    ("called without any password configured", Fault.AUTHENTICATION),
    ("Client sent AUTH, but no password is set", Fault.AUTHENTICATION),
    ("SSL", Fault.TLS),
    ("Name or service not known", Fault.NAME),
    ("Temporary failure in name resolution", Fault.NAME),
    ("nodename nor servname", Fault.NAME),
    ("Connection refused", Fault.REFUSED),
)


def fault_of(error: BaseException) -> Fault:
    """Return the fault of *error*, which the client raised or the server answered."""
    chain = list(_chain(error))
    for each in chain:
        for kind in type(each).__mro__:
            fault = _CLASSES.get(kind.__name__)
            if fault is Fault.LOST or (fault is Fault.NO_MASTER and "Error" in str(each)):
                break  # the class is too broad: the text or the cause may be more precise
            if fault is not None:
                return fault
    for each in chain:
        text = str(each)
        word = _WORD.search(text)
        if word is not None:
            return _WORDS[word[1]]
        for part, fault in _TEXTS:
            if part in text:
                return fault
    names = {kind.__name__ for each in chain for kind in type(each).__mro__}
    return next((fault for name, fault in _CLASSES.items() if name in names), Fault.OTHER)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
