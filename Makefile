# Each target sets up what it needs: a fresh machine with Python >= 3.10, a C++20 compiler and a package registry will do.
#
#   make demo     fit the hand of the demo image, write the results to $(OUT)
#   make test     the whole test suite, on the installed package
#   make sanitize the tests of the CPU ops under the address and undefined-behaviour sanitizers; needs GCC
#   make lint     ruff and clang-format
#   make format   let both rewrite the files
#   make cuda     compile the CUDA kernels for sm_80 and sm_90; skipped where there is no nvcc
#   make bench    the benchmarks; tables go to bench/results
#   make accuracy the networks that ship, on generated hands and on the photographs in $(PHOTOGRAPHS): docs/model-card.md
#   make gpu-check  on a machine with a GPU and nvcc: every test and sanitizer on that GPU
#   make gpu-bench  there, too: the benchmarks of the kernels, tables named by the device
#   make clean    remove everything that the targets above made
#
# Variables, for instance `make test PYTHON=python3.12 PYTEST_ARGS="-k lbs"`:
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
TORCH ?= torch==2.13.0
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
CUDA_ARCHS ?= 80;90
PHOTOGRAPHS ?= ../shared/data/hands

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A torch for CPUs alone cannot call the CUDA kernels, and these take longest to compile; `make cuda` compiles them anyway.
WITH_CUDA = DHPE_CUDA=$${DHPE_CUDA:-$$($(BIN)/python -c "import torch; print('AUTO' if torch.version.cuda else 'OFF')")}

# What the installed package is made of. Folders count too, so that a removed file is noticed.
SOURCES := CMakeLists.txt pyproject.toml README.md LICENSE NOTICE \
	$(shell find csrc dhpe_fast ! -name '*.pyc' ! -name '*.so' ! -name __pycache__)
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

SANITIZED_TESTS := $(addprefix test_,$(addsuffix .py,lbs rasterize silhouette silhouette_edge silhouette_soft \
	interpolate visibility_gradient refine newton instruction_sets))

GPU_BENCHES := bench_lbs bench_raster
GPU_SCRIPTS := roofline_gpu bench_refine bench_fit
BENCH_SCRIPTS := roofline scaling bench_refine newton_against_descent bench_fit keypoint_fit silhouette_area silhouette_recovery

.PHONY: help demo test sanitize lint format cuda bench accuracy gpu-check gpu-bench gpu-install clean install
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: install
	$(BIN)/dhpe-fast demo -o $(OUT)
	@echo "The results are in $(OUT)/ (the picture: $$(ls $(OUT)/*overlay*.png | head -n 1))"

# In tests/, where no interpreter that a test starts can take the sources for the installed package. Waiting threads
# sleep: spinning ones slow everything down fivefold where the processor is shared.
test: install
	cd tests && OMP_WAIT_POLICY=passive $(abspath $(BIN))/pytest -q $(PYTEST_ARGS)

# A second build, in a package of its own that PYTHONPATH puts before the installed one. Python itself is not sanitized:
# the runtime has to be loaded before everything else, and libstdc++ with it, or the first C++ exception would abort.
# Leaks are not looked for: Python and torch leave much to the end of the process. A finding ends the process, so pytest
# must not hold back what is written to stderr.
sanitize: install
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DDHPE_CUDA=OFF \
	  -DDHPE_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)"
	$(BIN)/cmake --build build/sanitize
	rm -rf build/sanitize/package
	mkdir build/sanitize/package
	cp -R dhpe_fast build/sanitize/package
	$(BIN)/cmake --install build/sanitize --prefix build/sanitize/package
	cd tests && export OMP_WAIT_POLICY=passive PYTHONPATH=$(abspath build/sanitize/package) \
	    LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 && \
	  $(abspath $(BIN))/python -c \
	    'from dhpe_fast.ops import _library; assert "build/sanitize/" in _library.build.__file__, _library.build' && \
	  $(abspath $(BIN))/pytest -q --capture=sys $(PYTEST_ARGS) $(SANITIZED_TESTS)

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

cuda: $(VENV)/.tools
	@if command -v "$${CUDACXX:-nvcc}" >/dev/null; then \
	  set -x; \
	  $(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DDHPE_CUDA=ON \
	    '-DDHPE_CUDA_ARCHS=$(CUDA_ARCHS)' -DDHPE_WERROR=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	    -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" && \
	  $(BIN)/cmake --build build/cuda --target _cuda; \
	else \
	  echo "make cuda: skipped, there is no nvcc on PATH (set CUDACXX to name one)"; \
	fi

bench: install
	$(BIN)/pip install -q -c $(CONSTRAINTS) matplotlib
	$(BIN)/pytest bench --benchmark-only -q
	for script in $(BENCH_SCRIPTS); do $(BIN)/python bench/$$script.py || exit 1; done
	$(BIN)/python bench/readme_table.py

accuracy: install
	for what in generated failures tones "photographs --folder $(PHOTOGRAPHS)"; do \
	  $(BIN)/python bench/accuracy.py $$what || exit 1; \
	done
	$(BIN)/python bench/readme_table.py

# A build for the GPU at hand, and a torch that has CUDA.
gpu-install: $(VENV)/.tools
	@$(BIN)/python -c 'import torch; assert torch.cuda.is_available()' || { \
	  echo "no GPU: torch $$($(BIN)/python -c 'import torch; print(torch.__version__)') sees no CUDA device" >&2; exit 1; }
	DHPE_CUDA=ON DHPE_CUDA_ARCHS=native $(BIN)/pip install -q -c $(CONSTRAINTS) --no-build-isolation ".[dev]"

gpu-check: gpu-install
	tests/gpu_check.sh $(abspath $(BIN))/python

gpu-bench: gpu-install
	$(BIN)/pip install -q -c $(CONSTRAINTS) matplotlib
	for script in $(GPU_BENCHES); do $(BIN)/python -m pytest -q --benchmark-only bench/$$script.py || exit 1; done
	for script in $(GPU_SCRIPTS); do $(BIN)/python bench/$$script.py || exit 1; done
	$(BIN)/python bench/readme_table.py

install: $(VENV)/.installed

clean:
	rm -rf $(VENV) $(OUT) build dist .pytest_cache .ruff_cache .benchmarks .hypothesis tests/.hypothesis

# torch by itself first: the build finds its headers there, and pip never looks for another one.
$(VENV)/.tools: $(CONSTRAINTS) Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "dhpe-fast needs Python 3.10 or later, and \`$(PYTHON)\` is not: run make PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || { \
	  echo "dhpe-fast needs a C++20 compiler: install one (Debian: apt-get install g++) or set CXX" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "\`$(PYTHON) -m venv\` failed: install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/pip install -q -c $(CONSTRAINTS) "$(TORCH)"
	$(BIN)/pip install -q -c $(CONSTRAINTS) scikit-build-core pybind11 cmake ninja ruff clang-format
	@touch $@

$(VENV)/.installed: $(VENV)/.tools $(SOURCES)
	@echo "Compiling and installing dhpe-fast into $(VENV) ..."
	$(WITH_CUDA) $(BIN)/pip install -q -c $(CONSTRAINTS) --no-build-isolation ".[dev]"
	@touch $@
