# The commands people run; CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPRESS := $(BIN)/compress
READY := $(VENV)/.ready
DATA ?= $(firstword $(wildcard ../shared/data/cifar10) digits)
WORKERS ?= 2
TYPES := build/types
MNIST ?= $(firstword $(wildcard ../shared/data/mnist) digits)

.PHONY: demo test test-slow check format bench tables zoo clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch poetry-core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

demo: $(READY)  ## a fresh VGG16, pruned to 7 % of its nodes, proven, exported, reported
	mkdir -p demo
	cd demo && ../$(COMPRESS) new vgg16 -o vgg16.pt
	cd demo && ../$(COMPRESS) snapit vgg16.pt --sparsity 0.93 -o small.onnx --report report.json

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal  # each worker, and what it starts, on a core of its own

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## format, lint, types; mypy reads folders, so it gets one in which the package is as the wheel has it
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)/compressor
	for part in compressor/* exporters benchmarks cli.py; do ln -s ../../../$$part $(TYPES)/compressor/; done
	cd $(TYPES) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache >../types.txt; \
		status=$$?; sed -E 's#^compressor/(exporters|benchmarks|cli\.py)#\1#' ../types.txt; exit $$status

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## the numbers of the README, with their environment
	$(BIN)/python -m compressor.benchmarks.studies.main_job --data $(DATA)
	$(BIN)/python -m compressor.benchmarks.studies.startup
	$(BIN)/python -m compressor.benchmarks.studies.peers --data $(DATA)
	$(BIN)/python -m compressor.benchmarks.studies.widths --data $(DATA)
	$(BIN)/python -m compressor.benchmarks.studies.leftover --data $(DATA)
	$(BIN)/python -m compressor.benchmarks.studies.methods --data $(DATA) --mnist $(MNIST)
	$(BIN)/python -m compressor.benchmarks.studies.accuracy tests/kept/resnet20_cifar10.safetensors --data $(DATA) --steps 0 --budget 0.5 --pruner auto --pruner l1-filters --pruner "group L2, global" --output build/accuracy.json

tables: $(READY)  ## the tables of the README and the pages of the sweeps, from their records; the sweeps themselves take hours
	$(BIN)/python -m compressor.benchmarks.documentation

zoo: $(READY)  ## networks that others wrote: torchvision, timm, transformers; half of their nodes
	$(BIN)/python -m compressor.benchmarks.studies.zoo
	$(BIN)/python -m compressor.benchmarks.studies.second_opinion

clean:
	rm -rf $(VENV) demo build *.egg-info
