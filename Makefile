# `make` lists the targets. Each prepares what it needs on first use: a virtual environment
# in .venv, installed from the hash-checked lists in requirements/.

PYTHON   ?= python3
DATA_DIR ?= ./data
DATABASE ?=
LISTEN   ?= 127.0.0.1:50051
CONSOLE  ?= 127.0.0.1:8090
PYTEST_ARGS ?=
TEST_PROCESSES ?= 3
MUTATION_ARGS ?=

VENV    := .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python
GEN_PY  := .venv-generate/bin/python
LOCK_PY := .venv-lock/bin/python
UV_VERSION := 0.13.9

PIP_INSTALL := -m pip --disable-pip-version-check install --quiet
# The lists are complete, so there is nothing for pip to resolve.
PIP_INSTALL_LIST := $(PIP_INSTALL) --no-deps --require-hashes -r
# The package itself, editable. Its build backend comes from the same list, so nothing else is fetched.
INSTALL_SELF = $(PY) $(PIP_INSTALL) --no-deps --no-build-isolation --editable .

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##### Use

.PHONY: run
run: $(VENV)/.run ## Start the service (DATA_DIR=./data LISTEN=127.0.0.1:50051 CONSOLE=127.0.0.1:8090)
	@exec $(BIN)/keybearer-server quickstart --data-dir "$(DATA_DIR)" --listen "$(LISTEN)" \
		--console-listen "$(CONSOLE)"

.PHONY: run-three
run-three: $(VENV)/.dev ## Start three nodes over one PostgreSQL, of their own or of DATABASE=postgresql://…
	@PYTHONPATH=client:service:tests exec $(PY) tools/run_three.py --database "$(DATABASE)" \
		--data-dir "$(DATA_DIR)/three" --listen "$(LISTEN)"

.PHONY: setup
setup: $(VENV)/.dev ## Prepare .venv for development

##### Check

# Several files of tests at once; what measures runs afterwards, with nothing beside it.
AT_ONCE := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: test
test: $(VENV)/.dev ## Run the tests (TEST_PROCESSES=3), or some of them (PYTEST_ARGS="-k name")
ifeq ($(PYTEST_ARGS),)
	$(PY) -m pytest $(AT_ONCE) -m "not slow and not bench and not alone"
	$(PY) -m pytest -m "alone and not slow and not bench"
else
	$(PY) -m pytest $(PYTEST_ARGS)
endif

.PHONY: test-long
test-long: $(VENV)/.dev ## Run the long suites, those marked slow
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

.PHONY: test-failover
test-failover: $(VENV)/.dev ## Have database servers fail over; needs root (KEYBEARER_FAILOVER_ROUNDS=5)
	$(PY) -m pytest -s -m slow tests/failover $(PYTEST_ARGS)

.PHONY: mutation
mutation: $(VENV)/.dev ## Change the code that decides, and see that tests notice (MUTATION_ARGS="--seconds 600")
	@PYTHONPATH=client:service:tests $(PY) -m mutation.run $(MUTATION_ARGS)

# What serves the hot methods, and is tested once more on their other path, and with an old grpcio.
HOT_TESTS := tests/rpc/test_hot_loop.py tests/rpc/test_tokens.py tests/rpc/test_calls.py \
	tests/rpc/test_access_matrix.py tests/gateway/test_same_decision.py

.PHONY: test-ordinary-path
test-ordinary-path: $(VENV)/.dev ## Run the tests of the hot methods without the hot loop
	KEYBEARER_TEST_HOT_LOOP=off $(PY) -m pytest -q $(HOT_TESTS)

# Revocations, the race and the store over several nodes are among the tests anyway.
.PHONY: test-nodes
test-nodes: export KEYBEARER_TEST_BACKEND = postgres
test-nodes: export KEYBEARER_TEST_NODES = 2
test-nodes: export KEYBEARER_TEST_POSTGRES = required
test-nodes: $(VENV)/.dev ## Run the tests of all calls over two nodes of one PostgreSQL, either at random
	$(PY) -m pytest $(AT_ONCE) -m "not slow and not bench" tests/rpc

.PHONY: test-grpcio
test-grpcio: .venv-grpcio/.installed ## Run the tests of the hot methods with the oldest grpcio
	KEYBEARER_TEST_HOT_LOOP=on PYTHONPATH=client:service:tests .venv-grpcio/bin/python -m pytest -q $(HOT_TESTS)

.PHONY: bench
bench: $(VENV)/.dev ## Measure the service on this machine
	$(PY) tests/bench/report.py --plot docs/performance.svg

