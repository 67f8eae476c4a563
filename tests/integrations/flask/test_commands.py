"""``flask cacheguard …``."""

from __future__ import annotations

import json

import pytest
from click.testing import Result
from flask import Flask

from cacheguard_flask import CacheGuardFlask
from tests.integrations.flask.conftest import MakeApp
from tests.support.redis_server import RedisServer


@pytest.fixture
def url(redis_url: str) -> str:
    return redis_url


def run(app: Flask, *words: str, typed: str | None = None) -> Result:
    return app.test_cli_runner().invoke(args=["cacheguard", *words], input=typed)


def test_stats_says_how_redis_is(app: Flask) -> None:
    said = json.loads(run(app, "stats", "--json").output)
    assert said["l2_up"] is True
    assert said["round_trip_ms"] > 0
    assert "this command" in said["counters_of"]
    assert "not of the running workers" in said["counters_of"]
    assert "l2_up                  True" in run(app, "stats").output


def test_inspect_says_what_there_is(app: Flask, extension: CacheGuardFlask) -> None:
    @app.get("/a")
    @extension.cached(timeout=60, tags=["pages"])
    def view() -> str:
        return "a"

    app.test_client().get("/a")
    found = run(app, "inspect", "view//a@http://localhost")
    assert found.exit_code == 0
    assert "state     fresh" in found.output
    assert "tag       pages" in found.output
    assert run(app, "inspect", "view//b@http://localhost").exit_code == 3


def test_keys_pages_tags_and_everything_can_be_invalidated(app: Flask, extension: CacheGuardFlask) -> None:
    runs: list[int] = []

    @app.get("/a")
    @extension.cached(tags=["pages"])
    def view() -> str:
        runs.append(1)
        return str(len(runs))

    client = app.test_client()

    def served() -> str:
        return client.get("/a").text

    assert served() == "1"
    assert run(app, "invalidate", "view//a", "k").output == "2 invalidated\n"
    assert served() == "2"
    assert run(app, "invalidate-tags", "pages").output == "1 tags invalidated\n"
    assert served() == "3"
    assert run(app, "clear", typed="n\n").exit_code == 1
    assert served() == "3"
    assert run(app, "clear", "--yes").output == "cleared\n"
    assert served() == "4"


def test_without_redis_nobody_is_told_that_it_was_done(app: Flask, redis_server: RedisServer) -> None:
    redis_server.kill()
    for words in (["invalidate", "k"], ["invalidate-tags", "t"], ["clear", "--yes"], ["inspect", "k"]):
        ended = run(app, *words)
        assert ended.exit_code == 1
        assert "Redis cannot be reached" in ended.output
    doctor = run(app, "doctor")
    assert doctor.exit_code == 1
    assert "error" in doctor.output
    redis_server.start()


def test_doctor_tries_the_cache_and_looks_at_the_settings(make_app: MakeApp, redis_url: str) -> None:
    import json

    good = make_app(url=redis_url)
    good.config["TRUSTED_HOSTS"] = ["localhost"]
    said = run(good, "doctor")
    assert said.exit_code == 0
    assert "stored, read and invalidated" in said.output
    assert "error" not in said.output
    bad = run(make_app(jitter=0, serializer=json, url=redis_url, ttl="10s"), "doctor").output
    for word in ("CACHEGUARD_JITTER", "CACHEGUARD_SECRET", "TRUSTED_HOSTS", "CACHEGUARD_L1_TTL"):
        assert word in bad
    assert "memory://" in run(make_app(), "doctor").output
    assert "CACHEGUARD_DISABLED" in run(make_app(disabled=True), "doctor").output
