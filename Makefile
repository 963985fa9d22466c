# Everything runs in .venv, which `setup` makes. Stamp files in it remember what was done, so a second run costs nothing.
# Variables: PYTHON=/path/to/python3.11 (for setup), ARGS="-k confirm" (for test and bench; ARGS="-n 0" runs tests in one process,
# ARGS=--other-servers=none runs them on the first RabbitMQ only), TESTS=tests/unit and VERSIONS="3.12 3.14" (for test-pythons;
# TESTS for test-floors, too).

# The tests start a thousand processes: without bytecode files each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard cext/leveret/* cext/leveret/*/*)
# leveret.wire.buffers for cext/leveret/wire/buffers.pyx.
COMPILED := $(subst /,.,$(patsubst cext/%.pyx,%,$(wildcard cext/leveret/*/*.pyx)))
PLUGINS := $(sort $(wildcard plugins/leveret-*))
PLUGIN_SOURCES := $(foreach plugin,$(PLUGINS),$(plugin)/pyproject.toml $(wildcard $(plugin)/src/*/* $(plugin)/src/*/*/*))
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test test-pythons test-floors check bench regressions history compare soak floods killed restarts faults ordered costs prefetch \
    blocked dashboard looks rabbitmq rabbitmq4 rabbitmq-c amqp091-go valgrind asan coverage clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.built $(VENV)/.plugins ## make .venv with everything needed, build the extension modules, install the plugins
	@:

demo: setup ## publish and consume typed orders on the embedded broker
	@$(BIN)/leveret demo

# In their order, with the unit tests last: files that take minutes and have few tests would be the last otherwise.
test: setup rabbitmq ## run all tests, on every RabbitMQ server found and on the embedded broker; a skipped test fails
	@$(BIN)/python -m pytest -q -ra --no-skips -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-pythons: setup rabbitmq ## run all tests on each Python from 3.11 to 3.14 that is found, the unit tests on 3.14t and 3.15
	@$(BIN)/python tools/versions.py pythons $(if $(VERSIONS),--only $(VERSIONS)) $(if $(TESTS),--tests $(TESTS)) -- $(ARGS)

test-floors: setup rabbitmq ## run tests with the oldest versions of dependencies that the distributions allow
	@$(BIN)/python tools/versions.py floors $(if $(TESTS),--tests $(TESTS)) -- $(ARGS)

# The tests of each plugin are checked apart, because several have a conftest.py and mypy takes one module of a name.
check: setup ## lint, types, stubs of the extension modules, layers, dead code
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@for plugin in $(PLUGINS); do MYPYPATH=$$plugin/src $(BIN)/mypy $$plugin/tests || exit; done
	@$(BIN)/python -m mypy.stubtest $(COMPILED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint cext && echo "cython-lint: no problems"
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/vulture && echo "vulture: no dead code"

bench: setup ## run the benchmarks quickly and print them
	@$(BIN)/python -m asv_bench.quick $(ARGS)

regressions: setup valgrind ## compare instructions per message with the parent commit's; more than 5 % fails (see CONTRIBUTING.md); minutes
	@$(BIN)/python -m asv_bench.regressions $(ARGS)

history: setup valgrind ## count the commits whose counts are missing, and draw the curves (see docs/speed-history.md); minutes for each
	@$(BIN)/python -m asv_bench.history.run $(ARGS)

compare: setup rabbitmq rabbitmq-c amqp091-go ## compare Leveret with eight other clients (see docs/comparison.md); under 30 minutes, ARGS=--quick under one
	@$(BIN)/python -m asv_bench.compare.run $(ARGS)

soak: setup ## watch memory during 5 million messages on the embedded broker (see docs/long-runs.md); under a minute
	@$(BIN)/python -m asv_bench.soak $(ARGS)

floods: setup ## flood the embedded broker and a client with what no peer should send; check their memory (see docs/long-runs.md); a minute
	@$(BIN)/python -m asv_bench.floods $(ARGS)

killed: setup rabbitmq ## kill a consumer's process 100 times on RabbitMQ; check that nothing is lost and duplicates are marked; about two minutes
	@$(BIN)/python -m asv_bench.killed $(ARGS)

restarts: setup rabbitmq ## reset connections, and restart the broker of 100 clients, 20 times each (see docs/long-runs.md); half an hour
	@$(BIN)/python -m asv_bench.restarts $(ARGS)

faults: setup rabbitmq ## default settings under 110 faults drawn from a seed; check that nothing is lost (see docs/long-runs.md); ten minutes or more
	@$(BIN)/python -m asv_bench.faults.run $(ARGS)

ordered: setup ## check the order and measure the cost of ordered_by with 1,000 keys and 64 workers; under a minute
	@$(BIN)/python -m asv_bench.ordered $(ARGS)

costs: setup ## measure client CPU per message by channels, consumers, queues, window and more (see docs/costs.md); five minutes
	@$(BIN)/python -m asv_bench.costs $(ARGS)

prefetch: setup rabbitmq ## compare fixed prefetches with "auto" on RabbitMQ (see docs/prefetch.md); about nine minutes
	@$(BIN)/python -m asv_bench.prefetch $(ARGS)

blocked: setup ## client memory while the broker takes no publishings for a minute, in 12 runs; ARGS="--seconds 5" takes two minutes
	@$(BIN)/python -m asv_bench.blocked $(ARGS)

dashboard: setup ## run every query of the Grafana dashboard on a real Prometheus (apt-get install prometheus); under two minutes
	@$(BIN)/python tools/dashboard.py $(ARGS)

looks: setup ## pictures of the pages that Leveret makes, into LOOKS=build/looks (needs chromium; see docs/benchmarks.md); a few minutes
	@$(BIN)/python tools/looks.py --out $(or $(LOOKS),build/looks) $(ARGS)

asan: setup ## unit tests and more with the compiled modules under gcc's address and undefined-behaviour sanitizers; ten to thirty minutes (ARGS: other tests)
	@$(call APART,asan)
	@LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so)" PYTHONPATH="$(CURDIR)/build/asan/lib" \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:handle_segv=0:quarantine_size_mb=64 \
	    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    $(BIN)/python -m pytest -q -ra -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -p no:cacheprovider \
	    $(or $(ARGS),@tests/without_rabbitmq.txt)

# Python's own modules are traced as well as Cython's, so each test takes a few times as long.
coverage: setup ## unit tests and more with line tracing: how many lines of Python and Cython they run (ARGS="tests plugins": all tests)
	@$(call APART,trace)
	@rm -f build/trace/data*
	@export COVERAGE_FILE="$(CURDIR)/build/trace/data" PYTHONPATH="$(CURDIR)/build/trace/lib:$(CURDIR)/cext:$(CURDIR)/tools"; \
	status=0; $(BIN)/coverage run -m pytest -q -ra -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -p no:cacheprovider \
	    $(or $(ARGS),@tests/without_rabbitmq.txt) || status=$$?; \
	$(BIN)/coverage combine -q && $(BIN)/coverage report && exit $$status

rabbitmq: ## install the RabbitMQ server that the tests need
	@tools/rabbitmq.sh ensure

rabbitmq4: ## install RabbitMQ 4 into a cache, where the tests find it (Debian, as root); ARGS=trixie takes trixie instead of sid
	@tools/debian.sh rabbitmq $(ARGS)

rabbitmq-c: ## install the C client's headers, which the comparison compiles its C program against
	@tools/rabbitmq.sh headers

amqp091-go: ## install Go and its client, of which the comparison makes a program
	@tools/rabbitmq.sh go

valgrind: ## install valgrind, which counts instructions
	@tools/valgrind.sh

clean: ## remove what was built, and caches (the installed tools in .venv stay)
	@rm -rf build dist sdk/leveret.egg-info $(VENV)/.built $(VENV)/.plugins $(PLUGINS:%=%/build) plugins/*/src/*.egg-info
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@rm -f sdk/leveret/*.so sdk/leveret/*/*.so
	@find sdk plugins tests asv_bench examples cext -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# Installs the dependencies and builds. When only files in cext/ changed, .built runs a build instead.
define INSTALL
set -e; \
echo "installing dependencies and building the extension modules (about a minute)"; \
$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'; \
$(BIN)/python -m pip install -qq --group dev; \
$(BIN)/python -m pip install -qq --no-build-isolation --editable '.[cli]'
endef

# Installs wheels, as users do. Files that a removed module left in build/ would get into the wheels, so build/ is removed.
define INSTALL_PLUGINS
set -e; \
echo "installing the plugins"; \
rm -rf $(PLUGINS:%=%/build) plugins/*/src/*.egg-info; \
$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation $(PLUGINS:%=./%) \
    $(PLUGINS:%=--group %/pyproject.toml:test); \
rm -rf $(PLUGINS:%=%/build) plugins/*/src/*.egg-info
endef

# Builds the compiled modules in another way, with a copy of the Python modules beside them, under build/ and apart from those in sdk/.
define APART
set -e; \
echo "building build/$(1) (two minutes when something changed)"; \
[ build/$(1)/lib -nt setup.py ] || rm -rf build/$(1)/lib; \
mkdir -p build/$(1)/lib; \
find build/$(1)/lib -name '*.py*' -type f -delete; \
tar --exclude='*.so' --exclude=__pycache__ -C sdk -cf - leveret | tar -C build/$(1)/lib -xf -; \
LEVERET_BUILD=$(1) $(BIN)/python setup.py -q build_ext --build-lib build/$(1)/lib --build-temp build/$(1)/temp
endef

# Says why an interpreter will not do.
define WHY_NOT
import importlib.util, os, sys, sysconfig
if sys.version_info < (3, 11):
    sys.exit("it is Python %d.%d" % sys.version_info[:2])
if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
    sys.exit("it has no venv and ensurepip (Debian: apt-get install python3-venv)")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("it has no C headers (Debian: apt-get install python3-dev)")
endef
export WHY_NOT

$(VENV)/.made:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    command -v $$python >/dev/null || { [ -z "$(PYTHON)" ] || echo "not $$python: it is not there" >&2; continue; }; \
	    if why=$$($$python -c "$$WHY_NOT" 2>&1); then \
	        echo "making $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV) && touch $@; exit; \
	    fi; \
	    echo "not $$python: $$(echo "$$why" | head -n 1)" >&2; \
	done; \
	echo "Leveret needs Python 3.11 or newer with venv and C headers: make setup PYTHON=/path/to/python" >&2; exit 1

$(VENV)/.built: $(VENV)/.made pyproject.toml setup.py $(SOURCES)
	@command -v "$${CC:-cc}" >/dev/null || { echo "a C compiler is needed (Debian: apt-get install gcc)" >&2; exit 1; }
	@$(if $(filter-out cext/%,$?),$(INSTALL),$(BIN)/python setup.py -q build_ext --inplace)
	@touch $@

$(VENV)/.plugins: $(VENV)/.made pyproject.toml setup.py $(PLUGIN_SOURCES) | $(VENV)/.built
	@$(INSTALL_PLUGINS)
	@touch $@
