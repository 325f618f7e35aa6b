# `make help` lists the targets. PYTHON=... uses an environment of your own.
ifdef PYTHON
SETUP :=
else
PYTHON := .venv/bin/python
SETUP := .venv/.stamp
endif

.PHONY: help setup demo test lint format zoo bench clean
.DEFAULT_GOAL := help

help:  ## list what make can do
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(SETUP)  ## make the environment in .venv (about 6 GB, once)

.venv/.stamp: requirements.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(SETUP)  ## train a MobileNetV3 on real digits and set it beside its paper (minutes)
	$(PYTHON) train.py

test: $(SETUP)  ## run all tests on the CPU, without network
	$(PYTHON) -m pytest

lint: $(SETUP)  ## check style and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: $(SETUP)  ## mend style and format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

zoo: $(SETUP)  ## write docs/MODEL_ZOO.md and its picture anew
	$(PYTHON) -m mobilenet_exp.zoo

bench: $(SETUP)  ## time the old V1 table's networks and ours side by side
	$(PYTHON) bench.py

clean:  ## remove the environment and caches; runs/ and data/ stay
	rm -rf .venv .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
