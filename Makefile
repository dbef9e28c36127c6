# make demo: set up, train a model on real images, evaluate, count, time, export, compare
# make test: set up, run the tests              make lint: the other checks of CI
# make quick: set up, run the tests without the slow ones and for five families only
# make docs: build the documentation site in site/; a broken link is an error
# make generated: write all generated files      make results: measure the models that have no latencies
# make family NAME=<family>: write all generated files of a new family; MEASURE=1 measures it, too
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test quick lint docs types style generated family results clean

# Install again when the requirements have changed. pip compiles one file after the other; on all
# cores it takes a part of the time. Some packages contain files that are no Python of this version.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(None if ok else "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[export,quantize,fast,data,dense,dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

# The newest run; a demo that was trained once is evaluated, timed and exported again at once.
$(DEMO)/trained: | $(VENV)/installed
	$(BIN)/python train.py model=efficientformer_l1 train.out=$(DEMO)
	touch $@

demo: $(VENV)/installed $(DEMO)/trained
	run=$$(ls -td $(DEMO)/*/ | head -n 1) && set -ex && \
	$(BIN)/python eval.py weights=$$run && \
	$(BIN)/python benchmark.py model=efficientformer_l1 && \
	$(BIN)/python export.py weights=$$run format=onnx export.out=$${run}export export.overwrite=true

test: $(VENV)/installed
	$(BIN)/python -m pytest

quick: $(VENV)/installed
	$(BIN)/python -m pytest --quick

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir site

generated: $(VENV)/installed
	$(BIN)/python -m tools write

family: $(VENV)/installed
	$(BIN)/python -m tools family '$(NAME)' $(if $(filter 1,$(MEASURE)),--measure)

results: $(VENV)/installed
	$(BIN)/python -m tools latencies

# `make -j2 lint` checks types beside the rest.
lint: types style

types: $(VENV)/installed
	$(BIN)/pyright

style: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/model.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/python -m tools check

clean:
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache
