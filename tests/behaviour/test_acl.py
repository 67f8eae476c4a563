"""A user of Redis with exactly the rules that are printed can do what a guard does; with one rule less it cannot."""

from __future__ import annotations

import ast
import contextlib
import logging
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner

import cacheguard
from cacheguard import BloomFilter, CacheGuard, Change, Policy
from cacheguard.errors import CacheGuardError
from cacheguard.operations.acl import (
    BLOOM,
    CLUSTER,
    ENTRIES,
    REPLICAS,
    REPLICAS_BEHIND_SENTINELS,
    REPLICAS_OF_A_CLUSTER,
    SENTINEL,
    channels_of,
    commands_of,
    keys_of,
    line_of,
    user_rules,
)
from cacheguard.operations.cli import commands
from cacheguard.protocol.names import namespace_scope
from tests.conftest import OpenDoor
from tests.support.clusters import RedisCluster
from tests.support.doors import BlockingDoor, Door
from tests.support.loader import PATIENCE, Loader
from tests.support.redis_server import RedisServer
from tests.support.sentinels import Sentinels

NAMESPACE = "shop of [all] *sorts*"
USER, PASSWORD = "clerk", "s3cr3t"
FILTER = "ids"
KEYS, CHANNELS = keys_of(NAMESPACE, [FILTER]), channels_of(NAMESPACE)
EVERY_COMMAND = commands_of(bloom=True)


@pytest.fixture
def employ(redis_server: RedisServer, redis_url: str) -> Iterator[Callable[..., str]]:
    """Makes the user with the given rules, and says how to get in."""

    def make(
        keys: list[str] = KEYS, channels: list[str] = CHANNELS, granted: list[str] = EVERY_COMMAND, database: int = 0
    ) -> str:
        redis_server.commands(tuple(user_rules(USER, PASSWORD, keys, channels, granted)), ("ACL", "LOG", "RESET"))
        return f"redis://{USER}:{PASSWORD}@127.0.0.1:{redis_server.port}/{database}"

    yield make
    redis_server.command("ACL", "DELUSER", USER)


def refusals(server: RedisServer) -> list[str]:
    """What somebody was not allowed to do."""
    entries = server.command("ACL", "LOG", 100)  # mappings, or names and values in turn, as the client's release likes
    told = [each if isinstance(each, dict) else dict(zip(each[::2], each[1::2], strict=True)) for each in entries]
    return [f"{each['username']}: {each['reason']} {each['object']}" for each in told]


def until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


async def do_everything(door: Door) -> None:
    """Every public operation of a guard, of a decorated function and of a Bloom filter."""
    guard = door.guard
    await door.get("k")
    await door.get_or_set("k", Loader("v"), tags=["t"])
    await door.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1), tags=["t"])
    await door.get_many(["a", "b", "c"])
    await door.set("s", 1, tags=["t"])
    await door.set_many({"s": 2, "z": 3})
    for _ in range(2):
        await door.set("large", secrets.token_hex(500))  # more than a script reads at once
    await door.ask(guard, "add", "s", 1)
    await door.ask(guard, "add", "new", 1)
    await door.ask(guard, "update", "s", door_change)
    await door.touch("s", ttl="1m")
    await door.inspect("s")
    await door.expire("s")
    await door.ask(guard, "remove", "s")
    await door.invalidate("k", version=7, settle="1s")
    await door.set("k", 1, version=8)
    await door.invalidate_tags("t")
    await door.apply([Change("k", version=9), Change(tag="t")])
    await door.write(lambda write: None, "a")
    with contextlib.suppress(LookupError):
        await door.get_or_set("broken", Loader(error=LookupError("no such row")))

    @door.cached("row:{a}")
    def row(a: int) -> int:
        return a

    await row(1)
    await row.refresh(1)
    await row.peek(1)
    await row.put(2, 1)
    await row.many([1, 2])
    await row.expire(1)
    await row.invalidate(1)
    await door.warm(row, [3])
    await door.clear()
    await door.ask(guard, "scan")


async def be_slow_once(door: Door, server: RedisServer) -> None:
    """A server that has not answered in time is asked how it is before it is asked anything else."""
    server.freeze()
    try:
        assert await door.get_or_set("slow", Loader("loaded")) == "loaded"
    finally:
        server.thaw()


def door_change(value: int) -> int:
    return value + 1


def _rows_of_a_busy_table(known: BloomFilter) -> Iterator[int]:
    known.add(3000)
    yield from range(50)


SECRET = b"a secret of 16 b"


