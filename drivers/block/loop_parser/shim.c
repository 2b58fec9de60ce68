// SPDX-License-Identifier: GPL-2.0
/*
 * One-line wrappers over inline functions and macros. See shim.h.
 */
#include <linux/blk-cgroup.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/cgroup.h>
#include <linux/compat.h>
#include <linux/cred.h>
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/highuid.h>
#include <linux/kdev_t.h>
#include <linux/kmod.h>
#include <linux/kthread.h>
#include <linux/memcontrol.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mount.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/srcu.h>
#include <linux/swap.h>
#include <linux/statfs.h>
#include <linux/workqueue.h>

#include "shim.h"

/* Parameters. */

void lp_read_string_param(struct module *mod, char *to, const char *from)
{
	kernel_param_lock(mod);
	strscpy(to, from, LP_PARSER_NAME_MAX);
	kernel_param_unlock(mod);
}

/* Files. */

struct inode *lp_file_inode(const struct file *file)
{
	return file_inode(file);
}

loff_t lp_i_size_read(const struct inode *inode)
{
	return i_size_read(inode);
}

u32 lp_sample_wb_err(const struct file *file)
{
	return filemap_sample_wb_err(file->f_mapping);
}

int lp_check_wb_err(const struct file *file, u32 since)
{
	return filemap_check_wb_err(file->f_mapping, since);
}

bool lp_is_dax(const struct inode *inode)
{
	return IS_DAX(inode);
}

u64 lp_huge_encode_dev(dev_t dev)
{
	return huge_encode_dev(dev);
}

gfp_t lp_mapping_gfp_mask(const struct address_space *mapping)
{
	return mapping_gfp_mask(mapping);
}

void lp_mapping_set_gfp_mask(struct address_space *mapping, gfp_t mask)
{
	mapping_set_gfp_mask(mapping, mask);
}

void lp_kiocb_start_write(struct kiocb *iocb)
{
	kiocb_start_write(iocb);
}

void lp_kiocb_end_write(struct kiocb *iocb)
{
	kiocb_end_write(iocb);
}

bool lp_is_err(const void *ptr)
{
	return IS_ERR(ptr);
}

long lp_statfs_bsize(const struct path *path)
{
	struct kstatfs stat;
	int ret = vfs_statfs(path, &stat);

	return ret ? ret : stat.f_bsize;
}

/* Names in the tree of files, and who asks for them. */

bool lp_is_root(const struct dentry *dentry)
{
	return IS_ROOT(dentry);
}

bool lp_d_unlinked(const struct dentry *dentry)
{
	return d_unlinked(dentry);
}

struct inode *lp_d_inode(const struct dentry *dentry)
{
	return d_backing_inode(dentry);
}

int lp_permission(const struct path *path, int mask)
{
	struct inode *inode = d_backing_inode(path->dentry);

	/* As open() has it: we do not only append. */
	if (mask & MAY_WRITE && IS_APPEND(inode))
		return -EPERM;
	return inode_permission(mnt_idmap(path->mnt), inode, mask);
}

bool lp_forbids_devices(const struct path *path)
{
	return path->mnt->mnt_flags & MNT_NODEV || path->mnt->mnt_sb->s_iflags & SB_I_NODEV;
}

kuid_t lp_owner(struct file *file)
{
	return vfsuid_into_kuid(i_uid_into_vfsuid(file_mnt_idmap(file), file_inode(file)));
}

kgid_t lp_nobody_gid(void)
{
	return make_kgid(&init_user_ns, overflowgid);
}

const struct cred *lp_override_creds(const struct cred *cred)
{
	return override_creds(cred);
}

void lp_revert_creds(const struct cred *old)
{
	revert_creds(old);
}

void lp_get_cred(const struct cred *cred)
{
	get_cred(cred);
}

void lp_put_cred(const struct cred *cred)
{
	put_cred(cred);
}

void lp_put_group_info(struct group_info *groups)
{
	put_group_info(groups);
}

