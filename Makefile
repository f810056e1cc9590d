# make demo: see it work.   make test: check it, in minutes.   make test-all: the slow tests and those with PyTorch too.
# All need Python 3.10 or newer and a package registry.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check install --progress-bar off --constraint constraints.txt
# Of what pip prints, the lines that show that it is at work.
SHOW := { grep --line-buffered -E '^(Collecting|Installing|Successfully)' | cut -c 1-100 || true; }
# PyTorch is some 6 GB: its environment is made once, outside the checkout, and kept until its pins change.
KEPT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pixmatcher-test
PINS = $(shell cat constraints.txt constraints-torch.txt | cksum | cut -d ' ' -f 1)
TORCH_VENV = $(KEPT)/torch-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# What the benchmarks hold PixMatcher against, likewise.
PEERS_VENV = $(subst torch-,peers-,$(TORCH_VENV))
PEERS_PINS = $(shell cksum < benchmarks/requirements-peers.txt | cut -d ' ' -f 1)

# As many test processes as cores. Tests with the same mark `xdist_group` run in one process. One thread of OpenMP in each: others
# wait for work in a loop, which takes the cores from the other processes.
test test-slow test-torch: export OMP_NUM_THREADS ?= 1
PYTEST = -m pytest -rs --numprocesses auto --dist loadgroup

.PHONY: demo test test-slow test-torch test-all chromium torch-venv peers-venv lint docs bench clean

demo: $(VENV)/installed
	$(BIN)/pixmatcher demo

test: $(VENV)/installed-dev chromium lint
	$(BIN)/python $(PYTEST) -m "not slow"

# What `make test` leaves out because of the time it takes; see the marker `slow`.
test-slow: $(VENV)/installed-dev chromium
	$(BIN)/python $(PYTEST) -m slow

test-all: test test-slow test-torch

# The tests that use a browser need Chromium; where it is missing and cannot be installed, they are skipped and say so.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "Installing Chromium ..." \
	  && apt-get update -qq && apt-get install -qq --yes chromium >/dev/null; } \
	  || echo "Chromium cannot be installed here: tests/web/test_browser.py will not run."

torch-venv:
	@test -e $(TORCH_VENV)/installed-$(PINS) || $(MAKE) --no-print-directory $(TORCH_VENV)/installed-$(PINS)

peers-venv:
	@test -e $(PEERS_VENV)/installed-$(PEERS_PINS) || { rm -rf $(PEERS_VENV) && $(PYTHON) -m venv $(PEERS_VENV) \
	  && $(PEERS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -r benchmarks/requirements-peers.txt \
	  && touch $(PEERS_VENV)/installed-$(PEERS_PINS); }

test-torch: torch-venv
	PYTHONPATH=$(CURDIR)/src $(TORCH_VENV)/bin/python $(PYTEST) tests/with_torch
	PYTHONPATH=$(CURDIR)/src $(TORCH_VENV)/bin/python $(PYTEST) tests/test_projection.py  # UMAP is installed there

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The documents as a site, in site/. Fails at a warning, such as a broken link. Needs Python 3.11.5 or newer.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Hours. The peers need Linux, and Python 3.11 or 3.12.
bench: $(VENV)/installed-dev torch-venv peers-venv
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/limits.py
	$(BIN)/python benchmarks/processors.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/index.py
	$(BIN)/python benchmarks/remote.py
	PYTHONPATH=$(CURDIR)/src $(TORCH_VENV)/bin/python benchmarks/encoders.py
	$(BIN)/python benchmarks/peers_index.py --peers $(PEERS_VENV)/bin/python
	$(BIN)/python benchmarks/peers_tool.py --rclip $(PEERS_VENV)/bin/python --torch $(TORCH_VENV)/bin/python

$(VENV)/installed: pyproject.toml constraints.txt hatch_build.py $(wildcard src/pixmatcher/*/*.c src/pixmatcher/*/*/*.[ch])
	@echo "Installing PixMatcher into $(VENV), which takes about half a minute ..."
	@$(PYTHON) -m venv $(VENV)
	@set -o pipefail; $(BIN)/python $(PIP) --editable . | $(SHOW)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing what the tests need into $(VENV), which takes about a minute ..."
	@set -o pipefail; $(BIN)/python $(PIP) --editable '.[dev]' | $(SHOW)
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	@set -o pipefail; $(BIN)/python $(PIP) --editable '.[docs]' | $(SHOW)
	@touch $@

# With everything but pixmatcher itself, which the tests take from the checkout they are run in.
$(KEPT)/%:
	rm -rf $(@D)
	@echo "Installing PyTorch and what its tests need (some 6 GB) ..."
	$(PYTHON) -m venv $(@D)
	@set -o pipefail; $(@D)/bin/python $(PIP) --constraint constraints-torch.txt '.[torch,umap,dev]' | $(SHOW)
	$(@D)/bin/python -m pip uninstall --quiet --yes pixmatcher
	@touch $@

clean:
	rm -rf $(VENV) site examples/.pixmatcher demo-results.png
