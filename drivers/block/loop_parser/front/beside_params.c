// SPDX-License-Identifier: GPL-2.0
/* loop_images.ko: its parameters. */

/*
 * Above all numbers that the stock driver can have: it has a minor for each, of
 * which there are 2^20. losetup asks that driver to add the device it is given;
 * for these numbers the answer is a plain no. Numbers that would be too large
 * once the stock driver's max_part (up to 255) is applied would wrap around.
 */
#define LP_PARAMS	lp_beside_params
#define LP_FIRST	2000000
#include "params.h"

module_param_named(first, LP_PARAMS.first, int, 0444);
MODULE_PARM_DESC(first, "Number of the first device. Default: 2000000");
