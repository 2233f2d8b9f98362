# make demo   one set of weights on real photographs at five resolutions
# make test   the tests
# make check  lint, types and tests: what CI runs
# make test-all   slow ones, too (marked `slow`)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# inference engines get processes of their own: in one process with everything else, torch's tests were seen to crash
ENGINE_TESTS := $(wildcard tests/test_export*.py tests/test_graph*.py tests/test_session*.py tests/test_engines*.py \
	tests/test_bench.py tests/test_benchmarks_runtime.py tests/test_budget*.py tests/test_latency*.py tests/test_segmentation_export.py \
	tests/test_quantization_models.py tests/test_batch*.py tests/test_predict.py tests/test_run.py tests/test_demo.py)

.PHONY: demo lint test test-all check clean

$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,check,demo]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py --out demo_output

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

test-all: SELECT =
test: SELECT = -m 'not slow'
test test-all: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 $(SELECT) tests $(ENGINE_TESTS:%=--ignore=%)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 $(SELECT) rs_timm $(ENGINE_TESTS)

check: lint test

clean:
	rm -rf $(VENV) demo_output build dist *.egg-info
