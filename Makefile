# `make demo` and `make test` are complete on a fresh machine with Python 3.11 or later; a second call installs nothing.
PYTHON ?= python3
# On a machine without a GPU, choose torch's CPU wheel: make demo TORCH_INDEX="--index-url URL-OF-TORCH'S-CPU-WHEELS"
TORCH_INDEX ?=
BIN := .venv/bin
# What the tests of viewers, exporters, the browser and object stores need
TEST_EXTRAS := storage-tests,browser-tests,dashboard,mlflow,wandb,notebook

.PHONY: demo test test-slow test-gpu proofs drill docs lint format constraints

demo: .venv/installed
	$(BIN)/voxtune demo

test: lint
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/pytest -m slow

test-gpu: .venv/installed
	$(BIN)/pytest -m gpu

# Runs each option's test with that option always at its default: it must fail. Prints the table.
proofs: .venv/installed
	$(BIN)/python tests/proofs/option_proofs.py

# kill -9 of a training 20 times, of a sweep 55 and 15 times in each of its phases, 100 trials with faults; a cluster that
# loses a worker and its head, on a shared folder and on S3: some fifty minutes.
drill: .venv/installed
	$(BIN)/python tests/drills/kill_drill.py
	$(BIN)/python tests/drills/sweep_drill.py
	$(BIN)/python tests/drills/sweep_drill.py --serial --kills 15
	$(BIN)/python tests/drills/fault_drill.py
	$(BIN)/python tests/drills/confirm_drill.py
	$(BIN)/python tests/drills/network_drill.py
	$(BIN)/python tests/drills/network_drill.py --s3

# docs/options.md, docs/cli.md, docs/json.md and search_spaces/sweep.schema.json from the code.
docs: .venv/installed
	$(BIN)/python tests/proofs/option_proofs.py --docs
	$(BIN)/python tests/proofs/cli_page.py
	$(BIN)/python tests/proofs/json_page.py
	$(BIN)/voxtune schema > search_spaces/sweep.schema.json

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The newest versions that pyproject.toml allows, from a fresh environment; run the tests before you commit it.
# triton is left out: torch's CUDA build requires its own version.
constraints:
	$(PYTHON) -m venv .venv-new
	.venv-new/bin/pip install --quiet $(TORCH_INDEX) $(shell grep '^torch==' constraints.txt)
	.venv-new/bin/pip install --quiet -e '.[dev,$(TEST_EXTRAS)]'
	{ head -1 constraints.txt; .venv-new/bin/pip freeze --exclude-editable | grep -v '^triton==' | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt
	rm -r .venv-new

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH_INDEX) -c constraints.txt $(shell grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,$(TEST_EXTRAS)]'
	touch $@
