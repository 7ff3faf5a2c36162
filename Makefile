# make quickstart   warm start, two runs, evaluation, a table and a picture (runs/quickstart)
# make real-model   the same with a real language model, from a package: GRPO, a fixed clip, equipoise (runs/real-model)
# make test         the tests
# make test-fast    those of them that take no more than a few seconds each, in one process each
# make fuzz N=10000   so many hostile inputs to every command (SEED=1, KIND=study); those that fail are kept in runs/fuzz
# make test-trl TRL=../trl   TRL's own tests of its GRPO trainer, from a checkout, on its trainer and on ours
# All make .venv and install into it; the second time they start at once.
# make test-vllm    tests with vLLM itself, on a CPU, in an environment of its own (.venv-vllm)
# make wheels       what benchmarks/on_a_gpu.py needs on a machine without network, into wheels/ (benchmarks/README.md)
# make test-verl    tests with verl itself, on CPUs, in an environment of its own (.venv-verl)
# make verl-demo    verl's own trainer with equipoise, on CPUs, in the same environment (runs/verl-cpu)

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
VLLM := .venv-vllm
VLLM_BIN := $(VLLM)/bin
VERL := .venv-verl
VERL_BIN := $(VERL)/bin

# Threads of a tiny model on a few busy cores only wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart real-model test test-fast test-vllm test-verl test-trl fuzz verl-demo wheels lint clean

quickstart: $(RUN)
	$(BIN)/equipoise quickstart

# What of it is finished is kept: the same command goes on. More: recipes/real_model/run.py --help
real-model: $(VENV)/.installed-real-model
	$(BIN)/python recipes/real_model/run.py --lora

# Processes that share the test files among them.
WORKERS ?= 2

test: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not distributed and not browser"

# Here the tests are not skipped: without vLLM the import fails first.
test-vllm: $(VLLM)/.installed
	$(VLLM_BIN)/python -c "import vllm"
	$(VLLM_BIN)/python -m pytest tests/vllm

test-verl: $(VERL)/.installed
	$(VERL_BIN)/python -c "import verl"
	$(VERL_BIN)/python -m pytest tests/verl

verl-demo: $(VERL)/.installed
	$(VERL_BIN)/python recipes/verl/cpu/run.py --output runs/verl-cpu

N ?= 2000
SEED ?= 0

fuzz: $(DEV)
	PYTHONPATH=tests/support:tests/reliability $(BIN)/python -m fuzz --inputs $(N) --seed $(SEED) $(addprefix --kind ,$(KIND))

test-trl: $(DEV)
	PYTHONPATH=tests/support $(BIN)/python -m trl_suite $(TRL)

# For the machine they go to: its Python, and all of them or those that a machine with transformers lacks (few).
WHEELS ?= all
WHEELS_FOLDER ?= wheels
WHEELS_PYTHON ?= 3.11
PLATFORMS = 2_28 2_27 2_24 2_17 2_5

wheels: $(VENV)
	mkdir -p $(WHEELS_FOLDER)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--implementation cp --python-version $(WHEELS_PYTHON) $(PLATFORMS:%=--platform manylinux_%_x86_64) \
		--platform manylinux2014_x86_64 --platform manylinux1_x86_64 -c constraints.txt \
		-d $(WHEELS_FOLDER) -r benchmarks/wheels_$(WHEELS).txt
	du -sh $(WHEELS_FOLDER)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV):
	$(PYTHON) -m venv $(VENV)

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

$(RUN): pyproject.toml constraints.txt | $(VENV)
	$(INSTALL) -e .
	@touch $@

$(DEV): $(RUN)
	$(INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/.installed-real-model: $(RUN)
	$(INSTALL) -e ".[real-model]"
	@touch $@

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r constraints-vllm.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Compiled at once: a run of verl is ten processes that import it.
$(VERL)/.installed: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(VERL)
	$(VERL_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-verl.txt
	$(VERL_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(VERL)
