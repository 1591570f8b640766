// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * Files in debugfs, for people and for `pfnguard map` and `pfnguard trace`:
 *
 *   pfnguard/map		who owns what
 *   pfnguard/trace/cpuN	the trace ring of a CPU, as it is
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#include "kmod.h"

/**
 * pfnguard_trace_ring() - find a CPU's trace ring
 * @cpu: its index in the hypervisor's list
 * @pfn: gets the first page, which the host may read
 * @pages: gets the number of pages, the same for all CPUs
 *
 * Return: 0, or -ENOENT for no such CPU.
 */
int pfnguard_trace_ring(u32 cpu, unsigned long *pfn, unsigned long *pages)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_TRACE_INFO,
		.a1 = cpu,
	};
	int ret = pfnguard_call(&regs, NULL);

	if (!ret) {
		*pfn = regs.a1;
		*pages = regs.a2;
	}
	return ret;
}

static ssize_t ring_read(struct file *file, char __user *to, size_t size,
			 loff_t *pos)
{
	unsigned long pfn, pages;
	u32 cpu = (unsigned long)file_inode(file)->i_private;
	int ret = pfnguard_trace_ring(cpu, &pfn, &pages);

	if (ret)
		return ret;
	return simple_read_from_buffer(to, size, pos, pfn_to_kaddr(pfn),
				       pages << PAGE_SHIFT);
}

static const struct file_operations ring_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = ring_read,
	.llseek = default_llseek,
};

static void show_regions(struct seq_file *out)
{
	struct pfnguard_region_info it;
	u32 index;

	for (index = 0; !pfnguard_region(index, &it, NULL); index++) {
		seq_printf(out, "region index=%#x name=", index);
		seq_escape_mem(out, it.name, strnlen(it.name, sizeof(it.name)),
			       ESCAPE_OCTAL, " \t\n\\");
		seq_printf(out, " pfn=%#llx pages=%#llx class=%#x modes=%#x types=%#x perms=%#x flags=%#x state=%#x holders=%#x\n",
			   it.pfn, it.pages, it.region_class, it.modes,
			   it.types, it.perms, it.flags, it.state, it.holders);
	}
}

static int map_show(struct seq_file *out, void *unused)
{
	pfnguard_show_memory(out);
	show_regions(out);
	pfnguard_show_vms(out);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(map);

/** pfnguard_make_debugfs() - show the files; nothing depends on them */
void __init pfnguard_make_debugfs(void)
{
	struct dentry *root = debugfs_create_dir(KBUILD_MODNAME, NULL);
	struct dentry *trace = debugfs_create_dir("trace", root);
	unsigned long cpu, pfn, pages;
	char name[16];

	debugfs_create_file("map", 0400, root, NULL, &map_fops);
	for (cpu = 0; !pfnguard_trace_ring(cpu, &pfn, &pages); cpu++) {
		snprintf(name, sizeof(name), "cpu%lu", cpu);
		debugfs_create_file(name, 0400, trace, (void *)cpu, &ring_fops);
	}
}