/* Folios of a backing file. */

struct folio *lp_filemap_get_folio(struct address_space *mapping, pgoff_t index)
{
	return filemap_get_folio(mapping, index);
}

bool lp_folio_test_uptodate(const struct folio *folio)
{
	return folio_test_uptodate(folio);
}

bool lp_folio_test_hwpoison(const struct folio *folio)
{
	return folio_contain_hwpoisoned_page((struct folio *)folio);
}

bool lp_folio_test_readahead(const struct folio *folio)
{
	return folio_test_readahead(folio);
}

void lp_folio_mark_accessed(struct folio *folio)
{
	folio_mark_accessed(folio);
}

size_t lp_offset_in_folio(const struct folio *folio, loff_t pos)
{
	return offset_in_folio(folio, pos);
}

size_t lp_folio_size(const struct folio *folio)
{
	return folio_size(folio);
}

void lp_folio_put(struct folio *folio)
{
	folio_put(folio);
}

void lp_memcpy_from_folio(char *to, struct folio *folio, size_t offset, size_t len)
{
	memcpy_from_folio(to, folio, offset, len);
}

/* Pages of a request. */

void lp_memzero_bvec(const struct bio_vec *bvec)
{
	memzero_page(bvec->bv_page, bvec->bv_offset, bvec->bv_len);
}

void lp_memcpy_to_bvec(struct bio_vec *bvec, const char *from)
{
	memcpy_to_bvec(bvec, from);
}

/* Disks and queues. */

struct device *lp_disk_to_dev(struct gendisk *disk)
{
	return disk_to_dev(disk);
}

struct gendisk *lp_dev_to_disk(struct device *dev)
{
	return dev_to_disk(dev);
}

unsigned int lp_disk_openers(struct gendisk *disk)
{
	return disk_openers(disk);
}

void lp_dev_set_uevent_suppress(struct gendisk *disk, int val)
{
	dev_set_uevent_suppress(disk_to_dev(disk), val);
}

void lp_disk_set_part_scan(struct gendisk *disk, bool enable)
{
	assign_bit(GD_SUPPRESS_PART_SCAN, &disk->state, !enable);
}

struct gendisk *lp_blk_mq_alloc_disk(struct blk_mq_tag_set *set, struct queue_limits *lim,
				     void *queuedata)
{
	return blk_mq_alloc_disk(set, lim, queuedata);
}

void lp_queue_limits_start_update(struct request_queue *q, struct queue_limits *lim)
{
	*lim = queue_limits_start_update(q);
}

bool lp_queue_limits_try_start_update(struct request_queue *q, struct queue_limits *lim)
{
	if (!mutex_trylock(&q->limits_lock))
		return false;
	*lim = q->limits;
	return true;
}

unsigned int lp_blk_mq_freeze_queue(struct request_queue *q)
{
	return blk_mq_freeze_queue(q);
}

void lp_blk_mq_unfreeze_queue(struct request_queue *q, unsigned int memflags)
{
	blk_mq_unfreeze_queue(q, memflags);
}

bool lp_blk_should_fake_timeout(struct request_queue *q)
{
	return blk_should_fake_timeout(q);
}

unsigned int lp_bdev_write_zeroes_sectors(struct block_device *bdev)
{
	return bdev_write_zeroes_sectors(bdev);
}

unsigned int lp_bdev_discard_granularity(struct block_device *bdev)
{
	return bdev_discard_granularity(bdev);
}

u64 lp_bdev_nr_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

bool lp_bdev_read_only(struct block_device *bdev)
{
	return bdev_read_only(bdev);
}

