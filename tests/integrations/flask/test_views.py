"""What becomes of a view's answer."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    g,
    jsonify,
    make_response,
    redirect,
    request,
    send_file,
    session,
    stream_with_context,
    url_for,
)
from flask.testing import FlaskClient
from flask.views import MethodView
from werkzeug.exceptions import NotFound

from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard_flask import CacheGuardFlask
from tests.integrations.flask.conftest import MakeApp


class Runs:
    """Counts, and gives every run a number."""

    def __init__(self) -> None:
        self.number = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.number += 1
            return self.number


@pytest.fixture
def runs() -> Runs:
    return Runs()


def texts(app: Flask, *paths: str, **options: Any) -> list[str]:
    client = app.test_client()
    return [client.get(path, **options).get_data(as_text=True) for path in paths]


def whole(client: FlaskClient, path: str) -> tuple[int, str]:
    """Status and body, and the response is done with."""
    response = client.get(path)
    body = response.get_data(as_text=True)
    response.close()
    return response.status_code, body


def test_a_view_runs_once_and_its_answer_is_whole(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @app.get("/<what>")
    @extension.cached()
    def view(what: str) -> Any:
        number = runs()
        answers: dict[str, Callable[[], Any]] = {
            "text": lambda: f"run {number} ä",
            "bytes": lambda: b"\x00\xff",
            "dict": lambda: {"run": number},
            "list": lambda: [number],
            "status": lambda: ("made", 203),
            "headers": lambda: ("made", {"X-Run": str(number)}),
            "both": lambda: ("made", 203, [("X-Run", "1"), ("X-Run", "2")]),
            "response": lambda: Response("a", 200, {"X-Run": "1", "Content-Type": "text/x; charset=utf-8"}),
            "own": lambda: Response("a", "200 Quite Good"),
            "json": lambda: jsonify(run=number),
            "wrapped": lambda: (Response("a"), 203, {"X-Run": "1"}),
            "redirect": lambda: redirect("/elsewhere"),
        }
        return answers[what]()

    client = app.test_client()
    for what in (
        "text",
        "bytes",
        "dict",
        "list",
        "status",
        "headers",
        "both",
        "response",
        "own",
        "json",
        "wrapped",
        "redirect",
    ):
        before = runs.number
        first, second = client.get(f"/{what}"), client.get(f"/{what}")
        assert runs.number == before + 1, what
        assert (first.status, first.get_data(), list(first.headers)) == (
            second.status,
            second.get_data(),
            list(second.headers),
        )


def test_twenty_threads_make_one_run(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    waiting = threading.Barrier(20, timeout=20)
    entered, go = threading.Event(), threading.Event()

    @app.get("/")
    @extension.cached()
    def view() -> str:
        entered.set()
        assert go.wait(20)
        return f"run {runs()}"

    def get(_number: int) -> str:
        client = app.test_client()
        waiting.wait()
        return client.get("/").get_data(as_text=True)

    with ThreadPoolExecutor(20) as threads:
        answers = [threads.submit(get, number) for number in range(20)]
        assert entered.wait(20)
        go.set()
        assert {answer.result() for answer in answers} == {"run 1"}
    assert runs.number == 1


def test_a_query_counts_only_when_asked_for(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @app.get("/without")
    @extension.cached()
    def without() -> str:
        return str(runs())

    @app.get("/with")
    @extension.cached(query_string=True)
    def with_query() -> str:
        return f"{request.args.to_dict(flat=False)} {runs()}"

    assert texts(app, "/without?a=1", "/without?a=2") == ["1", "1"]
    first, again, other = texts(app, "/with?a=1&b=2", "/with?b=2&a=1", "/with?a=2&b=1")
    assert first == again != other


def test_a_page_that_depends_on_a_query_outside_of_its_key_is_not_kept(
    app: Flask, extension: CacheGuardFlask, runs: Runs
) -> None:
    """Else a stranger could choose, by a link, what others get to see."""

    @app.get("/usual")
    @extension.cached()
    def usual() -> str:
        return f"{request.args.get('q')} {runs()}"

    @app.get("/meant")
    @extension.cached(query_string=False)
    def meant() -> str:
        return f"{request.values.get('q')} {runs()}"

    assert texts(app, "/usual?q=evil", "/usual", "/usual") == ["evil 1", "None 2", "None 3"]
    assert texts(app, "/meant?q=a", "/meant?q=b") == ["a 4", "a 4"]


def test_a_view_can_be_called_in_a_request_of_a_test(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @extension.cached()
    def view() -> str:
        return str(runs())

    for _ in range(2):
        with app.test_request_context("/a", headers={"Cookie": "a=b"}):
            assert view() == "1"


def test_pages_of_different_hosts_and_schemes_are_apart(app: Flask, extension: CacheGuardFlask) -> None:
    @app.get("/")
    @extension.cached()
    def view() -> str:
        return url_for("view", _external=True)

    assert texts(app, "/", base_url="http://good.example") == ["http://good.example/"]
    assert texts(app, "/", base_url="http://evil.example") == ["http://evil.example/"]
    assert texts(app, "/", base_url="https://good.example") == ["https://good.example/"]
    assert texts(app, "/", base_url="http://good.example/mounted") == ["http://good.example/mounted/"]
    assert texts(app, "/", base_url="http://good.example") == ["http://good.example/"]


def test_head_is_answered_from_what_get_has_stored_and_stores_nothing(
    app: Flask, extension: CacheGuardFlask, runs: Runs
) -> None:
    @app.get("/")
    @extension.cached()
    def view() -> Response:
        return Response(request.method, headers={"X-Run": str(runs())})

    client = app.test_client()
    assert client.head("/").headers["X-Run"] == "1"
    assert client.get("/").get_data() == b"GET"
    head = client.head("/")
    assert (head.get_data(), head.headers["X-Run"], head.headers["Content-Length"]) == (b"", "2", "3")
    assert runs.number == 2


def test_other_methods_are_cached_only_where_they_are_named(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @app.route("/plain", methods=["GET", "POST"])
    @extension.cached()
    def plain() -> str:
        return f"{request.method} {runs()}"

    @app.route("/search", methods=["GET", "POST"])
    @extension.cached(methods=["GET", "post"], make_cache_key=lambda: "search:" + request.get_data(as_text=True))
    def search() -> str:
        return f"{request.method} {runs()}"

    client = app.test_client()
    assert [client.post("/plain").text, client.post("/plain").text] == ["POST 1", "POST 2"]
    assert client.get("/plain").text == "GET 3"
    assert [client.post("/search", data="a").text for _ in range(2)] == ["POST 4", "POST 4"]
    assert client.post("/search", data="b").text == "POST 5"
    assert client.get("/search", data="a").text == "GET 6"


# Not for everybody


def _of_session(_number: int) -> str:
    return f"hello {session.get('name')}"


def _with_cookie(number: int) -> Response:
    response = make_response(f"run {number}")
    response.set_cookie("id", str(number))
    return response


def _changing(number: int) -> str:
    session["seen"] = number
    return f"run {number}"


def _streamed(number: int) -> Response:
    def chunks() -> Iterator[str]:
        yield "run "
        yield str(number)

    return Response(stream_with_context(chunks()))


def _generator(number: int) -> Iterator[str]:
    return iter([f"run {number}"])


PRIVATE: dict[str, Callable[[int], Any]] = {
    "reads the session": _of_session,
    "changes the session": _changing,
    "reads a cookie": lambda number: f"run {number}{request.cookies.get('user', '')}",
    "sets a cookie": _with_cookie,
    "sets a cookie in a tuple": lambda number: (f"run {number}", {"Set-Cookie": "a=b"}),
    "is private": lambda number: Response(f"run {number}", headers={"Cache-Control": "private, max-age=60"}),
    "says no-store": lambda number: (f"run {number}", {"Cache-Control": "no-store"}),
    "varies by the cookie": lambda number: Response(f"run {number}", headers={"Vary": "Cookie"}),
    "varies by everything": lambda number: Response(f"run {number}", headers={"Vary": "*"}),
    "is a stream": _streamed,
    "is an iterator": _generator,
    "is a file": lambda number: send_file(io.BytesIO(b"run %d" % number), mimetype="text/plain"),
    "is a WSGI app": lambda number: Response(f"run {number}").__call__,
    "is forbidden": lambda _number: abort(403),
    "is not known": lambda _number: abort(401),
    "is a redirect that was raised": lambda _number: abort(redirect("/login")),
    "is not there, in words of its own": lambda number: abort(Response(f"run {number}", 404)),
}


@pytest.mark.parametrize("what", PRIVATE)
def test_an_answer_for_one_is_no_answer_for_another(
    app: Flask, extension: CacheGuardFlask, runs: Runs, what: str
) -> None:
    def plain() -> Any:
        return PRIVATE[what](runs())

    def cached() -> Any:
        return PRIVATE[what](runs())

    app.add_url_rule("/plain", view_func=plain)
    app.add_url_rule("/", view_func=extension.cached()(cached))
    app.extensions["cacheguard"].passes.has = lambda _key: False  # nobody may learn it from the first
    for name in ("ann", "bob"):
        client = app.test_client()
        with client.session_transaction() as held:
            held["name"] = name
        want, got = whole(client, "/plain"), whole(client, "/")
        assert got[0] == want[0]
        if what == "reads the session":
            assert got[1] == want[1] == f"hello {name}"
        elif want[1].startswith("run"):
            assert got[1] == f"run {runs.number}"
    assert runs.number == 4


def test_a_stream_is_passed_on_as_a_stream(app: Flask, extension: CacheGuardFlask) -> None:
    taken: list[int] = []

    @app.get("/")
    @extension.cached()
    def view() -> Response:
        def chunks() -> Iterator[str]:
            for number in range(3):
                taken.append(number)
                yield str(number)

        return Response(chunks())

    response = app.test_client().get("/", buffered=False)
    answer = response.iter_encoded()
    assert next(answer) == b"0"
    assert taken == [0]
    assert b"".join(answer) == b"12"
    response.close()


def test_who_was_looked_up_before_the_view_makes_its_answer_private(app: Flask, extension: CacheGuardFlask) -> None:
    @app.before_request
    def look_up() -> None:
        g.user = session.get("name", "nobody")

    @app.get("/")
    @extension.cached()
    def view() -> str:
        return f"hello {g.user}"

    for name in ("ann", "bob"):
        client = app.test_client()
        with client.session_transaction() as held:
            held["name"] = name
        assert client.get("/").text == f"hello {name}"


def test_a_cookie_that_was_read_before_the_view_makes_its_answer_private(
    app: Flask, extension: CacheGuardFlask
) -> None:
    @app.before_request
    def look_up() -> None:
        g.user = request.cookies.get("user", "nobody")

    @app.get("/")
    @extension.cached()
    def view() -> str:
        return f"hello {g.user}"

    for name in ("ann", "bob"):
        client = app.test_client()
        client.set_cookie("user", name)
        assert client.get("/").text == f"hello {name}"


def test_what_is_done_before_each_view_may_go_on_if_the_key_tells_the_users_apart(
    app: Flask, extension: CacheGuardFlask, runs: Runs
) -> None:
    @app.before_request
    def extend() -> None:
        session.permanent = True

    @app.get("/")
    @extension.cached(make_cache_key=lambda: f"home:{session.get('name')}", ignore_credentials=True)
    def view() -> str:
        return f"hello {session.get('name')} {runs()}"

    for name in ("ann", "bob"):
        client = app.test_client()
        with client.session_transaction() as held:
            held["name"] = name
        first, second = client.get("/"), client.get("/")
        assert first.text == second.text
        assert f"hello {name}" in first.text
        assert "Set-Cookie" in second.headers  # what was done before the view is done before a hit
    assert runs.number == 2


def test_a_view_that_changes_the_session_runs_each_time_whatever_the_key_says(
    app: Flask, extension: CacheGuardFlask, runs: Runs
) -> None:
    @app.get("/")
    @extension.cached(ignore_credentials=True)
    def view() -> str:
        session["run"] = runs()
        return str(session["run"])

    for number in (1, 2):
        response = app.test_client().get("/")
        assert response.text == str(number)
        assert "Set-Cookie" in response.headers


def test_who_waited_for_an_answer_that_turned_out_private_gets_his_own(app: Flask, extension: CacheGuardFlask) -> None:
    together, go = threading.Barrier(6, timeout=20), threading.Event()

    @app.get("/")
    @extension.cached()
    def view() -> str:
        assert go.wait(20)
        return f"hello {session['name']}"

    def get(number: int) -> str:
        client = app.test_client()
        with client.session_transaction() as held:
            held["name"] = str(number)
        together.wait()
        return client.get("/").text

    guard = app.extensions["cacheguard"].guard
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(get, number) for number in range(5)]
        together.wait()
        for _ in range(400):
            if guard.stats().misses >= 5:  # all of them have asked
                break
            threading.Event().wait(0.01)
        go.set()
        assert [answer.result() for answer in answers] == [f"hello {number}" for number in range(5)]


def test_a_cached_answer_to_a_session_says_that_it_varies(app: Flask, extension: CacheGuardFlask) -> None:
    """The lesson of CVE-2023-30861: no proxy behind may take a refreshed session for everybody's."""

    @app.before_request
    def extend() -> None:
        session.permanent = True

    @app.get("/")
    @extension.cached(ignore_credentials=True)
    def view() -> str:
        return "the same for everybody"

    client = app.test_client()
    with client.session_transaction() as held:
        held["name"] = "ann"
    for _ in range(2):
        response = client.get("/")
        assert "Set-Cookie" in response.headers
        assert "Cookie" in response.headers["Vary"]