async def do_everything_with_a_filter(door: Door) -> None:
    known = door.guard.bloom(FILTER, capacity=3, mirror_lease=None)
    for first in range(0, 40, 8):
        await door.ask(known, "add_many", range(first, first + 8))
    await door.ask(known, "rebuild", range(50))
    await door.ask(known, "absent", 1000)
    await door.ask(known, "rebuild", _rows_of_a_busy_table(known))
    await door.ask(door.guard.bloom(FILTER, capacity=3), "absent", 1000)
    await door.ask(known, "add", 2000)
    with contextlib.suppress(CacheGuardError):
        await door.ask(known, "mark_complete")
    await door.ask(known, "info")
    with contextlib.suppress(ZeroDivisionError):
        await door.ask(known, "rebuild", (1 // 0 for _ in range(1)))


async def test_with_the_printed_rules_every_operation_goes_through(
    open_door: OpenDoor, employ: Callable[..., str], redis_server: RedisServer
) -> None:
    url = employ()
    printed = CliRunner().invoke(commands, ["acl", "--namespace", NAMESPACE, "--url", url, "--bloom", FILTER])
    assert printed.exit_code == 0, printed.output
    assert PASSWORD not in printed.output
    redis_server.command(*shlex.split(printed.output.replace(">PASSWORD", f">{PASSWORD}")))
    door = open_door(CacheGuard(url, namespace=NAMESPACE))
    await do_everything(door)
    await do_everything_with_a_filter(door)
    await do_everything_with_a_filter(open_door(CacheGuard(url, namespace=NAMESPACE, secret=SECRET)))
    child = open_door(door.guard.namespace("child"))
    await child.get_or_set("k", Loader(1), tags=["t"])
    await child.clear()
    until("the bus is up", lambda: door.guard.stats().bus_up)
    stats = door.guard.stats()
    assert (stats.redis_errors, stats.invalidations_queued, stats.undecodable) == (0, 0, 0)
    assert stats.l2_up
    await be_slow_once(door, redis_server)
    while not door.guard.stats().l2_up:
        await door.get("k")
    assert refusals(redis_server) == []


WITHOUT = [
    *(
        (f"+{command}", KEYS, CHANNELS, [each for each in EVERY_COMMAND if each != command])
        for command in EVERY_COMMAND
    ),
    *((key, [each for each in KEYS if each != key], CHANNELS, EVERY_COMMAND) for key in KEYS),
    *((channel, KEYS, [], EVERY_COMMAND) for channel in CHANNELS),
]


@pytest.mark.parametrize(
    ("missing", "keys", "channels", "granted"),
    [pytest.param(*each, id=each[0], marks=[pytest.mark.slow] if at % 2 else []) for at, each in enumerate(WITHOUT)],
)
async def test_with_one_rule_less_something_is_refused_and_no_reader_is_harmed(
    employ: Callable[..., str],
    redis_server: RedisServer,
    missing: str,
    keys: list[str],
    channels: list[str],
    granted: list[str],
) -> None:
    url = employ(keys, channels, granted)
    guard, signing = CacheGuard(url, namespace=NAMESPACE), CacheGuard(url, namespace=NAMESPACE, secret=SECRET)
    door = BlockingDoor(guard)
    try:
        for key in ("k", "other"):
            assert await door.get_or_set(key, Loader("loaded"), tags=["t"]) == "loaded"
            assert await door.get(key, "nothing") in ("loaded", "nothing")
        child = BlockingDoor(guard.namespace("child"))
        assert await child.get_or_set("k", Loader("loaded")) == "loaded"
        with contextlib.suppress(CacheGuardError):  # a scan asks Redis and nobody else
            await do_everything(door)
        for each in (guard, signing):
            with contextlib.suppress(CacheGuardError):
                await do_everything_with_a_filter(BlockingDoor(each))
        if missing == "+ping":
            await be_slow_once(door, redis_server)
        until(f"{missing} is needed for something", lambda: refusals(redis_server))
    finally:
        guard.close()
        signing.close()


def without(*missing: str) -> list[str]:
    return [each for each in EVERY_COMMAND if each not in missing]


RIGHTS: dict[str, tuple[list[str], list[str], list[str], str]] = {
    "no scripts": (KEYS, CHANNELS, without("evalsha", "eval"), "evalsha"),
    "no keys": ([], CHANNELS, EVERY_COMMAND, "key"),  # Redis: "one of the keys used as arguments"; Valkey: "a key"
    "keys of another": (["~cg:other:*"], CHANNELS, EVERY_COMMAND, "key"),
    "no channels": (KEYS, [], EVERY_COMMAND, "channel"),
    "no PUBLISH": (KEYS, CHANNELS, without("publish"), "command"),
}


@pytest.mark.parametrize("wrong", RIGHTS)
async def test_with_wrong_rights_readers_are_answered_and_no_invalidation_is_lost(
    open_door: OpenDoor,
    employ: Callable[..., str],
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    *rights, named = RIGHTS[wrong]
    with CacheGuard(redis_server.url, namespace=NAMESPACE) as manager:
        manager.set("k", "old")
    door = open_door(CacheGuard(employ(*rights), namespace=NAMESPACE))
    with caplog.at_level(logging.WARNING):
        for turn in range(3):
            assert await door.get_or_set(f"row:{turn}", Loader("loaded")) == "loaded"
            await door.invalidate("k")
    assert door.guard.stats().invalidations_queued == 1
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Redis refuses")]
    assert 1 <= len(said) <= 2  # at the door, and from within a script
    assert any(named in each for each in said)
    assert len(set(said)) == len(said)
    assert PASSWORD not in caplog.text
    employ()
    assert await door.get("k") is None
    assert door.guard.stats().invalidations_queued == 0
    with CacheGuard(redis_server.url, namespace=NAMESPACE) as manager:
        assert manager.get("k") is None


async def test_a_cluster_asks_for_other_rights(
    open_door: OpenDoor, redis_cluster: RedisCluster, cluster_url: str
) -> None:
    printed = CliRunner().invoke(commands, ["acl", "--namespace", NAMESPACE, "--user", USER, "--url", cluster_url])
    words = shlex.split(printed.output.replace(">PASSWORD", f">{PASSWORD}"))
    assert {f"+{each}" for each in CLUSTER} <= set(words)
    assert "+mget" not in words
    try:
        for node in redis_cluster.nodes:
            node.commands(tuple(words), ("ACL", "LOG", "RESET"))
        door = open_door(CacheGuard(cluster_url.replace("://", f"://{USER}:{PASSWORD}@"), namespace=NAMESPACE))
        await do_everything(door)
        key = namespace_scope(NAMESPACE).key("moving")
        source = redis_cluster.owner_of(key)
        target = next(node for node in redis_cluster.masters() if node is not source)
        redis_cluster.move(key, target, finish=False)
        assert await door.get_or_set("moving", Loader("there")) == "there"
        redis_cluster.move(key, target)
        asked = [node.command("INFO", "commandstats") for node in redis_cluster.masters()]
        assert "cmdstat_asking" in str(asked)
        assert door.guard.stats().redis_errors == 0
        for node in redis_cluster.nodes:
            assert refusals(node) == []
    finally:
        for node in redis_cluster.nodes:
            node.command("ACL", "DELUSER", USER)


async def test_behind_sentinels_who_reads_from_replicas_needs_rights_on_them(
    open_door: OpenDoor, sentinels: Sentinels, sentinel_url: str
) -> None:
    await reads_from_replicas(open_door, sentinel_url, sentinels.servers)


async def test_in_a_cluster_who_reads_from_replicas_needs_rights_on_them(
    open_door: OpenDoor, redis_cluster: RedisCluster, cluster_url: str
) -> None:
    await reads_from_replicas(open_door, cluster_url, redis_cluster.nodes)


async def reads_from_replicas(open_door: OpenDoor, url: str, servers: Sequence[RedisServer]) -> None:
    """Everything works for a user with the printed rights, and replicas answer."""
    asked = ["acl", "--namespace", NAMESPACE, "--user", USER, "--url", url, "--replicas"]
    printed = CliRunner().invoke(commands, asked).output.splitlines()
    words = shlex.split(printed[0].replace(">PASSWORD", f">{PASSWORD}"))
    url = url.replace("://", f"://{USER}:{PASSWORD}@")
    policy = Policy(l1_ttl=0.001)  # so that what is read here has not been kept here
    try:
        for server in servers:
            server.commands(tuple(words), ("ACL", "LOG", "RESET"))
        door = open_door(CacheGuard(url, namespace=NAMESPACE, read_from="replica", policy=policy))
        await do_everything(door)
        await door.set("near", "v")
        with anyio.fail_after(20):
            while door.guard.stats().replica_hits == 0:
                await anyio.sleep(0.05)
                assert await door.get("near") == "v"
        assert door.guard.stats().redis_errors == 0
        for server in servers:
            assert refusals(server) == []
    finally:
        for server in servers:
            server.command("ACL", "DELUSER", USER)


async def test_another_database_and_a_name_ask_for_a_right_each(
    open_door: OpenDoor, employ: Callable[..., str], redis_server: RedisServer
) -> None:
    url = f"{employ(database=2)}?client_name=shop"
    printed = CliRunner().invoke(commands, ["acl", "--namespace", NAMESPACE, "--url", url])
    words = shlex.split(printed.output.replace(">PASSWORD", f">{PASSWORD}"))
    assert {"+select", "+client|setname"} <= set(words)
    redis_server.commands(tuple(words), ("ACL", "LOG", "RESET"))
    door = open_door(CacheGuard(url, namespace=NAMESPACE))
    await do_everything(door)
    assert door.guard.stats().redis_errors == 0
    assert refusals(redis_server) == []


# ---- the list does not go stale

PACKAGE = Path(cacheguard.__file__).parent
ROOMS = ("protocol", "tiers", "delivery", "defenses/penetration", "client", "servers")
SENT_FROM = [path for room in ROOMS for path in (PACKAGE / room).glob("*.py")]
BY_THE_CLIENT = {"select", "client|setname"}  # sent by redis-py's connections, where they are asked to
CONTAINERS = {"CLUSTER", "SENTINEL", "CLIENT", "CONFIG", "SCRIPT", "FUNCTION", "ACL"}


def sent_by_python() -> set[str]:
    """Every command whose words begin a tuple, or the arguments of a connection, in code that talks to Redis."""
    found: set[str] = set()
    for path in SENT_FROM:
        if path.name == "model.py":  # answers the same words, and sends none
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Tuple):
                found |= _command(node.elts)
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "send_command":
                found |= _command(node.args)
    return found


def _command(words: list[ast.expr]) -> set[str]:
    texts = [word.value if isinstance(word, ast.Constant) and isinstance(word.value, str) else None for word in words]
    if not texts or texts[0] is None or not re.fullmatch("[A-Z]{3,}", texts[0]):
        return set()
    if texts[0] in CONTAINERS and len(texts) > 1 and texts[1] is not None:
        return {f"{texts[0]}|{texts[1]}".lower()}
    return {texts[0].lower()}


def test_the_list_of_commands_is_that_of_the_code() -> None:
    listed = ENTRIES | BLOOM | CLUSTER | SENTINEL | REPLICAS | REPLICAS_OF_A_CLUSTER | REPLICAS_BEHIND_SENTINELS
    # Replies of scripts are tuples of words in capitals, too; Redis knows no such commands.
    sent = sent_by_python()
    assert sent - listed <= ANSWERS
    assert listed <= sent | {"info"}  # packed by hand: `Identity.QUESTION`


ANSWERS = {"behind", "switched", "none", "stale", "overtaken", "damaged", "changed", "blind", "lost", "busy"}


def test_every_call_of_a_script_is_written_so_that_it_can_be_read() -> None:
    for path in PACKAGE.rglob("*.lua"):
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"redis\.p?call", text)) == len(re.findall(r"redis\.p?call\(\s*'[A-Z]+'", text)), (
            path.name
        )