.PHONY: lint
lint: $(VENV)/.dev ## Check style and format of Python and protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/buf lint protos
	$(BIN)/buf lint protos/third_party
	$(BIN)/buf format -d --exit-code protos
	$(BIN)/buf format -d --exit-code protos/third_party

.PHONY: types
types: $(VENV)/.dev ## Check types with mypy --strict
	$(BIN)/mypy

.PHONY: check-generated
check-generated: .venv-generate/.installed ## Fail when the generated code is stale
	@tools/generate.sh check $(GEN_PY)

.PHONY: check
# A PostgreSQL for its tests is among the development tools; none at all is an error here.
check: export KEYBEARER_TEST_POSTGRES = required
check: lint types check-generated test ## All of the above that must pass: what CI runs

##### Change

.PHONY: format
format: $(VENV)/.dev ## Format Python and protos, apply safe fixes
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/buf format -w protos
	$(BIN)/buf format -w protos/third_party

.PHONY: generate
generate: .venv-generate/.installed ## Generate the code of protos/
	@tools/generate.sh write $(GEN_PY)

.PHONY: public-api
public-api: $(VENV)/.dev ## Accept the public names and signatures of the client as they are
	@PYTHONPATH=client:tests $(PY) tests/meta/public_api.py

.PHONY: lock
lock: .venv-lock/.installed ## Update requirements/ to the newest versions allowed
	$(COMPILE) --upgrade --extra server --extra postgres --extra console --extra cli --group dev pyproject.toml --output-file requirements/dev.txt
	$(COMPILE_PART) --extra server --extra postgres --extra console --extra cli --group run pyproject.toml --output-file requirements/run.txt
	$(COMPILE_PART) --extra server --extra postgres --extra console --extra cli pyproject.toml --output-file requirements/server.txt
	$(COMPILE_PART) --group build --output-file requirements/build.txt
	$(COMPILE) --upgrade --group generate --output-file requirements/generate.txt

.PHONY: wheel
wheel: $(VENV)/.dev ## Build the wheel into dist/
	$(PY) -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: clean
clean: ## Remove environments, caches and build output; keeps DATA_DIR
	rm -rf .venv .venv-* build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

##### Environments. A stamp file is as new as the list it was installed from.

COMPILE = $(LOCK_PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-emit-package pip --custom-compile-command 'make lock'
# dev.txt holds everything; the other lists are parts of it, with the same versions.
COMPILE_PART = $(COMPILE) --upgrade --constraints requirements/dev.txt

# $(call venv,DIRECTORY): a new environment, or a clear refusal.
define venv
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; set PYTHON to Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $$($(PYTHON) --version) is too old; set PYTHON to Python 3.11 or newer, as in: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating $(1)"
	@$(PYTHON) -m venv --clear $(1)
endef

$(PY):
	$(call venv,$(VENV))

$(GEN_PY):
	$(call venv,.venv-generate)

$(LOCK_PY):
	$(call venv,.venv-lock)

# Everything of .venv, below the oldest grpcio that pyproject.toml allows.
OLD_GRPCIO := $(shell sed -n 's/.*"grpcio>=\([0-9.]*\),<2".*/\1/p' pyproject.toml)

.venv-grpcio/.installed: $(VENV)/.dev
	$(call venv,.venv-grpcio)
	@$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(.venv-grpcio/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	@echo "Installing grpcio $(OLD_GRPCIO) into .venv-grpcio"
	@.venv-grpcio/bin/python $(PIP_INSTALL) --no-deps $(foreach part,grpcio grpcio-status \
		grpcio-reflection grpcio-health-checking grpcio-testing,$(part)==$(OLD_GRPCIO))
	@touch $@

$(VENV)/.run: requirements/run.txt pyproject.toml | $(PY)
	@echo "Installing the service into $(VENV)"
	@$(PY) $(PIP_INSTALL_LIST) requirements/run.txt
	@$(INSTALL_SELF)
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(PY)
	@echo "Installing the service and the development tools into $(VENV)"
	@$(PY) $(PIP_INSTALL_LIST) requirements/dev.txt
	@$(INSTALL_SELF)
	@touch $@ $(VENV)/.run

.venv-generate/.installed: requirements/generate.txt | $(GEN_PY)
	@echo "Installing the code generator into .venv-generate"
	@$(GEN_PY) $(PIP_INSTALL_LIST) requirements/generate.txt
	@touch $@

.venv-lock/.installed: Makefile | $(LOCK_PY)
	@$(LOCK_PY) $(PIP_INSTALL) uv==$(UV_VERSION)
	@touch $@
