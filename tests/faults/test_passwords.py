"""No password is ever said: not in a log, not in an error or its causes, not by an object about itself."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import redis
import redis.asyncio
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError
from cacheguard.operations.cli import commands
from tests.support.redis_server import RedisServer, is_free

MARK = "zq7"  # at both ends and in the middle of every password: even a piece of one is found
NOWHERE = "nowhere.invalid"
SHORT = 0.1  # seconds that Redis has to answer

hostile = st.text(alphabet="@:/#?%&=+;,[]{}()<>|\\'\"` \t\n$*~^é€ß\U0001f600\u202e\ud800\x00\x7fabcXYZ019", max_size=5)
passwords = st.builds(lambda a, b: f"{MARK}{a}{MARK}{b}{MARK}", hostile, hostile)


@pytest.fixture(scope="module")
def locked(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server that knows nobody by the passwords below."""
    redis_server.reset()
    redis_server.command("CONFIG", "SET", "requirepass", "another")
    yield redis_server
    with redis.Redis(port=redis_server.port, password="another") as client:
        client.config_set("requirepass", "")


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's name server is waited for."""
    ask = socket.getaddrinfo

    def asked(host: str, *args: Any, **options: Any) -> Any:
        if host == NOWHERE:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ask(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", asked)


class Ear(logging.Handler):
    """Hears all loggers, whatever they say."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard += [record.getMessage(), repr(record.args), repr(record.exc_info)]
        if record.exc_info and record.exc_info[1] is not None:
            self.heard += told(record.exc_info[1])


def told(error: BaseException | None) -> list[str]:
    """Whatever an exception and all that it came from can be made to say."""
    texts: list[str] = []
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        texts += [str(one), repr(one), repr(one.args), *traceback.format_exception(one)]
        left += [one.__cause__, one.__context__]
    return texts


def everything_said(make: Callable[[], CacheGuard]) -> tuple[list[str], str]:
    """All that is to be read anywhere while a guard is made and used through both doors; and how that ended."""
    ear, root = Ear(), logging.getLogger()
    names = ["", "cacheguard", "asyncio", "redis", "concurrent.futures", "push_response"]
    levels = {name: logging.getLogger(name).level for name in names}
    root.addHandler(ear)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    texts: list[str] = []
    outcome = "served"
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                texts += use(make)
            except ConfigurationError as error:
                outcome = "refused"
                texts += told(error)
            texts += [str(each.message) for each in warned]
    finally:
        root.removeHandler(ear)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    return texts + ear.heard, outcome


def use(make: Callable[[], CacheGuard]) -> list[str]:
    texts: list[str] = []
    with make() as guard:
        texts += [repr(guard), str(guard), repr(guard.bloom("b", capacity=9))]
        assert guard.get_or_set("k", lambda: "loaded") == "loaded"
        guard.invalidate("k")
        for act in (guard.scan, lambda: guard.bloom("b", capacity=9).add(1)):
            try:
                act()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is read
                texts += told(error)
        texts += [repr(guard.inspect("k")), repr(guard.stats())]
        texts += [repr(each) for each in vars(guard).values()]
        texts += [repr(each) for each in vars(vars(guard)["_hub"]).values()]

    async def loaded() -> str:
        return "loaded"

    async def running() -> None:
        async with make() as guard:
            assert await guard.aget_or_set("k", loaded) == "loaded"
            await guard.ainvalidate("k")
            try:
                await guard.ascan()
            except Exception as error:  # noqa: BLE001 - as above
                texts.extend(told(error))

    asyncio.run(running())
    return texts


def assert_unsaid(texts: list[str], password: str) -> None:
    assert texts
    forms = {MARK, MARK.upper(), password, quote(password, safe="", errors="replace"), repr(password)}
    leaks = [text for text in texts if any(form in text for form in forms)]
    assert not leaks, leaks[:3]


URLS = [
    "redis://user:{}@{}/0",
    "redis://:{}@{}",
    "redis://{}?password={}",
    "redis://user@{}?client_name=x&password={}&socket_keepalive=yes",
    "rediss://user:{}@{}/0",
    "rediss://{}?ssl_password={}",
    "unix://user:{}@/tmp/nowhere.sock",
    "redis+sentinel://user:{}@{}/main/0",
    "redis+sentinel://{}/main?sentinel_password={}",
    "redis+sentinel://user:{}@{}/main?sentinel_username=x&sentinel_password={}",
    "rediss+sentinel://user:{}@{}/main",
    "redis+cluster://user:{}@{}",
    "redis+cluster://{}?password={}",
    "rediss+cluster://user:{}@{}",
    "redis+ring://user:{}@{}",
    "redis+ring://{}?on_dead=move&password={}",
    # Those that cannot work.
    "redis://user:{}@{}/x",
    "redis://user:{}@{}:99999",
    "redis://user:{}@{}?no_such_option={}",
    "redis://user:{}@{}?{}",
    "redis://user:{}{}",
    "redis+sentinel://user:{}@{}",
    "redis+cluster://user:{}@{}/1",
    "redis+ring://user:{}@{}/x",
    "redis+ring://{}?password={}&on_dead={}",
    "redis+ring://user:{}",
    "http://user:{}@{}/0",
    "user:{}@{}",
    "redis:/user:{}@{}",
]


def fill_in(form: str, password: str, host: str) -> str:
    """*form* with a host where one belongs: behind an '@' or at the beginning; passwords elsewhere."""
    pieces = form.split("{}")
    url = pieces[0]
    for before, after in itertools.pairwise(pieces):
        url += (host if before.endswith(("@", "://")) and not after.startswith("@") else password) + after
    return url


@pytest.mark.parametrize("form", URLS)
def test_a_form_has_both(form: str) -> None:
    url = fill_in(form, "PW", "HOST")
    assert "PW" in url
    assert "HOST" in url or "unix" in url or url in ("redis://user:PWPW", "redis+ring://user:PW")


def places(server: RedisServer) -> dict[str, str]:
    closed = next(port for port in range(19_000, 19_999) if is_free(port))
    return {"locked": f"127.0.0.1:{server.port}", "down": f"127.0.0.1:{closed}", "unknown": f"{NOWHERE}:6379"}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(URLS),
    password=passwords,
    where=st.sampled_from(["locked", "down", "unknown"]),
    encoded=st.booleans(),
)
@example(form=URLS[0], password=f"{MARK}@{MARK}:{MARK}", where="locked", encoded=True)
@example(form=URLS[0], password=f"{MARK}@{MARK}", where="locked", encoded=False)
@example(form=URLS[2], password=f"{MARK}@{MARK}", where="locked", encoded=False)
@example(form=URLS[2], password=f"{MARK}&{MARK}={MARK}", where="down", encoded=False)
@example(form=URLS[8], password=f"{MARK}€{MARK}", where="locked", encoded=True)
@example(form=URLS[0], password=f"{MARK}\u2100{MARK}", where="locked", encoded=False)
def test_no_password_of_a_url_is_ever_said(
    locked: RedisServer, form: str, password: str, where: str, *, encoded: bool
) -> None:
    # Without a host, what stands behind an '@' is one, whatever it was meant to be.
    hostless = form in ("redis://user:{}{}", "redis+ring://user:{}")
    assume(encoded or not hostless or "@" not in password)
    in_query = form.index("{}") > form.find("?") > 0
    written = password
    if encoded:
        written = (quote_plus if in_query else quote)(password, safe="", errors="surrogatepass")
    if form.startswith("rediss") and where == "locked":
        where = "down"  # to wait for a handshake with what speaks no TLS takes its time, and is tested elsewhere
    url = fill_in(form, written, places(locked)[where])
    texts, outcome = everything_said(lambda: CacheGuard(url, operation_timeout=SHORT))
    assert_unsaid(texts, password)
    if encoded and URLS.index(form) < 16 and "\ud800" not in password and "ssl_password" not in form:
        assert outcome == "served", texts


@pytest.mark.parametrize("password", [f"{MARK}@:{MARK}", f"{MARK}é\ud800{MARK}", f"{MARK}€{MARK}"])
def test_no_password_of_a_client_is_ever_said(locked: RedisServer, password: str) -> None:
    def make() -> CacheGuard:
        settings = {"username": "user", "password": password, "encoding": "latin-1"}
        client = redis.Redis(port=locked.port, **settings)  # type: ignore[arg-type]  # redis-py's own
        aclient = redis.asyncio.Redis(port=locked.port, **settings)  # type: ignore[arg-type]  # redis-py's own
        return CacheGuard(client=client, aclient=aclient, operation_timeout=SHORT)

    texts, outcome = everything_said(make)
    assert_unsaid(texts, password)
    assert (outcome == "refused") is (not password.isascii())


def test_a_missing_password_is_named_as_the_reason(locked: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with CacheGuard(locked.url, operation_timeout=SHORT) as guard:
        assert guard.get_or_set("k", lambda: "loaded") == "loaded"
    assert "Authentication required" in caplog.text


def test_no_secret_that_signs_is_ever_said(locked: RedisServer) -> None:
    secret = f"{MARK}0123456789abcdef{MARK}"
    for given_secret in (secret.encode(), [secret.encode()] * 2):
        texts, _ = everything_said(partial(CacheGuard, locked.url, secret=given_secret))
        assert_unsaid(texts, secret)
    wrongs: list[Any] = [secret, [secret], secret.encode()[:15], [MARK.encode()], {MARK: MARK}, [b""]]
    for wrong in wrongs:
        texts, outcome = everything_said(partial(CacheGuard, locked.url, secret=wrong))
        assert outcome == "refused"
        assert_unsaid(texts, secret)


@pytest.mark.parametrize("command", [["inspect", "k"], ["acl"]])
def test_no_command_says_a_password(locked: RedisServer, command: list[str]) -> None:
    for address in places(locked).values():
        for url in (f"redis://user:{MARK}%40@{address}/0", f"redis://user:{MARK}@{MARK}/@{address}/0"):
            result = CliRunner().invoke(commands, [*command, "--url", url])
            assert_unsaid([result.output, *told(result.exception)], MARK)


def test_a_guard_says_where_it_is() -> None:
    for url, said in [
        ("memory://", "memory://"),
        (f"redis://user:{MARK}@one/3", "redis://one:6379/3"),
        (f"rediss://:{MARK}@[::1]:7", "rediss://[::1]:7/0"),
        ("unix:///run/redis.sock?db=3", "unix:///run/redis.sock"),
        (f"redis+sentinel://:{MARK}@one:1,two/main/2", "redis+sentinel://one:1,two:26379/main/2"),
        (f"rediss+cluster://:{MARK}@one:1,two", "rediss+cluster://one:1,two:6379"),
    ]:
        with CacheGuard(url, namespace="shop") as guard:
            assert repr(guard) == f"<CacheGuard 'shop' at {said}>"
            assert repr(guard.namespace("eu")) == f"<CacheGuard 'shop/eu' at {said}>"