# ---- the command


def test_a_sentinel_gets_a_user_of_its_own() -> None:
    url = "redis+sentinel://shop:s3cr3t@a/main?sentinel_username=watcher&sentinel_password=s3cr3t"
    said = CliRunner().invoke(commands, ["acl", "--url", url]).output.splitlines()
    assert said[0].startswith("ACL SETUSER shop reset on >PASSWORD ")
    assert said[2] == f"ACL SETUSER watcher reset on >PASSWORD resetkeys resetchannels -@all {_granted(SENTINEL)}"
    assert "s3cr3t" not in "".join(said)
    said = CliRunner().invoke(commands, ["acl", "--url", url, "--replicas"]).output.splitlines()
    assert {"+get", "+set"} <= set(shlex.split(said[0]))
    assert said[2].endswith(f"-@all {_granted(SENTINEL | REPLICAS_BEHIND_SENTINELS)}")


def _granted(names: frozenset[str]) -> str:
    return " ".join(f"+{name}" for name in sorted(names))


def test_what_the_command_cannot_do_is_said() -> None:
    for words in (["--url", "memory://"], ["--namespace", ""], ["--url", "redis://u:s3cr3t@a/x"]):
        result = CliRunner().invoke(commands, ["acl", *words])
        assert result.exit_code == 1
        assert "must" in result.output
        assert "s3cr3t" not in result.output


def test_a_line_is_read_back_by_redis_cli_as_it_was_meant() -> None:
    words = user_rules("a b", "pass word", keys_of('x"y\\z', ["*"]), channels_of("[a]*?"), ["get"])
    assert shlex.split(line_of(words)) == words
