# `make demo`, `make demo-sweep` and `make test` set up everything they need in .venv, and then do their job.
# On Linux with an NVIDIA GPU pip takes the CUDA build of torch; for the CPU build name PyTorch's CPU index in PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
STILLGRAIN := $(BIN)/python -m stillgrain

.PHONY: demo demo-sweep test lint clean

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "needs Python 3.11 to 3.13, and $(PYTHON) is another: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true # by all cores, where pip takes one; a few files are for other Pythons
	@touch $(INSTALLED)

# Each step is a command that can be typed by hand; what it was and how long it took goes into the report.
define step
@mkdir -p runs/demo; echo '$$ stillgrain $(1)'; start=$$(date +%s); $(STILLGRAIN) $(1); status=$$?; \
  printf '%s\t%s\n' $$(( $$(date +%s) - start )) 'stillgrain $(1)' >> runs/demo/steps.tsv; test $$status -le $(or $(2),0)
endef

# RAW=folder denoises that folder instead of the simulated raws; files in it that fail are listed, and the demo goes on.
demo: $(INSTALLED)
	@rm -f runs/demo/steps.tsv
	$(call step,run workloads/configs/simulate_demo.yaml)
	$(call step,run workloads/configs/denoise_demo.yaml)
	$(call step,bundle verify runs/demo/bundle)
	$(call step,verify-tiling --bundle runs/demo/bundle)
	$(call step,run workloads/configs/infer.yaml$(if $(RAW), raws=$(RAW)),1)
	$(call step,run workloads/configs/evaluate_demo.yaml)
	@$(STILLGRAIN) report runs/demo --evaluation runs/demo/evaluation --archive runs/demo/archive --steps runs/demo/steps.tsv

# Eight mixes of losses, then four rates of a codec; killed on the way, the same command goes on.
demo-sweep: $(INSTALLED)
	$(STILLGRAIN) run workloads/configs/sweep_loss_weights.yaml
	$(STILLGRAIN) run workloads/configs/sweep_lambda.yaml
	$(STILLGRAIN) promote runs/loss_weights --best val/ms_ssim

# JOBS=1 runs one test after another; ARGS=tests/library tests less.
JOBS ?= 2
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf .venv runs
