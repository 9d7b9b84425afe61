# Everything is set up in .venv by the target that needs it. PYTHON chooses the interpreter (3.10 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
WHEELS ?= .wheels
LLAMA := $(shell sed -n 's/^llama-cpp-python==//p' constraints.txt)
ROOMS := devices runtime benchmarks quantize export reference

.PHONY: arm-proof bench bench-proof demo faults homeassistant lint node rootfs-proof system test tree clean
.DEFAULT_GOAL := demo

## demo: export the reference checkpoint, watch a drawn clip, receive the verdicts over MQTT
demo: .venv/.installed
	$(BIN)/tvau demo --out demo

## test: the whole suite (slow and hardware tests are marked and left out)
test: .venv/.installed system
	$(BIN)/pytest -m "not slow and not hardware"

## faults: 1000 faults between outbox and subscriber, counted in a table (half an hour; SEED=… repeats one); then
## cameras that misbehave for three minutes, and 10,000 spoilt configurations, files, manifests and commands each
faults: .venv/.installed system
	$(BIN)/python tests/faults/run.py --faults 1000 $(if $(SEED),--seed $(SEED))
	MALLOC_ARENA_MAX=2 $(BIN)/pytest -s -p no:logging -m slow tests/runtime/cameras/test_camera_faults.py
	$(BIN)/pytest -m slow --durations=0 tests/runtime/test_fuzz.py tests/runtime/control/test_commands.py

## bench: measure the reference bundle, its peers and this machine's limits; the page is build/bench/bench.html
bench: .venv/.installed system
	@[ -f demo/bundle/manifest.json ] || $(MAKE) demo
	@mkdir -p build/bench
	$(BIN)/tvau bench demo/bundle --checkpoint reference/checkpoint --out build/bench/run.json
	$(BIN)/tvau bench report build/bench/run.json --out build/bench/bench.html --markdown build/bench/bench.md

## bench-proof: two runs must be equal within noise, and a third on one core must be found slower
PROOF := $(BIN)/tvau bench demo/bundle --only vision,decode,sample --out build/bench
bench-proof: .venv/.installed
	@[ -f demo/bundle/manifest.json ] || $(MAKE) demo
	@mkdir -p build/bench
	$(PROOF)/one.json
	$(PROOF)/again.json
	taskset -c 0 $(PROOF)/slow.json
	$(BIN)/tvau bench compare build/bench/one.json build/bench/again.json --fail-above 1.05
	$(BIN)/tvau bench compare build/bench/again.json build/bench/one.json --fail-above 1.05
	$(BIN)/tvau bench compare build/bench/one.json build/bench/slow.json --fail-above 1.05; [ $$? -eq 3 ]

## arm-proof: install a flashed folder in an emulated arm64 Debian and watch a clip there (root, a quarter of an hour)
arm-proof: .venv/.installed
	@[ -f demo/bundle/manifest.json ] || $(MAKE) demo
	PYTHON=$(abspath $(BIN))/python scripts/prove_on_arm.sh demo/bundle demo/street.mp4 build/arm

## rootfs-proof: flash, boot, update, roll back and remove in a clean Debian of this architecture (root, 10 minutes)
rootfs-proof: .venv/.installed
	@[ -f demo/bundle/manifest.json ] || $(MAKE) demo
	PYTHON=$(abspath $(BIN))/python WHEELS=$(WHEELS) scripts/prove_on_rootfs.sh demo/bundle demo/street.mp4 build/rootfs

## lint: ruff, mypy, and the arrows between the rooms
lint: .venv/.installed tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/tree $(BIN)/mypy --namespace-packages --explicit-package-bases
	PYTHONPATH=build/tree $(BIN)/lint-imports

# The MQTT client of the page's subscriber in Node.js, for its test.
node:
	npm install --prefix .node --no-package-lock --no-fund --no-audit --silent mqtt@5.16.0

# Home Assistant's own schemas, to hold our discovery to: the newest that runs on Python 3.11, in a place of its own.
homeassistant:
	python3.11 -m venv .homeassistant
	.homeassistant/bin/pip install --quiet homeassistant==2024.3.3 paho-mqtt==1.6.1

# The broker that the tests talk to. Installed where we may; otherwise its tests say what is missing.
system:
	@command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y -q mosquitto mosquitto-clients; } || \
	  echo "mosquitto is not installed: tests with a broker are skipped (apt-get install mosquitto mosquitto-clients)"

# llama-cpp-python has no wheel on the index: built once, kept in $(WHEELS).
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip -c constraints.txt
	@ls $(WHEELS)/llama_cpp_python-$(LLAMA)-*.whl >/dev/null 2>&1 || { \
	  echo "building llama-cpp-python $(LLAMA): about 5 minutes, once"; \
	  CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(BIN)/pip wheel --quiet --no-deps -w $(WHEELS) llama-cpp-python==$(LLAMA); }
	$(BIN)/pip install --progress-bar on --find-links $(WHEELS) -c constraints.txt -e '.[dev]'
	touch $@

# The rooms as the package tvau_edge, for tools that read source trees and not installed packages.
tree:
	@mkdir -p build/tree/tvau_edge
	@for room in $(ROOMS); do ln -sfn ../../../$$room build/tree/tvau_edge/$$room; done

clean:
	rm -rf .venv build demo .pytest_cache .mypy_cache .ruff_cache *.egg-info
