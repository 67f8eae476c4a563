"""Calls as bytes on the wire (RESP), and what is answered or raised as our errors."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, cast

from ..errors import Refused, Unreachable
from ..faults import TREATMENTS, Fault, fault_of
from ..ports import Arg, Call, Reply, ScriptCall

_MANY = 16  # words, from which on it pays to look at all of them at once
_TEXT = frozenset({str})
_MOST_NAMESPACES = 1000  # whose questions are kept half packed
NONE: frozenset[Fault] = frozenset()


def pack(calls: Sequence[Call], *, sources: bool = False) -> bytes:
    """*calls* as one piece of bytes; with *sources*, scripts carry their text instead of their SHA-1.

    Pieced together as text, a character for a byte, because most words are ASCII text already.
    """
    parts: list[str] = []
    for call in calls:
        words = call if type(call) is tuple else _words(call, sources=sources)
        parts.append(f"*{len(words)}\r\n")
        if len(words) > _MANY and _TEXT.issuperset(map(type, words)):
            texts = cast("tuple[str, ...]", words)
            if "".join(texts).isascii():
                parts += [f"${len(text)}\r\n{text}\r\n" for text in texts]
                continue
        for word in words:
            text = word if type(word) is str and word.isascii() else _latin(word)
            parts.append(f"${len(text)}\r\n{text}\r\n")
    return "".join(parts).encode("latin-1")


class EntryPacker:
    """Packs the question about one entry: ``MGET`` of its key and of the markers around it, then ``TIME``."""

    __slots__ = ("_around",)

    def __init__(self) -> None:
        self._around: dict[tuple[str, ...], tuple[str, str]] = {}

    def packed(self, key: str, markers: tuple[str, ...]) -> bytes:
        around = self._around.get(markers)
        if around is None:
            around = self._learnt(markers)
        text = key if key.isascii() else _latin(key)
        return f"{around[0]}{len(text)}\r\n{text}\r\n{around[1]}".encode("latin-1")

    def _learnt(self, markers: tuple[str, ...]) -> tuple[str, str]:
        """What stands before and behind the key: the same for all entries of a namespace."""
        whole = pack([("MGET", "", *markers), ("TIME",)]).decode("latin-1")
        before, _, behind = whole.partition("$0\r\n\r\n")
        around = f"{before}$", behind
        if len(self._around) >= _MOST_NAMESPACES:
            self._around.clear()
        self._around[markers] = around
        return around


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
