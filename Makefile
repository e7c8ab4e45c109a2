# Needs only Python 3.11 (with pip and venv) and make. `make` alone lists the commands.
PYTHON ?= python3
UV     := .tools/bin/uv
BIN    := .venv/bin
ARGS   ?=
ONLY   ?=
# Test files run beside one another; those of one file never do.
WORKERS ?= 2

help:            ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

install: .venv/.stamp  ## set up .venv with everything that needs no hardware

$(UV): requirements/uv.txt
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.venv/.stamp: pyproject.toml requirements/all.txt package-lock.json | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/all.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python tools/browser_libs.py
	@touch $@

demo: install    ## run the main job on this machine, then serve the console (ARGS=--once: stop after)
	$(BIN)/kedge demo $(ARGS)

toolchains: install  ## install the compile tool-chains that have environments of their own (about 2.5 GB)
	KEDGE_UV=$(UV) $(BIN)/kedge toolchain install --all --accept-licence

test: install    ## run every check and test, with the tool-chains that this machine can have
	-@KEDGE_UV=$(UV) $(BIN)/kedge toolchain install --all --accept-licence
	@tools/system_packages.sh
	$(MAKE) --no-print-directory lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: install    ## run the checks that execute nothing: ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## let ruff format and fix what it can
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: install   ## measure against peers on this machine (ONLY=prefix picks); writes build/bench.json
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

docs: install    ## write the generated pages of docs/reference again
	$(BIN)/python tools/reference_docs.py

matrix: install  ## compile the test models for every target and write docs/reference/matrix.md
	$(BIN)/python tools/matrix.py

lock: $(UV)      ## resolve the requirements again: hashes and names, no registry's address
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.10 \
	  --constraint requirements/constraints.txt --generate-hashes --no-emit-index-url --no-header \
	  --upgrade --quiet --output-file requirements/all.txt
	echo uv | $(UV) pip compile - --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	  --no-header --upgrade --quiet --output-file requirements/uv.txt
	$(BIN)/python tools/lock_toolchains.py $(UV)

clean:           ## remove what the other commands made
	rm -rf .venv .tools build dist node_modules server/console/static/vendor

.PHONY: help install demo toolchains test lint format bench docs matrix lock clean