def test_a_request_with_authorization_goes_past_the_cache(app: Flask, extension: CacheGuardFlask) -> None:
    @app.get("/")
    @extension.cached()
    def view() -> str:
        return f"for {request.authorization.username if request.authorization else 'everybody'}"

    assert texts(app, "/", auth=("ann", "x")) == ["for ann"]
    assert texts(app, "/") == ["for everybody"]
    assert texts(app, "/", auth=("bob", "x")) == ["for bob"]
    assert texts(app, "/") == ["for everybody"]


def test_a_header_may_be_part_of_the_key(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @app.get("/")
    @extension.cached(vary=["Accept-Language"])
    def view() -> Response:
        response = Response(f"{request.headers.get('Accept-Language')} {runs()}")
        response.vary.add("Accept-Language")
        return response

    answers = [texts(app, "/", headers={"Accept-Language": each})[0] for each in ("de", "en", "de")]
    assert answers == ["de 1", "en 2", "de 1"]


def test_a_private_answer_is_not_waited_for_by_others(app: Flask, extension: CacheGuardFlask) -> None:
    """Else requests that concern nobody else would stand in one line."""
    meeting = threading.Barrier(1, timeout=20)

    @app.get("/")
    @extension.cached()
    def view() -> str:
        session["met"] = meeting.wait()
        return "mine"

    texts(app, "/")
    meeting = threading.Barrier(2, timeout=20)  # two are in the view at once, or nobody passes
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(texts, app, "/") for _ in range(2)]
        assert [each.result() for each in both] == [["mine"], ["mine"]]


