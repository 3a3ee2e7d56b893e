# One command set for laptop, hook and CI. `make demo` and `make test` do all the set-up they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: demo test slow test-system test-pi4 lean wheel lint format docs clean setup
.DEFAULT_GOAL := demo

demo: setup
	$(BIN)/edvit demo -o edvit-demo

# Every test but the slow ones, which build, kill and serve whole bundles; `make slow` runs those.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

# Devices and gateways that hang, die and meet, as real processes; `make slow` runs these too.
test-system: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/system/faults

# A device agent on an emulated Cortex-A72, the processor of a Raspberry Pi 4. Needs debootstrap and qemu-user-static, says so
# where they are missing, and keeps what it makes in .pi4.
test-pi4: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 1200 tests/pi4

# The run-time world alone, in an environment without torch.
lean:
	$(PYTHON) -m venv --clear $(VENV)-lean
	$(VENV)-lean/bin/python -m pip install --quiet --disable-pip-version-check . pytest pytest-timeout
	$(VENV)-lean/bin/python -m pytest -q tests/lean

# The wheel as a user gets it: built, checked, installed without extras in a fresh environment, and run.
wheel:
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check build twine
	rm -rf dist
	$(VENV)-wheel/bin/python -m build --outdir dist .
	$(VENV)-wheel/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd $(VENV)-wheel && bin/edvit --help > help.txt && bin/edvit device --help > help.txt
	cd $(VENV)-wheel && ! bin/python -c "import benchmarks" 2> missing.txt

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

docs: setup
	$(BIN)/cyclopts generate-docs src/edvit/cli/commands.py:app --output docs/cli.md

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# What `make demo`, `make test` and the others make, but for $(VENV), which takes minutes to set up again.
clean:
	rm -rf edvit-demo edvit-demo-work .pi4 $(VENV)-lean $(VENV)-wheel .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
