"""`redis+ring://`: which nodes, with what weights, and what becomes of the keys of a dead one."""

from __future__ import annotations

import pytest

from cacheguard import CacheGuard
from cacheguard.client.endpoints import Endpoint, RingPlan
from cacheguard.errors import ConfigurationError
from cacheguard.servers.lending import pools


def plan_of(url: str) -> tuple[Endpoint, RingPlan]:
    place, aendpoint, memory = pools(url, None, None)
    assert not memory
    assert place is not None
    assert aendpoint is not None
    assert place.ring is not None
    assert place.ring == aendpoint.ring
    return place, place.ring


def test_a_url_names_nodes_weights_and_who_one_is_there() -> None:
    place, plan = plan_of("redis+ring://us%40er:p%3Ass@One:1,[::1]:2*2,three*0.5/4")
    assert plan.weights == {"one:1": 1.0, "[::1]:2": 2.0, "three:6379": 0.5}
    assert plan.addresses == {"one:1": ("one", 1), "[::1]:2": ("::1", 2), "three:6379": ("three", 6379)}
    assert not plan.moves
    assert plan.also == {}
    settings = place.of("[::1]:2").connection_kwargs
    assert (settings["host"], settings["port"], settings["db"]) == ("::1", 2, 4)
    assert (settings["username"], settings["password"]) == ("us@er", "p:ss")
    assert "us@er" not in repr(plan)


@pytest.mark.parametrize(("query", "moves"), [("", False), ("?on_dead=miss", False), ("?on_dead=move", True)])
def test_it_says_what_becomes_of_the_keys_of_a_dead_node(query: str, moves: bool) -> None:
    assert plan_of(f"redis+ring://a,b/{query}")[1].moves is moves


def test_it_names_the_list_that_others_use_meanwhile() -> None:
    _, plan = plan_of("redis+ring://a,b*2?also=a,b*2,c:7&on_dead=move")
    assert plan.weights == {"a:6379": 1.0, "b:6379": 2.0}
    assert plan.also == {"a:6379": 1.0, "b:6379": 2.0, "c:7": 1.0}
    assert list(plan.addresses) == ["a:6379", "b:6379", "c:7"]
    assert plan.moves


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+ring://:s3cr3t@a,a:6379", "name each node once, got a:6379 twice"),
        ("redis+ring://:s3cr3t@A,a", "name each node once"),
        ("redis+ring://:s3cr3t@a,,b", "must look like redis\\+ring://"),
        ("redis+ring://:s3cr3t@", "must look like"),
        ("redis+ring://:s3cr3t@a:99999", "must look like"),
        ("redis+ring://:s3cr3t@a:0", "must look like"),
        ("redis+ring://:s3cr3t@a*0,b", "weight above 0 and up to 100, got \\*0"),
        ("redis+ring://:s3cr3t@a*101", "weight above 0 and up to 100"),
        ("redis+ring://:s3cr3t@a*-1", "must look like"),
        ("redis+ring://:s3cr3t@a*x", "must look like"),
        ("redis+ring://:s3cr3t@a,b/db", "must look like"),
        ("redis+ring://:s3cr3t@a,b/0/1", "must look like"),
        ("redis+ring://:s3cr3t@a,b?on_dead=wait", "on_dead must be 'miss' or 'move', got 'wait'"),
        ("redis+ring://:s3cr3t@a,b?on_dead=miss&on_dead=move", "must look like"),
        ("redis+ring://:s3cr3t@a,b?dbb=1", "an option that is not known: 'dbb'"),
        ("redis+ring://:s3cr3t@a,b#1", "must look like"),
        ("redis+ring://u:12?on_dead=s3cr3t@a,b", "must look like"),
        ("redis+ring://u:12/s3cr3t@a,b", "must look like"),
        ("redis+ring://u:x@s3cr3t#s3cr3t@a", "must look like"),
        ("redis+ring://:s3cr3t@a,b?also=", "must look like"),
        ("redis+ring://:s3cr3t@a,b?also=c,c", "name each node once, got c:6379 twice"),
        ("redis+ring://:s3cr3t@a,b?also=c*0", "weight above 0"),
    ],
)
def test_a_ring_that_cannot_work_is_named_without_its_password(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as error:
        CacheGuard(url)
    assert "s3cr3t" not in str(error.value)
    assert error.value.__cause__ is None


def test_tls_that_checks_nobody_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    place, _ = plan_of("rediss+ring://:s3cr3t@a,b?ssl_cert_reqs=none")
    assert place.of("a:6379").connection_class.__name__ == "SSLConnection"
    assert [record for record in caplog.records if "does not check who answers" in record.message]
    assert "s3cr3t" not in caplog.text
