"""The two releases of the public HTTP cache tests: where they come from, and how one is run. No copy is kept here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.outside import sdist

WORK = sdist.WORK / "http-cache"
REPOSITORY = "https://github.com/http-tests/cache-tests.git"
COMMIT = "b55b8bda3dbb8c927c04e85bd8d496a8caa3e4ba"  # 365 tests
ON_NPM = "http-cache-tests@0.4.5"  # 329 tests
CLONE_WITHIN = 120.0  # seconds
MODULES = ("undici@7", "liquidjs@10", "node-fetch@2")

_TOLD = """
const results = getResults(), told = []
for (const suite of tests) for (const test of suite.tests) {
  if (test.browser_only) continue
  told.push({ id: test.id, kind: test.kind ?? 'required', cdn: !!test.cdn_only,
              outcome: determineTestResult(tests, test.id, results)[2], result: results[test.id] })
}
writeFileSync(process.argv[3], JSON.stringify(told))
process.exit(0)
"""

_LATEST = (
    """
import { writeFileSync } from 'node:fs'
import { runTests, getResults } from './test-engine/client/runner.mjs'
import { determineTestResult } from './test-engine/lib/results.mjs'
import tests from './tests/index.mjs'
await runTests(tests, false, process.argv[2])
"""
    + _TOLD
)

# This release waits for ever for an answer that does not come, so each request gets a time limit here. Its tests of
# Surrogate-Control are left out: RFC 9213 (CDN-Cache-Control) has replaced that field.
_OLDER = (
    """
import { writeFileSync } from 'node:fs'
import fetch from 'node-fetch'
import { runTests, getResults } from './client/runner.mjs'
import { determineTestResult } from './lib/display.mjs'
import tests from './tests/index.mjs'
const limited = (url, init) => fetch(url, { ...init, signal: AbortSignal.timeout(10000) })
await runTests(tests, limited, false, process.argv[2], 25)
"""
    + _TOLD
)


@dataclass(frozen=True, slots=True)
class Suite:
    """A release that is at hand.

    Args:
        name: of the release: ``latest`` or ``npm``.
        server: the script of the origin, relative to *place*.
        runner: our script that runs all tests and writes down how they ended.
    """

    name: str
    place: Path
    server: str
    runner: str

    def write_runner(self) -> Path:
        """Put the runner beside the tests, where its imports find them."""
        script = self.place / "cacheguard-run.mjs"
        script.write_text(self.runner, encoding="utf-8")
        return script


def latest() -> Suite | None:
    """The newest release, from CACHE_TESTS or its repository; None if there is no way to either."""
    place = WORK / "suite"
    given = os.environ.get("CACHE_TESTS")
    if not place.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        if given:
            shutil.copytree(given, place, ignore=shutil.ignore_patterns(".git"))
        elif not _cloned(place):
            return None
    _install_modules()
    return Suite("latest", place, "test-engine/server/server.mjs", _LATEST)


def on_npm() -> Suite:
    """The older release, from the npm registry."""
    place = WORK / "npm"
    if not place.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=WORK) as scratch:
            subprocess.run(["npm", "pack", "--silent", ON_NPM], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            (archive,) = Path(scratch).glob("*.tgz")
            with tarfile.open(archive) as packed:
                packed.extractall(scratch, filter="data")
            shutil.move(Path(scratch) / "package", place)
    _install_modules()
    return Suite("npm", place, "server/server.mjs", _OLDER)


def _cloned(place: Path) -> bool:
    """True if the repository could be cloned to *place*. A half-made clone is removed."""
    quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        with TemporaryDirectory(dir=WORK) as scratch:
            clone = Path(scratch) / "suite"
            subprocess.run(
                ["git", "clone", "-q", REPOSITORY, str(clone)],
                check=True, env=quiet, timeout=CLONE_WITHIN, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            subprocess.run(["git", "checkout", "-q", COMMIT], cwd=clone, check=True)
            shutil.move(clone, place)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _install_modules() -> None:
    """Install what the tests import. It lies above both releases, where node looks, too."""
    if all((WORK / "node_modules" / each.partition("@")[0]).exists() for each in MODULES):
        return
    (WORK / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    subprocess.run(["npm", "install", "--silent", "--no-save", *MODULES], cwd=WORK, check=True)
