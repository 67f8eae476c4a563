"""The command line: the demo, warming a cache, looking at an entry."""

from __future__ import annotations

import asyncio
import inspect as introspection
import json
import sys
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from pathlib import Path
from typing import IO, Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..doors.functions import Function, arguments_of
from ..doors.warming import Warmed
from ..engine.looking import Inspection, look
from ..engine.reading import Engine
from ..errors import ConfigurationError
from ..guard import CacheGuard
from ..runtime import run_now

PLACEHOLDER = "PASSWORD"  # a real password must not appear on a terminal


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("cacheguard"), message="cacheguard %(version)s")
def commands() -> None:
    """Cache-aside that keeps the database up."""


@commands.command()
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=Path("demo-report.html"),
    show_default=True,
    help="Where the picture goes.",
)
@click.option("--quick", is_flag=True, help="A fraction of the traffic, in about ten seconds.")
@click.option("--seed", type=int, default=1, show_default=True, help="What the traffic is drawn from.")
def demo(report: Path, *, quick: bool, seed: int) -> None:
    """Run four disasters against a small shop, each with plain cache-aside and with cacheguard.

    Starts a Redis and four processes of its own, and ends them. CACHEGUARD_DEMO_REDIS names an empty database of
    another Redis to be used instead.
    """
    from .demo.server import NoRedisError
    from .demo.show import run

    if not report.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no directory {report.absolute().parent}", param_hint="--report")
    try:
        run(Console(), report, quick=quick, seed=seed)
    except NoRedisError as error:
        raise click.ClickException(str(error)) from error


@commands.command()
@click.argument("function")
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--rate", type=float, help="Loads started per second at most.")
@click.option("--concurrency", type=int, default=8, show_default=True, help="Calls at once.")
def warm(function: str, file: IO[str], rate: float | None, concurrency: int) -> None:
    """Call a cached FUNCTION (module:name) for each line of FILE (- for the standard input).

    A line holds the arguments of one call: a JSON array of them, a JSON object of them by name, or the bare value of
    the only one. What is no JSON is taken as text. Exit status 1 if not all of them are in Redis afterwards.
    """
    fn = _function(function)
    calls = [_arguments(fn, line, number) for number, line in enumerate(file, 1) if line.strip()]
    with Progress(
        TextColumn(function), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=len(calls))

        def progress(done: int, _total: int | None) -> None:
            bar.update(task, completed=done)

        try:
            warmed, kept = _warm(fn, calls, rate=rate, progress=progress, concurrency=concurrency)
        except ConfigurationError as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"{kept:,} of {warmed.done:,} calls are in Redis")
    if warmed.failed:
        raise click.ClickException(f"{warmed.failed:,} calls failed")
    if kept < warmed.done:
        raise click.ClickException(_why_not_kept(fn))


def _why_not_kept(fn: Any) -> str:
    function = fn.cacheguard
    if function.hub.memory:
        return f"the guard of {fn.__qualname__} is memory://: what it caches ends with this command"
    if not function.rules.l2:
        return f"{fn.__qualname__} has l2=False: what it caches ends with this command"
    if not function.hub.stats().l2_up:
        return "Redis cannot be reached"
    return "the other values are not in Redis: they cannot be stored, are too large, or were invalidated meanwhile"


def _warm(fn: Any, calls: list[Any], **options: Any) -> tuple[Warmed, int]:
    """The result, and how many of *calls* are in Redis afterwards."""
    # The function brings the guard that it is cached by; this one only lends its threads, or the event loop.
    guard = CacheGuard("memory://")
    if not introspection.iscoroutinefunction(fn):
        with guard:
            warmed = guard.warm(fn, calls, **options)
        return warmed, run_now(_kept(fn, calls, fn.cacheguard.hub.blocking))

    async def in_a_loop() -> tuple[Warmed, int]:
        try:
            async with guard:
                warmed = await guard.awarm(fn, calls, **options)
            return warmed, await _kept(fn, calls, fn.cacheguard.hub.running)
        finally:
            await fn.cacheguard.hub.aclose()

    return asyncio.run(in_a_loop())


async def _kept(fn: Any, calls: list[Any], engine_of: Callable[..., Engine]) -> int:
    """How many of *calls* have an entry in Redis. One round trip for each."""
    function: Function = fn.cacheguard
    if function.hub.memory or not function.rules.l2:
        return 0
    engine, kept = engine_of(l2=True), 0
    for call in calls:
        found = await look(engine, function.redis_key(function.values(arguments_of(call), {})), function.scope)
        kept += found is not None and found.stored is not None
    return kept


def _function(path: str) -> Any:
    """The object at ``module:name``; modules of the working directory count."""
    module, _, name = path.partition(":")
    if not (module and name):
        raise click.BadParameter(f"expected module:function, got {path!r}", param_hint="FUNCTION")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise click.BadParameter(f"there is no module {module!r}", param_hint="FUNCTION") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise click.BadParameter(f"{module!r} has no {name!r}", param_hint="FUNCTION")
        found = getattr(found, part)
    if not hasattr(found, "cacheguard"):
        raise click.BadParameter(f"{path} is not decorated with guard.cached(…)", param_hint="FUNCTION")
    return found