unsigned int lp_bdev_logical_block_size(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

unsigned int lp_bdev_dma_alignment(struct block_device *bdev)
{
	return bdev_dma_alignment(bdev);
}

bool lp_bdev_rot(struct block_device *bdev)
{
	return bdev_rot(bdev);
}

int lp_register_blkdev(unsigned int major, const char *name, void (*probe)(dev_t devt))
{
	return __register_blkdev(major, name, probe);
}

void lp_unregister_blkdev(unsigned int major, const char *name)
{
	unregister_blkdev(major, name);
}

/* Control groups. Without them every request is the root's. */

void *lp_request_blkcg(struct request *rq)
{
#ifdef CONFIG_BLK_CGROUP
	struct cgroup_subsys_state *css = rq->bio ? bio_blkcg_css(rq->bio) : NULL;

	return css == blkcg_root_css ? NULL : css;
#else
	return NULL;
#endif
}

void lp_css_get(void *css)
{
#ifdef CONFIG_CGROUPS
	css_get(css);
#endif
}

void lp_css_put(void *css)
{
#ifdef CONFIG_CGROUPS
	css_put(css);
#endif
}

void lp_associate_blkcg(void *css)
{
	kthread_associate_blkcg(css);
}

void *lp_get_memory_css(void *css)
{
#ifdef CONFIG_MEMCG
	struct cgroup_subsys_state *blkcg = css;

	return cgroup_get_e_css(blkcg->cgroup, &memory_cgrp_subsys);
#else
	return NULL;
#endif
}

void *lp_set_active_memory(void *css)
{
	return set_active_memcg(mem_cgroup_from_css(css));
}

void lp_restore_active_memory(void *memcg)
{
	set_active_memcg(memcg);
}

/* Tasks, locks, work. */

bool lp_is_worker(void)
{
	return current->flags & PF_WQ_WORKER;
}

long lp_work_on_cpu(long (*fn)(void *), void *arg)
{
	return work_on_cpu(raw_smp_processor_id(), fn, arg);
}

unsigned int lp_worker_begin(void)
{
	unsigned int flags = current->flags & (PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO);

	current->flags |= PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO;
	return flags;
}

void lp_worker_end(unsigned int flags)
{
	current->flags &= ~(PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO);
	current->flags |= flags;
}

unsigned int lp_memalloc_noreclaim_save(void)
{
	return memalloc_noreclaim_save();
}

void lp_memalloc_noreclaim_restore(unsigned int flags)
{
	memalloc_noreclaim_restore(flags);
}

int lp_mutex_lock_killable(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

void lp_mutex_init(struct mutex *lock, const char *name, struct lock_class_key *key)
{
	__mutex_init(lock, name, key);
}

void lp_down_read_non_owner(struct rw_semaphore *sem)
{
	down_read_non_owner(sem);
}

void lp_up_read_non_owner(struct rw_semaphore *sem)
{
	up_read_non_owner(sem);
}

void lp_init_rwsem(struct rw_semaphore *sem)
{
	init_rwsem(sem);
}

void lp_init_work(struct work_struct *work, work_func_t func)
{
	INIT_WORK(work, func);
}

bool lp_queue_work(struct workqueue_struct *wq, struct work_struct *work)
{
	return queue_work(wq, work);
}

struct workqueue_struct *lp_alloc_workqueue(int number)
{
	return alloc_workqueue("loop%d", WQ_UNBOUND | WQ_FREEZABLE, 0, number);
}

void lp_init_deferrable_work(struct delayed_work *work, work_func_t func)
{
	INIT_DEFERRABLE_WORK(work, func);
}

bool lp_schedule_delayed_work(struct delayed_work *work, unsigned int seconds)
{
	return schedule_delayed_work(work, secs_to_jiffies(seconds));
}

int lp_init_srcu(struct srcu_struct *srcu)
{
	return init_srcu_struct(srcu);
}

int lp_srcu_down_read(struct srcu_struct *srcu)
{
	return srcu_down_read(srcu);
}

void lp_srcu_up_read(struct srcu_struct *srcu, int index)
{
	srcu_up_read(srcu, index);
}

int lp_request_module(const char *name)
{
	return request_module("loop-parser-%s", name);
}

void lp_cond_resched(void)
{
	cond_resched();
}
