"""Plays random HTTP programs: clients with all their habits, and one or two workers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware, url_key
from tests.support.http_model import NOBODY, Answer, History, Question, Rep, crowded, judged, language_of, wasted
from tests.support.http_origin import Origin, turns
from tests.support.http_shapes import Action, Ask, Break, Post, Program, Purge, Silent

PATIENCE = 5.0  # seconds
EVIL = "evil.example"
PROXY, STRANGER, VISITOR = "10.0.0.1", "203.0.113.9", "198.51.100.7"

_programs = itertools.count()


class Stage:
    """Plays one program, and notes what comes of it.

    Args:
        guards: of the workers: one, which both share, or two.
        wrap: makes the middleware of a worker.
        patience: seconds after which an answer never comes.
    """

    def __init__(
        self,
        program: Program,
        guards: list[CacheGuard],
        wrap: Callable[..., Any] = HTTPCacheMiddleware,
        patience: float = PATIENCE,
    ) -> None:
        self.program, self.guards, self.patience = program, guards, patience
        self.host = f"p{next(_programs)}.example"
        self.names = [f"r{number}" for number in range(len(program.pages))]
        pages = dict(zip(self.names, program.pages, strict=True))
        self.history = History(
            {name: page.kind for name, page in pages.items()}, {name: page.rewrites for name, page in pages.items()}
        )
        self.asked: list[tuple[Question, Answer]] = []
        self._numbers = itertools.count(1)
        self.origin = Origin(self.history, pages, self.host, self._place)
        self._workers = [
            wrap(self.origin, guards[min(number, len(guards) - 1)], trusted_proxies=(PROXY,)) for number in range(2)
        ]

    async def play(self) -> list[str]:
        """Play the whole program. Returns what the model forbids."""
        wrong: list[str | None] = []
        for group in self.program.groups:
            since, already = self.history.tick(), len(self.asked)
            await self._play_group(group)
            if all(isinstance(each, Ask) and each.leave is None for each in group):
                wrong.append(crowded(self.history, self.asked[already:], since))
            if len(self.guards) > 1:
                await settle(*self.guards)
            for each in self.history.forgettings:
                if each.ended >= 0 > each.heard:
                    each.heard = self.history.tick()
        for question, answer in self.asked:
            said = judged(self.history, question, answer, self.host)
            if said is not None:
                wrong.append(
                    f"request {question.number} ({question.method} {question.resource} {question.fields}): {said}"
                )
        wrong.append(wasted(self.history, self.asked))
        return [each for each in wrong if each is not None]

    async def _play_group(self, group: tuple[Action, ...]) -> None:
        free = asyncio.Event()  # for those who read nothing until all others are done
        stuck = [each for each in group if isinstance(each, Ask) and each.reader == "stuck"]
        slow = [asyncio.create_task(self._do(each, free)) for each in stuck]
        others = [asyncio.create_task(self._do(each, free)) for each in group if each not in stuck]
        await within(self.patience, others)
        free.set()
        await within(self.patience, slow)

    async def _do(self, action: Action, free: asyncio.Event) -> None:
        match action:
            case Silent():
                self.history.change(self.names[action.resource])
            case Break():
                self.origin.broken[self.names[action.resource]] = action.how
                if action.how:
                    self.history.odd.add(self.names[action.resource])
                    self.history.failing.add(self.names[action.resource])
            case Purge():
                await self._purge(action)
            case Post():
                await turns(action.delay)
                await self._request(action, "POST", {}, free)
            case Ask():
                await turns(action.delay)
                await self._request(action, action.method, self._fields(action), free)

    async def _purge(self, action: Purge) -> None:
        await turns(action.delay)
        name, guard = self.names[action.resource], self.guards[min(action.worker, len(self.guards) - 1)]
        self.history.change(name)
        forgetting = self.history.begin_forgetting(name, self._place(action.worker))
        if action.by == "url":
            await guard.ainvalidate(url_key(f"http://{self.host}/{name}"))
        else:
            await guard.ainvalidate_tags(f"{self.host}-{name}")
        forgetting.ended = self.history.tick()

    def _place(self, worker: int) -> int:
        """Workers that share a guard are one place."""
        return min(worker, len(self.guards) - 1)

    # Clients

    def _fields(self, ask: Ask) -> dict[str, str]:
        name = self.names[ask.resource]
        kind = self.history.kinds[name]
        fields: dict[str, str] = {}
        if ask.language is not None:
            fields["accept-language"] = ask.language
        if ask.who is not None:
            user, _, how = ask.who.split()
            fields[how] = user
        if ask.control is not None:
            fields["cache-control"] = ask.control
        if ask.condition is not None:
            fields.update(self._condition(ask, *ask.condition))
        if ask.part is not None:
            fields["range"], behind = ask.part
            tag = None if behind is None else self._seen(ask, behind).tag(kind)
            if tag is not None:
                fields["if-range"] = tag
            self.history.odd.add(name)
        if "authorization" in fields:
            self.history.odd.add(name)
        return fields

    def _seen(self, ask: Ask, behind: int) -> Rep:
        """What the client has seen before."""
        name = self.names[ask.resource]
        kind = self.history.kinds[name]
        user = NOBODY if ask.who is None or not kind.personal else ask.who.split()[0]
        language = language_of(ask.language) if kind.varies else "en"
        return Rep(name, max(1, self.history.version(name) - behind), language, user, self.host)

    def _condition(self, ask: Ask, how: str, behind: int) -> dict[str, str]:
        rep, kind = self._seen(ask, behind), self.history.kinds[self.names[ask.resource]]
        tag, date = rep.tag(kind) or f'"{rep}"', rep.date(kind) or "Fri, 02 Jan 2026 00:00:00 GMT"
        return {
            "tag": {"if-none-match": tag},
            "tags": {"if-none-match": f'"another", {tag}'},
            "star": {"if-none-match": "*"},
            "date": {"if-modified-since": date},
        }[how]

    async def _request(self, action: Ask | Post, method: str, fields: dict[str, str], free: asyncio.Event) -> None:
        number, name = next(self._numbers), self.names[action.resource]
        self.origin.asks[number] = action
        stranger = EVIL if action.via == "stranger" else None
        question = Question(
            number, self._place(action.worker), name, fields.get("cookie", fields.get("authorization")), fields, method,
            stranger,
        )  # fmt: skip
        answer, client = Answer(), Client(self, question, action, free)
        question.begun = self.history.tick()
        try:
            await client.ask(self._workers[action.worker], self._scope(question, action), answer)
        finally:
            question.ended = self.history.tick()
            for each in self.origin.pending.pop(number, ()):
                if client.started:
                    each.ended = client.started
            if not client.left:
                answer.hung = not answer.complete and not answer.error and not client.returned
                if method != "POST":
                    self.asked.append((question, answer))

    def _scope(self, question: Question, action: Ask | Post) -> dict[str, Any]:
        host, peer, claimed = self.host, VISITOR, {}
        if action.via == "proxy":
            host, peer, claimed = (
                "inner.example:8000",
                PROXY,
                {"x-forwarded-host": self.host, "x-forwarded-proto": "http"},
            )
        elif action.via == "stranger":
            peer, claimed = STRANGER, {"x-forwarded-host": EVIL}
        headers = {"host": host, "x-number": str(question.number), **claimed, **question.fields}
        return {
            "type": "http", "http_version": "1.1", "method": question.method, "scheme": "http", "query_string": b"",
            "path": f"/{question.resource}", "raw_path": f"/{question.resource}".encode(), "root_path": "",
            "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
            "client": (peer, 50000), "server": ("127.0.0.1", 8000), "extensions": {},
        }  # fmt: skip


class LeftError(OSError):
    """What servers raise if something is sent to a client that has left."""


class Client:
    """One request, as a server makes it of a connection."""

    def __init__(self, stage: Stage, question: Question, action: Ask | Post, free: asyncio.Event) -> None:
        self._stage, self._question, self._free = stage, question, free
        self._leave: tuple[str, int] | None = getattr(action, "leave", None)
        self._reader: str = getattr(action, "reader", "quick")
        self._gone, self._messages, self._asked = asyncio.Event(), 0, False
        self._task: asyncio.Task[None] | None = None
        self.left = False
        self.started = 0  # when the answer had begun
        self.returned = False

    async def ask(self, app: Any, scope: Any, answer: Answer) -> None:
        """Make the request; an answer that somebody waits for is written into *answer*."""
        self._answer = answer
        if self._leave is not None and self._leave[1] == 0:
            asyncio.get_running_loop().call_soon(self._go)
        self._task = asyncio.ensure_future(app(scope, self._receive, self._send))
        try:
            await self._task
            self.returned = True
        except asyncio.CancelledError:
            if not self.left:
                raise
        except Exception as error:  # noqa: BLE001 - the model says whether it may come out
            answer.error = repr(error)
        finally:
            self._task.cancel()

    def _go(self) -> None:
        """The client leaves."""
        assert self._leave is not None
        if self._task is not None and self._task.done():
            return
        self.left = True
        self._gone.set()
        if self._leave[0] == "cancelled" and self._task is not None:
            self._task.cancel()

    async def _receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self._read()
        if self.left:
            if self._leave is not None and self._leave[0] == "raising":
                raise LeftError
            return
        self._messages += 1
        if message["type"] == "http.response.start":
            self.started = self._stage.history.tick()
            self._answer.status = message["status"]
            for key, value in message["headers"]:
                self._answer.fields[key.decode().lower()] = value.decode()
        else:
            self._answer.body += message.get("body", b"")
            if not message.get("more_body"):
                self._answer.complete = True
        if self._answer.complete:
            self._gone.set()  # as servers do: nobody listens any more
        elif self._leave is not None and self._messages == self._leave[1]:
            self._go()

    async def _read(self) -> None:
        if self._reader == "stuck":
            await self._free.wait()
        else:
            await turns(3 if self._reader == "slow" else 0)


async def settle(*guards: CacheGuard) -> None:
    """Wait until every guard has heard of what the others have invalidated."""
    for sender in guards:
        key = f"settled-{next(_programs)}"
        await asyncio.gather(*(each.aget_or_set(key, _one, ttl="1m") for each in guards))
        await sender.ainvalidate(key)
        async with asyncio.timeout(PATIENCE):
            while any(each.at_hand(key) is not None for each in guards):
                await asyncio.sleep(0.001)


async def _one() -> int:
    return 1


async def within(patience: float, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for *tasks*, and cancel what does not end in time."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=patience)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()
