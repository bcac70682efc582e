# `make` alone lists what there is.
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# a process a core; the tests of a file share models, so they stay in one
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

# reinstalled when something it is built from has changed
SOURCES := pyproject.toml CMakeLists.txt $(shell find native third_party/patches third_party/*.py third_party/*.json pyfastv -type f \
	-not -path '*/__pycache__/*' -not -path 'pyfastv/lib/*' -not -name '*.so' 2>/dev/null)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "pyfastv needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "pyfastv needs a C++ compiler: none found as $${CXX:-c++} (Debian: apt install g++; macOS: xcode-select --install)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# -v: a compiler is quiet for minutes otherwise
$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@echo "pyfastv: compiling llama.cpp; this takes a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -q '.[test]' --config-settings=build-dir=build/{wheel_tag}
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## build everything into .venv

.PHONY: demo
demo: install ## ask the bundled model about a bundled picture, with and without FastV
	$(BIN)/pyfastv demo

.PHONY: test
test: $(VENV)/.test-deps ## run the tests
	$(PYTEST)

.PHONY: check
check: $(VENV)/.test-deps ## the tests that are fast: under a minute
	$(PYTEST) -q -m "not slow"

.PHONY: test-architectures
test-architectures: install ## random models of every architecture of the pin against stock: what a new pin breaks (minutes)
	$(BIN)/python tests/manual/architectures.py

# llama-cpp-python's bindings alone: the tests run them on our libraries
$(VENV)/.test-deps: $(VENV)/.installed
	CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" $(BIN)/python -m pip install --disable-pip-version-check -q \
		llama-cpp-python==$$($(BIN)/python -c 'import json; print(json.load(open("third_party/llama_cpp.json"))["version"])')
	@touch $@

.PHONY: lint
lint: install ## ruff, mypy, and stubtest of the native module
	$(BIN)/python -m pip install --disable-pip-version-check -q ruff mypy typing-extensions
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cd $(VENV) && bin/stubtest --concise --allowlist ../native/bindings/stubtest.allow pyfastv._native

.PHONY: stock
stock: $(VENV)/.test-deps ## build the unpatched libraries of the same pin, to compare with (build/stock)
	$(BIN)/python benchmarks/build_stock.py build/stock

.PHONY: programs
programs: install ## build llama-mtmd-cli and llama-server unpatched (build/stock/bin), for `make test` to test
	@echo "pyfastv: compiling unpatched llama.cpp with llama-mtmd-cli and llama-server; this takes a few minutes"
	$(BIN)/python benchmarks/build_stock.py build/stock --programs

.PHONY: chat-apps
chat-apps: ## the packages of docs/chat-apps.md (build/chat-apps), for `make test` to test
	$(PYTHON) -m venv build/chat-apps
	build/chat-apps/bin/pip install --disable-pip-version-check -q langchain-openai llama-index-llms-openai-like

# a copy of the package with libraries of its own; the interpreter is not built for it, hence the preload
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -g1 -O1
LIBRARY   = $$($${CXX:-c++} -print-file-name=$(1).so)

.PHONY: asan
asan: $(VENV)/.test-deps ## the tests of the native code under AddressSanitizer and UndefinedBehaviorSanitizer (build/asan)
	$(BIN)/python -m pip install --disable-pip-version-check -q cmake ninja pybind11
	$(BIN)/cmake -G Ninja -S . -B build/asan -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCMAKE_BUILD_TYPE=Release \
		-DCMAKE_C_FLAGS="$(SANITIZE)" -DCMAKE_CXX_FLAGS="$(SANITIZE)" \
		-DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/asan --target _native
	rm -rf build/asan/package && mkdir -p build/asan/package && cp -r pyfastv build/asan/package/ && mkdir -p build/asan/package/pyfastv/lib
	cp build/asan/bin/lib*.so* build/asan/package/pyfastv/lib/ && cp build/asan/_native*.so build/asan/package/pyfastv/
	PYTHONPATH=build/asan/package ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$(call LIBRARY,libasan) $(call LIBRARY,libubsan) $(call LIBRARY,libstdc++)" \
		$(PYTEST) -p no:cacheprovider $(ASAN_TESTS)

# those that limit the address space cannot run there: AddressSanitizer takes terabytes of it
ASAN_TESTS := tests/test_c_api.py tests/test_sequences.py tests/test_states.py tests/test_broken_states.py tests/test_windows.py \
	tests/test_changes_of_stages.py tests/test_turns.py tests/test_architectures.py tests/test_choose.py \
	tests/test_schedule_text.py tests/test_slots.py tests/test_packed_weights.py tests/test_kernels.py tests/test_expert_products.py \
	tests/test_kernel_ops.py tests/test_sequence_schedules.py tests/test_steps.py tests/test_hybrids.py tests/test_hybrid_memory.py

.PHONY: bench
bench: stock ## prefill of a LLaVA-1.5-7B geometry, stock and ours in turn (12 GB of memory, half an hour)
	$(BIN)/pyfastv bench --geometry llava-1.5-7b --stock build/stock/lib

.PHONY: clean
clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist third_party/llama.cpp
