# Every target sets up .venv first where it is needed. `make demo` shows the whole chain; `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
RUN := OMP_NUM_THREADS=1 $(BIN)/kinemae
DEMO ?= demo
SEED ?= 0

.PHONY: install demo quick test test-nightly check clean

install: .venv/installed

# The stamp holds as long as neither the dependencies nor their pins change.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The whole chain on real H.264 files, each command as a user would type it; a stopped demo goes on where it was.
# Two fine-tunings at a time: one for each of two cores. The runs differ in the encoder alone; from scratch the
# learning rate is the best of a sweep (docs/results.md), and layers do not decay it, since none is trained yet.
TUNE := $(RUN) finetune train configs/finetune/demo.yaml seed=$(SEED) \
	data.train=$(DEMO)/shards/train data.validation=$(DEMO)/shards/validation
PRETRAINED := encoder=$(DEMO)/pretrain/encoder
SCRATCH := $(PRETRAINED) weights=random optim.layer_decay=1
PROBE := freeze=true optim.lr=0.01 'head.args={norm: standardize, pool: statistics}'

demo: install
	$(RUN) data synth $(DEMO)/videos seed=$(SEED)
	$(RUN) data shard $(DEMO)/videos $(DEMO)/shards layout.name=copy
	$(RUN) pretrain configs/pretrain/demo.yaml seed=$(SEED) \
		data.shards=$(DEMO)/shards/unlabelled run_dir=$(DEMO)/pretrain
	$(TUNE) $(PRETRAINED) run_dir=$(DEMO)/finetuned & pid=$$!; \
	$(TUNE) $(SCRATCH) run_dir=$(DEMO)/scratch && wait $$pid
	$(TUNE) $(PRETRAINED) $(PROBE) run_dir=$(DEMO)/probe & pid=$$!; \
	$(TUNE) $(SCRATCH) $(PROBE) run_dir=$(DEMO)/random && wait $$pid
	@echo; echo "Fine-tuned: from the pretrained encoder, and from scratch with the same budget"
	@$(RUN) finetune compare $(DEMO)/scratch $(DEMO)/finetuned
	@echo; echo "Frozen: the same head on a random encoder, and on the pretrained one"
	@$(RUN) finetune compare $(DEMO)/random $(DEMO)/probe
	@echo; echo "What the model saw and predicted:  $(DEMO)/pretrain/pictures/*.gif"
	@echo "The curves, with the same pictures: $(BIN)/tensorboard --logdir $(DEMO) --samples_per_plugin images=100"
	@echo; echo "On your own videos (a folder per class, or a csv with the columns path,label):"
	@echo "  $(BIN)/kinemae data shard VIDEOS SHARDS"
	@echo "  $(BIN)/kinemae pretrain configs/pretrain/videomae_small.yaml data.shards=SHARDS/train run_dir=RUN"
	@echo "  $(BIN)/kinemae finetune train configs/finetune/videomae_small_k400.yaml encoder=RUN/encoder \\"
	@echo "      data.train=SHARDS/train data.validation=SHARDS/validation run_dir=RUN/finetuned"

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Fast tests for use after each change: no slow or multi-process test, the first case of each parametrised one.
quick: install
	TEST_CASES=1 $(PYTEST) -m "not slow and not processes and not chaos and not cluster and not gpu"

test: install
	$(PYTEST)

# All tests, with the date as random seed, ten times the examples and longer fault injection: about an hour.
ifndef TEST_SEED
TEST_SEED := $(shell date +%Y%m%d)
endif
test-nightly: install
	@echo "make test-nightly TEST_SEED=$(TEST_SEED) repeats this run"
	TEST_SEED=$(TEST_SEED) $(PYTEST) --hypothesis-seed=$(TEST_SEED)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/mypy/kinemae  # mypy does not follow package-dir: give it the installed layout
	ln -sfn $(CURDIR)/kinemae/*.py $(foreach folder,data_tools finetune launch pretrain,$(CURDIR)/$(folder)) build/mypy/kinemae
	cd build/mypy && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

clean:
	rm -rf $(DEMO) .venv
