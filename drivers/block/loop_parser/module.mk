# SPDX-License-Identifier: GPL-2.0

# loop_parser.ko: the loop driver with the loop-parser hook; loop.ko and
# loop_images.ko, by which it runs; and what modules need to import its crate.
# Included by ../Kbuild.

CONFIG_BLK_DEV_LOOP_PARSER ?= $(loop-parser-default)

ifneq ($(filter y m,$(CONFIG_BLK_DEV_LOOP_PARSER)),)

obj-$(CONFIG_BLK_DEV_LOOP_PARSER) += loop_parser.o
loop_parser-y := loop_parser/loop_parser.o loop_parser/shim.o loop_parser/exports.o

# For parser modules, in their module.mk:
#
#   RUSTFLAGS_vhdloop/vhdloop.o := $(loop-parser-extern)
#   $(obj)/vhdloop/vhdloop.o: $(loop-parser-crate)
loop-parser-crate  := $(obj)/loop_parser/loop_parser.o
loop-parser-extern := -L $(obj)/loop_parser --extern loop_parser

# One rustc run writes both; the metadata has the object's dependencies.
RUSTFLAGS_loop_parser/loop_parser.o := --emit=metadata=$(obj)/loop_parser/libloop_parser.rmeta
clean-files += loop_parser/libloop_parser.rmeta

# Rust code finds the generated files with env!("LOOP_PARSER_OBJ"). Absolute,
# since include!() resolves a relative path against the including file.
export LOOP_PARSER_OBJ := $(abspath $(obj)/loop_parser)

loop-parser-generated := bindings_generated.rs interface_stamp.rs

targets += $(addprefix loop_parser/,$(loop-parser-generated) exports_generated.h)

# .o, and the single targets that compile the same source.
$(foreach x,o s ll rsi,$(obj)/loop_parser/loop_parser.$(x)): \
	$(addprefix $(obj)/loop_parser/,$(loop-parser-generated))

# Bindings
# ---------------------------------------------------------------------------
# What kernel::bindings lacks. The flags are those of rust/Makefile, which a
# headers-only tree does not have, and must stay in step with it: the types are
# shared with the kernel crate, so their layout has to be seen the same way.

ifdef CONFIG_CC_IS_CLANG
loop-parser-bindgen-c-flags = $(c_flags)
else
# bindgen parses with libclang; gcc's flags that clang does not know go.
loop-parser-bindgen-skip := -mno-fp-ret-in-387 -mpreferred-stack-boundary=% \
	-mskip-rax-setup -mgeneral-regs-only -msign-return-address=% \
	-mindirect-branch=thunk-extern -mindirect-branch-register \
	-mfunction-return=thunk-extern -mrecord-mcount -mabi=lp64 \
	-mindirect-branch-cs-prefix -mstack-protector-guard% -mtraceback=no \
	-mno-pointers-to-nested-functions -mno-string \
	-mno-strict-align -mstrict-align -mdirect-extern-access \
	-mexplicit-relocs -mno-check-zero-division \
	-fconserve-stack -falign-jumps=% -falign-loops=% \
	-femit-struct-debug-baseonly -fno-ipa-cp-clone -fno-ipa-sra \
	-fno-partial-inlining -fplugin-arg-arm_ssp_per_task_plugin-% \
	-fno-reorder-blocks -fno-allow-store-data-races -fasan-shadow-offset=% \
	-fzero-call-used-regs=% -fno-stack-clash-protection \
	-fno-inline-functions-called-once -fsanitize=bounds-strict \
	-fstrict-flex-arrays=% -fmin-function-alignment=% \
	-fzero-init-padding-bits=% -mno-fdpic \
	-fdiagnostics-show-context -fdiagnostics-show-context=% \
	--param=% --param asan-% -fno-isolate-erroneous-paths-dereference \
	-ffixed-r2 -mmultiple -mno-readonly-in-sdata

loop-parser-bindgen-target-x86       := x86_64-linux-gnu
loop-parser-bindgen-target-arm64     := aarch64-linux-gnu
loop-parser-bindgen-target-arm       := arm-linux-gnueabi
loop-parser-bindgen-target-loongarch := loongarch64-linux-gnusf
loop-parser-bindgen-target-s390      := s390x-linux-gnu
loop-parser-bindgen-target-riscv     := riscv64-linux-gnu
loop-parser-bindgen-target-i386      := i386-linux-gnu
loop-parser-bindgen-target-powerpc   := $(if $(CONFIG_PPC64),powerpc64le,powerpc)-linux-gnu
loop-parser-bindgen-target-um        := $(or $(loop-parser-bindgen-target-$(SUBARCH)),$(SUBARCH)-linux-gnu)

loop-parser-bindgen-c-flags = $(filter-out $(loop-parser-bindgen-skip),$(c_flags)) \
	-w --target=$(loop-parser-bindgen-target-$(SRCARCH))
