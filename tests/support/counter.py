"""A server of our own in the loop of the test: it notes what comes in which piece, and answers when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import hiredis
import redis.asyncio

from cacheguard.client import redispy
from cacheguard.client.aio import AsyncCommands
from cacheguard.client.circuits import Circuits
from cacheguard.client.identity import Identity
from cacheguard.events import Events

GREETING = {b"INFO", b"HELLO", b"CLIENT", b"SELECT"}
CONNECTION: Any = redis.asyncio.Connection  # it has no types


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def value_of(command: list[bytes]) -> bytes:
    """What a server answers that has the key itself under each key."""
    match command:
        case [b"INFO", b"server"]:
            return bulk(b"run_id:one\r\n")
        case [b"INFO", b"replication"]:
            return bulk(b"role:master\r\nmaster_replid:abc\r\n")
        case [b"MGET", *keys]:
            return b"*%d\r\n" % len(keys) + b"".join(map(bulk, keys))
        case [b"TIME"]:
            return b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n"
        case [_, *words]:
            return bulk(words[0] if words else b"OK")
        case _:
            raise AssertionError(command)


class Counter:
    """What came, and what is answered to it.

    Args:
        answer: what is written for a command; None ends the connection.
    """

    def __init__(self, answer: Callable[[list[bytes]], bytes | None]) -> None:
        self.answer = answer
        self.pieces: list[list[list[bytes]]] = []  # of all connections, without the greetings
        self.connections = 0
        self.open = asyncio.Event()  # cleared, everything is noted and nothing answered
        self.open.set()
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        parser: Any = hiredis.Reader()
        with suppress(OSError, asyncio.CancelledError):
            while piece := await reader.read(1 << 20):
                parser.feed(piece)
                commands: list[list[bytes]] = []
                while (command := parser.gets()) is not False:
                    commands.append(command)
                if commands[0][0] not in GREETING:
                    self.pieces.append(commands)
                    await self.open.wait()
                for command in commands:
                    answer = self.answer(command)
                    if answer is None:
                        return writer.close()
                    writer.write(answer)
        return writer.close()

    async def until(self, pieces: int) -> None:
        """Wait until so many have come."""
        async with asyncio.timeout(5):
            while len(self.pieces) < pieces:
                await asyncio.sleep(0.001)

    def sizes(self) -> list[int]:
        """How many commands each piece had."""
        return [len(piece) for piece in self.pieces]

    def say(self, what: bytes) -> None:
        """Say something on every connection that nobody has asked for."""
        for writer in self._writers:
            writer.write(what)

    def cut(self) -> None:
        """End every connection."""
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def counter(answer: Callable[[list[bytes]], bytes | None] = value_of) -> AsyncGenerator[Counter]:
    """A server, open for the length of the block."""
    made = Counter(answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1")
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.open.set()
        server.close()
        made.cut()
        await asyncio.sleep(0)


class Asking:
    """Commands of one event loop, and what they count.

    Args:
        port: of the server.
        timeout: seconds.
        options: of the connections.
    """

    def __init__(self, port: int, timeout: float = 5.0, **options: Any) -> None:
        self.events = Events()
        self.changes: list[bool] = []
        self.identity = Identity(self.changes.append)
        self.circuits = Circuits(timeout, self.events)
        self.circuits.probe_with(lambda _: 0.0)
        self.circuit = self.circuits.of("")
        settings = {"port": port, "socket_connect_timeout": timeout, **redispy.silence(CONNECTION, {}), **options}
        self.commands = AsyncCommands(
            lambda: CONNECTION(**settings),
            timeout,
            self.identity,
            self.circuit,
        )

    async def read(self, key: str) -> Any:
        """What lies under *key*."""
        return (await self.commands.read_entry(key, ()))[0][0]

    @property
    def stream(self) -> Any:
        """What reads small entries; it must have been asked."""
        return self.commands._reads.stream  # noqa: SLF001 - nobody else can say what is under way

    def noting(self) -> list[bytes]:
        """What it writes from now on, piece by piece."""
        written: list[bytes] = []
        stream, write = self.stream, self.stream._write  # noqa: SLF001 - likewise

        def note(piece: bytes) -> None:
            written.append(piece)
            write(piece)

        stream._write = note  # noqa: SLF001 - likewise
        return written

    @property
    def wire(self) -> str:
        return self.events.snapshot(0, 0).wire

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.commands.aclose()
        self.circuits.close()
