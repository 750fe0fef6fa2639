# make train: the default experiment. make test: tests, lint, types. Both make .venv when it is missing or out of date.
PYTHON ?= $(shell command -v python3.12 >/dev/null && python3.12 -c '' 2>/dev/null && echo python3.12 || (command -v python3.11 >/dev/null && python3.11 -c '' 2>/dev/null && echo python3.11) || echo python3)
BIN := .venv/bin
FAST_WORKERS ?= 2

# --dist loadfile: what a file's tests share, runs and composed configs among it, is made by one worker, once.
.PHONY: train test fast lint golden conformance evidence mutants clean

train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: .venv/installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(FAST_WORKERS) --dist loadfile -m "not slow"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(FAST_WORKERS) --dist loadfile --no-loadscope-reorder -m slow

fast: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(FAST_WORKERS) --dist loadfile -m "not slow"

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "llmlab needs CPython 3.11 or 3.12, but %s is %s; make PYTHON=..." % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml setup.py | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

.venv/installed-test: pyproject.toml setup.py | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	touch $@ .venv/installed

# Writes tests/golden anew: the resolved config of every model and experiment. See with git diff what changed.
golden: .venv/installed-test
	PYTHONPATH=tests/model $(BIN)/python tests/config/test_golden.py

# Asks every promise of every model anew, a few minutes; writes docs/conformance.md. See with git diff what changed.
conformance: .venv/installed-test
	$(BIN)/llmlab check to=docs
	PYTHONPATH=tests/check $(BIN)/python -m bugs
	OMP_NUM_THREADS=1 ALL_SETTINGS=1 $(BIN)/python -m pytest -q tests/check/test_cases.py -m slow -k every_setting

# An hour of measurements, written to EVIDENCE.md; SHAKESPEARE=FILE adds nanoGPT's experiment.
evidence: .venv/installed
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/evidence.py $(if $(SHAKESPEARE),--shakespeare $(SHAKESPEARE))

# Changes the source in small ways and counts what check and the tests notice: hours, goes on where it was stopped; writes
# docs/mutants.md. ARGS="--all" for every mutant, --help for more.
mutants: .venv/installed-test
	$(BIN)/python benchmarks/mutants --sample 100,plugins=200,model=60,decoding=60 --jobs $(FAST_WORKERS) --page docs/mutants.md $(ARGS)

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
