# Every target sets up what it needs; `make help` lists them.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRITON := build/triton
FUZZ_INSTALLED := $(VENV)/.fuzz-installed
CONSTRAINTS := requirements/constraints.txt
SERVICES := distributions/services

# Package to install as torch, and more arguments for pip; CONTRIBUTING.md shows how to choose the CPU build.
TORCH_SPEC ?= torch
PIP_ARGS ?=
# More arguments for pytest: make test PYTEST_ARGS="-k slots -x"
PYTEST_ARGS ?=
# Processes that run tests side by side, each a file at a time; 0 for none beside pytest itself, as for a debugger.
TEST_PROCESSES ?= 2
# What `make compose-test` is run with: make compose-test BUCKETS="1 1,4,8 default" MASKS="ATEN_CPU_CAPABILITY=avx2"
BUCKETS ?= 1,8
MASKS ?=
# More arguments for it: make compose-test COMPOSE_ARGS=--fleet has two stores and Prometheus instead.
COMPOSE_ARGS ?=
# How many inputs `make fuzz` tries, and more arguments for it: make fuzz FUZZ_ARGS=--without-atheris
FUZZ_RUNS ?= 5000000
FUZZ_ARGS ?=
LOCK_ARGS ?=

# Length of `make bench` (QUICK=1 or FULL=1), and more arguments for it: make bench BENCH_ARGS="--only side_by_side"
QUICK ?=
FULL ?=
BENCH_ARGS ?=

# More arguments for `make gpu-report`: make gpu-report GPU_ARGS="--device cpu --tiny" tries it without a device.
GPU_ARGS ?=

# Length of the loop of `make trainer`.
PUBLICATIONS ?= 1000
# Its form: `thousand` pushes as many folders, too.
TRAINER ?= thousand_publications_from_memory

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(INSTALLED) ## Create .venv with everything pinned (the other targets do it by themselves)

$(INSTALLED): pyproject.toml $(SERVICES)/pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "error: hotslot needs Python 3.11 or newer, and none was found on PATH;" \
		"install it or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
		f"error: hotslot needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}")'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot create virtual" \
		"environments; install its venv package (on Debian and Ubuntu: python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "Creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "Installing torch (its default build for Linux brings CUDA; CONTRIBUTING.md shows the small CPU build)"
	$(BIN)/pip install --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) '$(TORCH_SPEC)'
	@echo "Installing hotslot and its tools"
	$(BIN)/pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[dev]' \
		-e $(SERVICES)
	@touch $@

.PHONY: demo
demo: $(INSTALLED) ## Serve real adapters on a real model, mixed in one batch and hot-swapped under load
	@$(BIN)/python -m deploy.demo.run

.PHONY: test
test: $(INSTALLED) model ## Run the tests
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not triton" $(PYTEST_ARGS)

.PHONY: test-long
test-long: $(INSTALLED) model ## Run all tests, the slow ones too
	$(BIN)/pytest -m "not triton" $(PYTEST_ARGS)

# Beside .venv: torch's compiler would use it for code on CPUs too, were it there.
$(TRITON)/.installed: $(CONSTRAINTS)
	$(BIN)/pip install --disable-pip-version-check --quiet $(PIP_ARGS) --no-deps --target $(TRITON) --upgrade \
		"$$(grep '^triton==' $(CONSTRAINTS))" && touch $@

.PHONY: kernel-test
kernel-test: $(INSTALLED) ## Run the Triton kernels in their interpreter and compile them for GPUs, without a device
	@if $(MAKE) --no-print-directory $(TRITON)/.installed; then \
		PYTHONPATH=$(TRITON) TRITON_INTERPRET=1 TRITON_CACHE_DIR=$(CURDIR)/build/triton-cache $(BIN)/pytest -n $(TEST_PROCESSES) --dist load -m triton tests/kernels $(PYTEST_ARGS); \
	else echo "Triton has no build for this machine or could not be fetched; its kernels are not tested here"; fi

.PHONY: chaos
chaos: $(INSTALLED) model ## Run the tests that kill processes in the middle of their work
	$(BIN)/pytest -m chaos $(PYTEST_ARGS)

.PHONY: trainer
trainer: $(INSTALLED) ## Publish PUBLICATIONS versions (1,000) from memory beside 16 clients: nothing stale, nothing grows
	HOTSLOT_TEST_PUBLICATIONS=$(PUBLICATIONS) $(BIN)/pytest -s tests/integration/fleet/test_trainer.py -k $(TRAINER)

.PHONY: gpu-test
gpu-test: $(INSTALLED) model ## Run the tests that need a CUDA device
	$(BIN)/pytest -m gpu $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: $(FUZZ_INSTALLED) ## Fuzz admission and requests, FUZZ_RUNS executions (5,000,000) on all cores; takes minutes to an hour
	$(BIN)/python -m tools.fuzz --runs $(FUZZ_RUNS) $(FUZZ_ARGS)

