# make demo | test | test-all | venv | lint | types | clean

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2

BIN   := $(VENV)/bin
RUNS  := $(VENV)/.installed
STAMP := $(VENV)/.installed-for-tests
PIP   := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NATIVE := tests/ops/test_every_op.py tests/ops/test_int8.py tests/test_quantization.py tests/models/test_model_fused.py
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS)

.PHONY: demo venv lint types test test-all clean

venv: $(STAMP)

# torch and the build tools come first: --no-build-isolation builds with what is installed.
$(RUNS): setup.py pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch"
	@$(PIP) setuptools wheel ninja torch
	@echo "installing altclip_fast"
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(STAMP): $(RUNS)
	@echo "installing altclip_fast[test]"
	@$(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

demo: $(RUNS)
	@$(BIN)/altclip-fast demo

lint: venv
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: venv
	@$(BIN)/mypy --no-error-summary

# The second line: the same kernels as a processor without AVX-512, and one without AVX2, would run them.
test: lint types
	@$(PYTEST) -m "not slow"
	@for set in avx2 default; do ATEN_CPU_CAPABILITY=$$set $(PYTEST) -m "not slow" $(NATIVE) -k "cpu or int8 or same_bits" || exit 1; done

test-all: lint types
	@$(PYTEST)

clean:
	@rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
