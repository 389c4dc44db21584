# Everything is installed into .venv and .demo below this directory.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes that run the tests side by side: two more than there are processors, for nearly half of the time a test waits.
WORKERS ?= $(shell n=$$(nproc); echo $$((n > 1 ? n + 2 : 1)))
PYTEST := $(BIN)/python -m pytest --durations=10

.PHONY: help demo test test-full test-matrix lint bench bench-quick fuzz mutate clean
help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed-demo ## Run a real hub on loopback with the hook (ARGS=--once: try it by itself and report)
	@$(BIN)/ansible-bootstrap demo $(ARGS)

test: $(VENV)/.installed-test ## Run the tests (WORKERS=1: one after the other, as with ARGS="tests/unit -k names": these)
ifeq ($(or $(ARGS),$(filter 1,$(WORKERS))),)
	failed=; \
	$(PYTEST) -m "not slow and not alone" -n $(WORKERS) || { \
	  echo "== what has failed beside other tests, once more and alone"; \
	  $(PYTEST) -m "not slow and not alone" --last-failed --last-failed-no-failures none; } || failed=1; \
	$(PYTEST) -m "not slow and alone" $$(grep -rl "mark\.alone" tests) && [ -z "$$failed" ]
else
	$(PYTEST) -m "not slow" $(ARGS)
endif

test-full: $(VENV)/.installed-test ## Run the tests, the slow ones and every kill too, one after the other
	ANSIBLE_BOOTSTRAP_STEPS=all $(PYTEST) $(ARGS)

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
	# jsonschema can do without it; it compiles a grammar, for a second, whenever JupyterHub is imported.
	$(BIN)/python -m pip uninstall --quiet --yes rfc3987-syntax
	touch $@

clean: ## Remove what the targets above installed
	rm -rf $(VENV) .demo
