# make demo    set up, draw a synthetic cohort, run the whole pipeline on it
# make test    set up, run the tests
# make check   lint, tests, demo: all checks that need neither root nor real slides
# make nightly set up, run the tests that CI has no time for: every fault in every stage (and WSI_PIPELINE_TEST_SLURM=1),
#              mutations of the package
# Number of tests that run at a time.
WORKERS ?= 2
# The first that runs: a name on PATH may be a pyenv shim that does not.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c pass 2> /dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
SNAKEMAKE := $(BIN)/snakemake

.PHONY: setup demo test check nightly lint format generated lock clean

setup: $(VENV)/ready

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "error: Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/it" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

data/demo/slides.tsv: $(VENV)/ready
	@test -e $@ || $(BIN)/wsi-pipeline demo-cohort data/demo

demo: setup data/demo/slides.tsv
	$(SNAKEMAKE) --configfile config/demo.yaml --quiet rules
	@$(BIN)/wsi-pipeline summary results/demo/evaluation/inception_v3/metrics.json results/demo/report.html

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not nightly"

check: setup
	.ci/check

nightly: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m nightly
	$(BIN)/python tests/mutate.py --workers $(WORKERS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt workflow

# Rewrite the files that are generated from the config's models and from the rules. The picture needs Graphviz.
generated: setup data/demo/slides.tsv
	$(BIN)/wsi-pipeline config --defaults config/defaults.yaml --schema workflow/schemas/config.schema.json
	PYTHONHASHSEED=0 $(SNAKEMAKE) --configfile config/demo.yaml --rulegraph > docs/images/rulegraph.dot
	@command -v dot > /dev/null || { echo "error: docs/images/rulegraph.svg is not drawn: install Graphviz" >&2; exit 2; }
	dot -Tsvg docs/images/rulegraph.dot -o docs/images/rulegraph.svg

# Renew all versions: install the ranges of pyproject.toml into a fresh environment and record the result.
lock:
	rm -rf $(VENV).lock && $(PYTHON) -m venv $(VENV).lock
	$(VENV).lock/bin/python -m pip install --quiet torch==2.13.0
	$(VENV).lock/bin/python -m pip install --quiet '.[excel,s3,slurm,dev]'
	{ sed -n '/^#/p' requirements.lock; $(VENV).lock/bin/python -m pip freeze --exclude pip --exclude setuptools \
		--exclude wsi-pipeline | sed 's/^torch==\([0-9.]*\).*/torch==\1/'; } > requirements.new
	mv requirements.new requirements.lock && rm -rf $(VENV).lock

clean:
	rm -rf results data/demo .snakemake
