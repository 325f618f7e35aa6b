# `make help` lists the targets. PYTHON=... uses an environment of your own.
ifdef PYTHON
SETUP :=
else
PYTHON := .venv/bin/python
SETUP := .venv/.stamp
endif

# uv installs in a minute what takes pip four; where it cannot be had, pip does it all. Compiled
# once, as pip does by itself, torch is imported in a quarter of the time.
PIP := .venv/bin/python -m pip install --disable-pip-version-check

# the arms, in order: the fourth starts from the first one's weights
STORY := rmsprop_story/sgd,rmsprop_story/torch_at_sgd_rate,rmsprop_story/tensorflow,rmsprop_story/from_sgd,rmsprop_story/torch_at_sane_rate

# what docs/LATENCY.md shows
LATENCY := runtimes=[eager,folded,compiled,onnxruntime,openvino,executorch,onnxruntime_int8,openvino_int8,executorch_int8] method=one_call layers=v3_large run.device=cpu
LATENCY_GPU := runtimes=[eager,folded,compiled,cuda_graphs,compiled_cuda_graphs] method=one_call run.device=cuda run.root=runs/latency run.wandb=disabled

# what docs/RESULTS.md is made of: two runs at a time, each with a thread of its own
RESULTS := data=digits,photos train.seed=0,1,2 hydra/launcher=joblib hydra.launcher.n_jobs=2 run.threads=1 run.root=runs/results run.wandb=disabled

.PHONY: help setup demo test lint format zoo rmsprop results tour latency latency_gpu levers images nightly bench clean
.DEFAULT_GOAL := help

help:  ## list what make can do
	@grep -E '^[a-z_]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z_]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(SETUP)  ## make the environment in .venv (about 7 GB, once)

.venv/.stamp: requirements.txt
	python3 -m venv .venv
	$(PIP) --quiet uv && .venv/bin/python -m uv pip install --quiet --compile-bytecode \
		--python .venv -r requirements.txt \
		|| $(PIP) --quiet -r requirements.txt
	touch $@

demo: $(SETUP)  ## train a MobileNetV3 on real digits and set it beside its paper (minutes)
	$(PYTHON) train.py

test: $(SETUP)  ## run all tests on the CPU, without network
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto

lint: $(SETUP)  ## check style, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(SETUP)  ## mend style and format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

zoo: $(SETUP)  ## write docs/MODEL_ZOO.md and its picture anew
	$(PYTHON) -m docs.build.zoo

rmsprop: $(SETUP)  ## run the RMSprop story on digits and write docs/RMSPROP.md (minutes)
	$(PYTHON) train.py -m experiment=$(STORY) hydra.sweep.dir=runs/sweeps/rmsprop_story
	$(PYTHON) -m docs.build.rmsprop runs/sweeps/rmsprop_story

results: $(SETUP)  ## train every generation on real images, three seeds, and write docs/RESULTS.md (half an hour)
	test -d data/photos || $(PYTHON) -m mobilenet_exp photos data/photos
	$(PYTHON) train.py -m model=v1,v2,v3_small,v3_large,v4_conv_small $(RESULTS) hydra.sweep.dir=runs/results/sweeps/generations
	$(PYTHON) train.py -m model.width_mult=0.35,0.5,0.75 $(RESULTS) hydra.sweep.dir=runs/results/sweeps/widths
	$(PYTHON) -m docs.build.results runs/results

tour: $(SETUP)  ## run the notebook docs/tour.ipynb and keep what it prints
	rm -rf docs/tour
	$(PYTHON) -m jupyter execute --inplace docs/tour.ipynb

latency: $(SETUP)  ## time networks in every runtime and write docs/LATENCY.md (half an hour)
	$(PYTHON) bench.py $(LATENCY) run.root=runs/latency run.wandb=disabled
	$(PYTHON) -m docs.build.latency $$(ls -td runs/latency/bench-*/ | head -1)latency.json

latency_gpu: $(SETUP)  ## time networks on a GPU and add them to docs/LATENCY.md
	$(PYTHON) bench.py $(LATENCY_GPU) run.precision=float32
	$(PYTHON) bench.py $(LATENCY_GPU) run.precision=bfloat16
	$(PYTHON) -m docs.build.latency $$(ls -td runs/latency/bench-*/ | head -2 | sed 's/$$/latency.json/')

levers: $(SETUP)  ## measure what each cheap lever gains on a training step (minutes)
	$(PYTHON) -m benchmarks.step

images: $(SETUP)  ## measure the path from image files to batches beside timm's (minutes)
	$(PYTHON) -m benchmarks.data

nightly: $(SETUP)  ## kill a run twenty times, at random moments
	KILLS=20 $(PYTHON) -m pytest tests/programs/test_kill.py

bench: $(SETUP)  ## time the old V1 table's networks and ours side by side
	$(PYTHON) bench.py

clean:  ## remove the environment and caches; runs/ and data/ stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
