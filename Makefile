# One word per task; `make help` lists them. Every target makes or reuses .venv, and rebuilds only what changed.
#
#   PYTHON           the Python that .venv is made from (3.10 or newer; default python3)
#   TORCH_INDEX_URL  where torch comes from, for example PyTorch's index of CPU builds, which are much smaller
#   WORKERS          test processes side by side (default 2; 0 for one process)
#   PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS   passed on
#   CUDA_ARCHS       what check-cuda compiles for, in PyTorch's notation
# Build variables (MOE_EXT_CUDA, MAX_JOBS, CC, ...) are those of setup.py.

PYTHON ?= python3
TORCH_INDEX_URL ?=
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
CUDA_ARCHS ?= 8.0;8.6;8.9;9.0a;10.0;12.0

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --progress-bar off
REQUIREMENTS := requirements/dev.txt
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
# Folders count too: their time changes when a file is added or removed.
BUILD_INPUTS := $(shell find csrc cmake -not -name '.*') CMakeLists.txt setup.py pyproject.toml
EMULATOR := build/emulator
EMULATOR_BUILT := $(EMULATOR)/.built
EMULATOR_INPUTS := $(shell find emulator/src emulator/cmake emulator/torch_memory -not -name '.*') emulator/CMakeLists.txt
VIRTUAL := build/virtual
VIRTUAL_BUILT := $(VIRTUAL)/.built
VIRTUAL_INPUTS := $(shell find csrc cmake -not -name '.*') $(wildcard tests/virtual/*.cpp tests/virtual/*.h) \
  tests/virtual/CMakeLists.txt emulator/src/runtime/context.h
CUDA_BUILD := build/cuda
CXX_FILES = $(shell git ls-files --cached --others --exclude-standard -- '*.h' '*.cpp' '*.cu' '*.cuh')

# No compiler, cache or model download reads the network once the requirements are there.
export HF_HUB_OFFLINE := 1

.PHONY: help demo test test-cuda sanitize-cuda check-cuda emulator virtual bench format lint wheel clean distclean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BUILT)  ## train a small MoE language model in about two minutes; plots go to demo_output/
	$(BIN)/python examples/train_lm.py $(DEMO_ARGS)

test: $(BUILT) $(EMULATOR_BUILT) $(VIRTUAL_BUILT)  ## all tests, the CUDA kernels on the virtual GPU
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-cuda: $(INSTALLED)  ## the tests of the ops on this machine's GPU; needs a CUDA build of torch in .venv
	MOE_EXT_CUDA=on $(PIP_INSTALL) --no-build-isolation --no-deps -e .
	$(BIN)/python -m pytest -m cuda $(PYTEST_ARGS)

# compute-sanitizer slows a kernel down by 10 to 100 times: fewer tests, one process.
sanitize-cuda: $(INSTALLED)  ## the same under compute-sanitizer: memory, races, uninitialised reads, barriers
	MOE_EXT_CUDA=on $(PIP_INSTALL) --no-build-isolation --no-deps -e .
	for tool in memcheck racecheck initcheck synccheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	    $(BIN)/python -m pytest -m cuda -p no:xdist $(or $(PYTEST_ARGS),tests/ops -k test_cases) || exit 1; \
	done

check-cuda: $(INSTALLED)  ## compiles all kernels for all architectures, without a GPU, and looks at what came out
	$(BIN)/cmake -S . -B $(CUDA_BUILD) -G Ninja --log-level=WARNING -DMOE_EXT_CUDA=on \
	  "-DCMAKE_CUDA_ARCHITECTURES=$$($(BIN)/python -c 'import setup, sys; print(setup.cmake_cuda_architectures(sys.argv[1]))' '$(CUDA_ARCHS)')" \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(abspath $(CUDA_BUILD))/package/moe_ext
	$(BIN)/ninja -C $(CUDA_BUILD) --quiet
	cp -r python/moe_ext/. $(CUDA_BUILD)/package/moe_ext.new && rm -f $(CUDA_BUILD)/package/moe_ext.new/*.so
	cp -r $(CUDA_BUILD)/package/moe_ext.new/. $(CUDA_BUILD)/package/moe_ext/ && rm -rf $(CUDA_BUILD)/package/moe_ext.new
	MOE_EXT_CUDA_BUILD=$(abspath $(CUDA_BUILD)) PYTHONPATH=$(abspath $(CUDA_BUILD))/package \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/cuda $(PYTEST_ARGS)

emulator: $(EMULATOR_BUILT)  ## the virtual GPU that CUDA kernels are tested on

virtual: $(VIRTUAL_BUILT)  ## the CUDA kernels, built for the virtual GPU

bench: $(BUILT)  ## checked benchmarks of every operation; results go to bench/results/
	$(BIN)/python -m bench $(or $(BENCH_ARGS),run)

format: $(INSTALLED)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

lint: $(INSTALLED)  ## formats, lint and types, without changing a file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

wheel: $(INSTALLED)  ## dist/*.whl and dist/*.tar.gz
	rm -rf build/lib.* build/bdist.* dist
	$(BIN)/python -c "from setuptools import build_meta as b; print(b.build_sdist('dist')); print(b.build_wheel('dist'))"

clean:  ## remove what a build or run made
	rm -rf build dist demo_output python/*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache $(BUILT)
	rm -f python/moe_ext/*.so python/moe_ext/_build_info.py emulator/*.so emulator/*.a
	find python tests bench examples emulator -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "moe_ext needs Python 3.10 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# torch goes first: with an index of its own, and so that nothing else decides which build of it is taken.
$(INSTALLED): $(REQUIREMENTS) | $(VENV)/pyvenv.cfg
	$(PIP_INSTALL) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL) )"$$(grep '^torch==' $(REQUIREMENTS))"
	$(PIP_INSTALL) -r $(REQUIREMENTS)
	@touch $@

$(EMULATOR_BUILT): $(INSTALLED) $(EMULATOR_INPUTS)
	$(BIN)/cmake -S emulator -B $(EMULATOR) -G Ninja --log-level=WARNING \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/ninja -C $(EMULATOR) --quiet
	@touch $@

$(VIRTUAL_BUILT): $(EMULATOR_BUILT) $(VIRTUAL_INPUTS)
	$(BIN)/cmake -S tests/virtual -B $(VIRTUAL) -G Ninja --log-level=WARNING \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/ninja -C $(VIRTUAL) --quiet
	@touch $@

$(BUILT): $(INSTALLED) $(BUILD_INPUTS)
	$(PIP_INSTALL) --no-build-isolation --no-deps -e .
	@touch $@
