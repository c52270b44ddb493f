# Two commands do everything: `make run` and `make test`. Both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
RUN_LOCK := requirements-run.lock

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all hygiene bench lab readme docs lock clean

help:   ## show these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 16

setup: $(VENV)/.installed   ## create .venv and install the locked dependencies and the package

# $(1): a lock file
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV) (once; later runs start at once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(1)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
endef

$(VENV)/.installed: $(LOCK) settings.ini setup.py
	$(call install,$(LOCK))
	@$(BIN)/python -c "import nbdev.cli"
	@touch $@ $(VENV)/.runs

$(VENV)/.runs: $(RUN_LOCK) settings.ini setup.py
	$(call install,$(RUN_LOCK))
	@touch $@

run: $(VENV)/.runs   ## the main job on the shipped sample: forecasts, decisions, an HTML report
	@$(BIN)/arcpoint report routing

test: setup hygiene   ## notebook hygiene, nbdev_test, pytest without its slow tests
	@$(BIN)/nbdev_test --n_workers 2
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -q -m "not slow" tests

test-all: setup hygiene   ## the same with every test
	@$(BIN)/nbdev_test --n_workers 2
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -q tests

hygiene: setup   ## export, clean and README leave no diff; ruff and mypy find no fault
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/hygiene.py

bench: setup   ## speed, measured side by side in one run
	@$(BIN)/arcpoint bench

lab: setup   ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --ip 127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) nbs

readme: setup   ## figures of data/results into index and pages, then README.md
	@$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace nbs/index.ipynb nbs/pages/*.ipynb
	@$(BIN)/nbdev_clean
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/hygiene.py --readme

docs: setup   ## the site, offline, in _docs/html (installs Sphinx and MyST-NB once)
	@$(BIN)/python -c "import sphinx, myst_nb" 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check "sphinx>=8,<9" "myst-nb>=1.1,<2"
	@$(BIN)/python docs/build.py _docs
	@echo "site: _docs/html/index.html"

lock: setup   ## resolve both lock files again
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	@$(BIN)/uv pip compile setup.py --extra dev --universal --python-version 3.11 --generate-hashes --no-header -q --refresh-package arcpoint_ce -o $(LOCK) > /dev/null
	@$(BIN)/uv pip compile setup.py --extra build --universal --python-version 3.11 --generate-hashes --no-header -q -c $(LOCK) -o $(RUN_LOCK) > /dev/null

clean:   ## remove .venv, reports and caches
	@rm -rf $(VENV) reports/out build *.egg-info .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
