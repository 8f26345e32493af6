# herd: each target sets up what it needs in .venv, so any of them works as the only command after a clone.
#
#   make run     the page and the APIs, over cria         make check   format, lint, types, layers, spelling
#   make chat    a chat with cria in the terminal         make test    the tests
#   make bench   herd beside its peers                    make docs    build the documentation site
#   make clients environments of clients' tests           make clean   remove what make made
#   make peers   an environment of the peers in training

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)

# Without an NVIDIA GPU the CPU build of torch comes first, since the default build on Linux brings gigabytes of CUDA libraries. A +cpu build
# that pip already knows of is taken; else uv fetches it, since it knows PyTorch's own index; else the default build.
ifeq ($(HAS_GPU)$(filter Darwin,$(shell uname)),)
INSTALL_TORCH = $(PIP) install '$(TORCH)+cpu' 2>/dev/null \
	|| { $(PIP) install uv && $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend=cpu '$(TORCH)' 2>/dev/null; } \
	|| $(PIP) install '$(TORCH)'
else
INSTALL_TORCH = $(PIP) install '$(TORCH)'
endif

.PHONY: run chat test check bench clients peers docs clean setup

run: $(VENV)/.run
	@$(BIN)/herd serve --no-access-log

chat: $(VENV)/.run
	@$(BIN)/herd chat

# As many processes as there are processors, up to eight, of one thread of torch each; WORKERS=0 runs the tests in one process. Without CI in
# the environment pytest cuts what it says of a failure to what a person reads.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
test: $(VENV)/.test
	env -u CI -u BUILD_NUMBER OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 20

check: $(VENV)/.test
	$(BIN)/ruff format --check src tests benchmarks docs examples hatch_build.py
	$(BIN)/ruff check --no-cache src tests benchmarks docs examples hatch_build.py
	$(BIN)/python tests/page/budget.py
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/codespell src csrc tests benchmarks docs examples README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.tokenizer
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.scheduler
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.engine --only cria
	$(BIN)/python -m benchmarks.train

# Clients that herd does not depend on, for the tests that drive them: those that get along in one environment, those that exclude each other
# in one each. Tests skip where one is missing.
CLIENTS := lm_eval==0.4.13 langchain==1.5.2 langchain-openai==1.7.4 openai-agents==0.24.0 tenacity
clients:
	@test -n "$(PYTHON)" || { echo "the clients need Python 3.11 or newer, and none was found: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv-clients/together && .venv-clients/together/bin/pip -q install $(CLIENTS)
	@python3.12 -c "" 2>/dev/null || { echo "the clients of Llama Stack need Python 3.12, which was not found" >&2; exit 1; }
	for client in llama-stack-client==0.3.5 llama-stack-client==0.7.5 ogx-client==1.5.0; do \
		place=.venv-clients/$$(echo $$client | sed s/==/-/) && python3.12 -m venv $$place && $$place/bin/pip -q install $$client || exit 1; done

# litgpt and torchtitan for benchmarks.train, on top of .venv, whose torch they take as it is: their own pins would replace it.
PEERS := litgpt==0.5.13 lightning lightning-utilities pytorch-lightning torchmetrics jsonargparse \
	torchtitan==0.3.0 spmd_types==0.2.3 torch_checkpointing torchdata tyro docstring-parser typeguard
peers: $(VENV)/.test
	$(BIN)/python -m venv --without-pip .venv-peers
	$(BIN)/python -m pip -q --python .venv-peers/bin/python install --no-deps $(PEERS)
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
		> $$(.venv-peers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/herd.pth
	.venv-peers/bin/python -m benchmarks.train --help >/dev/null

docs: $(VENV)/.docs
	$(BIN)/python docs/cli_reference.py
	$(BIN)/python docs/plan_tables.py
	$(BIN)/zensical build --clean

setup: $(VENV)/.test

$(VENV)/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "herd needs Python 3.11 or newer and found none: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing torch$(if $(HAS_GPU),, (CPU build)) into $(VENV): once, some minutes" >&2
	@$(INSTALL_TORCH)
	@touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	@echo "installing herd into $(VENV): once, some minutes" >&2
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	@echo "installing herd and its test tools into $(VENV)" >&2
	@$(PIP) install -c constraints.txt -e '.[test,check]'
	@touch $@ $(VENV)/.run

$(VENV)/.docs: $(VENV)/.test
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
