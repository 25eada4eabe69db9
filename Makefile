# Every target installs .venv first if it is missing. `make demo` runs the whole chain, `make test` the tests of CI.
PYTHON ?= python3
BIN := .venv/bin
RUN := OMP_NUM_THREADS=1 $(BIN)/kinemae
DEMO ?= demo
SEED ?= 0

.PHONY: install demo quick test test-nightly check docs notebooks clean

install: .venv/installed

# A change of the dependencies or their pins repeats the installation.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The whole chain on real H.264 files; a stopped demo continues. Two fine-tunings or probes run at a time. They
# differ only in the encoder's weights; the learning rate from scratch is the best of a sweep (docs/results.md).
# Muon learns as much in 1,000 steps as AdamW in 3,000.
MUON := optim.optimizer=muon optim.muon_lr_scale=5
LABELLED := data.train=$(DEMO)/shards/train data.validation=$(DEMO)/shards/validation seed=$(SEED)
FINETUNE := $(RUN) finetune train demo $(LABELLED) epochs=150 validate.every_epochs=50
PROBE := $(RUN) finetune probe method=logistic $(LABELLED) features.train_views=32 evaluate.temporal_clips=3 \
	'augment={flip: false, min_scale: 1, min_aspect: 1, max_aspect: 1}'
PRETRAINED := encoder=$(DEMO)/pretrain/encoder
SCRATCH := $(PRETRAINED) weights=random
both = $(1) & pid=$$!; trap "kill $$pid 2>/dev/null" EXIT; $(2) && wait $$pid

demo: install
	$(RUN) data synth $(DEMO)/videos seed=$(SEED)
	$(RUN) data shard $(DEMO)/videos $(DEMO)/shards layout.name=copy
	$(RUN) pretrain demo seed=$(SEED) steps=1000 $(MUON) \
		data.shards=$(DEMO)/shards/unlabelled run_dir=$(DEMO)/pretrain
	$(call both,$(FINETUNE) $(PRETRAINED) run_dir=$(DEMO)/finetuned,\
		$(FINETUNE) $(SCRATCH) optim.layer_decay=1 run_dir=$(DEMO)/scratch)
	$(call both,$(PROBE) $(PRETRAINED) run_dir=$(DEMO)/probe,$(PROBE) $(SCRATCH) run_dir=$(DEMO)/random)
	@echo; echo "Fine-tuned: from scratch, and from the pretrained encoder, with the same budget"
	@$(RUN) finetune compare $(DEMO)/scratch $(DEMO)/finetuned
	@echo; echo "Logistic regression: on a frozen random encoder, and on the frozen pretrained encoder"
	@$(RUN) finetune compare $(DEMO)/random/logistic $(DEMO)/probe/logistic
	@echo; echo "Reconstructions: $(DEMO)/pretrain/pictures/*.gif"
	@echo "Curves: $(BIN)/tensorboard --logdir $(DEMO) --samples_per_plugin images=100"
	@echo; echo "For your own videos (a folder per class, or a csv file with the columns path,label):"
	@echo "  $(BIN)/kinemae data shard VIDEOS SHARDS"
	@echo "  $(BIN)/kinemae pretrain videomae_small data.shards=SHARDS/train run_dir=RUN"
	@echo "  $(BIN)/kinemae finetune train videomae_small_k400 encoder=RUN/encoder \\"
	@echo "      data.train=SHARDS/train data.validation=SHARDS/validation run_dir=RUN/finetuned"

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Fast tests for use after each change: no slow or multi-process tests, one case of each parametrized test.
quick: install
	TEST_CASES=1 $(PYTEST) -m "not slow and not processes and not chaos and not cluster and not gpu"

test: install
	$(PYTEST)

# All tests, also those marked nightly, with the date as random seed, ten times the examples and longer fault
# injection: over an hour.
ifndef TEST_SEED
TEST_SEED := $(shell date +%Y%m%d)
endif
test-nightly: install
	@echo "make test-nightly TEST_SEED=$(TEST_SEED) repeats this run"
	TEST_SEED=$(TEST_SEED) $(PYTEST) --hypothesis-seed=$(TEST_SEED)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/mypy/kinemae  # mypy ignores package-dir: link the installed layout
	ln -sfn $(CURDIR)/kinemae/*.py $(foreach folder,data_tools finetune launch pretrain,$(CURDIR)/$(folder)) build/mypy/kinemae
	cd build/mypy && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

# The documentation site, in build/site; any warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

notebooks: install
	$(BIN)/python docs/site/execute_notebooks.py

clean:
	rm -rf $(DEMO) .venv
