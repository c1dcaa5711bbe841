# `make help` lists the targets. Each does its own set-up; the second time it is quick.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
FUZZ   := $(VENV)/.fuzz-installed

.DEFAULT_GOAL := help
.PHONY: help run test unit fuzz check bench-accuracy bench-seed bench-smtp crash storm head clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip' || { echo 'make: $(PYTHON) lacks venv: apt-get install python3.11-venv'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: $(STAMP) ## start the filter: SMTP on 127.0.0.1:10025, mail goes into run/Maildir
	$(BIN)/spamguard --config docs/newcomer.toml serve

test: $(STAMP) ## unit tests, then integration tests (those without their real part are skipped, with the reason)
	$(BIN)/python -m pytest -q -n 4 -m "not integration"
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m integration

unit: $(STAMP) ## the unit tests alone
	$(BIN)/python -m pytest -q -n 4 -m "not integration"

$(FUZZ): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	touch $@

fuzz: $(FUZZ) ## feed each parser mutations of tests/fuzz/corpus for SECONDS=20; what breaks one is left in .fuzz/
	@for target in $(notdir $(wildcard tests/fuzz/corpus/*)); do \
	    echo "fuzz: $$target"; mkdir -p .fuzz/$$target; \
	    $(BIN)/python -m tests.fuzz $$target -seed=1 -max_total_time=$(or $(SECONDS),20) -max_len=2000 -len_control=0 \
	        -dict=tests/fuzz/words.dict -verbosity=0 -print_final_stats=1 -artifact_prefix=.fuzz/$$target- \
	        .fuzz/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

check: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-accuracy: $(STAMP) ## judgement beside its peers; CORPORA=DIR holds corpora; ARGS='--splits a,b --peers bogofilter'
	$(BIN)/python -m benchmarks.judgement $(or $(CORPORA),$(error say CORPORA=DIR)) $(ARGS)

bench-seed: $(STAMP) ## the table of the tutorial that spamguard began with; CSV=FILE of label,text; ARGS='--tuned last-2 --epochs 4'
	$(BIN)/python -m benchmarks.seed_table $(or $(CSV),$(error say CSV=FILE)) $(ARGS)

bench-smtp: $(STAMP) ## throughput of the SMTP path beside its peers; ARGS='--memory' or '--large': resident size
	$(BIN)/python -m benchmarks.smtp $(ARGS)

crash: $(STAMP) ## 20,000 messages, 50 times SIGKILL: nothing answered 250 may be lost; ARGS='--kills 10 --seed 2'
	$(BIN)/python -m tests.crash $(ARGS)

storm: $(STAMP) ## 30,000 messages into three watched Maildirs, 5 times SIGKILL; ARGS='--messages 3000 --kills 5 --seed 7'
	$(BIN)/python -m tests.storm $(ARGS)

head: $(STAMP) ## fit the head that ships; CORPORA=DIR holds the corpora of docs/head-and-accuracy.md
	SPAMGUARD_CONFIG=docs/newcomer.toml $(BIN)/python -m training.ship $(or $(CORPORA),$(error say CORPORA=DIR)) spamguard/heads/default

clean: ## remove what was built (not your mail in run/)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz
