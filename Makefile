# `make demo` and `make test` are all that is needed; each prepares what it uses.
# Inside a virtual environment that one is used, elsewhere .venv is made here.
# PYTEST_ARGS go to pytest; by default each processor runs whole files of tests.

PYTHON ?= python3
PYTEST_ARGS ?= -n auto --dist loadfile
ENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),$(CURDIR)/.venv)
PY := $(ENV)/bin/python
INSTALLED := build/installed$(subst /,-,$(ENV))
SOURCES := pyproject.toml $(wildcard ext/*.c ext/*.h)

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test simulate lint asan docs bench clean

help:
	@echo 'make demo   replay a small workload on real KV bytes, every loaded byte compared'
	@echo 'make test   run the tests'
	@echo 'make simulate  run 10,000 seeds on the simulated machine; SEEDS=... for others'
	@echo 'make lint   ruff, mypy --strict, import-linter'
	@echo 'make asan   build the extension with ASan and UBSan and run the tests on it'
	@echo 'make docs   build the documentation into docs/_build/html'
	@echo 'make bench  measure the engines on this machine'
	@echo 'make clean  remove everything that these made, .venv too'

demo: $(INSTALLED)-demo
	$(PY) -m ucm_async.cli doctor
	$(PY) -m ucm_async.cli replay

test: $(INSTALLED)-test
	$(PY) -m pytest $(PYTEST_ARGS)

# Four fifths of the seeds go to the files, the rest to a cache above them, and above slabs.
SEEDS ?= 10000
JOBS ?= $(shell nproc)
simulate: $(INSTALLED)-test
	$(PY) -m ucm_async.cli simulate --jobs $(JOBS) --seeds $$(($(SEEDS) * 80 / 100))
	$(PY) -m ucm_async.cli simulate --jobs $(JOBS) --seeds $$(($(SEEDS) * 15 / 100)) --pipeline 'Cache|Posix'
	$(PY) -m ucm_async.cli simulate --jobs $(JOBS) --seeds $$(($(SEEDS) * 5 / 100)) --pipeline 'Cache|Slab'

lint: $(INSTALLED)-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(ENV)/bin/lint-imports

asan: $(INSTALLED)-test
	PYTHON=$(PY) bash tests/sanitize.sh $(ASAN_ARGS)

docs: $(INSTALLED)-docs
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(INSTALLED)-demo
	$(PY) -m ucm_async.cli bench engine

clean:
	rm -rf .venv build dist docs/_build *.egg-info ucm_async/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

comma := ,
define install
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'
	@mkdir -p build && touch $@
endef

$(INSTALLED)-demo: $(SOURCES) $(ENV)/pyvenv.cfg
	$(call install,uvloop$(comma)aiofiles$(comma)posix_ipc)

$(INSTALLED)-test: $(SOURCES) $(ENV)/pyvenv.cfg
	$(call install,test)

$(INSTALLED)-lint: $(SOURCES) $(ENV)/pyvenv.cfg
	$(call install,test$(comma)lint)

$(INSTALLED)-docs: $(SOURCES) $(ENV)/pyvenv.cfg
	$(call install,docs)

$(ENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(ENV)
