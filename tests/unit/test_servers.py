"""URLs and clients as places to connect to; telling one server from another."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio
import redis.connection
import redis.sentinel

from cacheguard.errors import ConfigurationError
from cacheguard.runtime.sentinel import BlockingFinder
from cacheguard.runtime.servers import Identity, facts_of, pools


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:s3cr3t?s3cr3t@a",
        "redis://me:x@s3cr3t#s3cr3t@a",
        "redis://me:12?s3cr3t@a:1",
        "redis+sentinel://u:s3cr3t@a:1,b:2",
        "redis+sentinel://u:s3cr3t@a:1,b:2/service/x",
        "redis+sentinel://u:s3cr3t@a:99999/service",
        "redis+sentinel://u:s3cr3t@a:x/service",
        "redis+sentinel://u:s3cr3t@/service",
        "redis+sentinel://u:s3cr3t@a/service?x=1",
        "redis+cluster://u:s3cr3t@a:1,b:2/1",
        "redis+cluster://:s3cr3t@a:1,,b",
        "redis+cluster://:s3cr3t@",
        "redis://:s3cr3t@a:1,b:2/0",
        "redis://:s3cr3t@a/db",
        "http://:s3cr3t@a/0",
        "redis+sentinel:/:s3cr3t@a",
        "redis+cluster://a/?password=s3cr3t",
    ],
)
def test_a_url_that_cannot_work_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^url ") as error:
        pools(url, None, None)
    assert "s3cr3t" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_sentinel_url_says_who_is_asked_and_for_what() -> None:
    place, aplace, memory = pools("redis+sentinel://us%40er:p%3Ass@one:1,[::1]:2,three/main/4", None, None)
    assert not memory
    assert place is not None
    assert aplace is not None
    for each in (place, aplace):
        settings = each.connection_kwargs
        assert (settings["username"], settings["password"], settings["db"]) == ("us@er", "p:ss", 4)
        finder = settings["connection_pool"]
        asked = [(one.connection_kwargs["host"], one.connection_kwargs["port"]) for one in finder.places]
        assert asked == [("one", 1), ("::1", 2), ("three", 26379)]
        assert finder.service == "main"


def test_a_cluster_url_says_whom_to_ask_first() -> None:
    place, aplace, _ = pools("redis+cluster://:word@one:1,two", None, None)
    assert place is not None
    assert aplace is not None
    assert place.nodes == aplace.nodes == (("one", 1), ("two", 6379))
    assert place.connection_kwargs["password"] == "word"
    assert "username" not in place.connection_kwargs


def test_what_an_asyncio_client_was_given_serves_threads_too() -> None:
    client = redis.asyncio.Redis(host="there", port=7, username="u", password="p", ssl=True, ssl_cert_reqs="none")
    _, aplace, _ = pools(None, None, client)
    assert aplace is not None
    twin = aplace.twin()
    connection = twin.connection_class(**twin.connection_kwargs)
    assert type(connection) is redis.connection.SSLConnection
    assert (connection.host, connection.port, connection.username, connection.password) == ("there", 7, "u", "p")


def test_an_asyncio_client_of_sentinels_serves_threads_too() -> None:
    _, aplace, _ = pools("redis+sentinel://:p@one:1/main", None, None)
    assert aplace is not None
    twin = aplace.twin()
    assert twin.connection_class is redis.sentinel.SentinelManagedConnection
    assert isinstance(twin.connection_kwargs["connection_pool"], BlockingFinder)
    assert twin.connection_kwargs["password"] == "p"


@pytest.mark.parametrize(("client", "aclient"), [(object(), None), (None, object()), (redis.asyncio.Redis(), None)])
def test_what_is_no_client_of_that_kind_is_named(client: Any, aclient: Any) -> None:
    with pytest.raises(ConfigurationError, match="client"):
        pools(None, client, aclient)


def test_a_change_is_told_once() -> None:
    told: list[int] = []
    identity = Identity(lambda: told.append(identity.generation))
    assert identity.tell("", ("run", "history", "master")) == 0
    assert identity.tell("", None) == 0
    assert identity.tell("elsewhere", ("other", "history", "master")) == 0
    assert identity.tell("", ("run", "history", "master")) == 0
    assert identity.tell("", ("new", "history", "master")) == 1
    assert identity.tell("", ("new", "history", "master")) == 1
    assert told == [0]


def test_a_server_that_does_not_tell_is_unknown() -> None:
    told = (b"# Server\r\nrun_id:ab12\r\n", b"role:master\r\nmaster_replid:cd34\r\n")
    assert facts_of(*told) == ("ab12", "cd34", "master")
    assert facts_of(told[0], None) is None
    assert facts_of(b"", b"") is None
