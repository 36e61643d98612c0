# Everything is installed in .venv from setup.py, with the versions of constraints.txt.

PYTHON ?= $(shell if python3.11 -c '' 2>/dev/null; then echo python3.11; else echo python3; fi)
DEMO_DIR ?= demo
PYTEST_ARGS ?=

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help .venv test test-quick demo constraints clean distclean

help:  ## list the targets
	@grep -hE '^[a-z.][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' \
	    | awk -F '\t' '{ printf "make %-12s %s\n", $$1, $$2 }'

.venv: $(INSTALLED)  ## install into .venv (3.4 GB, some minutes the first time)

$(INSTALLED): setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; \
	    sys.exit(sys.version_info[:2] != (3, 11) and f"error: $(PYTHON) is Python " \
	    f"{sys.version_info[0]}.{sys.version_info[1]}, and 3.11 is needed: install it or name it, " \
	    "as in make PYTHON=/path/to/python3.11 .venv")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: 3.4 GB, some minutes the first time"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# TensorFlow has two sets of CPU kernels. On a processor without AVX512 or AMX it picks the first,
# which knows fewer operations; what both must do runs with the second too.
test: $(INSTALLED)  ## run all tests (PYTEST_ARGS="-k gate" picks some)
	TF_ENABLE_ONEDNN_OPTS=0 $(PYTEST) --durations=15 $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,TF_ENABLE_ONEDNN_OPTS=1 $(PYTEST) -m portable)

test-quick: $(INSTALLED)  ## run the tests that are not marked slow
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

demo: $(INSTALLED)  ## train, export and run a tiny detector into DEMO_DIR (demo)
	$(BIN)/python -m benchmarks.demo --output_dir=$(DEMO_DIR)

constraints: $(INSTALLED)  ## write the versions that .venv holds to constraints.txt
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable \
	    --exclude pip --exclude setuptools --exclude memvid_tf; } > constraints.txt.new
	@! grep -nE '@|/' constraints.txt.new | grep -v ':#' \
	    || { rm constraints.txt.new; echo 'error: a package of .venv has no version' >&2; exit 1; }
	@mv constraints.txt.new constraints.txt
	@touch $(INSTALLED)

clean:  ## remove the demo and caches
	rm -rf demo .pytest_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf .venv memvid_tf.egg-info
