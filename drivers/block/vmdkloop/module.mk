# SPDX-License-Identifier: GPL-2.0

# vmdkloop.ko: the VMDK parser. Included by ../Kbuild.

CONFIG_BLK_DEV_LOOP_PARSER_VMDK ?= $(loop-parser-default)

obj-$(CONFIG_BLK_DEV_LOOP_PARSER_VMDK) += vmdkloop.o
vmdkloop-y := vmdkloop/vmdkloop.o

RUSTFLAGS_vmdkloop/vmdkloop.o := $(loop-parser-extern)
$(obj)/vmdkloop/vmdkloop.o: $(loop-parser-crate)
