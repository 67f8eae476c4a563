"""Run the public HTTP cache tests (cache-tests.fyi) against `HTTPCacheMiddleware` before a small reverse proxy.

``make conformance-http``. Nothing of the suite is kept in the repository. It is taken from the directory in CACHE_TESTS
if that is set (a checkout of http-tests/cache-tests), else cloned, which needs git and a way to GitHub. It needs node
and npm. ARGS=5 runs it five times. Exit status 1 if a run falls below the goal.
"""

from __future__ import annotations

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

from tests.outside import sdist
from tests.support.redis_server import RedisServer, find_binaries

HERE = Path(__file__).parent
ROOT, WORK = sdist.ROOT, sdist.WORK / "http-cache"
ORIGIN = "https://github.com/http-tests/cache-tests.git"
COMMIT = "b55b8bda3dbb8c927c04e85bd8d496a8caa3e4ba"  # 365 tests
GOAL = {"required": 140, "failed": 3, "optimal": 80}

RUNNER = """
import { writeFileSync } from 'node:fs'
import { runTests, getResults } from './test-engine/client/runner.mjs'
import { determineTestResult } from './test-engine/lib/results.mjs'
import tests from './tests/index.mjs'
await runTests(tests, false, process.argv[2])
const results = getResults(), told = []
for (const suite of tests) for (const test of suite.tests) {
  if (test.browser_only) continue
  told.push({ id: test.id, kind: test.kind ?? 'required', cdn: !!test.cdn_only,
              outcome: determineTestResult(tests, test.id, results)[2], result: results[test.id] })
}
writeFileSync(process.argv[3], JSON.stringify(told))
process.exit(0)
"""


def fetched() -> Path:
    """The suite, with what it needs from npm."""
    suite = WORK / "suite"
    if not suite.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        given = os.environ.get("CACHE_TESTS")
        if given:
            shutil.copytree(given, suite, ignore=shutil.ignore_patterns(".git"))
        else:
            subprocess.run(["git", "clone", "-q", ORIGIN, str(suite)], check=True)
            subprocess.run(["git", "checkout", "-q", COMMIT], cwd=suite, check=True)
    if not (suite / "node_modules" / "undici").exists():
        subprocess.run(["npm", "install", "--silent", "--no-save", "undici@7", "liquidjs@10"], cwd=suite, check=True)
    (suite / "cacheguard-run.mjs").write_text(RUNNER, encoding="utf-8")
    return suite


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


def told(results: list[dict[str, object]]) -> dict[str, int]:
    """Print how a run ended; the tests for CDNs, which the published columns leave out, are counted apart."""
    counted: dict[str, int] = {}
    for cdn in (False, True):
        for kind in ("required", "optimal", "check"):
            ended = Counter(str(each["outcome"]) for each in results if each["kind"] == kind and each["cdn"] is cdn)
            passed, failed = ended["✅"] + ended["Y"], ended["⛔️"]
            name = f"{kind}, for CDNs" if cdn else kind
            if ended:
                print(f"  {name:20} passed {passed:3}  failed {failed:3}  of {ended.total():3}   {dict(ended)}")
            if not cdn:
                counted[kind], counted["failed"] = passed, failed if kind == "required" else counted["failed"]
    return counted


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    suite, origin_port, proxy_port = fetched(), free_port(), free_port()
    redis = RedisServer(next(iter(find_binaries().values())), Path(mkdtemp())).start()
    settings = {
        "npm_config_port": str(origin_port),
        "npm_config_protocol": "http",
        "npm_config_pidfile": str(WORK / "pid"),
    }
    origin = subprocess.Popen(
        ["node", "test-engine/server/server.mjs"], cwd=suite, env={**os.environ, **settings},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    path = os.pathsep.join(map(str, (HERE, ROOT, ROOT / "integrations")))
    options = ["--port", str(proxy_port), "--no-date-header", "--no-server-header", "--log-level", "critical"]
    proxy = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "proxy:app", *options],
        env={**os.environ, "ORIGIN": f"http://127.0.0.1:{origin_port}", "REDIS_URL": redis.url, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    good = True
    try:
        wait_for(origin_port)
        wait_for(proxy_port)
        for run in range(1, runs + 1):
            report = WORK / f"results-{run}.json"
            command = ["node", "--no-warnings", "cacheguard-run.mjs", f"http://127.0.0.1:{proxy_port}", str(report)]
            subprocess.run(command, cwd=suite, check=True, stdout=subprocess.DEVNULL)
            results = json.loads(report.read_text(encoding="utf-8"))
            print(f"run {run}, {len(results)} tests")
            counted = told(results)
            for each in results:
                if each["kind"] != "check" and each["outcome"] != "✅":
                    print(f"    {each['kind']:8} {each['outcome']} {each['id']}: {each['result']}")
            enough = counted["required"] >= GOAL["required"] and counted["optimal"] >= GOAL["optimal"]
            good = good and enough and counted["failed"] <= GOAL["failed"]
    finally:
        for process in (proxy, origin):
            process.terminate()
            process.wait(10)
        redis.stop()
    return not good


if __name__ == "__main__":
    sys.exit(main())
