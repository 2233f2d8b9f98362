# make demo   one set of weights on real photographs at five resolutions
# make test   all tests
# make check  lint, types and tests: what CI runs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo lint test check clean

$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check,demo]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py --out demo_output

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

check: lint test

clean:
	rm -rf $(VENV) demo_output build dist *.egg-info