endif

# -fno-builtin keeps clang's prototypes of memcpy and friends out.
quiet_cmd_loop_parser_bindgen = BINDGEN $@
      cmd_loop_parser_bindgen = \
	$(BINDGEN) $< $(shell grep -Ev '^#|^$$' $(word 2,$^)) --rust-target 1.85 \
		--use-core --with-derive-default --ctypes-prefix ffi --no-layout-tests \
		--no-debug '.*' --enable-function-attribute-detection \
		-o $@ -- $(filter-out $(CC_FLAGS_LTO),$(loop-parser-bindgen-c-flags)) \
		-fno-builtin -D__BINDGEN__ -DMODULE

$(obj)/loop_parser/bindings_generated.rs: $(src)/loop_parser/bindings_helper.h \
    $(src)/loop_parser/bindgen_parameters FORCE
	$(call if_changed_dep,loop_parser_bindgen)

# Interface stamp
# ---------------------------------------------------------------------------
# Rust symbols carry no CRC, so a parser built against another contract would
# load. Everything that can change the contract's types goes into the hash: its
# sources, the compiler, and the kernel with its configuration.

loop-parser-contract := $(sort $(wildcard $(addprefix $(src)/loop_parser/, \
	contract*.rs contract/*.rs contract/*/*.rs parser.rs front.rs)))

quiet_cmd_loop_parser_stamp = STAMP   $@
      cmd_loop_parser_stamp = \
	sum=$$( { echo '$(KERNELRELEASE)'; $(RUSTC) --version --verbose; \
		cat $(real-prereqs); } | sha256sum | cut -c -16) && \
	printf '%s\n' '// SPDX-License-Identifier: GPL-2.0' \
		'/// Identifies the contract that a crate was compiled against.' \
		"pub const INTERFACE_STAMP: u64 = 0x$$sum;" > $@

$(obj)/loop_parser/interface_stamp.rs: $(loop-parser-contract) \
    $(objtree)/include/generated/rustc_cfg FORCE
	$(call if_changed,loop_parser_stamp)

# Exports
# ---------------------------------------------------------------------------
# Every global symbol of the crate, not just what the parsers here use: parsers
# may live elsewhere. No output of nm at all is an error.

quiet_cmd_loop_parser_exports = EXPORTS $@
      cmd_loop_parser_exports = \
	$(NM) -p --defined-only $< | awk ' \
		$$2 ~ /^[TRDB]$$/ && $$3 ~ /^_R/ && \
		$$3 !~ /_(init|cleanup)_module$$/ && \
		$$3 !~ /__(pfx|cfi|odr_asan)/ { \
			printf "EXPORT_SYMBOL_RUST_GPL(%s);\n", $$3 } \
		END { exit !NR }' > $@

$(obj)/loop_parser/exports_generated.h: $(loop-parser-crate) FORCE
	$(call if_changed,loop_parser_exports)

$(obj)/loop_parser/exports.o: $(obj)/loop_parser/exports_generated.h
CFLAGS_loop_parser/exports.o := -I $(obj)/loop_parser

ifdef CONFIG_MODVERSIONS
# exports.c declares every symbol as an int: take the symbol versions from the
# Rust object instead.
$(obj)/loop_parser/exports.o: private cmd_gensymtypes_c = \
	$(call getexportsymbols,\1) | \
	$(objtree)/scripts/gendwarfksyms/gendwarfksyms \
		$(if $(KBUILD_GENDWARFKSYMS_STABLE),--stable) \
		$(if $(KBUILD_SYMTYPES),--symtypes $(@:.o=.symtypes)) \
		$(loop-parser-crate)
endif

endif # CONFIG_BLK_DEV_LOOP_PARSER

# Fronts
# ---------------------------------------------------------------------------

CONFIG_BLK_DEV_LOOP_PARSER_DROP_IN ?= $(loop-parser-default)

ifneq ($(filter y m,$(CONFIG_BLK_DEV_LOOP_PARSER_DROP_IN)),)

obj-$(CONFIG_BLK_DEV_LOOP_PARSER_DROP_IN) += loop.o

# Only under the condition: with loop-y set, the kernel tree's own loop.o would
# become these objects, too.
loop-y := loop_parser/front/drop_in.o loop_parser/front/drop_in_params.o

endif

CONFIG_BLK_DEV_LOOP_PARSER_BESIDE ?= $(loop-parser-default)

obj-$(CONFIG_BLK_DEV_LOOP_PARSER_BESIDE) += loop_images.o
loop_images-y := loop_parser/front/beside.o loop_parser/front/beside_params.o

RUSTFLAGS_loop_parser/front/drop_in.o := $(loop-parser-extern)
RUSTFLAGS_loop_parser/front/beside.o := $(loop-parser-extern)
$(obj)/loop_parser/front/drop_in.o $(obj)/loop_parser/front/beside.o: $(loop-parser-crate)