def test_why_a_view_is_not_cached_is_said_once(
    app: Flask, extension: CacheGuardFlask, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/")
    @extension.cached()
    def home_page() -> str:
        return str(session.get("a"))

    texts(app, "/", "/", "/")
    said = [each.getMessage() for each in caplog.records if "home_page" in each.getMessage()]
    assert len(said) == 1
    assert "the session was read" in said[0]


# Absences and failures


def test_what_is_not_there_is_remembered_and_goes_through_the_apps_error_handler(
    app: Flask, extension: CacheGuardFlask, runs: Runs
) -> None:
    @app.errorhandler(NotFound)
    def handle(error: NotFound) -> Any:
        return f"sorry: {error.description}", 404

    @app.get("/<what>")
    @extension.cached()
    def view(what: str) -> str:
        runs()
        abort(404, f"there is no {what}")

    client = app.test_client()
    for what in ("a", "b", "a", "b"):
        answer = client.get(f"/{what}")
        assert (answer.status_code, answer.text) == (404, f"sorry: there is no {what}")
    assert runs.number == 2
    with app.app_context():
        for_pages = extension.guard.inspect("view//a@http://localhost")
    assert for_pages.ttl_left is not None
    assert for_pages.ttl_left <= 30  # null_ttl, however long pages are kept


def test_absences_are_not_remembered_if_the_policy_says_so(make_app: MakeApp, runs: Runs) -> None:
    extension = CacheGuardFlask()
    app = make_app(extension, null_ttl=None)

    @app.get("/")
    @extension.cached()
    def view() -> str:
        runs()
        abort(410)

    assert [app.test_client().get("/").status_code for _ in range(2)] == [410, 410]
    assert runs.number == 2


@pytest.mark.parametrize("status", [500, 503, 400, 206, 304, 409, 429])
def test_a_status_for_one_request_is_not_kept(app: Flask, extension: CacheGuardFlask, runs: Runs, status: int) -> None:
    @app.get("/")
    @extension.cached()
    def view() -> Any:
        return f"run {runs()}", status

    client = app.test_client()
    assert [client.get("/").status_code for _ in range(2)] == [status, status]
    assert runs.number == 2


def test_a_view_that_fails_is_answered_with_its_older_page(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    broken = False

    @app.get("/")
    @extension.cached()
    def view() -> str:
        if broken:
            abort(503)
        return f"run {runs()}"

    assert texts(app, "/") == ["run 1"]
    broken = True
    with app.app_context():
        extension.guard.expire("view//@http://localhost")
    assert texts(app, "/") == ["run 1"]


def test_an_exception_reaches_the_client_as_without_a_cache(app: Flask, extension: CacheGuardFlask) -> None:
    @app.get("/")
    @extension.cached(error_backoff=None)
    def view() -> str:
        raise LookupError("of the view")

    with pytest.raises(LookupError, match="of the view"):
        app.test_client().get("/")
    app.testing = False
    assert app.test_client().get("/").status_code == 500


def test_where_too_much_is_loading_the_answer_is_503(make_app: MakeApp) -> None:
    extension = CacheGuardFlask()
    app = make_app(extension, max_loads=1, load_wait="50ms")
    entered, go = threading.Event(), threading.Event()

    @app.get("/<what>")
    @extension.cached()
    def view(what: str) -> str:
        entered.set()
        go.wait(20)
        return what

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(texts, app, "/slow")
        assert entered.wait(20)
        refused = app.test_client().get("/other")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        go.set()
        assert slow.result() == ["slow"]


# What the decorator may be asked for


def test_unless_goes_past_the_cache(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    asked: list[Any] = []

    def unless(fn: Any, **kwargs: Any) -> bool:
        asked.append((fn.__name__, kwargs))
        return "fresh" in request.args

    @app.get("/<what>")
    @extension.cached(unless=unless)
    def view(what: str) -> str:
        return str(runs())

    assert texts(app, "/a", "/a?fresh", "/a") == ["1", "2", "1"]
    assert asked[0] == ("view", {"what": "a"})


def test_forced_update_and_is_stale_replace_what_is_cached(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    force, stale = False, False
    seen: list[Any] = []

    def is_stale(answer: Any) -> bool:
        seen.append(answer)
        return stale

    @app.get("/forced")
    @extension.cached(forced_update=lambda: force)
    def forced() -> str:
        return str(runs())

    @app.get("/stale")
    @extension.cached(is_stale=is_stale)
    def may_be_stale() -> Response:
        return Response(str(runs()))

    assert texts(app, "/forced", "/forced") == ["1", "1"]
    force = True
    assert texts(app, "/forced") == ["2"]
    force = False
    assert texts(app, "/forced") == ["2"]
    assert texts(app, "/stale", "/stale") == ["3", "3"]
    assert isinstance(seen[0], Response)
    stale = True
    assert texts(app, "/stale") == ["4"]
    stale = False
    assert texts(app, "/stale") == ["4"]


def test_what_the_filter_does_not_want_is_not_kept(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @app.get("/")
    @extension.cached(response_filter=lambda answer: answer != "run 1")
    def view() -> str:
        return f"run {runs()}"

    assert texts(app, "/", "/", "/") == ["run 1", "run 2", "run 2"]


def test_keys_may_be_made_by_the_user(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @app.get("/one/<what>")
    @extension.cached(make_cache_key=lambda what: f"made:{what}")
    def one(what: str) -> str:
        return f"{what} {runs()}"

    @app.get("/two")
    @extension.cached()
    def two() -> str:
        return str(runs())

    two.make_cache_key = lambda *_args, **_kwargs: request.args["k"]
    assert texts(app, "/one/a", "/one/a", "/one/b") == ["a 1", "a 1", "b 2"]
    assert texts(app, "/two?k=x", "/two?k=y", "/two?k=x") == ["3", "4", "3"]
    with app.app_context():
        extension.delete("made:a")
    assert texts(app, "/one/a", "/one/b") == ["a 5", "b 2"]


def test_the_timeout_may_be_changed_later(app: Flask, extension: CacheGuardFlask) -> None:
    @app.get("/")
    @extension.cached(timeout=10)
    def view() -> str:
        return "a"

    assert view.cache_timeout == 10
    view.cache_timeout = 100
    texts(app, "/")
    with app.app_context():
        left = extension.guard.inspect("view//@http://localhost").ttl_left
    assert left is not None
    assert 80 < left <= 100


def test_a_hit_may_be_marked(app: Flask, extension: CacheGuardFlask) -> None:
    @app.get("/")
    @extension.cached(response_hit_indication=True)
    def view() -> dict[str, int]:
        return {"a": 1}

    client = app.test_client()
    assert "hit_cache" not in client.get("/").headers
    assert client.get("/").headers["hit_cache"] == "True"


def test_async_views_and_views_in_classes_work(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @app.get("/async")
    @extension.cached()
    async def view() -> str:
        await asyncio.sleep(0)
        return f"{request.path} {runs()}"

    class Item(MethodView):
        @extension.cached(tags=["item:{number}"])
        def get(self, number: int) -> str:
            return f"{number} {runs()}"

    app.add_url_rule("/item/<int:number>", view_func=Item.as_view("item"))
    assert texts(app, "/async", "/async") == ["/async 1", "/async 1"]
    assert texts(app, "/item/7", "/item/7") == ["7 2", "7 2"]
    with app.app_context():
        extension.guard.invalidate_tags("item:7")
    assert texts(app, "/item/7") == ["7 3"]


def test_a_function_with_a_key_of_its_own_needs_no_request(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    @extension.cached(key_prefix="all the numbers")
    def numbers() -> list[int]:
        return [1, 2, runs()]

    @app.get("/")
    def view() -> str:
        return f"{session.get('name')} {numbers()}"

    with app.app_context():
        assert numbers() == [1, 2, 1]
    assert texts(app, "/") == ["None [1, 2, 1]"]
    with app.app_context():
        assert extension.get("all the numbers") == [1, 2, 1]
        extension.delete("all the numbers")
        assert numbers() == [1, 2, 2]


def test_a_function_with_one_key_that_reads_the_session_is_not_cached(app: Flask, extension: CacheGuardFlask) -> None:
    @extension.cached(key_prefix="menu")
    def menu() -> str:
        return f"menu of {session.get('name')}"

    @app.get("/")
    def view() -> str:
        return menu()

    for name in ("ann", "bob"):
        client = app.test_client()
        with client.session_transaction() as held:
            held["name"] = name
        assert client.get("/").text == f"menu of {name}"


# Deleting


def test_a_page_is_deleted_for_all_hosts_from_outside_of_any_request(
    app: Flask, extension: CacheGuardFlask, runs: Runs
) -> None:
    pages = Blueprint("pages", __name__, url_prefix="/pages")

    @pages.get("/<name>")
    @extension.cached(query_string=True)
    def page(name: str) -> str:
        return f"{name} {runs()}"

    app.register_blueprint(pages)
    app.config["SERVER_NAME"] = "one"

    def both() -> list[str]:
        hosts = ("http://one", "http://one:8000")
        return [texts(app, "/pages/a?x=1&y=2", base_url=host)[0] for host in hosts]

    assert both() == ["a 1", "a 2"] == both()
    with app.app_context():
        extension.delete_cached(page, "/pages/a", "y=2&x=1")
    assert both() == ["a 3", "a 4"]
    with app.app_context():
        extension.delete_cached(page, query_args={"x": 1, "y": 2}, name="a")
    assert both() == ["a 5", "a 6"]
    with app.app_context():
        extension.delete_cached(page, query_args=[("x", "2")], name="a")
        extension.delete(page.make_cache_key(path="/pages/b", query_args=""))
    assert both() == ["a 5", "a 6"]


def test_a_run_that_began_before_a_deletion_fills_nothing(app: Flask, extension: CacheGuardFlask, runs: Runs) -> None:
    entered, go = threading.Event(), threading.Event()

    @app.get("/")
    @extension.cached()
    def view() -> str:
        number = runs()
        if number == 1:
            entered.set()
            assert go.wait(20)
        return f"run {number}"

    with ThreadPoolExecutor(2) as threads:
        old = threads.submit(texts, app, "/")
        assert entered.wait(20)
        with app.app_context():
            extension.delete_cached(view, "/")
        new = threads.submit(texts, app, "/")
        go.set()
        assert old.result() == ["run 1"]
        assert new.result() == ["run 2"]
    assert texts(app, "/") == ["run 2"]


def test_a_refresh_behind_has_a_request_and_an_end_of_its_own(
    app: Flask, extension: CacheGuardFlask, runs: Runs
) -> None:
    ended: list[int] = []
    refreshed = threading.Event()

    @app.teardown_appcontext
    def end(_error: BaseException | None) -> None:
        if "resource" in g:
            ended.append(g.resource)
            if g.resource == 2:
                refreshed.set()

    @app.get("/<name>")
    @extension.cached(stale_while_revalidate="1h")
    def view(name: str) -> str:
        assert "resource" not in g
        g.resource = runs()
        return f"{name} {request.path} {g.resource}"

    assert texts(app, "/a") == ["a /a 1"]
    with app.app_context():
        extension.guard.expire("view//a@http://localhost")
    assert texts(app, "/a") == ["a /a 1"]
    assert refreshed.wait(20)
    assert ended == [1, 2]
    deadline = threading.Event()
    for _ in range(200):
        if texts(app, "/a") == ["a /a 2"]:
            break
        deadline.wait(0.05)
    assert texts(app, "/a") == ["a /a 2"]


def test_a_refresh_behind_leaves_the_session_of_its_request_alone(app: Flask, extension: CacheGuardFlask) -> None:
    inside, go = threading.Event(), threading.Event()
    before: list[str] = []
    runs: list[int] = []

    @app.before_request
    def extend() -> None:
        before.append(threading.current_thread().name)
        g.user = "whoever"
        session["seen"] = len(before)

    @app.get("/")
    @extension.cached(stale_while_revalidate="1h", ignore_credentials=True)
    def view() -> str:
        runs.append(len(runs) + 1)
        if runs[-1] == 2:
            inside.set()
            assert go.wait(20)
        return f"{g.user} {runs[-1]}"

    @app.after_request
    def look(response: Response) -> Response:
        if len(runs) == 1 and before[1:]:
            assert inside.wait(20)  # the refresh is in the view when this request saves its session
        return response

    client = app.test_client()
    first = client.get("/")
    assert first.text == "whoever 1"
    assert "Set-Cookie" in first.headers
    with app.app_context():
        extension.guard.expire("view//@http://localhost")
    response = client.get("/")
    go.set()
    assert response.text == "whoever 1"
    assert "Set-Cookie" in response.headers
    assert len(before) == 3  # the refresh has done what is done before each view


def test_a_refresh_that_would_not_reach_the_view_changes_nothing(
    app: Flask, extension: CacheGuardFlask, runs: Runs
) -> None:
    closed = threading.Event()
    asked = threading.Event()

    @app.before_request
    def close() -> Any:
        if closed.is_set() and threading.current_thread().name.startswith("cacheguard"):
            asked.set()
            return "closed", 503
        return None

    @app.get("/")
    @extension.cached(stale_while_revalidate="1h")
    def view() -> str:
        return str(runs())

    assert texts(app, "/") == ["1"]
    closed.set()
    with app.app_context():
        extension.guard.expire("view//@http://localhost")
    assert texts(app, "/") == ["1"]
    assert asked.wait(20)
    assert texts(app, "/") == ["1"]
    assert runs.number == 1


# Options that cannot work


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timeout": -1}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"ttl": 5}, "timeout"),
        ({"key_prefix": ""}, "key_prefix"),
        ({"key_prefix": 1}, "key_prefix"),
        ({"unless": True}, "unless"),
        ({"forced_update": 1}, "forced_update"),
        ({"is_stale": "x"}, "is_stale"),
        ({"make_cache_key": "x"}, "make_cache_key"),
        ({"hash_method": "md5"}, "hash_method"),
        ({"methods": "GET"}, "methods"),
        ({"vary": "Accept"}, "vary"),
        ({"tags": "a"}, "tags"),
        ({"rebuild": "never"}, "rebuild"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_option_that_cannot_work_is_named_when_decorating(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        CacheGuardFlask().cached(**options)(lambda: "a")


def test_a_tag_that_does_not_fit_is_refused_when_decorating() -> None:
    with pytest.raises(KeyTemplateError, match="user_id"):

        @CacheGuardFlask().cached(tags=["user:{user_id}"])
        def view(name: str) -> str:
            return name


@pytest.mark.parametrize("data", [{"code": 17}, ["no", "such", "user"], 17, ("a", 404, {}), ""], ids=repr)
def test_an_error_handler_gets_the_data_that_was_raised_each_time(
    app: Flask, extension: CacheGuardFlask, data: Any
) -> None:
    def row() -> Any:
        abort(404, data)

    def handled(error: Any) -> Any:
        return {"error": error.description}, 404

    app.register_error_handler(404, handled)
    app.add_url_rule("/plain", "plain", row)
    app.add_url_rule("/", "row", extension.cached()(row))
    client = app.test_client()
    want = whole(client, "/plain")
    assert want[0] == 404
    for _ in range(3):
        assert whole(client, "/") == want
