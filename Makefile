# make book    set up .venv, export the package, run the chapters, render the book
# make pdf     the book as one PDF, _build/slm-from-scratch.pdf; needs Chromium or Chrome
# make test    set up .venv and run every check
# make lab     open JupyterLab on the chapters; LAB="--allow-root --port 9000" hands options on
# make export  write slm/ from the chapters          make chapters  run them and keep their outputs (for authors)
# make train   train the model of configs/stories_cpu.yaml
# make clean   remove what `make book` and `make test` made; never .venv, runs/ or data/

# Which torch: any requirement that pip understands. On Linux with a GPU that you do not need here, name the CPU build.
TORCH ?= torch==2.13.0
# Which Python makes the environment: the first of these that is 3.11 or newer.
PYTHON ?= python3 python3.13 python3.12 python3.11
# uv installs several times as fast as pip, where it is there; `make UV=` leaves it aside.
UV ?= $(shell command -v uv)

PY := .venv/bin/python
INSTALL := $(if $(UV),$(UV) pip install --python $(PY),$(PY) -m pip install)
export OMP_NUM_THREADS := 1
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
OFFLINE := env -u MODAL_TOKEN_ID -u MODAL_TOKEN_SECRET HF_HUB_OFFLINE=1 WANDB_MODE=disabled MODAL_CONFIG_PATH=/dev/null

# The environment is made anew when one of these changes: the requirements, the versions, or the place where it lies.
STAMP := .venv/.set-up-$(shell { cat pyproject.toml course/constraints.txt; echo '$(TORCH)'; pwd -P; } | cksum | tr ' ' '-')

.PHONY: book pdf test lab export chapters train clean set-up
.DELETE_ON_ERROR:

book: export
	$(PY) -m course run
	$(PY) -m course book

pdf: export
	$(PY) -m course run
	$(PY) -m course pdf

# The tests execute each chapter once, and nbval compares what came with the outputs of the committed notebooks. Three
# workers keep two cores busy, since some tests wait most of their time.
test: $(STAMP)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(OFFLINE) $(PY) -m pytest -n 3 --dist loadfile tests

lab: export
	$(PY) -m jupyterlab chapters/01_attention.ipynb --config=course/lab.py --ServerApp.root_dir="$(CURDIR)" $(LAB)

export: $(STAMP)
	$(PY) -m course export

chapters: export
	$(PY) -m course run --write

train: export
	$(PY) -m slm train configs/stories_cpu.yaml

clean:
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache
	find slm course tests chapters -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Kept: .venv, and your own runs/ and data/."

# Two `make` at once: the second waits, and finds all set up.
$(STAMP):
	@for python in $(PYTHON); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Python 3.11 or newer is needed; none of these is: $(PYTHON). Say make PYTHON=/path/to/python" >&2; exit 1; fi; \
	"$$found" course/alone.py .venv.lock $(MAKE_COMMAND) --no-print-directory set-up FOUND="$$found"

# The commands in .venv/bin name the place where they were made: in a folder that was moved or copied they are made anew.
set-up:
ifeq ($(wildcard $(STAMP)),)
	@if ! $(PY) -m pip --version >/dev/null 2>&1 || ! grep -qF "$$(cd .venv && pwd -P)/bin/" .venv/bin/pip; then \
	  "$(FOUND)" -m venv --clear .venv; \
	fi
	@echo "Setting up .venv with what the course needs. This takes a few minutes, once."
	$(INSTALL) --quiet $(TORCH)
	$(INSTALL) --quiet --editable '.[test]' $(firstword $(TORCH)) --constraint course/constraints.txt
	@rm -f .venv/.set-up-*
	@touch $(STAMP)
else
	@:
endif
