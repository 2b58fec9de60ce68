// SPDX-License-Identifier: GPL-2.0
/*
 * loop.ko: its parameters, and the aliases by which the kernel and user space
 * find the loop driver.
 */
#include <linux/major.h>
#include <linux/miscdevice.h>

#define LP_PARAMS	lp_drop_in_params
#define LP_FIRST	0
#include "params.h"

MODULE_ALIAS_BLOCKDEV_MAJOR(LOOP_MAJOR);
MODULE_ALIAS_MISCDEV(LOOP_CTRL_MINOR);
MODULE_ALIAS("devname:loop-control");
