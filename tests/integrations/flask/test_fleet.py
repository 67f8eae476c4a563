"""Several processes, one Redis."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integrations.flask.conftest import MakeApp
from tests.support.fleet import ROOT, Process

SCRIPT = """
import json, os, sys, threading
sys.path[:0] = [sys.argv[1]]
from flask import Flask
from cacheguard_flask import CacheGuardFlask

cache = CacheGuardFlask()
url, mine = sys.argv[2], sys.argv[3]

def create_app():
    app = Flask("fleet")
    app.config["CACHEGUARD_URL"] = url
    cache.init_app(app)

    @app.get("/page")
    @cache.cached()
    def page():
        threading.Event().wait(0.3)
        return f"made by {mine}"

    return app

app = create_app()
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "get":
        pages = []
        get = lambda: pages.append(app.test_client().get("/page").text)
        threads = [threading.Thread(target=get) for _ in range(10)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        stats = app.extensions["cacheguard"].guard.stats()
        print(json.dumps([sorted(set(pages)), len(pages), stats.loads]), flush=True)
    elif word == "delete":
        with app.app_context():
            cache.delete_cached(app.view_functions["page"], "/page")
        print("deleted", flush=True)
    else:
        break
app.extensions["cacheguard"].close()
print(json.dumps("ended"))
"""


def start(redis_url: str, name: str) -> Process:
    process = Process(SCRIPT, ROOT / "integrations", redis_url, name)
    assert process.hear() == "ready"
    return process


@pytest.mark.slow
def test_two_processes_make_one_run_and_a_deletion_reaches_both(redis_url: str) -> None:
    import json

    one, two = start(redis_url, "one"), start(redis_url, "two")
    loads = 0
    for expected in (1, 2):
        for process in (one, two):
            process.tell("get")
        said = [json.loads(process.hear()) for process in (one, two)]
        assert said[0][0] == said[1][0]
        assert len(said[0][0]) == 1
        assert [each[1] for each in said] == [10, 10]
        loads = sum(each[2] for each in said)
        assert loads == expected
        one.tell("delete")
        assert one.hear() == "deleted"
        two.tell("delete")  # its own, so that nothing depends on how soon it hears of the other's
        assert two.hear() == "deleted"
    for process in (one, two):
        process.tell("end")
        assert process.outcome() == "ended"


@pytest.mark.slow
# Where the system has no fork (Windows), no server forks its workers, either.
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_forked_from_a_loaded_app_serve_and_end(make_app: MakeApp, redis_url: str, tmp_path: Path) -> None:
    script = """
import json, os, sys
sys.path[:0] = [sys.argv[1]]
from flask import Flask
from cacheguard_flask import CacheGuardFlask

app = Flask("preloaded")
cache = CacheGuardFlask(app, config={"CACHEGUARD_URL": sys.argv[2]})
runs = []

@app.get("/")
@cache.cached()
def page():
    runs.append(os.getpid())
    return "page"

app.test_client().get("/")          # the master has been in use
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        ok = app.test_client().get("/").text == "page"
        with app.app_context():
            cache.set(f"from {number}", number)
        sys.exit(0 if ok and runs == [os.getppid()] else 1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
with app.app_context():
    found = cache.get_many("from 0", "from 1", "from 2")
print(json.dumps([codes, found]))
"""
    assert Process(script, ROOT / "integrations", redis_url).outcome() == [[0, 0, 0], [0, 1, 2]]


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_loads_is_replaced(redis_url: str) -> None:
    import json

    one, two = start(redis_url, "one"), start(redis_url, "two")
    one.tell("get")
    os.kill(one.pid, signal.SIGKILL)
    one.kill()
    two.tell("get")
    pages, count, _loads = json.loads(two.hear())
    assert count == 10
    assert len(pages) == 1
    two.tell("end")
    assert two.outcome() == "ended"
