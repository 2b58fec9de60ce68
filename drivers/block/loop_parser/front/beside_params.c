// SPDX-License-Identifier: GPL-2.0
/* loop_images.ko: its parameters. */

#define LP_PARAMS	lp_beside_params
#define LP_FIRST	4096
#include "params.h"

module_param_named(first, LP_PARAMS.first, int, 0444);
MODULE_PARM_DESC(first, "Number of the first device. Default: 4096");
