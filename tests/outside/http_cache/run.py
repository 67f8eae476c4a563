"""Run the public HTTP cache tests (cache-tests.fyi) against `HTTPCacheMiddleware` before a small reverse proxy.

``make conformance-http`` takes the newest release: from the directory in CACHE_TESTS if that is set (a checkout of
http-tests/cache-tests), else from its repository. Where there is no way to it, the older release on npm runs.
``make conformance-http-npm`` takes that one in any case. Both need node and npm. ARGS=5 runs the tests five times.

Exit status 1 if a test ends otherwise than `left_out` says in any of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.outside import sdist
from tests.outside.http_cache.left_out import LEFT_OUT
from tests.outside.http_cache.suite import WORK, Suite, latest, on_npm
from tests.support.redis_server import RedisServer, find_binaries

HERE = Path(__file__).parent
PASSED = {"✅", "Y"}
RUN_WITHIN = 600.0  # seconds


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing answers on port {port}")


def counted(results: list[dict[str, Any]]) -> None:
    """Print how a run ended; the tests for CDNs, which the published columns leave out, are counted apart."""
    for cdn in (False, True):
        for kind in ("required", "optimal", "check"):
            ended = Counter(each["outcome"] for each in results if each["kind"] == kind and each["cdn"] is cdn)
            if ended:
                name = f"{kind}, for CDNs" if cdn else kind
                passed = sum(ended[each] for each in PASSED)
                print(f"  {name:20} passed {passed:3}  failed {ended['⛔️']:3}  of {ended.total():3}   {dict(ended)}")


def surprises(results: list[dict[str, Any]], reasons: dict[str, str]) -> list[str]:
    """The tests that end otherwise than *reasons* says: those that do not pass must be the ones with a reason."""
    lines = []
    for each in results:
        if each["kind"] == "check":  # a question, not a test
            continue
        passed, reason = each["outcome"] in PASSED, reasons.get(each["id"])
        if passed and reason is not None:
            lines.append(f"    {each['kind']:8} {each['outcome']} {each['id']} passes now: take it off the list")
        elif not passed and (reason is None or "AbortError" in str(each["result"])):  # no answer is never right
            lines.append(f"    {each['kind']:8} {each['outcome']} {each['id']}: {each['result']}")
    missing = reasons.keys() - {each["id"] for each in results}
    return lines + [f"    {each} is on the list, and no test" for each in sorted(missing)]


def run_once(suite: Suite, url: str, report: Path) -> list[dict[str, Any]]:
    """Run every test once; how they ended."""
    command = ["node", "--no-warnings", suite.write_runner().name, url, str(report)]
    subprocess.run(command, cwd=suite.place, check=True, timeout=RUN_WITHIN, stdout=subprocess.DEVNULL)
    results: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))
    return results


def run_all(suite: Suite, times: int) -> bool:
    """Run the tests *times* times, each time with the same servers. True if every run ends as the list says."""
    origin_port, proxy_port = free_port(), free_port()
    scratch = Path(mkdtemp())
    redis = RedisServer(next(iter(find_binaries().values())), scratch).start()
    settings = {
        "npm_config_port": str(origin_port),
        "npm_config_protocol": "http",
        "npm_config_pidfile": str(scratch / "pid"),
    }
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    origin = subprocess.Popen(
        ["node", suite.server], cwd=suite.place, env={**os.environ, **settings}, **quiet
    )  # fmt: skip
    path = os.pathsep.join(map(str, (HERE, sdist.ROOT, sdist.ROOT / "integrations")))
    options = ["--port", str(proxy_port), "--no-date-header", "--no-server-header", "--log-level", "critical"]
    where = {"ORIGIN": f"http://127.0.0.1:{origin_port}", "REDIS_URL": redis.url, "PYTHONPATH": path}
    proxy = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "proxy:app", *options], env={**os.environ, **where}, **quiet
    )  # fmt: skip
    good = True
    try:
        wait_for(origin_port)
        wait_for(proxy_port)
        for run in range(1, times + 1):
            results = run_once(suite, f"http://127.0.0.1:{proxy_port}", WORK / f"{suite.name}-{run}.json")
            print(f"run {run} of the release {suite.name!r}, {len(results)} tests")
            counted(results)
            lines = surprises(results, LEFT_OUT[suite.name])
            print("\n".join(lines) or "  what did not pass is what the list says")
            good = good and not lines
    finally:
        for process in (proxy, origin):
            process.terminate()
            process.wait(10)
        redis.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("times", nargs="?", type=int, default=1)
    parser.add_argument("--npm", action="store_true", help="run the older release, from npm")
    given = parser.parse_args()
    suite = None if given.npm else latest()
    if suite is None:
        if not given.npm:
            print("no way to the repository of the tests: the older release runs, from npm")
        suite = on_npm()
    return not run_all(suite, given.times)


if __name__ == "__main__":
    sys.exit(main())
