# Thin: everything is built by CMake. `make help` lists the targets.
BUILD ?= build
JOBS ?= $(shell nproc)
TARGET ?= gatetape

all: deps ## build build/gatetape
	@cmake -S . -B $(BUILD) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS) --target $(TARGET)

deps:
	@tools/install_deps.sh

demo: all ## run three jobs on the small models that come along: runs/demo, runs/study, runs/repair
	$(BUILD)/gatetape run configs/jobs/demo.json --out runs/demo
	$(BUILD)/gatetape run configs/jobs/paper-a-demo.json --out runs/study
	$(BUILD)/gatetape run configs/jobs/raset-demo.json --out runs/repair
	@echo "open runs/demo/report.html, runs/study/report.html and runs/repair/report.html"

test: ## build and run every check: unit, golden, program, sanitizers, fuzz smoke, lint
	@tools/install_deps.sh test
	@$(MAKE) --no-print-directory all TARGET=all
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

emulated: deps ## build build/emulated/gatetape: the GPU's kernels on an emulated device
	@cmake -S . -B $(BUILD) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS) --target gatetape_on_emulator

package: ## a folder that runs on a GPU node without root: build/package
	@$(MAKE) --no-print-directory all TARGET=all
	tools/package.sh $(BUILD) $(BUILD)/package

bench: ## speed and memory beside this machine's limits and the peers that are installed
	@tools/install_deps.sh bench
	@$(MAKE) --no-print-directory all
	bench/run.sh $(BUILD)
	bench/statistics.sh $(BUILD)

MUTATION_TESTS = test_parity test_rounds test_attention_cores test_products test_gated test_router test_hopper test_conformance
mutation: deps ## plant bugs in the GPU's kernels and see which tests catch them, without a GPU (an hour)
	@tools/install_deps.sh test
	@cmake -S . -B $(BUILD) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS) --target $(MUTATION_TESTS)
	tools/mutation.py --build $(BUILD) --jobs $(JOBS) --out bench/results/mutation.csv

ranks: deps ## several ranks: every fate of first, middle and last, resumed by others, Slurm where it is installed
	@tools/install_deps.sh test
	@cmake -S . -B $(BUILD) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS) --target gatetape gatetape_mpi rank_collectives rank_victim rank_spread rank_peers rank_memory nccl_bugs \
		gatetape_on_emulator emulated_collectives emulated_peers
	tests/ranks/all.sh $(BUILD)

lint: ## house rules that a machine can check
	@tools/install_deps.sh test
	tools/lint.sh

sanitize: ## the whole suite under address and undefined-behaviour sanitizers
	tools/run_sanitized.sh $(BUILD)/sanitized

fuzz-smoke: ## every fuzz harness for 30 seconds
	tools/fuzz_smoke.sh $(BUILD)/fuzz 30

clean: ## remove what was built
	rm -rf $(BUILD)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

.PHONY: all deps demo test emulated package mutation bench ranks lint sanitize fuzz-smoke clean help