def _arguments(fn: Any, line: str, number: int) -> Any:
    """The arguments of one call: a tuple, or the bare value of the only one."""
    text = line.strip()
    try:
        value = json.loads(text)
    except ValueError as error:
        if text.startswith("["):
            raise click.ClickException(f"line {number} is no JSON array: {error}") from error
        return text
    if isinstance(value, dict):
        return _by_name(fn, cast("dict[str, Any]", value))
    if not isinstance(value, list):
        return value
    return (*value,)


def _by_name(fn: Any, given: dict[str, Any]) -> Any:
    """The arguments by name as a tuple; *given* itself, as the only argument, if it has other names."""
    signature = introspection.signature(fn)
    if not given or not given.keys() <= signature.parameters.keys():
        return given
    try:
        bound = signature.bind(**given)
    except TypeError:
        return given
    bound.apply_defaults()
    return given if bound.kwargs else bound.args


@commands.command()
@click.argument("key")
@click.option("--url", envvar="CACHEGUARD_URL", required=True, help="Which Redis; CACHEGUARD_URL if left out.")
@click.option("--namespace", default="cacheguard", show_default=True, help="A child namespace follows after a slash.")
def inspect(key: str, url: str, namespace: str) -> None:
    """Say what is cached for KEY: its state, tier, age, time left and tags.

    KEY is the text that a template makes, like user:42. Exit status 3 if nothing is cached.
    """
    first, *children = namespace.split("/")
    try:
        with CacheGuard(url, namespace=first) as guard:
            room = guard
            for child in children:
                room = room.namespace(child)
            found = room.inspect(key)
            stats = guard.stats()
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    if not stats.l2_up:
        raise click.ClickException("Redis cannot be reached")
    if stats.undecodable:
        raise click.ClickException(
            f"{key} holds something that cannot be read here: it is signed, of a later release, or no entry at all"
        )
    for name, value in _lines(found):
        click.echo(f"{name:9} {value}")
    if found.state == "missing":
        sys.exit(3)


@commands.command()
@click.option("--namespace", default="cacheguard", show_default=True, help="The guard's own, without its children.")
@click.option("--user", help="What the user is called; the one in the URL if left out, else cacheguard.")
@click.option("--url", default="redis://localhost", help="How the guard is reached; nothing is connected.")
@click.option("--bloom", multiple=True, metavar="NAME", help="A Bloom filter of the namespace; '*': all there are.")
@click.option("--replicas", is_flag=True, help="The guard was made with read_from='replica'.")
def acl(namespace: str, user: str | None, url: str, bloom: tuple[str, ...], *, replicas: bool) -> None:
    """Print the command that makes a Redis user who may do what a guard does, and no more.

    Put a password in the place of PASSWORD. For Redis 6.2 and later. In a cluster every node must be told; behind
    sentinels every server, and each sentinel what is printed for it.
    """
    from ..servers.lending import pools
    from .acl import REPLICAS_BEHIND_SENTINELS, SENTINEL, channels_of, commands_of, keys_of, line_of, user_rules

    try:
        endpoint, _, _ = pools(url, None, None)
        keys, channels = keys_of(namespace, bloom), channels_of(namespace)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    if endpoint is None:
        raise click.ClickException("url must lead to a Redis: memory:// has no users")
    settings = endpoint.connection_kwargs
    name = user or settings.get("username") or "cacheguard"
    granted = commands_of(
        bloom=bool(bloom),
        cluster=bool(endpoint.nodes),
        database=bool(settings.get("db")),
        client_name="client_name" in settings,
        replicas=replicas,
    )
    click.echo(line_of(user_rules(name, PLACEHOLDER, keys, channels, granted)))
    if endpoint.finder is not None:
        own = endpoint.finder.endpoints[0].connection_kwargs
        watcher = own.get("username") or f"{name}-sentinel"
        asked = set(SENTINEL)
        if replicas:
            asked |= REPLICAS_BEHIND_SENTINELS
        if "client_name" in own:
            asked.add("client|setname")
        click.echo("# On each sentinel, for sentinel_username and sentinel_password:")
        click.echo(line_of(user_rules(watcher, PLACEHOLDER, [], [], sorted(asked))))


def _lines(found: Inspection) -> Iterable[tuple[str, str]]:
    yield "state", found.state
    if found.tier is not None:
        yield "tier", found.tier
    if found.age is not None:
        yield "age", f"{found.age:.1f} s"
    if found.ttl_left is not None:
        yield "ttl left", f"{found.ttl_left:.1f} s"
    if found.tags:
        yield "tags", ", ".join(found.tags)
