# SPDX-License-Identifier: GPL-2.0

# A front for the kernel's build, and for the checks. It finds a kernel to build
# for (see tools/build/kernel); what is built, and how, is said in Kbuild and
# below. With a kernel at hand, this does the same as `make`:
#
#   make -C <kernel build folder> M=$PWD modules

# The modules are built among the sources, or in the folder MO. The kernel knows
# this variable, too, but wants the sources to be without output of a build then:
# so it gets a folder with links to them, and not the variable.
MO ?= .
MAKEOVERRIDES := $(filter-out MO=%,$(MAKEOVERRIDES))
unexport MO

# Recipes are short sequences of programs: a failing one ends them.
.SHELLFLAGS := -ec

# The scripts read KDIR, KERNEL, RUSTC, INSTALL_MOD_PATH and INSTALL_MOD_DIR, which
# make passes on if they are given. They are not exported here: that would pass on
# an empty RUSTC, which cargo takes for the name of a compiler.

Q := $(if $(filter 1 2,$(V)),,@)

kernel := tools/build/kernel
vm     := tools/testing/vm
built  := $(abspath $(MO))

rust-sources = find drivers tools -name target -prune -o -name '*.rs' \
	! -name '*_generated.rs' ! -name interface_stamp.rs -type f -print0

.PHONY: all
all: modules

# Building
# ---------------------------------------------------------------------------

# The kernel's make: a `+` lets it share this make's jobs.
.PHONY: modules
modules: $(if $(filter-out $(CURDIR),$(built)),mirror)
	+$(Q)$(kernel) make M=$(built) modules

.PHONY: mirror
mirror:
	$(Q)tools/build/mirror $(built)

.PHONY: modules_install
modules_install:
	+$(Q)tools/build/modules-install $(built)

# Back to the stock driver.
.PHONY: modules_uninstall
modules_uninstall:
	$(Q)tools/build/modules-install --remove

# What the kernel's clean removes, but without needing a kernel.
.PHONY: clean
clean:
	$(Q)find drivers .module-common.o .*.cmd Module.symvers modules.order \
		\( -name '*.o' -o -name '*.ko' -o -name '*.mod' -o -name '*.mod.c' \
		-o -name '.*.cmd' -o -name '.*.d' -o -name '*.rmeta' \
		-o -name '*.rsi' -o -name '*.ll' -o -name '*.s' -o -name '*.i' \
		-o -name '*_generated.*' -o -name interface_stamp.rs \
		-o -name Module.symvers -o -name modules.order \) \
		-type f -delete 2>/dev/null || true
	$(Q)rm -rf build rust-project.json

# Checks of the sources
# ---------------------------------------------------------------------------

# In a folder of its own: the two compilers would undo each other's work.
.PHONY: clippy
clippy:
	$(Q)tools/build/mirror build/clippy
	+$(Q)$(kernel) make M=$(CURDIR)/build/clippy CLIPPY=1 W=e \
		CLIPPY_CONF_DIR=$(CURDIR) modules

.PHONY: rustfmt
rustfmt:
	$(Q)$(kernel) run sh -c "$(rust-sources) | xargs -0 rustfmt"

.PHONY: rustfmtcheck
rustfmtcheck:
	$(Q)$(kernel) run sh -c "$(rust-sources) | xargs -0 rustfmt --check"

.PHONY: stackcheck
stackcheck: modules
	$(Q)$(kernel) run tools/build/stackcheck $(built)/drivers/block/*.ko

.PHONY: rust-analyzer
rust-analyzer: modules
	$(Q)$(kernel) run tools/build/rust-analyzer $(built)

# Tests
# ---------------------------------------------------------------------------

.PHONY: check
check: environment
	$(Q)tools/testing/check $(if $(ALSO),--also $(ALSO))

# On a kernel that finds errors (tools/testing/vm/debug.config).
.PHONY: check-debug
check-debug: environment
	$(Q)tools/testing/check debug

# The same, with ten minutes for each suite that does random things, thousands of power
# failures, and five minutes for each fuzz target.
.PHONY: check-long
check-long: environment
	$(Q)LP_LONG=1 tools/testing/check $(if $(ALSO),--also $(ALSO))

# The format code as host programs, with this machine's cargo, if it is one that can read the
# workspace (1.85 or later).
.PHONY: check-host
check-host:
	$(Q)if (cd tools/testing/host && cargo metadata --no-deps --format-version 1) >/dev/null 2>&1; \
	then \
		cd tools/testing/host && cargo test; \
	else \
		$(vm)/prepare --quiet && \
		$(vm)/chroot-run --cwd tools/testing/host -- cargo test; \
	fi

.PHONY: demo
demo: environment
	$(Q)tools/testing/demo $(IMAGE)

.PHONY: bench-quick
bench-quick: environment
	$(Q)tools/testing/bench/quick

.PHONY: environment
environment:
	$(Q)$(vm)/prepare --quiet

.PHONY: prepare
prepare:
	$(Q)$(vm)/prepare

.PHONY: help
help:
	@echo  'Building:'
	@echo  '  modules           - build loop.ko and the parser modules (default)'
	@echo  '  modules_install   - install them, as the kernel does; they take the'
	@echo  '                      place of the stock loop.ko'
	@echo  '  modules_uninstall - remove them: back to the stock loop.ko'
	@echo  '  clean             - remove what was built'
	@echo  ''
	@echo  'Checks of the sources:'
	@echo  '  clippy            - lint, with the kernel'\''s settings; warnings are errors'
	@echo  '  rustfmt           - reformat all Rust code'
	@echo  '  rustfmtcheck      - show what rustfmt would change; fail if anything'
	@echo  '  stackcheck        - fail if a function needs too much stack'
	@echo  '  rust-analyzer     - generate rust-project.json'
	@echo  ''
	@echo  'Tests (no effect on this machine'\''s kernel):'
	@echo  '  check             - all tests, in virtual machines: an hour or more'
	@echo  '  check-debug       - the tests in the machine on a debug kernel: three'
	@echo  '                      hours, and half an hour to build it first'
	@echo  '  check-long        - all tests, with long ones for stress and power failures,'
	@echo  '                      and fuzzing: an hour and a half more'
	@echo  '  check-host        - tests of the format code, as host programs'
	@echo  '  demo IMAGE=file   - attach an image in a virtual machine'
	@echo  '  bench-quick       - a short measurement, in a virtual machine'
	@echo  '  prepare           - make the environment: kernel, chroot, virtual machine'
	@echo  ''
	@echo  'Variables:'
	@echo  '  KDIR=folder       - build for this kernel: its build folder. Default: the'
	@echo  '                      running kernel if its headers have Rust metadata, or'
	@echo  '                      else the one that `make prepare` makes'
	@echo  '  ALSO=stage        - check: do this one, too (see the head of tools/testing/check)'
	@echo  '  CHECK_UNTIL=time  - check: when to be done, in seconds since the epoch; what there'
	@echo  '                      is no time for is skipped, and the report says so'
	@echo  '  MO=folder         - build there, not among the sources'
	@echo  '  INSTALL_MOD_PATH, INSTALL_MOD_DIR, V, W - as for the kernel'
	@echo  '  CONFIG_BLK_DEV_LOOP_PARSER_<FORMAT>=n   - leave a parser module out'
