# make demo    build .venv with the base install (no torch) and segment real images by words
# make test    build .venv-dev with torch; lint, types, all tests
# make lint | types | pytest | wheel | bench | docs | clean
#
# Only Python 3.11 or newer and pip are needed. A second run reuses what the first one built.
# TORCH_INDEX=URL takes torch from that wheel index, e.g. PyTorch's own one of CPU builds (see README.md).

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_OUTPUT ?= demo-output
PYTEST_ARGS ?=

VENV := .venv
DEV := .venv-dev
SOURCES := $(shell find src -type f -not -path '*/__pycache__/*' -not -path '*.egg-info/*')

.PHONY: demo test lint types pytest wheel bench docs clean

demo: $(VENV)/.done
	$(VENV)/bin/lexitome demo -o $(DEMO_OUTPUT)

test: lint types pytest

lint: $(DEV)/.done
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

types: $(DEV)/.done
	$(DEV)/bin/mypy

pytest: $(DEV)/.done
	$(DEV)/bin/python -m pytest $(PYTEST_ARGS)

wheel: $(DEV)/.done
	rm -rf build dist
	$(DEV)/bin/python -m pip wheel --no-deps --wheel-dir dist .
	rm -rf build

bench: $(VENV)/.done
	$(VENV)/bin/python benchmarks/speed.py

docs: $(DEV)/.done
	$(DEV)/bin/python docs/update.py

# Debian splits ensurepip off; where it is missing, the system's pip puts pip into the environment.
define make_venv
	rm -rf $(1)
	$(PYTHON) -m venv $(1) || { rm -rf $(1); $(PYTHON) -m venv --without-pip $(1) \
	  && $(PYTHON) -m pip --python $(1)/bin/python install --quiet pip; }
endef

$(VENV)/bin/python:
	$(call make_venv,$(VENV))

$(DEV)/bin/python:
	$(call make_venv,$(DEV))

# Installed as users get it, not in place: what is missing from the wheel is missing from the demo.
$(VENV)/.done: $(VENV)/bin/python pyproject.toml constraints/base.txt $(SOURCES)
	rm -rf build
	$(VENV)/bin/python -m pip install --quiet -c constraints/base.txt .
	rm -rf build
	touch $@

$(DEV)/.done: $(DEV)/bin/python pyproject.toml $(wildcard constraints/*.txt)
	$(if $(TORCH_INDEX),$(DEV)/bin/python -m pip install --quiet -c constraints/torch.txt \
	  torch torchvision --index-url $(TORCH_INDEX))
	$(DEV)/bin/python -m pip install --quiet -c constraints/base.txt -c constraints/dev.txt \
	  -c constraints/torch.txt -e '.[dev,train]'
	touch $@

clean:
	rm -rf $(VENV) $(DEV) build dist .mypy_cache .pytest_cache .ruff_cache
