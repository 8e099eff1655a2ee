# `make` lists the targets. PYTHON is the interpreter to use, VENV the environment to install into.
PYTHON ?= python3
VENV ?= .venv
EXTRAS := test,dev,docs,models,checkpoints,dask,export
# PyTorch, torchax and the libraries to compare with are installed into a separate environment; these
# are the tested versions.
TORCH_VENV ?= .venv-torch
TORCH_PINS ?= torch==2.13.0 torchax==0.0.13 curvlinops-for-pytorch==3.0.1 hessian-eigenthings==1.0.0a5 \
	matfree==0.6.3 PyHessian==0.1

BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTEST := $(BIN)/python -m pytest
# Two processes; the tests of a file stay in one of them, so that their fixtures are made once.
PARALLEL := -n 2 --dist loadfile
# Tests that pass JAX arrays where signatures ask for them; extend the list.
SHAPED := $(addprefix tests/,test_schedules.py test_optimizers.py test_output_hessian.py \
	analysis/test_replay.py)
# The build executes the examples in the pages. The variable silences a notice about successors of Material.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.DEFAULT_GOAL := help
.PHONY: help setup demo reproduce test test-all shapes stress test-torch test-browser check lint docs \
	wheel figures bench bench-torch format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## install the pinned versions into .venv, if needed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'Python 3.11 or newer is needed as $(PYTHON); name one: make PYTHON=python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo '$(PYTHON) has no venv module; install it (Debian: apt install python3-venv)' >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
		$(PYTHON) -m venv $(VENV)
	@echo '*' > $(VENV)/.gitignore
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[$(EXTRAS)]' $(PINS)
	@# Without dependencies: its metadata ask for TensorFlow, which nothing here needs.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-deps neural-tangents frozendict
	@touch $@

demo: setup ## train the headline run, compute its spectra, draw the figures (run.h5, run.png, ...)
	$(BIN)/dlf-dynamics train -o run.h5 --overwrite
	$(BIN)/dlf-dynamics spectrum run.h5

# Writes NAME.md with its figures; a study that two pages read is computed once.
reproduce: setup ## list the published results to reproduce, with times; NAME=... reproduces one
	$(BIN)/dlf-dynamics reproduce $(if $(NAME),$(NAME) --pages docs/reproduction)

test: check ## check, then the fast tests
	$(PYTEST) $(PARALLEL)

test-all: check shapes ## check, then all tests, including the slow ones
	$(PYTEST) $(PARALLEL)
	@# Compiled as for users: the other tests switch off some of XLA's passes (tests/conftest.py).
	XLA_FLAGS= $(PYTEST) $(PARALLEL) -m slow

shapes: setup ## check arrays against the shapes in signatures, in some of the tests
	$(PYTEST) $(PARALLEL) --jaxtyping-packages=dlf_dynamics,beartype.beartype $(SHAPED)

stress: setup ## mutated files, odd input, kills: no traceback, hang, wrong row or false verdict
	$(BIN)/python tests/stress

test-torch: ## test PyTorch modules and compare with other libraries (a large download), in .venv-torch
	@$(MAKE) --no-print-directory VENV='$(TORCH_VENV)' EXTRAS=test,compare,checkpoints,torch PINS='$(TORCH_PINS)' setup
	$(TORCH_VENV)/bin/python -m pytest tests -m torch

test-browser: setup ## test reports in Chromium (Debian: apt-get install chromium chromium-driver)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(PYTEST) -m browser tests/test_report_browser.py

check: setup ## check formatting, lint and types, and build the documentation
	@$(MAKE) --no-print-directory -j 2 lint docs

lint: setup ## check formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: setup ## build the documentation into site/ (start at site/index.html)
	@# Not with --quiet: that drops the warnings before --strict counts them.
	$(MKDOCS)

wheel: setup ## build source distribution and wheel into dist/
	$(BIN)/python -m build --no-isolation

figures: setup ## redraw the figures of the pages with docs/draw.py and docs/burst.py (ten minutes)
	$(BIN)/python docs/burst.py
	$(BIN)/python docs/draw.py

bench: setup ## time training and analysis, ratios first
	$(PYTEST) benchmarks --benchmark-only -s

bench-torch: ## compare the eigensolver with those of other libraries, in .venv-torch
	@$(MAKE) --no-print-directory VENV='$(TORCH_VENV)' EXTRAS=test,compare,checkpoints,torch PINS='$(TORCH_PINS)' setup
	$(TORCH_VENV)/bin/python -m pytest benchmarks/test_libraries.py benchmarks/test_eigensolver.py --benchmark-only -s

format: setup ## format the code, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and everything that was built
	test ! -e $(STAMP) || rm -rf $(VENV)
	test ! -e $(TORCH_VENV)/installed || rm -rf $(TORCH_VENV)
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
