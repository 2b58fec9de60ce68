/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust side cannot reach by itself: static inline functions, macros
 * and variadic functions of the kernel, one wrapper each. Nothing with logic in
 * it.
 */
#ifndef LOOP_PARSER_SHIM_H
#define LOOP_PARSER_SHIM_H

#include <linux/blk-mq.h>
#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/srcu.h>
#include <linux/workqueue.h>

/* Module parameters, which a front module declares: see front/params.h. */
#define LP_PARSER_NAME_MAX	64

struct lp_params {
	int max_loop;
	bool max_loop_specified;
	int max_part;
	int hw_queue_depth;
	int first;
	bool autodetect;
	int parents;
	char parser[LP_PARSER_NAME_MAX];
};

void lp_read_string_param(struct module *mod, char *to, const char *from);

/* Files. */
struct inode *lp_file_inode(const struct file *file);
loff_t lp_i_size_read(const struct inode *inode);
u32 lp_sample_wb_err(const struct file *file);
int lp_check_wb_err(const struct file *file, u32 since);
bool lp_is_dax(const struct inode *inode);
u64 lp_huge_encode_dev(dev_t dev);
gfp_t lp_mapping_gfp_mask(const struct address_space *mapping);
void lp_mapping_set_gfp_mask(struct address_space *mapping, gfp_t mask);
void lp_kiocb_start_write(struct kiocb *iocb);
void lp_kiocb_end_write(struct kiocb *iocb);
bool lp_is_err(const void *ptr);
long lp_statfs_bsize(const struct path *path);

/* Names in the tree of files, and who asks for them. */
bool lp_is_root(const struct dentry *dentry);
bool lp_d_unlinked(const struct dentry *dentry);
struct inode *lp_d_inode(const struct dentry *dentry);
int lp_permission(const struct path *path, int mask);
bool lp_forbids_devices(const struct path *path);
kuid_t lp_owner(struct file *file);
kgid_t lp_nobody_gid(void);
const struct cred *lp_override_creds(const struct cred *cred);
void lp_revert_creds(const struct cred *old);
void lp_get_cred(const struct cred *cred);
void lp_put_cred(const struct cred *cred);
void lp_put_group_info(struct group_info *groups);

/* Folios of a backing file. */
struct folio *lp_filemap_get_folio(struct address_space *mapping, pgoff_t index);
bool lp_folio_test_uptodate(const struct folio *folio);
bool lp_folio_test_hwpoison(const struct folio *folio);
bool lp_folio_test_readahead(const struct folio *folio);
void lp_folio_mark_accessed(struct folio *folio);
size_t lp_offset_in_folio(const struct folio *folio, loff_t pos);
size_t lp_folio_size(const struct folio *folio);
void lp_folio_put(struct folio *folio);
void lp_memcpy_from_folio(char *to, struct folio *folio, size_t offset, size_t len);

/* Pages of a request. */
void lp_memzero_bvec(const struct bio_vec *bvec);
void lp_memcpy_to_bvec(struct bio_vec *bvec, const char *from);

/* Disks and queues. */
struct device *lp_disk_to_dev(struct gendisk *disk);
struct gendisk *lp_dev_to_disk(struct device *dev);
unsigned int lp_disk_openers(struct gendisk *disk);
void lp_dev_set_uevent_suppress(struct gendisk *disk, int val);
void lp_disk_set_part_scan(struct gendisk *disk, bool enable);
struct gendisk *lp_blk_mq_alloc_disk(struct blk_mq_tag_set *set, struct queue_limits *lim,
				     void *queuedata);
void lp_queue_limits_start_update(struct request_queue *q, struct queue_limits *lim);
bool lp_queue_limits_try_start_update(struct request_queue *q, struct queue_limits *lim);
unsigned int lp_blk_mq_freeze_queue(struct request_queue *q);
void lp_blk_mq_unfreeze_queue(struct request_queue *q, unsigned int memflags);
bool lp_blk_should_fake_timeout(struct request_queue *q);
unsigned int lp_bdev_write_zeroes_sectors(struct block_device *bdev);
unsigned int lp_bdev_discard_granularity(struct block_device *bdev);
u64 lp_bdev_nr_sectors(struct block_device *bdev);
bool lp_bdev_read_only(struct block_device *bdev);
unsigned int lp_bdev_logical_block_size(struct block_device *bdev);
unsigned int lp_bdev_dma_alignment(struct block_device *bdev);
bool lp_bdev_rot(struct block_device *bdev);
int lp_register_blkdev(unsigned int major, const char *name, void (*probe)(dev_t devt));
void lp_unregister_blkdev(unsigned int major, const char *name);

/* Control groups. */
void *lp_request_blkcg(struct request *rq);
void lp_css_get(void *css);
void lp_css_put(void *css);
void lp_associate_blkcg(void *css);
void *lp_get_memory_css(void *css);
void *lp_set_active_memory(void *css);
void lp_restore_active_memory(void *memcg);

/* Tasks, locks, work. */
bool lp_is_worker(void);
long lp_work_on_cpu(long (*fn)(void *), void *arg);
unsigned int lp_worker_begin(void);
void lp_worker_end(unsigned int flags);
unsigned int lp_memalloc_noreclaim_save(void);
void lp_memalloc_noreclaim_restore(unsigned int flags);
int lp_mutex_lock_killable(struct mutex *lock);
void lp_mutex_init(struct mutex *lock, const char *name, struct lock_class_key *key);
void lp_down_read_non_owner(struct rw_semaphore *sem);
void lp_up_read_non_owner(struct rw_semaphore *sem);
void lp_init_rwsem(struct rw_semaphore *sem);
void lp_init_work(struct work_struct *work, work_func_t func);
bool lp_queue_work(struct workqueue_struct *wq, struct work_struct *work);
struct workqueue_struct *lp_alloc_workqueue(int number);
void lp_init_deferrable_work(struct delayed_work *work, work_func_t func);
bool lp_schedule_delayed_work(struct delayed_work *work, unsigned int seconds);
int lp_init_srcu(struct srcu_struct *srcu);
int lp_srcu_down_read(struct srcu_struct *srcu);
void lp_srcu_up_read(struct srcu_struct *srcu, int index);
int lp_request_module(const char *name);
void lp_cond_resched(void);

#endif
