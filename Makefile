# `make demo` and `make test` set up everything they need in .venv, and then do their job.
# On Linux with an NVIDIA GPU pip takes the CUDA build of torch; for the CPU build name PyTorch's CPU index in PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
STILLGRAIN := $(BIN)/python -m stillgrain

.PHONY: demo test lint clean

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "needs Python 3.11 to 3.13, and $(PYTHON) is another: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf .venv runs
