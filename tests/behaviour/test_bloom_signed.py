"""Signed Bloom filters: whoever writes to Redis without the secret can only make them say "maybe"."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from cacheguard import CacheGuard
from cacheguard.defenses.penetration import shared, signed, signed_rebuild
from cacheguard.errors import CacheGuardError
from cacheguard.ports import Call, Reply, ScriptCall
from tests.behaviour.test_bloom import (
    LEASE,
    SECRET,
    Clock,
    Fleet,
    chunk_keys,
    clock,
    fleet,
    hset,
    keys,
    meta_key,
)
from tests.support.redis_server import RedisServer
from tests.support.rings import RingOfServers

__all__ = ["clock", "fleet"]

OTHER = b"another secret!!"
ROWS = range(900)
always_signed = pytest.mark.parametrize("fleet", ["signed"], indirect=True)


def log_key(server: RedisServer) -> str:
    return next(key for key in keys(server) if key.endswith(":l"))


def hget(server: RedisServer, field: str) -> str:
    value: str = server.command("HGET", meta_key(server), field)
    return value


# What somebody may write. All of it leaves the filter whole to the eye of who knows no secret.


def clear_the_bits(server: RedisServer) -> None:
    for key in chunk_keys(server):
        server.command("SETRANGE", key, 8, "\0" * 4000)


def clear_one_bit(server: RedisServer) -> None:
    key = chunk_keys(server)[0]
    bit = server.command("BITPOS", key, 1, 8)
    server.command("SETBIT", key, bit, 0)


def swap_two_chunks(server: RedisServer) -> None:
    one, other, *_ = chunk_keys(server)
    server.command("RENAME", one, "aside")
    server.command("RENAME", other, one)
    server.command("RENAME", "aside", other)


def bring_the_chunks_of_another_filter(server: RedisServer) -> None:
    ours = chunk_keys(server)
    with CacheGuard(f"redis://127.0.0.1:{server.port}", secret=SECRET) as guard:
        guard.bloom("other", capacity=20_000).rebuild(["z"], settle="1ms")
    for key in ours:
        twin = next(each for each in chunk_keys(server) if each not in ours and each.endswith(key[-4:]))
        head = server.command("GETRANGE", key, 0, 7)
        server.command("RENAME", twin, key)
        server.command("SETRANGE", key, 0, head)


def cut_a_chunk_short(server: RedisServer) -> None:
    key = chunk_keys(server)[0]
    server.command("SET", key, server.command("GETRANGE", key, 0, 7))


def take_an_added_item_away(server: RedisServer) -> None:
    key = log_key(server)
    server.commands(("LSET", key, 0, "gone"), ("LREM", key, 1, "gone"), ("HINCRBY", meta_key(server), "seq", -1))


def add_one_item_twice_instead_of_another(server: RedisServer) -> None:
    server.command("EVAL", "redis.call('LSET', KEYS[1], 0, redis.call('LINDEX', KEYS[1], 1))", 1, log_key(server))


def write_an_item_over(server: RedisServer) -> None:
    server.command("LSET", log_key(server), 0, "x" * 20)


def lose_the_log(server: RedisServer) -> None:
    server.command("DEL", log_key(server))


def forget_the_bits(server: RedisServer) -> None:
    parts = hget(server, "layers").split(";")
    hset(server, "layers", ";".join([*parts[:2], "0", "0", "0", "0", parts[6]]))


def take_the_items_for_held(server: RedisServer) -> None:
    parts = hget(server, "layers").split(";")
    hset(server, "layers", ";".join([*parts[:2], "9", *parts[3:]]))


def take_the_seal_away(server: RedisServer) -> None:
    hset(server, "seal", "")


def seal_nonsense(server: RedisServer) -> None:
    hset(server, "seal", "0::" + "00" * 16)


FORGERIES: list[Callable[[RedisServer], None]] = [
    clear_the_bits,
    clear_one_bit,
    swap_two_chunks,
    bring_the_chunks_of_another_filter,
    cut_a_chunk_short,
    take_an_added_item_away,
    add_one_item_twice_instead_of_another,
    write_an_item_over,
    lose_the_log,
    forget_the_bits,
    take_the_items_for_held,
    take_the_seal_away,
    seal_nonsense,
]


@always_signed
@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_filter_hides_nothing_and_is_counted_and_logged_once(
    fleet: Fleet, clock: Clock, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, forge: Callable[..., None]
) -> None:
    old, reader = fleet(capacity=20_000), fleet(capacity=20_000)
    old.rebuild(ROWS)
    old.add("b", "c", "d")
    old.add("e")
    rows = [*ROWS, "b", "c", "d", "e"]
    assert old.absent("x")
    forge(redis_server)
    with caplog.at_level(logging.WARNING, "cacheguard"):
        for _ in range(3):
            assert not any(reader.absent(row) for row in rows)
            assert not reader.absent("x")
            assert not any(old.absent(row) for row in rows)
            clock.advance(shared.RELOAD)
    assert reader.events.bloom_losses == 1
    assert len([record for record in caplog.records if "without the secret" in record.message]) >= 1
    assert len(caplog.records) <= 2
    assert reader.info().state in ("lost", "complete")  # "complete" if the seal alone is right, and nobody has looked
    reader.rebuild(rows)
    clock.advance(shared.RELOAD)
    for process in (old, reader, fleet(capacity=20_000)):
        assert process.absent("x")
        assert not any(process.absent(row) for row in rows)


@always_signed
def test_who_says_that_an_unfinished_filter_is_complete_is_not_believed(
    fleet: Fleet, clock: Clock, redis_server: RedisServer
) -> None:
    writer, reader = fleet(), fleet()
    writer.add("a")
    hset(redis_server, "complete", "1")
    for process in (writer, reader):
        assert not process.absent("x")
        assert process.info().state == "lost"
    writer.add("b")
    clock.advance(shared.RELOAD)
    hset(redis_server, "complete", "0")
    writer.mark_complete()
    assert fleet().absent("x")


@always_signed
def test_a_seal_is_good_for_one_server_only(fleet: Fleet, redis_server: RedisServer) -> None:
    here = fleet()
    here.rebuild(["a"])
    run = hget(redis_server, "run")
    hset(redis_server, "run", "0" * 80)
    assert not fleet().absent("x")  # which notes the server that there is now
    assert hget(redis_server, "run") == run
    seal = hget(redis_server, "seal")
    count, last, signature = seal.split(":")
    hset(redis_server, "seal", f"{count}:{last}:{signature[::-1]}")
    hset(redis_server, "complete", "1")
    assert not fleet().absent("x")


@always_signed
def test_an_older_state_does_not_deceive_who_has_seen_a_newer_one(
    fleet: Fleet, clock: Clock, redis_server: RedisServer
) -> None:
    reader, writer, adder = fleet(), fleet(), fleet()
    writer.rebuild(["a"])
    writer.add("b")
    assert not reader.absent("b")
    assert reader.absent("x")
    adder.add("c")
    clock.advance(LEASE)
    assert not reader.absent("c")
    assert reader.absent("x")
    clock.advance(LEASE)
    # Both entries go. Somebody who has not seen them adds others in their place.
    server_log = log_key(redis_server)
    redis_server.commands(("DEL", server_log), ("HSET", meta_key(redis_server), "seq", 0))
    for process in (reader, adder, writer):
        assert not any(process.absent(row) for row in ("a", "b", "c", "x"))
    stranger = fleet()
    stranger.add("d")
    stranger.add("e")
    stranger.add("f")
    clock.advance(shared.RELOAD)
    for process in (reader, adder, writer):
        assert not any(process.absent(row) for row in ("a", "b", "c", "x"))
    reader.rebuild(["a", "b", "c"])
    clock.advance(shared.RELOAD)
    assert all(process.absent("x") for process in (reader, adder, writer))


@pytest.mark.parametrize(
    ("built", "read", "absent"),
    [
        ((SECRET,), (SECRET,), True),
        ((SECRET,), (OTHER, SECRET), True),
        ((SECRET,), (OTHER,), False),
        ((SECRET,), (), False),
        ((), (SECRET,), False),
        ((), (), True),
    ],
)
def test_a_filter_is_of_use_only_to_those_who_can_verify_it(
    fleet: Fleet,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    built: tuple[bytes, ...],
    read: tuple[bytes, ...],
    absent: bool,
) -> None:
    fleet(secrets=built).rebuild(["a"])
    reader = fleet(secrets=read)
    for _ in range(3):
        assert reader.absent("x") is absent
        assert not reader.absent("a")
        clock.advance(shared.RELOAD)
    assert reader.events.bloom_losses == (not absent)
    assert len(caplog.records) == (not absent)
    assert reader.info().state == ("complete" if absent else "lost")


def test_a_new_secret_is_rolled_out_without_a_rebuild(fleet: Fleet, clock: Clock) -> None:
    old, both, new = fleet(secrets=(SECRET, OTHER)), fleet(secrets=(OTHER, SECRET)), fleet(secrets=(OTHER,))
    old.rebuild(["a"])
    both.add("b")
    old.add("c")
    both.add("d")
    for process in (old, both):
        assert not any(process.absent(row) for row in "abcd")
        assert process.absent("x")
    assert not new.absent("x")
    both.rebuild(list("abcd"))
    clock.advance(shared.RELOAD)
    both.add("e")
    for process in (old, both, new):
        assert process.absent("x")
        assert not process.absent("e")


@pytest.mark.parametrize("others", [(), (OTHER,)], ids=["no secret", "another"])
@pytest.mark.parametrize("first", [True, False], ids=["they add", "they built"])
def test_an_item_that_is_added_without_the_secret_makes_the_answer_maybe(
    fleet: Fleet, clock: Clock, others: tuple[bytes, ...], first: bool
) -> None:
    ours, theirs = fleet(secrets=(SECRET,)), fleet(secrets=others)
    builder, adder = (ours, theirs) if first else (theirs, ours)
    builder.rebuild(["a"])
    assert builder.absent("x")
    adder.add("b")
    assert not any(process.absent("b") for process in (builder, adder))
    clock.advance(shared.RELOAD)
    for process in (ours, theirs):
        process.rebuild(["a"])
        # What was added lately comes along, whoever added it.
        assert not process.absent("b")
        assert process.absent("x")


@pytest.mark.parametrize("others", [(), (OTHER,)], ids=["no secret", "another"])
def test_a_rebuild_during_which_items_are_added_without_the_secret_fails(
    fleet: Fleet, others: tuple[bytes, ...]
) -> None:
    ours, theirs = fleet(secrets=(SECRET,)), fleet(secrets=others)
    ours.rebuild(["a"])

    def rows() -> Iterator[str]:
        yield "a"
        theirs.add("b")

    with pytest.raises(CacheGuardError, match="without the secret"):
        ours.rebuild(rows())
    assert not ours.absent("b")


@always_signed
def test_an_add_waits_for_a_lease_of_its_own_whatever_redis_says(fleet: Fleet, redis_server: RedisServer) -> None:
    reader, writer = fleet(), fleet()
    writer.rebuild(["a"])
    assert reader.absent("x")
    hset(redis_server, "lease", "0")
    hset(redis_server, "span", "0")
    writer.runtime.slept.clear()
    writer.add("x")
    assert sum(writer.runtime.slept) > LEASE * 0.9
    assert not reader.known("x")


@always_signed
def test_an_add_whose_answer_was_lost_may_be_sent_again(fleet: Fleet, redis_server: RedisServer) -> None:
    process = fleet()
    process.rebuild(["a"])
    assert process.wire
    whole = process.wire.send

    async def send_scripts_twice(*calls: Call) -> list[Reply]:
        if isinstance(calls[0], ScriptCall):
            await whole(*calls)
        return await whole(*calls)

    process.wire.send = send_scripts_twice  # type: ignore[method-assign]  # one test's wire
    process.add("b", "c")
    process.rebuild(["a"])
    assert redis_server.command("LLEN", log_key(redis_server)) == 2
    assert not any(process.absent(item) for item in ("a", "b", "c"))
    assert process.absent("x")
    assert process.info().count == 3


def test_a_signed_filter_lives_on_one_master_of_a_cluster(cluster_url: str) -> None:
    use_it_from_two_sides(cluster_url)


def test_a_signed_filter_lives_on_one_of_several_plain_nodes(ring: RingOfServers) -> None:
    use_it_from_two_sides(ring.url())


def use_it_from_two_sides(url: str) -> None:
    with CacheGuard(url, secret=SECRET) as here, CacheGuard(url, secret=SECRET) as there:
        ours, theirs = here.bloom("ids", capacity=1000), there.bloom("ids", capacity=1000)
        assert ours.ensure(range(100)) == theirs.ensure(range(5)) == "complete"
        assert not any(ids.absent(row) for ids in (ours, theirs) for row in (5, 99))
        assert theirs.absent("nobody")
        ours.add("somebody")
        assert not theirs.absent("somebody")
        theirs.rebuild(range(100))
        assert ours.absent("nobody")
        assert not ours.absent("somebody")


@pytest.fixture
def short_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed, "MOST_LOGGED", 1500)
    monkeypatch.setattr(signed_rebuild, "LOG_LENGTH", 1000)


@always_signed
@pytest.mark.usefixtures("short_log")
def test_what_is_added_moves_from_the_log_into_the_bits(fleet: Fleet, redis_server: RedisServer) -> None:
    here, there = fleet(), fleet()
    here.add("a")
    there.add("b")
    for start in range(0, 4000, 400):
        here.add(*range(start, start + 400))
    assert 1000 <= redis_server.command("LLEN", log_key(redis_server)) < 1900
    assert 3900 <= here.info().count <= 4002
    here.mark_complete()
    for start in range(4000, 6000, 400):
        there.add(*range(start, start + 400))
    there.mark_complete()
    assert redis_server.command("LLEN", log_key(redis_server)) < 1900
    for process in (here, there, fleet()):
        assert not any(process.absent(row) for row in ("a", "b", *range(6000)))
        assert sum(process.absent(f"x{number}") for number in range(1000)) > 990
    # Old bits are removed, and what was added last comes along.
    assert len({key.split(":")[3] for key in chunk_keys(redis_server)}) == 1
    there.rebuild(["z"])
    assert not any(there.absent(row) for row in range(5100, 6000))
    assert there.absent(0)


@always_signed
@pytest.mark.usefixtures("short_log")
def test_a_log_stays_long_while_somebody_rebuilds_and_an_add_does_not_fail_of_it(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    here, there = fleet(), fleet()
    here.rebuild(["a"])

    def rows() -> Iterator[str]:
        yield "a"
        there.add(*range(2000))
        assert redis_server.command("LLEN", log_key(redis_server)) == 2000

    here.rebuild(rows())
    assert redis_server.command("LLEN", log_key(redis_server)) == 1000
    assert not any(process.absent(row) for process in (here, there, fleet()) for row in range(2000))
    assert there.absent("x")


@always_signed
@pytest.mark.usefixtures("short_log")
def test_forged_bits_are_not_made_good_by_moving_the_log_into_them(
    fleet: Fleet, clock: Clock, redis_server: RedisServer
) -> None:
    here, there = fleet(), fleet()
    here.rebuild(["a"])
    clear_the_bits(redis_server)
    there.add(*range(2000))
    assert redis_server.command("LLEN", log_key(redis_server)) == 2000
    clock.advance(LEASE)
    assert not any(process.absent("a") for process in (there, fleet()))
    assert there.events.bloom_losses == 1


@always_signed
def test_adds_of_several_processes_at_once_are_all_in_the_filter(fleet: Fleet) -> None:
    processes = [fleet() for _ in range(4)]
    processes[0].rebuild(["a"])
    for number in range(30):
        for each, process in enumerate(processes):
            process.add(f"{each} {number}")
    rows = [f"{each} {number}" for each in range(4) for number in range(30)]
    for process in (*processes, fleet()):
        assert not any(process.absent(row) for row in rows)
        assert process.absent("x")


def test_a_guard_with_a_secret_signs_its_filters(redis_url: str, redis_server: RedisServer) -> None:
    with CacheGuard(redis_url, secret=[SECRET, OTHER]) as guard, CacheGuard(redis_url, secret=OTHER) as stranger:
        users = guard.bloom("users", capacity=100)
        users.rebuild([1, 2])
        assert users.absent(3)
        assert not stranger.bloom("users", capacity=100).absent(3)
        assert stranger.stats().bloom_losses == 1
        assert hget(redis_server, "layers").startswith("signed")
        assert "secret of" not in repr(guard)
