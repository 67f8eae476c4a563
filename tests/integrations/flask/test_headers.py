"""An answer that depends on a header, or on the body of a GET, is not another request's answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
from flask import Flask, g, make_response, request

from cacheguard.errors import ConfigurationError
from cacheguard_flask import CacheGuardFlask
from tests.integrations.flask.conftest import MakeApp

View = Callable[[], Any]
ADA, BOB = {"X-Api-Key": "ada"}, {"X-Api-Key": "bob"}


@pytest.fixture
def url() -> str:
    return "memory://"


def answers(app: Flask, *requests: dict[str, Any]) -> list[str]:
    client = app.test_client(use_cookies=False)
    return [client.get("/", **each).get_data(as_text=True) for each in requests]


LOOKS: dict[str, tuple[View, dict[str, Any]]] = {
    "item": (lambda: request.headers["X-Api-Key"] if "x-api-key" in request.headers else "-", {"headers": ADA}),
    "get": (lambda: request.headers.get("x-api-key", "-"), {"headers": ADA}),
    "getlist": (lambda: str(request.headers.getlist("X-Api-Key")), {"headers": ADA}),
    "all": (lambda: str(dict(request.headers).get("X-Api-Key")), {"headers": ADA}),
    "environ": (lambda: request.environ.get("HTTP_X_API_KEY", "-"), {"headers": ADA}),
    "dict": (lambda: str(dict(request.environ).get("HTTP_X_API_KEY")), {"headers": ADA}),
    "unpacked": (lambda: str({**request.environ}.get("HTTP_X_API_KEY")), {"headers": ADA}),
    "copy": (lambda: str(request.environ.copy().get("HTTP_X_API_KEY")), {"headers": ADA}),
    "union": (lambda: str((request.environ | {}).get("HTTP_X_API_KEY")), {"headers": ADA}),
    "into a union": (lambda: str(({} | request.environ).get("HTTP_X_API_KEY")), {"headers": ADA}),
    "names": (lambda: str("HTTP_X_API_KEY" in list(request.environ)), {"headers": ADA}),
    "languages": (lambda: str(request.accept_languages), {"headers": {"Accept-Language": "de"}}),
    "accept": (lambda: str(request.accept_mimetypes.best), {"headers": {"Accept": "text/plain"}}),
    "user agent": (lambda: request.user_agent.string, {"headers": {"User-Agent": "phone"}}),
    "json": (lambda: str(request.get_json(silent=True)), {"json": {"page": 2}}),
    "data": (lambda: request.get_data(as_text=True), {"data": "page 2"}),
    "form": (lambda: request.form.get("page", "-"), {"data": {"page": "2"}}),
    "remote user": (lambda: request.remote_user or "-", {"environ_overrides": {"REMOTE_USER": "ada"}}),
    "kind of login": (lambda: str(request.environ.get("AUTH_TYPE")), {"environ_overrides": {"AUTH_TYPE": "Basic"}}),
    "certificate": (
        lambda: str(request.environ.get("SSL_CLIENT_S_DN")),
        {"environ_overrides": {"SSL_CLIENT_S_DN": "CN=ada"}},
    ),
    "name of the host": (
        lambda: str(request.environ.get("REMOTE_HOST")),
        {"environ_overrides": {"REMOTE_HOST": "ada.example"}},
    ),
    "address": (lambda: str(request.remote_addr), {"environ_overrides": {"REMOTE_ADDR": "10.0.0.9"}}),
    "url": (lambda: request.url, {"query_string": "page=2"}),
    "full path": (lambda: request.full_path, {"query_string": "page=2"}),
    "query": (lambda: str(request.query_string), {"query_string": "page=2"}),
    "environ's query": (lambda: request.environ["QUERY_STRING"], {"query_string": "page=2"}),
    "environ's url": (
        lambda: request.environ["REQUEST_URI"],
        {"environ_overrides": {"REQUEST_URI": "/?page=2"}},
    ),
    "input": (lambda: request.input_stream.read().decode(), {"data": "page 2"}),
    "cookie": (lambda: request.headers.get("Cookie", "-"), {"headers": {"Cookie": "user=ada"}}),
    "environ's cookie": (lambda: request.environ.get("HTTP_COOKIE", "-"), {"headers": {"Cookie": "user=ada"}}),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_was_looked_at_is_not_kept_for_others(app: Flask, extension: CacheGuardFlask, look: str) -> None:
    view, asked = LOOKS[look]
    app.get("/")(extension.cached(60)(view))
    first, plain, again = answers(app, asked, {}, asked)
    assert first == again
    assert plain != first


@pytest.mark.parametrize("look", ["item", "get", "getlist", "environ"])
def test_a_header_that_is_named_is_part_of_the_key(app: Flask, extension: CacheGuardFlask, look: str) -> None:
    runs: list[str] = []

    @app.get("/")
    @extension.cached(60, vary=["x-Api-Key"])
    def view() -> str:
        runs.append(look)
        return str(LOOKS[look][0]())

    ada, bob, again, none = answers(app, {"headers": ADA}, {"headers": BOB}, {"headers": ADA}, {})
    assert ada == again
    assert len({ada, bob, none}) == len(runs) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_headers": True},
        {"ignore_headers": ["Accept-Language", "accept"]},
        {"make_cache_key": lambda: "mine"},
        {"key_prefix": lambda: "mine"},
    ],
)
def test_who_says_what_is_meant_is_believed(app: Flask, extension: CacheGuardFlask, options: dict[str, Any]) -> None:
    @app.get("/")
    @extension.cached(60, **options)
    def view() -> str:
        return f"{request.accept_languages}{request.accept_mimetypes}"

    assert len(set(answers(app, {"headers": {"Accept-Language": "de"}}, {"headers": {"Accept-Language": "en"}}))) == 1


@pytest.mark.parametrize(
    "view",
    [
        lambda: request.host + request.base_url,
        lambda: make_response("x").make_conditional(request),
        lambda: str(request.method),
    ],
)
def test_what_is_part_of_the_key_anyway_may_be_looked_at(app: Flask, extension: CacheGuardFlask, view: View) -> None:
    runs: list[int] = []

    @app.get("/")
    @extension.cached(60)
    def counted() -> Any:
        runs.append(1)
        return view()

    answers(app, {"headers": {"Cookie": "a=b", "Accept": "x"}}, {}, {})
    assert len(runs) == 1


def test_a_choice_made_before_the_view_counts_and_a_log_does_not(app: Flask, extension: CacheGuardFlask) -> None:
    runs: list[str] = []

    @app.before_request
    def before() -> None:
        g.agent = request.headers.get("User-Agent", "")
        if request.path == "/language":
            g.language = request.accept_languages.best_match(["de", "en"])

    def run() -> str:
        runs.append(request.path)
        return str(g.get("language"))

    for path in ("/language", "/plain"):
        app.add_url_rule(path, path, extension.cached(60)(run))
    client = app.test_client()
    asked = [{"Accept-Language": "de"}, {"Accept-Language": "en"}]
    assert [client.get("/language", headers=each).text for each in asked] == ["de", "en"]
    assert [client.get("/plain", headers=each).text for each in asked] == ["None", "None"]
    assert runs == ["/language", "/language", "/plain"]


def test_the_query_that_was_read_before_the_view_counts_and_a_log_does_not(
    app: Flask, extension: CacheGuardFlask, caplog: pytest.LogCaptureFixture
) -> None:
    @app.before_request
    def before() -> None:
        g.url = request.url
        if request.path == "/language":
            g.language = request.args.get("language")

    for path in ("/language", "/plain"):
        app.add_url_rule(path, path, extension.cached(60)(lambda: str(g.get("language"))))
    client = app.test_client()
    assert [client.get(f"/language?language={each}").text for each in ("de", "en")] == ["de", "en"]
    assert [client.get(f"/plain?language={each}").text for each in ("de", "en")] == ["None", "None"]
    assert [each.message for each in caplog.records if "the query" in each.message] == [ANY]
    assert app.extensions["cacheguard"].guard.inspect("view//plain@http://localhost").state == "fresh"


@pytest.mark.parametrize("question", ["unless", "forced_update"])
def test_a_question_about_the_query_is_not_the_views(app: Flask, extension: CacheGuardFlask, question: str) -> None:
    runs: list[int] = []
    options: dict[str, Any] = {question: lambda: "new" in request.args}

    @app.get("/")
    @extension.cached(60, **options)
    def view() -> str:
        runs.append(1)
        return str(len(runs))

    asked = [{"query_string": each} for each in ("a=1", "a=2", "new", "a=3")]
    assert answers(app, *asked) == ["1", "1", "2", "1" if question == "unless" else "2"]


def test_a_function_with_one_key_that_reads_a_header_is_not_kept(app: Flask, extension: CacheGuardFlask) -> None:
    @extension.cached(60, key_prefix="greeting")
    def greeting() -> str:
        return request.headers.get("X-Api-Key", "-")

    app.get("/")(greeting)
    assert answers(app, {"headers": ADA}, {"headers": BOB}) == ["ada", "bob"]


def test_what_a_view_writes_to_the_environment_is_there_for_others(app: Flask, extension: CacheGuardFlask) -> None:
    seen: dict[str, Any] = {}
    inner = app.wsgi_app

    def outer(environ: dict[str, Any], start: Any) -> Any:
        answer = inner(environ, start)
        seen.update(environ)
        return answer

    app.wsgi_app = outer  # type: ignore[assignment,method-assign]

    @app.get("/")
    @extension.cached(60)
    def view() -> str:
        request.environ["shop.seen"] = 1
        request.environ.setdefault("shop.more", 2)
        request.environ.update({"shop.last": 3})
        request.environ |= {"shop.united": 4}
        request.environ.pop("shop.more")
        return "x"

    answers(app, {})
    assert (seen["shop.seen"], seen["shop.last"], seen["shop.united"], "shop.more" in seen) == (1, 3, 4, False)


def test_the_reason_names_the_header_and_the_remedy(
    app: Flask, extension: CacheGuardFlask, caplog: pytest.LogCaptureFixture
) -> None:
    app.get("/")(extension.cached(60)(lambda: request.headers.get("HX-Request", "-")))
    answers(app, {}, {})
    assert [record.message for record in caplog.records if "hx-request" in record.message and "vary=" in record.message]
    with pytest.raises(ConfigurationError, match="ignore_headers must be a list of texts"):
        extension.cached(60, ignore_headers="Accept")(lambda: "x")


def test_settings_of_flask_caching_are_named_in_one_warning(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("moved")
    app.config.update(
        CACHE_TYPE="RedisCache", CACHE_REDIS_URL="redis://x", CACHE_DEFAULT_TIMEOUT=5, CACHE_THRESHOLD=None
    )
    CacheGuardFlask(app)
    app.extensions["cacheguard"].close()
    said = [record.message for record in caplog.records if "Flask-Caching" in record.message]
    assert len(said) == 1
    assert "CACHE_DEFAULT_TIMEOUT (here CACHEGUARD_TTL)" in said[0]
    assert "CACHE_REDIS_URL" in said[0]
    assert "CACHE_THRESHOLD" not in said[0]
    caplog.clear()
    make_app()
    assert not caplog.records
