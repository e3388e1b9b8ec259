# Everything lives in .venv; a stamp file per extra says what is installed, so a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPS := pyproject.toml constraints.txt

.PHONY: setup demo test quick lint types docs clean

setup: $(VENV)/.setup

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.setup: $(VENV)/bin/python $(DEPS)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.test: $(VENV)/.setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/.setup
	$(BIN)/trainhooks demo

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# a file's tests go to one worker, so that what they share is made once
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

test: lint types
	$(BIN)/python -m pytest $(SHARED)

# what most mistakes fall over, before a commit; `make test` is what counts
QUICK := $(addprefix tests/,core numerics model probe metrics sinks/test_sink_conformance.py lead test_layers.py test_package.py)

quick: lint
	$(BIN)/python -m pytest -q $(SHARED) $(QUICK) --ignore=tests/lead/test_run_analysis.py

# the documentation as a site, in site/; a link that leads nowhere is an error
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info
