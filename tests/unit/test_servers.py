"""URLs and clients as places to connect to; telling one server from another."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.connection
import redis.sentinel
import trustme
from cryptography.hazmat.primitives import serialization

from cacheguard.client.finders import BlockingFinder
from cacheguard.errors import ConfigurationError
from cacheguard.servers.lending import pools


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
        "redis+cluster://a/?pasword=s3cr3t",
        "redis+cluster://a?password=s3cr3t&s3cr3t=1",
        "redis+cluster://a?password=s3cr3t&db=0",
        "redis://a:1/0?password=x@s3cr3t",
        "redis://a:1/0?pass%77ord=s3cr3t&db=x",
        "redis://a:1/0?password=s3cr3t#s3cr3t",
        "redis://:s3cr3t",
        "redis://me:s3cr3t/0",
        "redis://me:s3cr3t%@a/x",
        "redis://me:s3cr3t%ff@a/0",
        "redis://me:s3cr3t @a/0",
        "redis://me:s3cr3t\ud800@a/0",
        "redis+cluster://me:s3cr3t[@a/0",
        "redis+cluster://me:s3cr3t\u2100@a/0",
        "unix://me:s3cr3t@host/path.sock",
        "unix://me:s3cr3t/s3cr3t@/path.sock",
        "rediss+sentinel://a/main?sentinel_password=s3cr3t&protocol=s3cr3t",
    ],
)
def test_a_url_that_cannot_work_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^url ") as error:
        pools(url, None, None)
    assert "s3cr3t" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("url", [b"redis://u:s3cr3t@a", ["redis://u:s3cr3t@a"], {"redis://u:s3cr3t@a": 1}])
def test_what_is_no_text_is_named_without_what_is_in_it(url: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^url ") as error:
        pools(url, None, None)
    assert "s3cr3t" not in str(error.value)


def test_a_sentinel_url_says_who_is_asked_and_for_what() -> None:
    place, aendpoint, memory = pools("redis+sentinel://us%40er:p%3Ass@one:1,[::1]:2,three/main/4", None, None)
    assert not memory
    assert place is not None
    assert aendpoint is not None
    for each in (place, aendpoint):
        settings = each.connection_kwargs
        assert (settings["username"], settings["password"], settings["db"]) == ("us@er", "p:ss", 4)
        finder = settings["connection_pool"]
        asked = [(one.connection_kwargs["host"], one.connection_kwargs["port"]) for one in finder.endpoints]
        assert asked == [("one", 1), ("::1", 2), ("three", 26379)]
        assert finder.service == "main"


def test_a_cluster_url_says_whom_to_ask_first() -> None:
    place, aendpoint, _ = pools("redis+cluster://:word@one:1,two", None, None)
    assert place is not None
    assert aendpoint is not None
    assert place.nodes == aendpoint.nodes == (("one", 1), ("two", 6379))
    assert place.connection_kwargs["password"] == "word"
    assert "username" not in place.connection_kwargs


ALL_PLAIN = "client_name=shop&protocol=3&socket_keepalive=no&socket_read_size=9&max_connections=3&lib_name=x"


@pytest.mark.parametrize("scheme", ["redis://one:1/2", "redis+sentinel://one:1/main/2", "redis+cluster://one:1"])
def test_every_url_takes_the_options_of_redis_py(scheme: str) -> None:
    for place in pools(f"{scheme}?{ALL_PLAIN}", None, None)[:2]:
        assert place is not None
        settings = place.connection_kwargs
        assert settings["client_name"] == "shop"
        assert (settings["protocol"], settings["socket_keepalive"], settings["socket_read_size"]) == (3, False, 9)


def test_with_tls_every_url_leads_to_connections_with_tls() -> None:
    for url in ("rediss://one", "rediss+sentinel://one/main", "rediss+cluster://one", "REDISS://one"):
        for place in pools(f"{url}?ssl_min_version=TLSv1_3&ssl_check_hostname=yes", None, None)[:2]:
            assert place is not None
            assert place.tls
            settings = place.connection_kwargs
            assert settings["ssl_min_version"] is ssl.TLSVersion.TLSv1_3
            assert settings["ssl_check_hostname"] is True
            for asked in getattr(settings.get("connection_pool"), "endpoints", ()):
                assert asked.tls
                assert asked.connection_kwargs["ssl_min_version"] is ssl.TLSVersion.TLSv1_3
    for url in ("redis://one", "redis+sentinel://one/main", "redis+cluster://one", "unix:///one"):
        place = pools(url, None, None)[0]
        assert place is not None
        assert not place.tls


def test_sentinels_have_credentials_of_their_own() -> None:
    url = "redis+sentinel://shop:w%40ter@one:1/main?sentinel_username=watcher&sentinel_password=s%26p"
    for place in pools(url, None, None)[:2]:
        assert place is not None
        settings = place.connection_kwargs
        assert (settings["username"], settings["password"]) == ("shop", "w@ter")
        (asked,) = settings["connection_pool"].endpoints
        assert (asked.connection_kwargs["username"], asked.connection_kwargs["password"]) == ("watcher", "s&p")
    place = pools("redis+sentinel://shop:w%40ter@one:1/main", None, None)[0]
    assert place is not None
    (asked,) = place.connection_kwargs["connection_pool"].endpoints
    assert asked.connection_kwargs.keys() == {"protocol", "host", "port"}


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://a?soket_timeout=1", "'soket_timeout'"),
        ("redis+sentinel://a/main?x=1", "'x'"),
        ("redis+cluster://a?x=1", "'x'"),
        ("redis://a?ssl_ca_certs=/x", "ssl_ca_certs"),
        ("redis+sentinel://a/main?ssl_cert_reqs=none", "ssl_cert_reqs"),
        ("redis+cluster://a?ssl_cert_reqs=none", "ssl_cert_reqs"),
        ("redis://a?sentinel_password=x", "sentinel_password"),
        ("redis+cluster://a?sentinel_username=x", "sentinel_username"),
        ("redis+cluster://a?db=1", "numbered databases"),
        ("redis://a?protocol=4", "protocol must be a whole number from 2 to 3, got '4'"),
        ("redis://a?socket_keepalive=maybe", "socket_keepalive must be 'yes' or 'no', got 'maybe'"),
        ("redis://a?socket_timeout=nan", "socket_timeout"),
        ("redis://a?db=-1", "db"),
        ("redis://a?client_name=", "client_name must be a text, got ''"),
        ("redis://a?client_name=x&client_name=y", "client_name must be given once"),
        ("rediss://a?ssl_ca_certs=/no/such/file.pem", "ssl_ca_certs must be a file that can be read"),
        ("rediss://a?ssl_ca_path=/no/such", "ssl_ca_path must be a directory"),
        ("rediss://a?ssl_certfile=/no/such/file.pem", "ssl_certfile"),
        ("rediss://a?ssl_ca_data=x", "ssl_ca_data"),
        ("rediss://a?ssl_cert_reqs=sometimes", "ssl_cert_reqs must be 'required' or 'optional' or 'none'"),
        ("rediss://a?ssl_check_hostname=nope", "ssl_check_hostname"),
        ("rediss://a?ssl_min_version=TLSv9", "ssl_min_version"),
        ("rediss://a?ssl_ciphers=none-such", "ssl_ciphers"),
        ("rediss://a?ssl_include_verify_flags=X", "ssl_include_verify_flags"),
        ("redis://a?client_name=%ff", "UTF-8"),
        ("redis://%ff@a", "UTF-8"),
        ("unix://host/path", "unix://"),
        ("unix://", "unix://"),
        ("redis://a:0", "redis://"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_its_name(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^url ") as error:
        pools(url, None, None)
    assert named in str(error.value)


def test_files_that_hold_no_certificates_are_refused_when_the_guard_is_built(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing of that kind")
    for option in ("ssl_ca_certs", "ssl_certfile"):
        with pytest.raises(ConfigurationError, match=option):
            pools(f"rediss://a?{option}={wrong}", None, None)
    with pytest.raises(ConfigurationError, match="ssl_keyfile must have an ssl_certfile"):
        pools(f"rediss://a?ssl_keyfile={wrong}", None, None)


def test_a_key_is_never_asked_for_on_the_terminal(tmp_path: Path) -> None:
    signed = trustme.CA().issue_cert("a")
    certificate, key = tmp_path / "a.pem", tmp_path / "a.key"
    signed.cert_chain_pems[0].write_to_path(certificate)
    locked = serialization.BestAvailableEncryption(b"l0cked")
    private = serialization.load_pem_private_key(signed.private_key_pem.bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(*form, locked))
    url = f"rediss://a?ssl_certfile={certificate}&ssl_keyfile={key}"
    assert pools(f"{url}&ssl_password=l0cked", None, None)[0] is not None
    for wrong in (url, f"{url}&ssl_password=s3cr3t"):
        with pytest.raises(ConfigurationError, match="ssl_password") as error:
            pools(wrong, None, None)
        assert "s3cr3t" not in str(error.value)


def test_what_an_asyncio_client_was_given_serves_threads_too() -> None:
    client = redis.asyncio.Redis(host="there", port=7, username="u", password="p", ssl=True, ssl_cert_reqs="none")
    _, aendpoint, _ = pools(None, None, client)
    assert aendpoint is not None
    twin = aendpoint.twin()
    connection = twin.connection_class(**twin.connection_kwargs)
    assert type(connection) is redis.connection.SSLConnection
    assert (connection.host, connection.port, connection.username, connection.password) == ("there", 7, "u", "p")


def test_an_asyncio_client_of_sentinels_serves_threads_too() -> None:
    _, aendpoint, _ = pools("redis+sentinel://:p@one:1/main", None, None)
    assert aendpoint is not None
    twin = aendpoint.twin()
    assert twin.connection_class is redis.sentinel.SentinelManagedConnection
    assert isinstance(twin.connection_kwargs["connection_pool"], BlockingFinder)
    assert twin.connection_kwargs["password"] == "p"


@pytest.mark.parametrize(("client", "aclient"), [(object(), None), (None, object()), (redis.asyncio.Redis(), None)])
def test_what_is_no_client_of_that_kind_is_named(client: Any, aclient: Any) -> None:
    with pytest.raises(ConfigurationError, match="client"):
        pools(None, client, aclient)
