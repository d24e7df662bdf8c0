# lit_vision. `make help` lists what there is; the text after ## is the help.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# constraints.txt names versions that Python 3.10 is too old for; CONSTRAINTS=constraints-lowest.txt tests the lowest, /dev/null the newest
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("constraints.txt" if sys.version_info >= (3, 11) else "/dev/null")')
SCALE ?= desk
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-all lint house format benchmark gpu-check layer-groups soak sweep-garments audit clean table-few-label verify-few-label table-mae-mask-ratio verify-mae-mask-ratio \
  table-simclr-augmentation verify-simclr-augmentation table-scenes verify-scenes table-adaptation verify-adaptation table-elpv verify-elpv table-transfer \
  table-label-law verify-label-law table-label-errors verify-label-errors table-active verify-active table-words verify-words table-watermark verify-watermark \
  table-compression verify-compression \
  table-generation verify-generation \
  table-captions verify-captions

help: ## this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-27s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv and install lit_vision with what its tests need

$(STAMP): setup.cfg constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make: $(PYTHON) is not Python 3.10 to 3.13; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing lit_vision into $(VENV) (PyTorch is large: a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev,peft,detection,bench,public]'
	@touch $@

demo: $(STAMP) ## a study of photographs that scikit-image ships: which photograph is a patch from? (about 10 minutes)
	@$(BIN)/lit-vision data patches --out data/patches
	@$(BIN)/lit-vision study data/patches --budget 8.5 --run_dir runs/demo

test: $(STAMP) ## the tests (under five minutes on two cores)
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(STAMP) ## the tests and the slow ones
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu"

.PHONY: test-pages
test-pages: $(STAMP) ## the pages in a real browser, the system's Chromium (installs Playwright for Python)
	@$(BIN)/python -c 'import playwright' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pages]'
	@$(BIN)/python -m pytest -m pages

lint: $(STAMP) ## ruff, mypy, codespell and file checks (.pre-commit-config.yaml)
	@PATH="$(abspath $(BIN)):$$PATH" pre-commit run --all-files

house: $(STAMP) ## structure of the package, before its modules moved into folders and now: imports, names, long lines, types
	@$(BIN)/python experiments/house.py

format: $(STAMP) ## fix and format what ruff can
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

table-few-label: $(STAMP) ## few labels: pre-training against baselines (SCALE=desk, DRY=1 prints the commands)
	@$(BIN)/python experiments/table_few_label.py --scale $(SCALE) $(if $(DRY),--dry)

verify-few-label: $(STAMP) ## measure the committed weights of that table again
	@$(BIN)/python experiments/table_few_label.py --verify

table-mae-mask-ratio: $(STAMP) ## how much MAE should hide (SCALE=desk, about 100 minutes of one core; SCALE=paper prints commands)
	@$(BIN)/python experiments/table_mae_mask_ratio.py --scale $(SCALE) $(if $(DRY),--dry)

verify-mae-mask-ratio: $(STAMP) ## measure the committed weights of that table again
	@$(BIN)/python experiments/table_mae_mask_ratio.py --verify

table-simclr-augmentation: $(STAMP) ## how strong SimCLR's distortion should be (SCALE=desk, about 71 minutes of one core; SCALE=paper prints commands)
	@$(BIN)/python experiments/table_simclr_augmentation.py --scale $(SCALE) $(if $(DRY),--dry)

verify-simclr-augmentation: $(STAMP) ## measure the committed weights of that table again
	@$(BIN)/python experiments/table_simclr_augmentation.py --verify

table-scenes: $(STAMP) ## detection and segmentation on the scenes, from scratch and pre-trained (SCALE=desk, DRY=1 prints the commands)
	@$(BIN)/python experiments/table_scenes.py --scale $(SCALE) $(if $(DRY),--dry)

verify-scenes: $(STAMP) ## measure the committed weights of that table again
	@$(BIN)/python experiments/table_scenes.py --verify

table-adaptation: $(STAMP) ## what trains of a pre-trained ViT: accuracy, parameters, memory, time (SCALE=desk, DRY=1 prints what is trained)
	@$(BIN)/python experiments/table_adaptation.py --scale $(SCALE) $(if $(DRY),--dry)

verify-adaptation: $(STAMP) ## measure the committed weights of that table again
	@$(BIN)/python experiments/table_adaptation.py --verify

