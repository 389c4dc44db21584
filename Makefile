# Everything is installed into .venv and .demo below this directory.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# More than one: quicker, and on a busy machine some time limits of the tests are met.
WORKERS ?= 1
PYTEST := $(BIN)/python -m pytest --durations=10

.PHONY: help demo test test-full test-matrix lint bench bench-quick fuzz mutate clean
help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed-demo ## Run a real hub on loopback with the hook (ARGS=--once: try it by itself and report)
	@$(BIN)/ansible-bootstrap demo $(ARGS)

test: $(VENV)/.installed-test ## Run the tests (ARGS="tests/unit -k names": only these; WORKERS=3: in parallel)
ifneq ($(WORKERS),1)
	$(PYTEST) -m "not slow" -n $(WORKERS) --dist loadgroup --ignore tests/integration/storm
	$(PYTEST) -m "not slow" tests/integration/storm
else
	$(PYTEST) -m "not slow" $(ARGS)
endif

test-full: $(VENV)/.installed-test ## Run the tests, the slow ones too, one after the other
	$(PYTEST) $(ARGS)

test-matrix: ## Run the tests with other releases of JupyterHub, ansible-core and Python (ARGS=ROW)
	$(PYTHON) tests/matrix.py $(ARGS)

lint: $(VENV)/.installed-lint ## Run ruff, mypy, import-linter, yamllint and ansible-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-lint --offline --profile production

bench: $(VENV)/.installed-bench ## Run the benchmarks, 1½ hours on a machine that does nothing else; results go to benchmarks/results
	$(BIN)/python -m benchmarks.one_user
	$(BIN)/python -m benchmarks.known
	$(BIN)/python -m benchmarks.dispatch
	$(BIN)/python -m benchmarks.roster
	$(BIN)/python -m benchmarks.storm $(ARGS)
	$(BIN)/python -m benchmarks.run

bench-quick: $(VENV)/.installed-bench ## See that the benchmarks run, with a few users
	$(BIN)/python -m pytest tests/integration/storm/test_benchmarks_run.py $(ARGS)

fuzz: $(VENV)/.installed-fuzz ## Throw hostile bytes at the parsers for a minute (ARGS="--seconds 600 archive")
	$(BIN)/python tests/fuzz/fuzz.py $(ARGS)

mutate: $(VENV)/.installed-mutate ## See which changes of the sources no unit test notices (ARGS="ledger --sample 60")
	$(BIN)/python tests/mutate.py $(ARGS)

$(VENV)/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

clean: ## Remove what the targets above installed
	rm -rf $(VENV) .demo
