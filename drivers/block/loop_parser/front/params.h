/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The parameters that every front module has. In C, because the kernel crate's
 * parameters know neither strings nor a setter of their own.
 *
 * Defines LP_PARAMS, the variable that the Rust side is given; each front has
 * its own name for it. Names, types and modes of the first three parameters are
 * the C driver's.
 */
#ifndef LP_PARAMS
#error "LP_PARAMS has to be defined: the name of the variable"
#endif

#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "../shim.h"

extern struct lp_params LP_PARAMS;

struct lp_params LP_PARAMS = {
	.max_loop = CONFIG_BLK_DEV_LOOP_MIN_COUNT,
	.hw_queue_depth = 128,
	.first = LP_FIRST,
	.autodetect = true,
	.parser = "auto",
};

static int max_loop_set(const char *val, const struct kernel_param *kp)
{
	int ret = param_set_int(val, kp);

	if (!ret)
		LP_PARAMS.max_loop_specified = true;
	return ret;
}

static const struct kernel_param_ops max_loop_ops = {
	.set = max_loop_set,
	.get = param_get_int,
};

module_param_cb(max_loop, &max_loop_ops, &LP_PARAMS.max_loop, 0444);
MODULE_PARM_DESC(max_loop, "Maximum number of loop devices");

module_param_named(max_part, LP_PARAMS.max_part, int, 0444);
MODULE_PARM_DESC(max_part, "Maximum number of partitions per loop device");

static int hw_queue_depth_set(const char *val, const struct kernel_param *kp)
{
	int depth, ret = kstrtoint(val, 0, &depth);

	if (ret < 0)
		return ret;
	if (depth < 1)
		return -EINVAL;
	LP_PARAMS.hw_queue_depth = depth;
	return 0;
}

static const struct kernel_param_ops hw_queue_depth_ops = {
	.set = hw_queue_depth_set,
	.get = param_get_int,
};

device_param_cb(hw_queue_depth, &hw_queue_depth_ops, &LP_PARAMS.hw_queue_depth, 0444);
MODULE_PARM_DESC(hw_queue_depth, "Queue depth for each hardware queue. Default: 128");

module_param_named(autodetect, LP_PARAMS.autodetect, bool, 0644);
MODULE_PARM_DESC(autodetect, "Recognise disk image formats (N: attach every file as raw)");

module_param_string(parser, LP_PARAMS.parser, sizeof(LP_PARAMS.parser), 0644);
MODULE_PARM_DESC(parser, "Parser of devices that name none: auto, raw, or a parser's name");

/* What images may name other files; the numbers are known to sys/params.rs. */
static const char * const lp_parents_names[] = { "none", "beneath", "any" };

static int parents_set(const char *val, const struct kernel_param *kp)
{
	int ret = sysfs_match_string(lp_parents_names, val);

	if (ret < 0)
		return ret;
	WRITE_ONCE(LP_PARAMS.parents, ret);
	return 0;
}

static int parents_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", lp_parents_names[READ_ONCE(LP_PARAMS.parents)]);
}

static const struct kernel_param_ops parents_ops = {
	.set = parents_set,
	.get = parents_get,
};

module_param_cb(parents, &parents_ops, &LP_PARAMS.parents, 0644);
MODULE_PARM_DESC(parents,
		 "Which files an image may name whose format was recognised: none, beneath (its folder), any");