table-elpv: $(STAMP) ## photographs of solar cells: public weights against training on them (ACCEPT_LICENSE=1, DRY=1; needs data/elpv_dataset-*.whl)
	@$(BIN)/python experiments/table_elpv.py $(if $(ACCEPT_LICENSE),--accept_license) $(if $(DRY),--dry) $(if $(MINUTES),--minutes $(MINUTES))

verify-elpv: $(STAMP) ## train and measure some cells of that table again (ACCEPT_LICENSE=1)
	@$(BIN)/python experiments/table_elpv.py --verify $(if $(ACCEPT_LICENSE),--accept_license)

table-transfer: $(STAMP) ## pre-train on one domain, adapt to the other, both ways (SCALE=desk, DRY=1 prints what is trained)
	@$(BIN)/python experiments/transfer.py --scale $(SCALE) $(if $(DRY),--dry)

table-label-law: $(STAMP) ## how well the curve over few labels predicts accuracy with up to five times as many (SCALE=desk)
	@$(BIN)/python experiments/table_label_law.py --scale $(SCALE) $(if $(DRY),--dry)

verify-label-law: $(STAMP) ## measure one seed of that table again
	@$(BIN)/python experiments/table_label_law.py --verify

table-label-errors: $(STAMP) ## labels that look wrong: precision and recall where labels were changed on purpose (SCALE=desk)
	@$(BIN)/python experiments/table_label_errors.py --scale $(SCALE) $(if $(DRY),--dry)

verify-label-errors: $(STAMP) ## measure one seed of that table again
	@$(BIN)/python experiments/table_label_errors.py --verify

table-active: $(STAMP) ## which images to label: accuracy against labels for each strategy, 50 paired seeds (SCALE=desk)
	@$(BIN)/python experiments/table_active.py --scale $(SCALE) $(if $(DRY),--dry)

verify-active: $(STAMP) ## measure one seed of that table again
	@$(BIN)/python experiments/table_active.py --verify

table-words: $(STAMP) ## pictures and their words: recall on emoji and clipart, concepts held out; photographs without labels (SCALE=desk)
	@$(BIN)/python experiments/table_words.py --scale $(SCALE) $(if $(DRY),--dry)

verify-words: $(STAMP) ## measure and train one split of that table again
	@$(BIN)/python experiments/table_words.py --verify

table-watermark: $(STAMP) ## a mark in the weights: bits read wrongly, accuracy, and what removes it (SCALE=desk)
	@$(BIN)/python experiments/table_watermark.py --scale $(SCALE) $(if $(DRY),--dry)

verify-watermark: $(STAMP) ## train and measure one seed of that table again
	@$(BIN)/python experiments/table_watermark.py --verify

table-compression: $(STAMP) ## smaller networks: pruned, distilled, int8: top-1, bytes, multiply-adds, time in turns (SCALE=desk)
	@$(BIN)/python -c 'import nncf' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export]'
	@OMP_NUM_THREADS=1 $(BIN)/python experiments/table_compression.py --scale $(SCALE) $(if $(DRY),--dry)

verify-compression: $(STAMP) ## train and measure some networks of that table again
	@$(BIN)/python experiments/table_compression.py --verify

.PHONY: table-video verify-video
table-video: $(STAMP) ## direction in videos: one frame, mean, LSTM, attention and TSM on gliding crops and on real clips run backward (SCALE=desk)
	@$(BIN)/python experiments/table_video.py --scale $(SCALE) $(if $(DRY),--dry)

verify-video: $(STAMP) ## train and measure one seed of the gliding crops again
	@$(BIN)/python experiments/table_video.py --verify

.PHONY: table-restoration verify-restoration
table-restoration: $(STAMP) ## photographs with noise, JPEG artifacts, half the size, holes: networks against classical filters (about an hour)
	@$(BIN)/python experiments/table_restoration.py --scale $(SCALE) $(if $(DRY),--dry)

verify-restoration: $(STAMP) ## measure quick baselines of that table again and train its shortest network again
	@$(BIN)/python experiments/table_restoration.py --verify

table-generation: $(STAMP) ## images from noise: flow matching and a GAN at equal multiply-adds, against real ones (SCALE=desk)
	@$(BIN)/python experiments/table_generation.py --scale $(SCALE) $(if $(DRY),--dry)

verify-generation: $(STAMP) ## make the images of the committed weights again and measure them
	@$(BIN)/python experiments/table_generation.py --verify

