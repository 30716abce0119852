# `make early`: the main job on the data that ships with the environment. `make test`: the tests.
# Both make the environment in .venv first, where it is not there yet.

.PHONY: early reproduce reproduce-full knowledge test quick static check check-all torch docs linkcheck hooks pins clean

early: .venv/base
	.venv/bin/python experiments/early.py --config=configs/digits.py

# Every figure and claim of the early paper, into docs/reproduction.md: DATA is a TFDS data directory that holds cifar10,
# IMAGES a folder of photographs in two classes (optional).
REPRODUCE = .venv/bin/python experiments/reproduce.py --config=configs/reproduce.py --workdir=runs/reproduction \
  --config.data_dir="$(DATA)" --config.images_dir="$(IMAGES)"
reproduce: .venv/base
	$(REPRODUCE)

# The same with the long runs: more networks, more architectures, and what lies beyond the paper.
reproduce-full: .venv/base
	$(REPRODUCE) --config.full

# The other paper, into docs/knowledge.md: DATA is a TFDS data directory that holds cifar10 and tiny_imagenet22.
knowledge: .venv/base
	.venv/bin/python experiments/knowledge_paper.py --config=configs/knowledge_paper.py --workdir=runs/knowledge \
	  --config.data_dir="$(DATA)"

# Each file in one of two processes, so that a run that its tests share is made once; what is skipped is named.
PYTEST = python -m pytest -n 2 --dist loadfile -rs

test: .venv/dev
	.venv/bin/$(PYTEST) -m "not slow"

# The inner loop: no notebooks, and of the experiments only those that take seconds.
MINUTES = causes control decompose early first_step knowledge knowledge_paper matrix notebooks penalty report reproduce runs sweep synthetic tracker
quick: .venv/dev
	.venv/bin/$(PYTEST) -m "not slow" $(MINUTES:%=--ignore=tests/test_%.py)

static: .venv/dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

check: static test

# Everything, the long tests and the oldest versions that pyproject.toml allows included; with programs optimised as
# users have them.
check-all: static .venv-oldest/dev
	XLA_FLAGS= .venv/bin/$(PYTEST)
	.venv-oldest/bin/$(PYTEST) -m "not slow"

# The tests of networks that PyTorch computes, in an environment of its own: some GB, which the others do without.
torch: .venv-torch/dev
	.venv-torch/bin/python -m pytest -rs tests/test_torch.py tests/test_host.py

PIP = $(@D)/bin/pip install --quiet --disable-pip-version-check

# The first Python that is new enough: what .python-version selects (pyenv, uv), else any on the PATH.
define make_environment
	@for python in python3 "$$(uv python find 2>/dev/null)" python3.14 python3.13 python3.12 \
	    "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "jtrans: no Python 3.12 or newer; python3 is $$(python3 --version 2>&1 | head -n 1); install one and run make again" >&2; \
	  exit 1; \
	fi; \
	echo "1 of 3: making $(@D) with $$("$$found" --version), a few seconds"; "$$found" -m venv $(@D)
	@echo "2 of 3: installing $$(grep -c == $(1)) packages from $(1), about a minute (longer on a slow connection)"
	@$(PIP) -r $(1)
	@echo "3 of 3: installing jtrans itself, a few seconds"
	@$(PIP) --no-deps --editable .
	@touch $@
endef

.venv/base: requirements/base.txt pyproject.toml
	$(call make_environment,requirements/base.txt)

.venv/dev: requirements/dev.txt pyproject.toml
	$(call make_environment,requirements/dev.txt)

.venv-oldest/dev: requirements/oldest.txt pyproject.toml
	$(call make_environment,requirements/oldest.txt)

.venv-torch/dev: requirements/torch.txt pyproject.toml
	$(call make_environment,requirements/torch.txt)

# The site, into docs/_build/html: the pages of docs/, and of every public module what its docstrings say.
docs: .venv/dev
	.venv/bin/sphinx-build -M html docs docs/_build --fresh-env --fail-on-warning --keep-going

# Whether the links to other sites lead somewhere, which needs the network.
linkcheck: .venv/dev
	.venv/bin/sphinx-build -M linkcheck docs docs/_build --fresh-env --fail-on-warning --keep-going

# The checks before every commit, and the tests before every push.
hooks: .venv/dev
	.venv/bin/pre-commit install --hook-type pre-commit --hook-type pre-push

# Renew the pinned versions (uv on the PATH); the files name no index and no address.
PIN = uv pip compile --quiet --universal --python-version 3.12 --no-header --upgrade pyproject.toml
pins:
	$(PIN) -o requirements/base.txt
	$(PIN) --extra dev -c requirements/base.txt -o requirements/dev.txt
	$(PIN) --extra dev --extra torch -c requirements/dev.txt -o requirements/torch.txt
	$(PIN) --extra dev --resolution lowest-direct -o requirements/oldest.txt

clean:
	rm -rf .venv .venv-oldest .venv-torch
