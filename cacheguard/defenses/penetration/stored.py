"""What Redis holds of a filter: its keys, its scripts, and what they answer."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from ...errors import CacheGuardError
from ...ports import Reply, Runtime
from ...protocol.lua import load
from .layout import Shape

_ROOM = "defenses/penetration"
ADD, SYNC, GROW, MARK, APPEND = (load(f"bloom_{name}", _ROOM) for name in ("add", "sync", "grow", "mark", "append"))
BEGIN, SWITCH, ABORT, ALIVE = (load(f"bloom_{name}", _ROOM) for name in ("begin", "switch", "abort", "alive"))
DAMAGE, EXTEND = (load(f"bloom_{name}", _ROOM) for name in ("damage", "extend"))

CHUNKS_PER_SEND = 64
LOG_LENGTH = 65_536  # items kept so that mirrors, and a rebuild that begins later, learn of them


class Keys:
    """A filter's keys: one slot, chosen by a digest, never by what the user wrote."""

    __slots__ = ("_prefix", "log", "meta", "name", "side")

    log: str
    meta: str
    side: str

    def __init__(self, namespace: str, name: str) -> None:
        self.name: str = name
        self._prefix = filter_prefix(namespace, name)
        self.meta, self.log, self.side = f"{self._prefix}:m", f"{self._prefix}:l", f"{self._prefix}:s"

    def chunk(self, epoch: str, layer: int, number: int) -> str:
        """The key of one chunk."""
        return f"{self._prefix}:{epoch}:{layer}:{number}"

    def log_of(self, epoch: str) -> str:
        """The key of a log that is not in use yet."""
        return f"{self._prefix}:{epoch}:l"

    def chunks(self, epoch: str, shapes: tuple[Shape, ...]) -> Iterator[tuple[int, int, str]]:
        """Layer, number and key of every chunk there may be."""
        for layer, shape in enumerate(shapes):
            for number in range(shape.chunks):
                yield layer, number, self.chunk(epoch, layer, number)


def filter_prefix(namespace: str, name: str) -> str:
    """What the keys of a filter begin with; *namespace* has the names from the root down, with slashes between."""
    owner = f"{len(namespace)}:{namespace}{name}".encode("utf-8", "surrogatepass")
    return f"cg:{{b:{blake2b(owner, digest_size=10).hexdigest()}}}"


def header_of(epoch: str) -> bytes:
    """What each chunk begins with, so that one of another filter is told from ours."""
    return epoch.encode()


def new_epoch(runtime: Runtime) -> str:
    """A new epoch: 48 random bits as `HEADER_BYTES` characters."""
    return urlsafe_b64encode(blake2b(runtime.token().encode(), digest_size=6).digest()).decode()


def text_of(reply: Reply) -> str:
    """A part of a reply, as text."""
    return reply if isinstance(reply, str) else bytes(reply or b"").decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class News:
    """What `bloom_sync` says."""

    state: str
    run: str
    epoch: str
    seq: int
    layers: str
    probe: str
    count: int
    chunks: int
    items: list[bytes] | None
    seal: str = ""


def news_of(reply: Reply) -> News:
    """What *reply* says. Raises `UnusableError` if no filter answers so."""
    try:
        state, run, *rest = reply
        if text_of(state) == "none":
            return News("none", text_of(run), "", 0, "", "", 0, 0, None)
        epoch, seq, layers, probe_text, count, chunks, items, seal = rest
        return News(
            state=text_of(state),
            run=text_of(run),
            epoch=text_of(epoch),
            seq=int(seq),
            layers=text_of(layers),
            probe=text_of(probe_text),
            count=int(count),
            chunks=int(chunks),
            items=None if items is None else [bytes(item) for item in items],
            seal=text_of(seal),
        )
    except (TypeError, ValueError) as error:
        raise UnusableError(f"is none that this release can read ({error})") from error


class UnusableError(Exception):
    """What is in Redis is not a filter that this process can work with; the message says what it is."""


class ForgedError(UnusableError):
    """What is in Redis is not signed as it should be."""


class Refusal(CacheGuardError):  # noqa: N818 - better English than RefusalError
    """A filter was not made complete; `outcome` is what the script said."""

    def __init__(self, name: str, outcome: str) -> None:
        super().__init__(f"Bloom filter {name!r} was not made complete: {_REASONS[outcome]}")
        self.outcome = outcome


_REASONS = {
    "NONE": "there is none in Redis yet, or it was lost; add every row's item first, or rebuild it",
    "DAMAGED": "Redis lost a part of it; rebuild it",
    "CHANGED": (
        "it was lost, or Redis was restarted or replaced, since this process began to add, so items may be missing; "
        "add every item again and then mark it, or rebuild it"
    ),
    "BLIND": "this Redis user may not run INFO, so a restart that loses items would go unnoticed; allow +info",
    "OVERTAKEN": "another rebuild began later and takes its place, or this one was silent for an hour",
    "BUSY": "another rebuild is at work",
    "FORGED": "it has a wrong signature; rebuild it",
    "UNSIGNED": (
        "items were added without the secret, or with another one, during the rebuild; rebuild it once all processes "
        "have the same"
    ),
    "LOST": "Redis was restarted or flushed, or evicted keys, during the rebuild; rebuild it again",
}
