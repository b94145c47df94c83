# DetServe: `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
MODEL := model_repository/detector/1/model.onnx
IMPORTER := $(wildcard scripts/tfjs_*.py scripts/families/*.py scripts/import_*.py) \
	scripts/coco.py scripts/contract.py scripts/npm_package.py scripts/fetch_model.py \
	scripts/build_repository.py
EXTRAS := local,model,photos
GATEWAY_EXTRAS := $(EXTRAS),gateway
DEV_EXTRAS := $(EXTRAS),benchmark,compare,evaluate,gateway,loadtest,openvino,optimize,tracking,dev
LAB_EXTRAS := $(DEV_EXTRAS),export,lab

.DEFAULT_GOAL := help
.PHONY: help model demo serve gateway test test-lab lint format benchmark compare soak chaos report balance loadtest parity tune monitor status kubernetes clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One stamp a set of extras: the demo does not install the test tools.
define install
	@test -n "$(PYTHON)" || { echo "DetServe needs Python 3.11 or 3.12, and there is no python3" \
		"on PATH: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))" -c 'import sys; \
		v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else \
		"DetServe needs Python 3.11 or 3.12, and %s is %d.%d: remove $(VENV) if it is there, and " \
		"make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" % ((sys.executable,) + v))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing DetServe [$(1)] into $(VENV) (pinned by requirements.lock)"
	@$(BIN)/python -m pip install --disable-pip-version-check --retries 2 \
		--constraint requirements.lock --editable '.[$(1)]' 2> $(VENV)/pip-errors.log || { \
		echo "The packages could not be installed: check that pip reaches its package index" \
			"(pip config list), then run make again. Details: $(VENV)/pip-errors.log" >&2; exit 1; }
	@touch $@
endef

$(VENV)/.installed: pyproject.toml requirements.lock
	$(call install,$(EXTRAS))

$(VENV)/.installed-gateway: pyproject.toml requirements.lock | $(VENV)/.installed
	$(call install,$(GATEWAY_EXTRAS))

$(VENV)/.installed-dev: pyproject.toml requirements.lock | $(VENV)/.installed
	$(call install,$(DEV_EXTRAS))

$(VENV)/.installed-lab: tests/lab/packages.txt $(VENV)/.installed-dev
	$(call install,$(LAB_EXTRAS))
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation \
		--requirement tests/lab/packages.txt

$(MODEL): $(IMPORTER) | $(VENV)/.installed
	@$(BIN)/python scripts/build_repository.py

model: $(MODEL) ## Fetch and import the default detector

demo: $(MODEL) ## Detect on four photos with a real Triton; results in demo_output/
	@$(BIN)/python scripts/demo.py

serve: $(MODEL) ## Run the server in the foreground (ARGS="--http-port 9000" and so on)
	@deploy/with-settings $(BIN)/python -m local_server $(ARGS)

gateway: $(VENV)/.installed-gateway ## Run the REST gateway and web page (ARGS="--port 9000" and so on)
	@deploy/with-settings $(BIN)/python -m gateway $(ARGS)

test: $(VENV)/.installed-dev $(MODEL) ## Run the tests (ARGS="tests/unit -k nms" and so on)
	@$(BIN)/python -m pytest $(ARGS)

test-lab: $(VENV)/.installed-lab $(MODEL) ## Run the tests that need PyTorch, TensorRT-RTX and other packages
	@$(BIN)/python -m pytest $(or $(ARGS),tests/lab)

lint: $(VENV)/.installed-dev ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev ## Put the code into its style
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

benchmark: $(VENV)/.installed-dev $(MODEL) ## Measure the ensemble against the in-process limit
	@$(BIN)/python scripts/benchmark.py $(ARGS)

compare: $(VENV)/.installed-dev $(MODEL) ## Measure the ensemble against Flask and LitServe
	@$(BIN)/python scripts/compare.py $(ARGS)

soak: $(VENV)/.installed-dev $(MODEL) ## Load the server for MINUTES=30 and tell what grows (ARGS="--load 0.5" and so on)
	@$(BIN)/python scripts/soak.py $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

chaos: $(VENV)/.installed-dev $(MODEL) ## Hurt the server under load and tell what is lost (ARGS="--list" and so on)
	@$(BIN)/python scripts/chaos.py $(ARGS)

report: $(VENV)/.installed-dev $(MODEL) ## Measure a detector's variants (ARGS="model.onnx --images DIR")
	@$(BIN)/python scripts/report.py $(ARGS)

tune: $(VENV)/.installed-dev $(MODEL) ## Tune the ensemble to this machine (ARGS="--p99-ms 100" and so on)
	@$(BIN)/python scripts/tune.py $(ARGS)

balance: $(VENV)/.installed-dev $(MODEL) ## Let servers fail behind nginx and balancing clients (needs nginx)
	@$(BIN)/python scripts/balance.py measure $(ARGS)

monitor: $(VENV)/.installed-dev ## Run Prometheus on the servers of this machine (ARGS="--without gateway")
	@$(BIN)/python scripts/monitor.py $(ARGS)

status: $(VENV)/.installed-gateway ## Show how the servers are (ARGS="--watch 2" and so on)
	@$(BIN)/python scripts/status.py $(ARGS)

kubernetes: $(VENV)/.installed-dev ## Render the Kubernetes manifests and check them (needs kubectl)
	@command -v kubectl > /dev/null || { echo "There is no kubectl on PATH: install it (Debian:" \
		"apt-get install kubernetes-client)" >&2; exit 1; }
	@$(BIN)/python -m pytest $(wildcard tests/unit/test_kubernetes*.py) $(ARGS)

loadtest: $(VENV)/.installed-dev $(MODEL) ## Load the ensemble with Locust (ARGS="--tags rest --scenario spike")
	@PYTHONPATH=.:clients:scripts $(BIN)/python -m loadtest $(ARGS)

parity: $(MODEL) ## Check the imported detector against the TensorFlow.js runtime
	@$(BIN)/python scripts/check_tfjs_parity.py

clean: ## Remove what was built, not the virtual environment
	rm -rf build chaos_output demo_output soak_output benchmark_output compare_output report_output tune_output loadtest_output $(MODEL)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
