"""What can be wrong with Redis, told apart, and what is done about each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """A class of errors; `Unreachable.fault` says which one it was."""

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
    """What is done first. Whatever comes of it, a reader never sees the fault: it goes on without Redis."""

    RETRY = "retry"
    """Send it once more, at once, with what was missing or over a new connection."""
    REDISCOVER = "rediscover"
    """Ask who is in charge now, then send it there."""
    BYPASS = "bypass"
    """Go on without Redis for this call."""
    QUEUE = "queue"
    """Reads still work: what could not be invalidated is pending, and every process is told to go past it."""
    GIVE_UP = "give up"
    """Nothing will change soon: no connection is attempted for a second, by anybody in this process."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done about a fault.

    Args:
        first: the remedy.
        counts: it counts against the server, in its circuit breaker.
        doubtful: one is enough to leave the server alone until a probe has found it well: each costs a whole timeout.
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
    Fault.CLUSTER_DOWN: Treatment(Remedy.REDISCOVER),  # a node that says so is well itself
    Fault.MOVED: Treatment(Remedy.REDISCOVER),
    Fault.ASK: Treatment(Remedy.RETRY),
    Fault.TRY_AGAIN: Treatment(Remedy.RETRY),
    Fault.NO_SCRIPT: Treatment(Remedy.RETRY),
    Fault.WRONG_TYPE: Treatment(Remedy.BYPASS),  # somebody else's key: a miss
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

# By what the server says, wherever in the text: in 6.2 a script wraps the error of the command inside it.
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
# By the client's classes, the narrowest first: it takes the server's word away where it has a class for it.
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
    ("AuthenticationError", Fault.AUTHENTICATION),  # what the sentinels said, quoted
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
    """Which fault *error*, raised by the client or answered by the server, stands for."""
    chain = list(_chain(error))
    for each in chain:
        for kind in type(each).__mro__:
            fault = _CLASSES.get(kind.__name__)
            if fault is Fault.LOST or (fault is Fault.NO_MASTER and "Error" in str(each)):
                break  # too wide a class: the text, or what it was caused by, may say more
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
