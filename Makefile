# `make demo` trains the small text-to-video model and samples from it; `make test` runs the tests.
# `make parity` compares with PyTorch's libraries. Each makes its environment first. make demo ACCELERATOR=cuda uses a GPU,
# ACCELERATOR=tpu a TPU.

PYTHON ?= python3
ACCELERATOR ?= cpu
VENV ?= .venv
RUN ?= runs/moving_digits

# Tested versions: one set for Python 3.11 (jax 0.10), one for 3.12 and newer.
MINOR := $(shell $(PYTHON) -c "import sys; print(sys.version_info.minor)")
CONSTRAINTS := constraints-py$(if $(filter 11,$(MINOR)),311,312).txt
EXTRA_test := [dev]
EXTRA_parity := [dev,parity]
EXTRA := $(if $(filter cpu,$(ACCELERATOR)),,[$(ACCELERATOR)])
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)

.PHONY: demo test parity lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.for-$(ACCELERATOR)
	$(VENV)/bin/python experiments/demo.py --run $(RUN)

test: $(VENV)/.for-test
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not parity"

parity: $(VENV)/.for-parity
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m parity tests/parity tests/end_to_end/test_benchmark.py

lint: $(VENV)/.for-test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.for-%: setup.py $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing into $(VENV) ($*), a minute or two"
	$(PIP) --editable '.$(or $(EXTRA_$*),$(EXTRA))'
	@touch $@

clean:
	rm -rf $(VENV) .jax_cache build *.egg-info
