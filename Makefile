# The one task runner. With Python 3.11 or 3.12 and make, `make demo` and `make test` need nothing else: they build .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow test-quantised check fmt bench gpu docs clean

demo: $(READY)  ## Teach the pocket model a new shape; three minutes on two cores.
	$(BIN)/reelora demo --output demo

test: $(READY)  ## All tests that need neither minutes nor an accelerator.
	$(BIN)/python -m pytest

test-slow: $(READY)  ## What needs longer or gigabytes.
	$(BIN)/python -m pytest -m slow

gpu: $(READY)  ## Tests that need an accelerator; without one they skip and say so.
	$(BIN)/python -m pytest -m gpu -rs

bench: $(READY)  ## Side by side with diffusers + PEFT.
	$(BIN)/python -m benchmarks

test-quantised: $(READY)  ## What needs bitsandbytes and torchao, beside .venv: diffusers imports whatever lies in it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade --target .quantised bitsandbytes torchao
	PYTHONPATH=.quantised $(BIN)/python -m pytest -m quantised

check: $(READY)  ## Format, lint, types, import directions, generated docs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

fmt: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## Write the generated pages anew.
	$(BIN)/python docs/generate.py

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 12) else "Reelora needs Python 3.11 or 3.12; say which with: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