table-captions: $(STAMP) ## captions of emoji and clipart: a decoder against the nearest picture's caption, concepts held out (SCALE=desk)
	@$(BIN)/python experiments/table_captions.py --scale $(SCALE) $(if $(DRY),--dry)

verify-captions: $(STAMP) ## measure the titles of one split of that table again
	@$(BIN)/python experiments/table_captions.py --verify

.PHONY: table-index verify-index
table-index: $(STAMP) ## search in a million vectors: exact, HNSW, IVF-PQ: recall, size, memory, time (5 GB of disk for some minutes)
	@$(BIN)/python experiments/table_index.py --scale $(SCALE) $(if $(DRY),--dry)

verify-index: $(STAMP) ## build the HNSW index of that table again and compare its recall
	@$(BIN)/python experiments/table_index.py --verify

PAPER_TABLES := table-mae-finetune table-mae-linear table-mae-ablation table-simclr-linear table-simclr-semi table-simclr-transfer
.PHONY: $(PAPER_TABLES) table-coop
table-mae-finetune: ## MAE's table 3: SCALE=paper DRY=1 prints each row's commands and the data they need
table-mae-linear: ## MAE's linear probes, likewise
table-mae-ablation: ## MAE's table 1: decoder, target, augmentation, likewise
table-simclr-linear: ## SimCLR's linear evaluation by epochs, batch and width, likewise
table-simclr-semi: ## SimCLR with 1 % and 10 % of the labels, likewise
table-simclr-transfer: ## SimCLR on eleven other data sets, likewise
$(PAPER_TABLES): $(STAMP)
	@$(BIN)/python experiments/paper_tables.py $(@:table-%=%) --scale $(SCALE) $(if $(DRY),--dry)

table-coop: $(STAMP) ## prompt learning on CoOp's eleven sets, zero-shot and logistic regression beside it, likewise
	@$(BIN)/python experiments/table_coop.py --scale $(SCALE) $(if $(DRY),--dry)

benchmark: $(STAMP) ## speeds as ratios, measured side by side in one run
	@$(BIN)/python -c 'import lightly' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python experiments/benchmark.py

layer-groups: $(STAMP) ## list the layer groups of each of timm's families (experiments/results/layer-groups.txt; a minute)
	@$(BIN)/python experiments/layer_groups.py

gpu-check: $(STAMP) ## on a GPU: tests, resume, steps against lightly's and transformers', input, predict, a study (8 minutes)
	@$(BIN)/python experiments/gpu_check.py --out runs/gpu_check $(if $(DEVICE),--device $(DEVICE))

soak: $(STAMP) ## kill real runs hundreds of times and compare every bit (about 10 minutes on one idle core)
	@OMP_NUM_THREADS=1 PYTHONPATH=experiments $(BIN)/python -m soak

.PHONY: scale-inference
scale-inference: $(STAMP) ## 200,000 made-up images through predict --shard and through Ray with a killed worker (minutes; 1 GB of disk)
	@OMP_NUM_THREADS=1 $(BIN)/python experiments/scale_inference.py

.PHONY: s3-check
s3-check: $(STAMP) ## shards in a bucket of a local imitation of S3 (moto), in a virtual environment of its own: the weights of the folder
	@$(BIN)/python experiments/s3_check.py

.PHONY: slurm
slurm: $(STAMP) ## preempt and requeue a job on a real SLURM of this machine, compare every bit (root; Debian's SLURM; 3 to 15 minutes)
	@$(BIN)/python experiments/slurm_check.py

sweep-garments: $(STAMP) ## search settings on 800 labeled garments, 20 trials x 3 seeds, and test the best on new seeds (minutes)
	@test -d data/fashion || $(BIN)/lit-vision data fashion --out data/fashion
	@OMP_NUM_THREADS=1 $(BIN)/lit-vision sweep --config experiments/sweeps/vit_garments800_10ep.yaml --space experiments/sweeps/spaces/garments800.yaml \
	  --trials 20 --seeds 3 --finish --run_dir runs/sweep/garments800
	@mkdir -p experiments/results/sweep-garments && cp runs/sweep/garments800/trials.csv runs/sweep/garments800/finish.json experiments/results/sweep-garments/

audit: $(STAMP) ## known vulnerabilities of what is installed (pip-audit asks PyPI)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit]'
	@$(BIN)/pip-audit --progress-spinner off --skip-editable

clean: ## remove caches and build leftovers (not runs, not data, not .venv)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage coverage.xml
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
