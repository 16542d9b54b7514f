# make help: this list, as make alone does.
# make demo: set up, train on real images, export the best network to ONNX and verify it.
# make install: set up only. With CPU=1 both do without CUDA, after PyTorch's CPU build (docs/how-to/install.md).
# make test: set up with the development tools, check the code, build the pages, run the whole suite.
# make docs: the pages, in docs/_build; a warning is an error.
# make bench: benchmark against other tools; RESNET_OPS_CIFAR10 names a folder of CIFAR-10 in Parquet.
# make gpu: what a CUDA GPU shows, in 9 minutes: doctor, tests/gpu, benchmarks/gpu.py; MINUTES= for fewer or more.
#   GPU_PYTHON=python3 uses an interpreter in which resnet-ops is installed already, instead of .venv.
# make test-slurm: run the Slurm template on a real Slurm on this machine; needs root.
# make test-ray RAY=2.61.0: the suite against another Ray, in .venv-ray; without RAY= against the newest.
# make test-slow: what takes too long for each time: all forms of exports, every line of the pages, lost machines.
# make test-chaos: train while machines die, networks are cut and disks fill; parts of it need root.

PYTHON ?= python3
BIN := .venv/bin
MINUTES ?= 9
GPU_PYTHON ?=

PIP := $(BIN)/pip install --disable-pip-version-check
# $(call install,EXTRA|EXTRA,OPTIONS OF PIP). Pip can add a requirement, or bound it, but not leave one out: with CPU=1
# it is given the list, with ONNX Runtime's CPU build in the place of the one for CUDA.
ifdef CPU
define install
	@$(PIP) --quiet --no-deps --editable .
	@sed -n 's/^Requires-Dist: //p' .venv/lib/python3*/site-packages/resnet_ops-*.dist-info/METADATA | \
		sed -E 's/^onnxruntime-gpu[^;]*/onnxruntime>=1.23/; s/; extra == "($(1))"//; /; extra == /d' > .venv/cpu.txt
	@$(PIP) $(2) --requirement .venv/cpu.txt
	@echo "Without onnxruntime-gpu, as CPU=1 wants it; pip says so."
endef
else
define install
	@$(PIP) $(2) --editable ".$(if $(1),[$(subst |,$(comma),$(1))])"
endef
endif
comma := ,

.PHONY: help demo install torch test test-chaos test-ray test-slow test-slurm check format docs bench gpu pictures clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^# \{0,1\}/!q; s///p' Makefile

install: .venv/installed

demo: .venv/installed
	$(BIN)/resnet-ops train --name demo --overwrite
	$(BIN)/resnet-ops export demo --onnx
	@echo "Next, your own images: source .venv/bin/activate; resnet-ops data check FOLDER"

test: .venv/installed-dev check docs
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slurm: .venv/installed-dev
	@{ command -v slurmctld && command -v slurmd && command -v munged; } > /dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq slurm-wlm munge > /dev/null; \
		else \
			echo "error: Slurm is not installed, and installing it needs root: apt-get install slurm-wlm munge" >&2; \
			exit 1; \
		fi; }
	$(BIN)/pytest -m slurm tests/cluster

test-chaos: .venv/installed-dev
	$(BIN)/pytest -m chaos -s

test-slow: .venv/installed-dev
	$(BIN)/pytest -m "slow and not chaos" -n 2 --dist loadfile --no-loadscope-reorder

# The second pip goes beyond what pyproject.toml allows, and says so.
test-ray: .venv/bin/pip
	$(BIN)/python -m venv .venv-ray
	.venv-ray/bin/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	.venv-ray/bin/pip install --quiet --disable-pip-version-check --upgrade "ray[default,serve,train,tune]$(if $(RAY),==$(RAY))"
	.venv-ray/bin/pytest tests/orchestration/test_ray_internals.py
	.venv-ray/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

bench: .venv/installed-bench
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/pipelines.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/together.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/survival.py
	$(BIN)/python benchmarks/serve_attacks.py
	$(BIN)/python benchmarks/tune.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/finetune.py
	$(BIN)/python benchmarks/export.py

# What fails does not keep the rest from being measured. With -P the installed package is run, not the folder here.
gpu: $(if $(GPU_PYTHON),,.venv/installed-dev)
	@python='$(or $(GPU_PYTHON),$(BIN)/python)'; began=$$(date +%s); failed=0; \
	$$python -P -m resnet_ops doctor || failed=1; \
	timeout $$(( $(MINUTES) * 30 )) $$python -m pytest tests/gpu -q -n 6 || failed=1; \
	$$python benchmarks/gpu.py --minutes $(MINUTES) --began $$began || failed=1; \
	exit $$failed

pictures: .venv/installed-dev
	$(BIN)/python docs/pictures.py $(ONLY)

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 to 3.13 is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating .venv with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv .venv

torch: .venv/bin/pip
	@test -d .venv/lib/python3*/site-packages/torch || { \
		echo "error: CPU=1 needs PyTorch's CPU build in .venv: docs/how-to/install.md says how to install it." >&2; exit 1; }

.venv/installed: .venv/bin/pip pyproject.toml $(if $(CPU),| torch)
	@echo "Installing PyTorch, Ray and ONNX Runtime into .venv, a few minutes the first time: $(if $(CPU),2 GB,7 GB; without a GPU 2 GB do, see docs/how-to/install.md)."
	@echo "After the downloads pip unpacks them$(if $(CPU),,$(comma) some 7 GB)$(comma) silent for some minutes."
	$(call install,,$(if $(wildcard .venv/installed),--quiet))
	@echo "Installed: $$(du -sh .venv | cut -f 1) in .venv."
	@touch $@

.venv/installed-dev: .venv/installed
	$(call install,dev,--quiet)
	@! command -v npm > /dev/null || npm install --silent --no-audit --no-fund --prefix .venv onnxruntime-web || \
		echo "ONNX Runtime Web cannot be installed: its tests are skipped." >&2
	@touch $@

.venv/installed-bench: .venv/installed-dev
	$(call install,dev|bench,--quiet)
	@touch $@

clean:
	rm -rf .venv .venv-ray build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
