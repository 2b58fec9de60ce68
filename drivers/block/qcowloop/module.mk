# SPDX-License-Identifier: GPL-2.0

# qcowloop.ko: the qcow and qcow2 parsers. Included by ../Kbuild.

CONFIG_BLK_DEV_LOOP_PARSER_QCOW ?= $(loop-parser-default)

obj-$(CONFIG_BLK_DEV_LOOP_PARSER_QCOW) += qcowloop.o
qcowloop-y := qcowloop/qcowloop.o

RUSTFLAGS_qcowloop/qcowloop.o := $(loop-parser-extern)
$(obj)/qcowloop/qcowloop.o: $(loop-parser-crate)
