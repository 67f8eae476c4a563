"""Calls as bytes on the wire (RESP), and what the Redis client raises as our errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from ..errors import ConfigurationError, Refused, Unreachable
from ..faults import TREATMENTS, Fault, fault_of
from ..ports import Arg, Call, Reply, ScriptCall
from .finders import Finder
from .places import parameters_of

NONE: frozenset[Fault] = frozenset()


def pack(calls: Sequence[Call], *, sources: bool = False) -> bytes:
    """*calls* as one piece of bytes; with *sources*, scripts carry their text instead of their SHA-1.

    Pieced together as text, a character for a byte, because most words are ASCII text already.
    """
    parts: list[str] = []
    for call in calls:
        words = call if type(call) is tuple else _words(call, sources=sources)
        parts.append(f"*{len(words)}\r\n")
        for word in words:
            text = word if type(word) is str and word.isascii() else _latin(word)
            parts.append(f"${len(text)}\r\n{text}\r\n")
    return "".join(parts).encode("latin-1")


def _latin(word: Arg) -> str:
    if isinstance(word, int):
        return str(int(word))
    return (word.encode() if isinstance(word, str) else word).decode("latin-1")


def _words(call: Any, *, sources: bool) -> tuple[Arg, ...]:
    head: tuple[Arg, ...] = ("EVAL", call.script.source) if sources else ("EVALSHA", call.script.sha)
    return (*head, len(call.keys), *call.keys, *call.args)


def refused(error: Exception) -> Refused:
    """A server's error reply as a value."""
    answer = Refused(str(error), fault_of(error))
    answer.__cause__ = error
    return answer


def unknown_from(calls: Sequence[Call], replies: Sequence[Reply]) -> int:
    """Where the first script stands that the server did not know; the number of calls if it knew them all.

    All that stands behind it is to be sent again with it, in order, although it was done already: what is asked behind
    a fill must have been answered behind it, and scripts may run twice without harm.
    """
    for index, reply in enumerate(replies):
        if isinstance(reply, Refused) and isinstance(calls[index], ScriptCall) and reply.fault is Fault.NO_SCRIPT:
            return index
    return len(calls)


def faults_of(replies: Sequence[Reply]) -> AbstractSet[Fault]:
    """What the server has refused something for."""
    if Refused not in map(type, replies):
        return NONE
    return {reply.fault for reply in replies if isinstance(reply, Refused)}


def worst_of(faults: AbstractSet[Fault]) -> Fault | None:
    """One of *faults* that counts against the server, if there is one."""
    if not faults:
        return None
    return next((fault for fault in faults if TREATMENTS[fault].counts), None)


def first_error(replies: list[Reply]) -> list[Reply]:
    """*replies*, unless one of them is an error: that one is raised."""
    for reply in replies:
        if isinstance(reply, Refused):
            raise reply
    return replies


def unreachable(error: BaseException, hint: str = "") -> Unreachable:
    """A client's failure as ours, with what may be the reason for it; the cause stays attached."""
    answer = Unreachable(f"{type(error).__name__}: {error}{hint}", fault_of(error))
    answer.__cause__ = error
    return answer


def hint_of(connection: Any, error: BaseException) -> str:
    """What may be wrong where a new connection was cut or ignored before it said anything.

    Of two sides of which one speaks TLS, neither can say so: both hear noise.
    """
    said = f"{type(error).__name__} {error} {error.__cause__}"
    if any(kind.__name__ == "SSLConnection" for kind in type(connection).__mro__):
        if re.search("Timeout|EOF|reset|closed|lost|WRONG_VERSION", said):
            return " (TLS: the port may not speak it, or want a client certificate: ssl_certfile, ssl_keyfile)"
    elif re.search("reset|closed|lost|Broken pipe|Protocol Error", said):
        return " (the port may speak TLS; a URL for that begins with rediss)"
    return ""


def connector(
    pool: Any, no_retry: Callable[[], Any], *, timeout: float, reply_timeout: float | None
) -> Callable[[], Any]:
    """Makes connections the way *pool* would, but with one short timeout and no retries inside the client.

    They are ours alone: a user's pool lends its settings, never its connections.
    """
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": reply_timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
        "decode_responses": False,  # a value is bytes, whatever the user's client makes of its own
        "retry": no_retry(),
    }
    settings.pop("max_connections", None)  # a pool's matter
    # CLIENT SETINFO would cost each new connection two round trips, and a user with few rights a line in ACL LOG.
    quiet = ("driver_info",) if "driver_info" in parameters_of(pool.connection_class) else ("lib_name", "lib_version")
    if not settings.keys() & {"driver_info", "lib_name", "lib_version"}:
        settings |= dict.fromkeys(quiet)
    _check_credentials(settings)
    if isinstance(finder := settings.get("connection_pool"), Finder):
        for place in finder.places:
            _check_credentials(place.connection_kwargs)
        settings["connection_pool"] = finder.within(timeout)
    return lambda: pool.connection_class(**settings)


def _check_credentials(settings: dict[str, Any]) -> None:
    """Find out now whether they can be sent: the error of who tried it later would hold a password."""
    encoding, errors = settings.get("encoding") or "utf-8", settings.get("encoding_errors") or "strict"
    for name in ("username", "password"):
        if not _is_encodable(settings.get(name), encoding, errors):
            raise ConfigurationError(f"{name} cannot be encoded: {encoding=}, encoding_errors={errors!r}")


def _is_encodable(text: object, encoding: str, errors: str) -> bool:
    try:
        if isinstance(text, str):
            text.encode(encoding, errors)
    except (UnicodeError, LookupError):
        return False
    return True
