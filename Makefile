# Everything runs in .venv, which the first command makes, benchmarks in .venv-bench, and `make colab` in .venv-colab-*. `make help` lists the commands.

PYTHON ?= python3
PORT ?= 8000
PARTS ?=
# Interpreters and notebooks for `make colab`: that of .venv and all, if none are named.
PYTHONS ?=
NOTEBOOKS ?=
# Another package index to take torch from, for instance the one with CPU-only builds.
TORCH_INDEX ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help book pdf notebooks test lint mutants determinism colab bench screenshots serve clean
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

book: $(INSTALLED) ## execute every chapter and build the book, warnings as errors
	@$(BIN)/python tools/book.py html

pdf: $(INSTALLED) ## print the book with Chromium: _build/pdf, in A4 and in US Letter
	@$(BIN)/python tools/pdf.py

notebooks: $(INSTALLED) ## execute and measure every chapter; write book/notebooks and book/costs.json
	@$(BIN)/python tools/book.py notebooks

test: lint ## lint, types, tests with doctests, and the committed notebooks run again
	$(BIN)/python -m pytest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest book/notebooks --nbval --nbval-current-env \
		--nbval-cell-timeout 300 -n 2 --dist loadscope

lint: $(INSTALLED) ## style of the code and of the book's code cells, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbqa "ruff check" book
	$(BIN)/nbqa "ruff format --line-length 80" book --check
	$(BIN)/mypy

mutants: $(INSTALLED) ## break the package on purpose, one line at a time, and see the tests go red
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py

determinism: $(INSTALLED) ## run every page twice and compare, measured times left out
	OMP_NUM_THREADS=1 $(BIN)/python tools/determinism.py

colab: $(INSTALLED) ## run the notebooks as on Colab, its set-up cell included; NOTEBOOKS="intro 05b_flows" for some
	OMP_NUM_THREADS=1 $(BIN)/python tests/on_colab.py $(PYTHONS:%=--python %) $(NOTEBOOKS)

bench: ## measure against other libraries, in .venv-bench; PARTS="step memory" for some of it
	$(PYTHON) tests/benchmarks/environment.py $(PARTS)

screenshots: book ## write every page as pictures, to look at, in _build/screenshots
	$(BIN)/python tools/screenshots.py

serve: book ## show the built book at http://localhost:8000 (PORT=...)
	$(BIN)/python -m http.server --bind localhost --directory _build/html $(PORT)

clean: ## remove what was built, the environment too
	rm -rf _build .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-c constraints.txt -e ".[book,test,dev]"
	@touch $@
