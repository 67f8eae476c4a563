"""What strangers send."""

from __future__ import annotations

from ast import literal_eval
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask, Response, request, session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from cacheguard import CacheGuard
from cacheguard_flask import CacheGuardFlask
from tests.integrations.flask.conftest import MakeApp
from tests.support.layout import planted
from tests.support.redis_server import RedisServer


def served(app: Flask, path: str = "/", query: str = "", **headers: str) -> str:
    builder = EnvironBuilder(path=path, query_string=query, headers=list(headers.items()))
    return app.test_client().open(builder).get_data(as_text=True)


@pytest.fixture
def echo(app: Flask, extension: CacheGuardFlask) -> Flask:
    @app.get("/")
    @app.get("/<path:path>")
    @extension.cached(query_string=True)
    def view(path: str = "") -> str:
        return repr((request.host, request.scheme, path, list(request.args.items(multi=True))))

    return app


def test_a_made_up_host_changes_nobody_elses_page(echo: Flask) -> None:
    good = served(echo, Host="good.example")
    for host in ("evil.example", "good.example@evil.example", "good.example/", "good.example;GET", "x" * 60_000, "ä"):
        assert served(echo, Host=host) != good
    assert served(echo, Host="good.example") == good


def test_a_path_cannot_pose_as_a_host(echo: Flask) -> None:
    assert served(echo, "/a@http://evil.example", Host="good.example") != served(
        echo, "/a", Host="evil.example@http://good.example"
    )


def test_parameters_given_twice_are_no_others_in_another_order(echo: Flask) -> None:
    """Which of two values a view takes is the view's affair: ``?id=1&id=2`` is not ``?id=2&id=1``."""
    assert served(echo, query="id=1&id=2") != served(echo, query="id=2&id=1")
    assert served(echo, query="id=1&x=0&id=2") == served(echo, query="x=0&id=1&id=2")
    assert served(echo, query="a=1%26b%3D2") != served(echo, query="a=1&b=2")
    assert served(echo, query="a=&b=") != served(echo, query="a&b=1")


def test_a_huge_query_makes_a_short_key(make_app: MakeApp, redis_server: RedisServer, redis_url: str) -> None:
    extension = CacheGuardFlask()
    app = make_app(extension, url=redis_url)

    @app.get("/<path:path>")
    @extension.cached(query_string=True)
    def view(path: str) -> str:
        return "a"

    query = "&".join(f"p{number}={'x' * 100}" for number in range(900))
    for path in ("a" * 50_000, "ä/{}%:", "a%00b", "%0d%0a"):
        client = app.test_client()
        assert client.get(quote(f"/{path}", safe="%/"), query_string=query).status_code in (200, 404)
    assert all(len(key) < 300 for key in redis_server.command("KEYS", "*"))


def test_headers_cannot_be_smuggled_through_the_cache(app: Flask, extension: CacheGuardFlask) -> None:
    @app.get("/")
    @extension.cached(vary=["X-Mode"])
    def view() -> str:
        return request.headers.get("X-Mode", "none")

    assert served(app, **{"X-Mode": "a;x-mode=b"}) == "a;x-mode=b"
    assert served(app, **{"X-Mode": "a"}) == "a"
    assert served(app, **{"X-Mode": "a,b"}) == "a,b"
    assert served(app) == "none"


@pytest.mark.parametrize(
    "junk",
    [
        ("cacheguard_flask:page:1", "200 OK", "no list", b"x"),
        ("cacheguard_flask:page:2", "200 OK", [], b"x"),
        ("cacheguard_flask:abort:1", 999, None),
        ("cacheguard_flask:abort:1", True, None),
    ],
)
def test_what_is_no_page_is_not_taken_for_one(app: Flask, extension: CacheGuardFlask, junk: Any) -> None:
    from cacheguard_flask.pages import is_stored_page

    assert not is_stored_page(junk)


