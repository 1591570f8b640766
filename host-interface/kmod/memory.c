// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * Memory for the hypervisor, and the list of all RAM.
 *
 * The payload maps its memory at EL2 to its own physical addresses, so it has
 * to be contiguous. It is taken from the page allocator like the memory of a
 * huge page: what lies there and can be moved is moved away.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>

#include "kmod.h"

/*
 * Pages below the hypervisor's that nobody uses: the kernel reads up to seven
 * bytes past the end of a string (load_unaligned_zeropad()).
 */
#define GUARD		1UL
#define MAX_BANKS	(ARRAY_SIZE(((struct pfnguard_launch_info *)0)->ram) / 2)

/* Page frame numbers mean the same to both. */
static_assert(PAGE_SIZE == PFNGUARD_PAGE_SIZE);

/* What was given to the hypervisor. */
static struct pfnguard_memory kept __ro_after_init;

static int __init add_bank(struct resource *res, void *arg)
{
	struct pfnguard_launch_info *info = arg;

	if (info->banks == MAX_BANKS)
		return -E2BIG;
	info->ram[2 * info->banks] = PHYS_PFN(res->start);
	info->ram[2 * info->banks + 1] = PHYS_PFN(resource_size(res));
	info->banks++;
	return 0;
}

/**
 * pfnguard_list_ram() - list all memory that the kernel may map as RAM
 * @info: gets the ranges
 *
 * Memory that must not be mapped ("no-map") is not in the kernel's list.
 *
 * Return: 0, or -E2BIG if there are more ranges than the hypervisor knows.
 */
int __init pfnguard_list_ram(struct pfnguard_launch_info *info)
{
	unsigned long flags = IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY;
	int ret;

	info->banks = 0;
	ret = walk_iomem_res_desc(IORES_DESC_NONE, flags, 0, -1, info, add_bank);
	if (ret == -E2BIG)
		pr_err("more than %zu ranges of RAM: this hypervisor cannot run here\n",
		       MAX_BANKS);
	return ret;
}

/* Pages of one zone, none of which the kernel has for good. */
static bool __init may_be_freed(unsigned long pfn, unsigned long pages)
{
	struct page *first = pfn_to_online_page(pfn);
	unsigned long i;

	if (!first)
		return false;
	for (i = 0; i < pages; i++) {
		struct page *page = pfn_to_online_page(pfn + i);

		if (!page || PageReserved(page) ||
		    page_zone(page) != page_zone(first))
			return false;
	}
	return true;
}

static int __init take_from(unsigned long start, unsigned long end,
			    unsigned long pages, struct pfnguard_memory *memory)
{
	unsigned long pfn;

	if (end - start < pages)
		return -ENOMEM;
	/* From above: the kernel's own allocations begin below. */
	pfn = ALIGN_DOWN(end - pages, pageblock_nr_pages);
	for (; pfn >= start; pfn -= pageblock_nr_pages) {
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
		if (may_be_freed(pfn, pages) &&
		    !alloc_contig_range(pfn, pfn + pages, MIGRATE_MOVABLE,
					GFP_KERNEL | __GFP_NOWARN)) {
			memory->pfn = pfn + GUARD;
			memory->pages = pages - GUARD;
			return 0;
		}
		if (pfn < pageblock_nr_pages)
			break;
	}
	return -ENOMEM;
}

/**
 * pfnguard_take_memory() - take contiguous memory
 * @info: all RAM
 * @pages: how much
 * @memory: gets the place; holds nothing before
 *
 * Return: 0, -EINTR, or -ENOMEM if no such range can be emptied.
 */
int __init pfnguard_take_memory(const struct pfnguard_launch_info *info,
				unsigned long pages,
				struct pfnguard_memory *memory)
{
	u32 bank = info->banks;
	int ret = -ENOMEM;

	while (ret == -ENOMEM && bank--) {
		unsigned long start = info->ram[2 * bank];

		ret = take_from(start, start + info->ram[2 * bank + 1],
				pages + GUARD, memory);
	}
	if (ret == -ENOMEM)
		pr_err("no %lu KiB of contiguous memory: load the module earlier, or add memory\n",
		       pages << (PAGE_SHIFT - 10));
	return ret;
}

/**
 * pfnguard_keep_memory() - tell the kernel that it has lost pages
 * @memory: the hypervisor's from now on
 *
 * Whoever reads all of memory (/proc/kcore, a hibernation image) leaves out what
 * is marked as offline.
 */
void __init pfnguard_keep_memory(const struct pfnguard_memory *memory)
{
	unsigned long i;

	kept = *memory;
	for (i = 0; i < memory->pages; i++)
		__SetPageOffline(pfn_to_page(memory->pfn + i));
}

/**
 * pfnguard_free_memory() - give memory back after a launch that failed
 * @memory: the place; may hold nothing
 */
void __init pfnguard_free_memory(struct pfnguard_memory *memory)
{
	if (memory->pages)
		free_contig_range(memory->pfn - GUARD, memory->pages + GUARD);
	memory->pages = 0;
}

static int show_bank(struct resource *res, void *out)
{
	seq_printf(out, "ram pfn=%#lx pages=%#lx\n", PHYS_PFN(res->start),
		   PHYS_PFN(resource_size(res)));
	return 0;
}

/**
 * pfnguard_show_memory() - list all RAM, and the hypervisor's part of it
 * @out: gets the lines
 */
void pfnguard_show_memory(struct seq_file *out)
{
	unsigned long flags = IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY;
	u64 values[4] = { };

	pfnguard_info(PFNGUARD_INFO_MEMORY, values);
	seq_printf(out, "hyp pfn=%#lx pages=%#lx owned=%#llx free_tables=%#llx\n",
		   kept.pfn, kept.pages, values[2], values[3]);
	walk_iomem_res_desc(IORES_DESC_NONE, flags, 0, -1, out, show_bank);
}
