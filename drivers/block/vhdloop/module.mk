# SPDX-License-Identifier: GPL-2.0

# vhdloop.ko: the VHD parser. Included by ../Kbuild.

CONFIG_BLK_DEV_LOOP_PARSER_VHD ?= $(loop-parser-default)

obj-$(CONFIG_BLK_DEV_LOOP_PARSER_VHD) += vhdloop.o
vhdloop-y := vhdloop/vhdloop.o

RUSTFLAGS_vhdloop/vhdloop.o := $(loop-parser-extern)
$(obj)/vhdloop/vhdloop.o: $(loop-parser-crate)
