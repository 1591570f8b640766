// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * A kernel that has been up for long: plenty of free memory, but a page that
 * cannot be moved in every 2 MiB of it.
 */
#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>

/* One page of each block. */
static LIST_HEAD(held);

/* Takes the first page that can be had: of a block with none, all are the kernel's. */
static void __init take_one(unsigned long block)
{
	unsigned long pfn;

	for (pfn = block; pfn < block + pageblock_nr_pages; pfn++) {
		struct page *page = pfn_to_online_page(pfn);

		if (page && !alloc_contig_range(pfn, pfn + 1, MIGRATE_MOVABLE,
						GFP_KERNEL | __GFP_NOWARN)) {
			list_add(&page->lru, &held);
			return;
		}
	}
}

static int __init hog_init(void)
{
	pg_data_t *node = NODE_DATA(first_online_node);
	unsigned long pfn = ALIGN(node->node_start_pfn, pageblock_nr_pages);

	for (; pfn < pgdat_end_pfn(node); pfn += pageblock_nr_pages)
		take_one(pfn);
	return 0;
}
module_init(hog_init);

static void __exit hog_exit(void)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &held, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
}
module_exit(hog_exit);

MODULE_DESCRIPTION("Leaves no 2 MiB of memory that can be had in a row");
MODULE_LICENSE("Dual MIT/GPL");