$(FUZZ_INSTALLED): $(INSTALLED)
	@$(BIN)/pip install --disable-pip-version-check --quiet --only-binary atheris $(PIP_ARGS) -c $(CONSTRAINTS) \
		-e '.[dev,fuzz]' -e $(SERVICES) || echo "atheris could not be installed; fuzzing goes on without coverage guidance"
	@touch $@

.PHONY: model
model: $(INSTALLED)
	@$(BIN)/python -m worker_service.demo_model

BENCH_LEVEL = $(if $(QUICK),quick,$(if $(FULL),full,main))

.PHONY: bench
bench: $(INSTALLED) model ## Measure beside the peers, and write BENCHMARKS.md: 15 minutes, QUICK=1 5 minutes, FULL=1 hours
	$(BIN)/python -m tools.bench --level $(BENCH_LEVEL) $(BENCH_ARGS)

.PHONY: bench-check
bench-check: $(INSTALLED) model ## Measure quickly, and fail where a ratio is worse than the committed one of this kind of machine
	$(BIN)/python -m tools.bench --level quick --check $(BENCH_ARGS)

.PHONY: gpu-report
gpu-report: $(INSTALLED) ## Measure on a CUDA device in five minutes: graphs, bits, decoding, activation; GPU_ARGS=--commit writes BENCHMARKS.md
	$(BIN)/python -m tools.bench.gpu_report $(GPU_ARGS)

.PHONY: simulate
simulate: $(INSTALLED) ## Simulate placement in large fleets, and write build/simulation.json and SIMULATION.md
	$(BIN)/python -m tools.simulation

.PHONY: lint
lint: lint-style lint-types lint-imports lint-dependencies lint-supply lint-protos lint-manifests lint-docs ## Check style, types, imports, dependencies, unused code, protos, manifests and links

.PHONY: lint-style lint-types lint-imports lint-dependencies lint-supply lint-protos lint-manifests lint-docs
lint-style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

lint-types: $(INSTALLED)
	$(BIN)/mypy

lint-imports: $(INSTALLED)
	$(BIN)/lint-imports --no-cache

lint-dependencies: $(INSTALLED)
	$(BIN)/deptry hotslot
	$(BIN)/deptry shared controller_service gateway_service store_service worker_service --config $(SERVICES)/pyproject.toml
	$(BIN)/python -m tools.unused

lint-supply: $(INSTALLED)
	$(BIN)/python -m tools.supply.licences
	$(BIN)/python -m tools.supply.audit --unless-offline

lint-protos: $(INSTALLED)
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/python protos/generate.py --check
	$(BIN)/python protos/check_breaking.py

lint-manifests: $(INSTALLED)
	$(BIN)/python -m deploy.check_manifests
	$(BIN)/python -m deploy.prometheus_rule --check

lint-docs: $(INSTALLED)
	$(BIN)/python -m tools.docs --check

.PHONY: audit
audit: $(INSTALLED) ## Ask the advisory database for known weaknesses of the locked dependencies; fails where it is not reached
	$(BIN)/python -m tools.supply.audit

.PHONY: lock
lock: $(INSTALLED) ## Write requirements/*.lock anew, from the pins: make lock LOCK_ARGS="worker-cpu --find-links FOLDER"
	$(BIN)/python -m tools.supply.lock $(LOCK_ARGS)

.PHONY: sbom
sbom: $(INSTALLED) ## Write a software bill of materials (CycloneDX) for each lock into build/sbom
	@mkdir -p build/sbom
	@for lock in store worker worker-cpu; do \
		$(BIN)/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml \
			--output-file build/sbom/$$lock.cdx.json requirements/$$lock.lock || exit 1; \
		echo "build/sbom/$$lock.cdx.json"; done

.PHONY: format
format: $(INSTALLED) ## Format the code and the protos, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

.PHONY: protos
protos: $(INSTALLED) ## Generate hotslot/pb from protos/
	$(BIN)/python protos/generate.py

.PHONY: docs
docs: $(INSTALLED) ## Build the documentation into build/docs/html; warnings are errors
	$(BIN)/python -m tools.docs

.PHONY: chart
chart: $(INSTALLED) ## Make the Helm chart from deploy/kubernetes, in build/chart/hotslot
	$(BIN)/python -m deploy.chart

.PHONY: compose-test
compose-test: $(INSTALLED) model ## Build the images, bring up the compose file, push, generate, tear down
	$(BIN)/python -m deploy.compose_test $(BUCKETS:%=--buckets %) $(MASKS:%=--mask %) $(COMPOSE_ARGS)

.PHONY: clean
clean: ## Remove what was built and cached, but not .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove .venv too
	rm -rf $(VENV)
