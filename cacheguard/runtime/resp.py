"""Calls as bytes on the wire (RESP), and what the Redis client raises as our errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import Refused, Unreachable
from ..ports import Arg, Call, Reply, ScriptCall
from .sentinel import Finder


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
    answer = Refused(str(error))
    answer.__cause__ = error
    return answer


def unknown_from(calls: Sequence[Call], replies: Sequence[Reply]) -> int:
    """Where the first script stands that the server did not know; the number of calls if it knew them all.

    All that stands behind it is to be sent again with it, in order, although it was done already: what is asked behind
    a fill must have been answered behind it, and scripts may run twice without harm.
    """
    for index, reply in enumerate(replies):
        if isinstance(reply, Refused) and isinstance(calls[index], ScriptCall) and "NOSCRIPT" in _text(reply):
            return index
    return len(calls)


def is_readonly(replies: Sequence[Reply]) -> bool:
    """Whether a server has said that it takes no writes: it was a master when we came."""
    return Refused in map(type, replies) and any(
        isinstance(reply, Refused) and "READONLY" in _text(reply).replace("ReadOnlyError", "READONLY")
        for reply in replies
    )


def _text(reply: Refused) -> str:
    # redis-py strips the code from "NOSCRIPT No matching script" and puts it into the class instead.
    return f"{type(reply.__cause__).__name__} {reply}".replace("NoScriptError", "NOSCRIPT")


def first_error(replies: list[Reply]) -> list[Reply]:
    """*replies*, unless one of them is an error: that one is raised."""
    for reply in replies:
        if isinstance(reply, Refused):
            raise reply
    return replies


def unreachable(error: BaseException) -> Unreachable:
    """A client's failure as ours; the cause stays attached."""
    answer = Unreachable(f"{type(error).__name__}: {error}")
    answer.__cause__ = error
    return answer


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
    if isinstance(finder := settings.get("connection_pool"), Finder):
        settings["connection_pool"] = finder.within(timeout)
    return lambda: pool.connection_class(**settings)
