# Everything runs in .venv, which `setup` creates. Only Python 3.11, make and git are needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
APT := apt-get install -y --no-install-recommends
PYTEST := pytest -n logical --maxprocesses 4 --dist loadfile
LIBRARIES := libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0 libxcb1

.PHONY: setup demo demo-robot demo-pretrain test check format wheel extras bench

setup: $(VENV)/ready  ## create .venv, install, check system libraries

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing"; \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -q && $(APT) python3-venv; \
	  else echo "run: sudo $(APT) python3-venv"; exit 1; fi; }
	$(PYTHON) -m venv $(VENV)
	@rm -rf *.egg-info  # entry points are read from it, so an old one would hide new plug-ins
	$(PIP) torch
	$(PIP) -e '.[metaworld,hf,curation,dev]'
	@$(BIN)/pixio-robot doctor system_only=true || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -q && $(APT) $(LIBRARIES) && $(BIN)/pixio-robot doctor system_only=true; \
	  else echo "run: sudo $(APT) $(LIBRARIES)"; exit 1; fi; }
	@touch $@

demo: setup  ## demonstrations, tokens, policy, evaluation, report on MetaWorld's drawer-open
	$(BIN)/pixio-robot quickstart

demo-pretrain: setup  ## train a small encoder on procedural images, or on DATA=folder; writes a report
	$(BIN)/pixio-robot pretrain images=$(or $(DATA),procedural:20000)

demo-robot: setup  ## train on the toy, export, verify, control the simulated robot at 20 Hz with injected faults
	$(PIP) -e '.[export]'
	$(BIN)/pixio-robot collect $(TOY) out=$(ROBOT)/demos.hdf5
	$(BIN)/pixio-robot train_bc demos=$(ROBOT)/demos.hdf5 encoder=pixio-robot-ti@128 \
	  policy.fusion=concat observation.steps=1 observation.depth=late 'observation.depth_range=[0.3,1.6]' \
	  training.epochs=15 horizon=8 out=$(ROBOT)/policy
	$(BIN)/pixio-robot export checkpoint=$(ROBOT)/policy/checkpoints/mlp/last.safetensors demos=$(ROBOT)/demos.hdf5 \
	  episodes=100 out=$(ROBOT)/bundle
	@echo "ten episodes; the emergency stop is pressed in the ninth, so the first command ends with status 3"
	$(DRIVE) || test $$? = 3
	$(DRIVE) estop_reset=true
	@echo "report: $(ROBOT)/run/report.html; the recording can train the next policy: train_bc demos=$(ROBOT)/run/demos.hdf5"

ROBOT := runs/demo-robot
TOY := task=toy/reach demos=800 valid=20 episode_steps=15 image_size=128 render=fast obs=rgbd depth_sensor=d435
FAULTS := stall@1:0.5:0.3,stall@3:0.5:3,nan@5:0.5,late@6:0.5:0.3,estop@8:0.7
DRIVE := $(BIN)/pixio-robot run robot=task:toy/reach bundle=$(ROBOT)/bundle episodes=10 steps=40 'faults=[$(FAULTS)]' \
  estop=$(ROBOT)/estop.json out=$(ROBOT)/run

test: setup  ## the fast tests
	$(BIN)/python -m $(PYTEST)

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## fix lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup  ## build the wheel; run the fast tests on it in a bare environment, from an empty folder
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl pytest pytest-timeout pytest-xdist
	$(call elsewhere,.venv-wheel,)

extras:  ## in the environment of `wheel`: install every extra and run the tests that need them
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(ls dist/*.whl)[all]"
	.venv-wheel/bin/python -m pip check
	$(call elsewhere,.venv-wheel,tests/test_extras.py tests/test_frozen.py tests/test_examples.py tests/encoders tests/datasets \
	  tests/pretrain/test_images.py tests/pretrain/test_curation.py tests/envs/test_frames.py tests/envs/test_suites.py \
	  tests/cameras tests/policies/rl tests/deploy tests/robots)

bench: setup  ## side-by-side timings against peers; writes benchmarks/README.md
	$(PIP) -e '.[metaworld,hf,robomimic,rl]'
	$(BIN)/pixio-robot quickstart
	$(BIN)/python benchmarks/run.py --quickstart "$$(ls -td runs/quickstart/metaworld-drawer-open-* | head -n 1)"

# Runs the tests of this checkout from a folder that holds only them: $(call elsewhere,ENVIRONMENT,TESTS)
define elsewhere
	@folder=$$(mktemp -d) && cp -r tests $$folder && cp pyproject.toml $$folder/pytest-settings.toml && here=$$PWD && \
	  cd $$folder && $$here/$(1)/bin/python -m $(PYTEST) -c pytest-settings.toml --rootdir . $(if $(2),$(2),tests); \
	  status=$$?; rm -rf $$folder; exit $$status
endef
