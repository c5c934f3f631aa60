# Everything a fresh machine needs: Python >= 3.11 and make. No root; the C compiler comes from a wheel.
#
#   make demo    train on the emulated board, print the table, write the report
#   make test    lint, types, unit tests
#   make robot   the suites on the emulated board; TARGET=renode or TARGET=serial PORT=/dev/ttyACM0 for others
#
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
JOBS   ?= 2
TARGET ?= unicorn
PORT   ?=

.PHONY: demo test robot lint clean
.DEFAULT_GOAL := demo

demo: $(READY)
	$(BIN)/tinytrain demo

test: lint
	$(BIN)/python -m pytest -n $(JOBS) -q --no-header

robot: $(READY)
	$(BIN)/robot --outputdir build/robot/$(TARGET) --variable TARGET:$(TARGET) --variable PORT:$(PORT) tests/robot

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy

# PyPI's torch for Linux brings 2 GB of CUDA along; the CPU build has an index of its own. An index that you
# have configured yourself (pip config, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL) is left alone.
TORCH_CPU := https://download.pytorch.org/whl/cpu

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "TinyTrain Lite needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing the pinned packages into $(VENV) (once, a minute or two)"
	@index=$$($(BIN)/pip config list | grep -q 'index-url' || echo "--extra-index-url $(TORCH_CPU)"); \
	  $(BIN)/pip install -qq --disable-pip-version-check $$index -c requirements.lock -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
