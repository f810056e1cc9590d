# make demo: see it work.   make test: check everything.   Both need Python 3.10 or newer and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# PyTorch is some 6 GB: its environment is made once, outside the checkout, and kept until its pins change.
KEPT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pixmatcher-test
PINS = $(shell cat constraints.txt constraints-torch.txt | cksum | cut -d ' ' -f 1)
TORCH_VENV = $(KEPT)/torch-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# What the benchmarks hold PixMatcher against, likewise.
PEERS_VENV = $(subst torch-,peers-,$(TORCH_VENV))
PEERS_PINS = $(shell cksum < benchmarks/requirements-peers.txt | cut -d ' ' -f 1)

.PHONY: demo test test-base test-torch torch-venv peers-venv lint docs bench clean

demo: $(VENV)/installed
	$(BIN)/pixmatcher demo

test: test-base test-torch

# The tests that use a browser need Chromium; where it is not there and may not be installed, they say that they were skipped.
test-base: $(VENV)/installed-dev lint
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && apt-get install -qq --yes chromium >/dev/null; } || echo "Chromium cannot be installed here: tests/web/test_browser.py will not run."
	$(BIN)/python -m pytest -rs

torch-venv:
	@test -e $(TORCH_VENV)/installed-$(PINS) || $(MAKE) --no-print-directory $(TORCH_VENV)/installed-$(PINS)

peers-venv:
	@test -e $(PEERS_VENV)/installed-$(PEERS_PINS) || { rm -rf $(PEERS_VENV) && $(PYTHON) -m venv $(PEERS_VENV) \
	  && $(PEERS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -r benchmarks/requirements-peers.txt \
	  && touch $(PEERS_VENV)/installed-$(PEERS_PINS); }

test-torch: torch-venv
	PYTHONPATH=$(CURDIR)/src $(TORCH_VENV)/bin/python -m pytest tests/with_torch
	PYTHONPATH=$(CURDIR)/src $(TORCH_VENV)/bin/python -m pytest tests/test_projection.py  # UMAP is there too

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The documents as a site, in site/. Fails at a warning, such as a broken link. Needs Python 3.11.5 or newer.
docs: $(VENV)/installed-docs
	$(BIN)/python -m mkdocs build --strict

# Hours. The peers need Linux, and Python 3.11 or newer.
bench: $(VENV)/installed-dev torch-venv peers-venv
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/limits.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/index.py
	$(BIN)/python benchmarks/remote.py
	PYTHONPATH=$(CURDIR)/src $(TORCH_VENV)/bin/python benchmarks/encoders.py
	$(BIN)/python benchmarks/peers_index.py --peers $(PEERS_VENV)/bin/python
	$(BIN)/python benchmarks/peers_tool.py --rclip $(PEERS_VENV)/bin/python --torch $(TORCH_VENV)/bin/python

$(VENV)/installed: pyproject.toml constraints.txt hatch_build.py src/pixmatcher/images/_jpeg_eighth.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python $(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python $(PIP) --editable '.[docs]'
	@touch $@

# With everything but pixmatcher itself, which the tests take from the checkout they are run in.
$(KEPT)/%:
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) --constraint constraints-torch.txt '.[torch,umap,dev]'
	$(@D)/bin/python -m pip uninstall --quiet --yes pixmatcher
	@touch $@

clean:
	rm -rf $(VENV) site examples/.pixmatcher demo-results.png
