# make demo and make test work on a fresh machine with Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STRUCTURES ?=
DEMO := configs/campaign/demo.yaml $(if $(STRUCTURES),structures=$(STRUCTURES) root=demo-structures)
# uv reads its own variable for local wheels; hand it pip's where only that one is set.
export UV_FIND_LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))
# Nothing calls home.
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: setup demo test faults lint format bench docs clean help

help:
	@echo "make demo [STRUCTURES=path]   the whole road: structures -> shards -> align -> evaluate -> release"
	@echo "make test                     the test suite"
	@echo "make lint | bench | docs | faults | setup"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "error: Python 3.11 to 3.13 is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	$(RUN) -m uv pip install --quiet --compile-bytecode --python $(RUN) -c constraints.txt -e '.[test]'
	@touch $@

demo: setup
	$(RUN) -m cluster run $(DEMO)

# Models of tests are tiny and many tests run several processes, whose threads would wait for each other.
test: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -m "not long" -q

faults: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest tests/faults -q

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: setup
	$(RUN) -m uv pip install --quiet --python $(RUN) -c constraints.txt -e '.[test,bench]'
	@for name in $$(cd tests/benchmarks && ls [a-z]*.py | sed 's/\.py$$//'); do \
		if [ $$name = gpu ] && ! command -v nvidia-smi >/dev/null; then echo "== gpu: left out, no CUDA device"; continue; fi; \
		echo "== $$name"; $(RUN) -m tests.benchmarks.$$name || exit 1; done

docs: setup
	$(RUN) -m uv pip install --quiet --python $(RUN) -c constraints.txt -e '.[docs]'
	$(RUN) -m mkdocs build --strict --site-dir site

clean:
	rm -rf demo demo-structures site .pytest_cache .ruff_cache
