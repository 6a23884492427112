# Everything runs in .venv, which the first command makes and which is renewed when one of these changes:
REQUIREMENTS := pyproject.toml constraints.txt overrides.txt
INSTALLED := .venv/.installed
INSTALL := .venv/bin/uv pip install --quiet --python .venv/bin/python --override overrides.txt --constraint constraints.txt

PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Stages and queued experiments call `python`: it has to be the one of .venv.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := true
# Some containers set this. Every stage is a Python of its own, which would then compile all of torch anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

# `dvc repro` takes a pipeline's trainings one by one; JOBS of them at once share the cores. Each then gets its part of
# the threads: those of two trainings on one core wait for each other by spinning, which took 1.6 times as long as one
# after the other, and with OMP_WAIT_POLICY=passive 3 times. With other threads the last bits are others, so one at a
# time is the default. The full detectors take longest and start first.
JOBS := 1
define at_once
.venv/bin/dvc repro attack
export OMP_NUM_THREADS=$$(.venv/bin/python -c 'import torch; print(max(1, torch.get_num_threads() // $(JOBS)))') && \
	.venv/bin/dvc stage list --name-only $(1) | sed -n 's/.*:train@//p' | sort | xargs -P $(JOBS) -I {} \
	.venv/bin/dvc --wait-for-lock repro --single-item $(1):train@{} $(1):evaluate@{}
endef
define side_pipeline
$(if $(filter-out 1,$(JOBS)),$(call at_once,$(1)))
.venv/bin/dvc repro $(1)
endef

.DEFAULT_GOAL := help
.PHONY: help repro table3 leave-one-out mask-padding evolving test test-slow lint bench constraints clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-15s%s\n", $$1, $$2}' Makefile

# The check comes first as DVC's own message on a key that an older params.yaml lacks names no mend.
repro: $(INSTALLED)  ## run the pipeline: only what has changed
	@.venv/bin/python -m sparring check
	.venv/bin/dvc repro
	@echo 'the report: reports/index.html'

table3: $(INSTALLED)  ## train and evaluate the rows of Table 3; JOBS=4: four at once
	$(call side_pipeline,studies/table3/dvc.yaml)

leave-one-out: $(INSTALLED)  ## train without each attack in turn and evaluate on it; JOBS=4: four at once
	$(call side_pipeline,studies/leave_one_out/dvc.yaml)

# Not `side_pipeline`: it has no stages `train`, and an attack of its own.
mask-padding: $(INSTALLED)  ## train with masked and padded features, and without, and attack each net: hours
	.venv/bin/dvc repro studies/mask_padding/dvc.yaml

evolving: $(INSTALLED)  ## train with opponents that follow the net, and with what is known: many hours
	.venv/bin/dvc repro studies/evolving/dvc.yaml

test: $(INSTALLED)  ## run the tests but the slow ones
	$(PYTEST) -m 'not slow'

test-slow: $(INSTALLED)  ## run the slow tests
	$(PYTEST) -m slow

lint: $(INSTALLED)  ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

bench: $(INSTALLED)  ## install the libraries that benchmarks/ compares with
	$(INSTALL) --editable '.[dev,bench]'

constraints: $(INSTALLED)  ## renew constraints.txt: the newest versions that pyproject.toml allows
	.venv/bin/uv pip compile --quiet --upgrade pyproject.toml --extra dev --override overrides.txt --no-annotate \
		--python .venv/bin/python --custom-compile-command 'make constraints' --output-file constraints.txt

clean:  ## remove .venv and the tools' caches; data, models and reports stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info

# The oldest Python comes first: constraints.txt was made with it. A venv without a working pip was interrupted.
$(INSTALLED): $(REQUIREMENTS)
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || { \
		for python in python3.11 python3.12 python3.13 python3.14 python3; do \
			if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
				echo "making .venv with $$python" && exec $$python -m venv .venv; \
			fi; \
		done; \
		echo "error: no Python 3.11 or newer with its venv module found; install one, for example python3.11" >&2; exit 1; }
	@echo "installing into .venv"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(INSTALL) --editable '.[dev]'
	@touch $@
