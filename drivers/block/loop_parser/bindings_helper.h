/* SPDX-License-Identifier: GPL-2.0 */

/*
 * What bindgen reads. bindgen_parameters says what of it becomes Rust; a type
 * that kernel::bindings has already must not be named there.
 */

#include <uapi/linux/loop.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/major.h>
#include <linux/miscdevice.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/random.h>
#include <linux/capability.h>
#include <linux/numa.h>
#include <linux/stat.h>
#include <linux/sysfs.h>
#include <linux/uio.h>
#include <linux/zlib.h>
#include <linux/zstd.h>

#include "shim.h"

/* Macros with casts, which bindgen cannot evaluate by itself. */
const blk_status_t LP_BLK_STS_OK = BLK_STS_OK;
const blk_status_t LP_BLK_STS_IOERR = BLK_STS_IOERR;
const fmode_t LP_FMODE_READ = FMODE_READ;
const fmode_t LP_FMODE_WRITE = FMODE_WRITE;
const fmode_t LP_FMODE_CAN_ODIRECT = FMODE_CAN_ODIRECT;
const blk_mode_t LP_BLK_OPEN_READ = BLK_OPEN_READ;
const blk_mode_t LP_BLK_OPEN_WRITE = BLK_OPEN_WRITE;
const blk_mode_t LP_BLK_OPEN_EXCL = BLK_OPEN_EXCL;
const blk_features_t LP_BLK_FEAT_WRITE_CACHE = BLK_FEAT_WRITE_CACHE;
const blk_features_t LP_BLK_FEAT_ROTATIONAL = BLK_FEAT_ROTATIONAL;
const unsigned int LP_DISK_EVENT_MEDIA_CHANGE = DISK_EVENT_MEDIA_CHANGE;
const unsigned int LP_DISK_EVENT_FLAG_UEVENT = DISK_EVENT_FLAG_UEVENT;
const unsigned int LP_DISK_MAX_PARTS = DISK_MAX_PARTS;
const unsigned int LP_MINORBITS = MINORBITS;
const unsigned int LP_LOOP_MAJOR = LOOP_MAJOR;
const unsigned int LP_LOOP_CTRL_MINOR = LOOP_CTRL_MINOR;
const unsigned int LP_MISC_DYNAMIC_MINOR = MISC_DYNAMIC_MINOR;
const unsigned int LP_REQ_OP_MASK = REQ_OP_MASK;
const unsigned int LP_REQ_NOUNMAP = (__force unsigned int)REQ_NOUNMAP;
const unsigned int LP_REQ_SWAP = (__force unsigned int)REQ_SWAP;
const unsigned int LP_REQ_NOWAIT = (__force unsigned int)REQ_NOWAIT;
const int LP_FALLOC_FL_KEEP_SIZE = FALLOC_FL_KEEP_SIZE;
const int LP_FALLOC_FL_PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE;
const int LP_FALLOC_FL_ZERO_RANGE = FALLOC_FL_ZERO_RANGE;
const int LP_EIOCBQUEUED = EIOCBQUEUED;
const int LP_IOCB_DIRECT = (__force int)IOCB_DIRECT;
const gfp_t LP_GFP_IO_FS = __GFP_IO | __GFP_FS;
const int LP_CAP_SYS_ADMIN = CAP_SYS_ADMIN;
const int LP_NUMA_NO_NODE = NUMA_NO_NODE;
const unsigned long LP_PAGE_SIZE = PAGE_SIZE;
const unsigned int LP_AT_STATX_SYNC_AS_STAT = AT_STATX_SYNC_AS_STAT;
const unsigned int LP_LOOKUP_FOLLOW = LOOKUP_FOLLOW;
const unsigned int LP_LOOKUP_BENEATH = LOOKUP_BENEATH;
const unsigned int LP_LOOKUP_NO_XDEV = LOOKUP_NO_XDEV;
const unsigned int LP_LOOKUP_NO_MAGICLINKS = LOOKUP_NO_MAGICLINKS;
const int LP_MAY_READ_OPEN = MAY_READ | MAY_OPEN;
const int LP_MAY_READ_WRITE_OPEN = MAY_READ | MAY_WRITE | MAY_OPEN;
const int LP_RAW_DEFLATE = -MAX_WBITS;
const int LP_ZLIB = MAX_WBITS;
const int LP_Z_OK = Z_OK;
const int LP_Z_STREAM_END = Z_STREAM_END;
const int LP_Z_BUF_ERROR = Z_BUF_ERROR;
const int LP_Z_FINISH = Z_FINISH;
const int LP_O_RDONLY = O_RDONLY | O_LARGEFILE;
const int LP_O_RDWR = O_RDWR | O_LARGEFILE;
