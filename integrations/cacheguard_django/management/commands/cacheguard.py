"""``manage.py cacheguard stats|clear|inspect|doctor``."""

from __future__ import annotations

import secrets
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from django.core.cache import caches
from django.core.management.base import BaseCommand, CommandError
from redis.exceptions import RedisError

from cacheguard.errors import CacheGuardError
from cacheguard_django.backend import CacheGuardCache
from cacheguard_django.listing import pages

OLDEST = (6, 2)
EVICTING = (
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
)
SLOW = 0.01  # seconds


class Command(BaseCommand):
    """Look after the caches whose backend is cacheguard's."""

    help = "Shows, clears and examines a cache whose backend is cacheguard_django.CacheGuardCache."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="stats|clear|inspect|doctor")
        for name, text in (
            ("stats", "how many entries there are, and how the server does"),
            ("clear", "remove everything in the namespace of the cache, and nothing else"),
            ("inspect", "what is cached under a key"),
            ("doctor", "try everything that the cache needs, and say what is wrong"),
        ):
            action = actions.add_parser(name, help=text)
            action.add_argument("--alias", default="default", help="which of CACHES; default")
            if name == "inspect":
                action.add_argument("key", help="as given to cache.get, or the key text of a function of guard()")
                action.add_argument("--version", dest="key_version", type=int, help="of the key; that of the cache")

    def handle(self, *_: Any, **options: Any) -> None:
        alias = options["alias"]
        if alias not in caches.settings:
            raise CommandError(f"there is no cache {alias!r} in CACHES; there are: {', '.join(caches.settings)}")
        cache = caches[alias]
        if not isinstance(cache, CacheGuardCache):
            raise CommandError(f"CACHES[{alias!r}] is a {type(cache).__qualname__}, not a CacheGuardCache")
        actions: dict[str, Callable[[CacheGuardCache, dict[str, Any]], None]] = {
            "stats": self._stats,
            "clear": self._clear,
            "inspect": self._inspect,
            "doctor": self._doctor,
        }
        try:
            actions[options["action"]](cache, options)
        except (CacheGuardError, RedisError, OSError) as error:
            raise CommandError(f"CACHES[{alias!r}]: {error}") from error

    def _say(self, name: str, value: object) -> None:
        self.stdout.write(f"{name:<22} {value}")

    def _stats(self, cache: CacheGuardCache, _: dict[str, Any]) -> None:
        """What the server says; the counters of the serving processes are in their own `stats()`."""
        self._say("namespace", cache.settings.guard["namespace"])
        self._say("entries", sum(map(len, pages(cache.guard))))
        if cache.in_process:
            self._say("server", "none: memory://")
            return
        for name, facts in _each_server(cache):
            self._say("server", f"{name} {facts.get('redis_version', '?')}".strip())
            for each in ("used_memory_human", "maxmemory_human", "maxmemory_policy", "evicted_keys", "expired_keys"):
                self._say(each, facts.get(each, "?"))
            self._say("connected_clients", facts.get("connected_clients", "?"))

    def _clear(self, cache: CacheGuardCache, _: dict[str, Any]) -> None:
        cache.clear()
        if not cache.guard.stats().l2_up:
            raise CommandError(
                "Redis cannot be reached, and this process will not wait until it can: nothing is cleared"
            )
        self.stdout.write(self.style.SUCCESS(f"cleared {cache.settings.guard['namespace']}"))

    def _inspect(self, cache: CacheGuardCache, options: dict[str, Any]) -> None:
        text = cache.text_of(options["key"], version=options["key_version"])
        found = cache.guard.inspect(text)
        if found.state == "missing" and options["key_version"] is None:
            # The same text, as a function of guard() has it.
            of_function = cache.guard.inspect(options["key"])
            if of_function.state != "missing":
                text, found = options["key"], of_function
        if not cache.guard.stats().l2_up:
            raise CommandError("Redis cannot be reached")
        self._say("key", text)
        self._say("state", found.state)
        if found.tier is None:
            return
        self._say("tier", found.tier)
        self._say("age", f"{found.age:.3f} s")
        self._say("ttl left", f"{found.ttl_left:.3f} s")
        self._say("tags", ", ".join(found.tags) or "none")

    def _doctor(self, cache: CacheGuardCache, _: dict[str, Any]) -> None:
        wrong = 0
        for what, problem in _examined(cache):
            wrong += bool(problem)
            style = self.style.ERROR if problem else self.style.SUCCESS
            self.stdout.write(f"{style('wrong' if problem else 'ok'):<6} {what}{f': {problem}' if problem else ''}")
        if wrong:
            raise CommandError(f"{wrong} of these are wrong")


def _each_server(cache: CacheGuardCache) -> list[tuple[str, dict[str, Any]]]:
    """What INFO says, by server; a cluster's masters."""
    client = cache.client
    if not hasattr(client, "get_primaries"):
        return [("", client.info())]
    nodes = client.get_primaries()
    return [(node.name, client.info(target_nodes=node)) for node in nodes]


def _examined(cache: CacheGuardCache) -> Iterator[tuple[str, str]]:
    """What was tried, and what is wrong with it."""
    key, value = f"cacheguard-doctor-{secrets.token_hex(8)}", secrets.token_hex(8)
    if not cache.in_process:
        try:
            servers = _each_server(cache)
        except (RedisError, OSError) as error:
            yield "Redis answers", f"{type(error).__name__}: {error}"
            return
        yield "Redis answers", ""
        for name, facts in servers:
            yield from _about_server(f" {name}" if name else "", facts)
        channels = cache.client.pubsub_numsub(cache.channel)
        listeners = sum(count for _, count in channels)
        yield f"processes on the bus: {listeners}", ""
    began = perf_counter()
    cache.set(key, value, 60)
    if cache.get(key) != value:
        yield "what is stored can be read", "it is not there; is Redis full, or a replica, or is the key's slot moving?"
    else:
        yield "what is stored can be read", ""
        took = (perf_counter() - began) / 2
        yield f"a round trip takes {took * 1000:.2f} ms", "" if took < SLOW else "that is slow for a cache"
    cache.set(key, 1, 60)
    try:
        wrong = "" if cache.incr(key) == 2 else "the answer is wrong"  # noqa: PLR2004 - 1 + 1
    except ValueError:
        wrong = "nothing was there"
    yield "it can be counted", wrong
    yield "it can be deleted", "" if cache.delete(key) else "nothing was there"


def _about_server(name: str, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    version = str(facts.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    yield f"Redis{name} is {version}", "" if numbers >= OLDEST else "6.2 is the oldest that will do"
    role = facts.get("role")
    yield f"Redis{name} is a {role}", "" if role == "master" else "it takes no writes"
    policy, limit = facts.get("maxmemory_policy"), facts.get("maxmemory")
    full = bool(limit) and policy not in EVICTING
    yield (
        f"Redis{name} evicts: {policy}",
        "when it is full, nothing more is cached; set maxmemory-policy" if full else "",
    )