def test_two_who_come_at_once_never_meet_each_others_pages(app: Flask, extension: CacheGuardFlask) -> None:
    @app.get("/session")
    @extension.cached()
    def of_session() -> str:
        return f"page of {session['name']}"

    @app.get("/cookie")
    @extension.cached()
    def of_cookie() -> str:
        return f"page of {request.cookies['name']}"

    @app.get("/authorized")
    @extension.cached()
    def of_header() -> str:
        return f"page of {request.authorization.username if request.authorization else ''}"

    @app.get("/set")
    @extension.cached()
    def setting() -> Response:
        response = Response(f"page of {request.headers['X-Name']}")
        response.set_cookie("for", request.headers["X-Name"])
        return response

    @app.get("/keyed")
    @extension.cached(make_cache_key=lambda: f"keyed:{session['name']}", ignore_credentials=True)
    def keyed() -> str:
        return f"page of {session['name']}"

    @app.get("/public")
    @extension.cached()
    def public() -> str:
        return "page of everybody"

    paths = ["/session", "/cookie", "/authorized", "/set", "/keyed", "/public"]

    def crossed(number: int) -> int:
        name = ("ann", "bob")[number % 2]
        client = app.test_client()
        client.set_cookie("name", name)
        with client.session_transaction() as held:
            held["name"] = name
        wrong = 0
        for path in paths * 10:
            auth = (name, "x") if path == "/authorized" else None
            answer = client.get(path, headers={"X-Name": name}, auth=auth)
            wrong += answer.text != f"page of {'everybody' if path == '/public' else name}"
        return wrong

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(crossed, range(16))) == 0  # of 960 requests


def test_an_unreadable_entry_is_a_miss(make_app: MakeApp, redis_server: RedisServer, redis_url: str) -> None:
    extension = CacheGuardFlask()
    app = make_app(extension, url=redis_url, l1=False)
    runs: list[int] = []

    @app.get("/")
    @extension.cached()
    def view() -> str:
        runs.append(1)
        return "page"

    assert served(app) == "page"
    for key in redis_server.entries():
        redis_server.command("SET", key, planted(b"garbage"))
    assert served(app) == "page"
    assert len(runs) == 2


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(["/", "/a", "/a/b", "/a;b", "/a@http://h"]),
            st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2", ""])), max_size=3),
            st.sampled_from(["h", "h:81", "i"]),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_every_request_gets_its_own_page(
    echo_in_memory: Flask, requests: list[tuple[str, list[tuple[str, str]], str]]
) -> None:
    for path, query, host in requests:
        text = "&".join(f"{name}={value}" for name, value in query)
        said = served(echo_in_memory, path, text, Host=host)
        got_host, _, got_path, got_query = literal_eval(said)
        assert (got_host, got_path) == (host, path[1:])
        for name in "ab":
            assert [v for k, v in got_query if k == name] == [v for k, v in query if k == name]


@pytest.fixture
def echo_in_memory(make_app: MakeApp) -> Flask:
    extension = CacheGuardFlask()
    app = make_app(extension)

    @app.get("/")
    @app.get("/<path:path>")
    @extension.cached(query_string=True)
    def view(path: str = "") -> str:
        return repr((request.host, request.scheme, path, list(request.args.items(multi=True))))

    return app


def test_a_stranger_who_writes_to_redis_cannot_put_words_into_our_pages(make_app: MakeApp, redis_url: str) -> None:
    extension = CacheGuardFlask()
    app = make_app(extension, url=redis_url, secret="sixteen bytes or more")

    @app.get("/")
    @extension.cached()
    def view() -> str:
        return "ours"

    with CacheGuard(redis_url, namespace="shop") as stranger:
        stranger.set("view//@http://localhost", "theirs", tags=["cacheguard_flask:pages:view//"])
    assert served(app) == "ours"


def test_what_is_remembered_of_private_pages_is_bounded(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    from cacheguard_flask import passes as module

    monkeypatch.setattr(module, "MOST_PASSES", 10)
    passes = module.Passes()
    for number in range(1000):
        passes.note(f"k{number}")
    assert sum(passes.has(f"k{number}") for number in range(1000)) == 10
    assert passes.has("k999")
    passes.forget("k999")
    assert not passes.has("k999")
