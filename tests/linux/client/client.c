// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * Another part of the kernel with a VM of its own: most of what api.h offers,
 * once. Its init fails where an answer is not the one that is due.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/string.h>

#include "api.h"

/* Where guests see the region, and their memory; in pages. */
#define REGION		0x80000
#define RAM		0x40000
#define TABLES		16

/* A device that may be shared; nobody drives it. */
static const char name[] = "edu-bar0";

/* Pages that came back from a VM that borrowed them. */
static unsigned int returned __initdata;

static void __init count_and_put(struct page *page)
{
	returned++;
	put_page(page);
}

static int __init find_region(struct pfnguard_region_info *region)
{
	u32 index = 0;
	int ret;

	do {
		ret = pfnguard_region(index++, region, NULL);
	} while (!ret && strcmp(region->name, name));
	return ret;
}

/* One page is lent and comes back as it is, another one is lent until the end. */
static int __init lend(struct pfnguard_vm *vm)
{
	const u32 perms = PFNGUARD_PERM_READ | PFNGUARD_PERM_WRITE;
	struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	struct page *back = NULL;
	int ret;

	if (!page)
		return -ENOMEM;
	ret = pfnguard_share_pages(vm, &page, 1, RAM, perms, NULL);
	if (!ret)
		ret = pfnguard_unshare_pages(vm, &back, 1, RAM, NULL);
	if (!ret && back != page)
		ret = -EBADF;
	if (!ret)
		ret = pfnguard_share_pages(vm, &page, 1, RAM, perms, NULL);
	if (ret)
		__free_page(page);
	return ret;
}

static int __init give(struct pfnguard_vm *vm)
{
	struct page *page = alloc_page(GFP_KERNEL);
	int ret;

	if (!page)
		return -ENOMEM;
	ret = pfnguard_donate_pages(vm, page, 1, RAM + 1, NULL);
	if (ret)
		__free_page(page);
	return ret;
}

/* A region: what is checked is what is bound, and the CPU translates it. */
static int __init bind(struct pfnguard_vm *vm)
{
	struct pfnguard_request request = {
		.vm = pfnguard_vm_number(vm),
		.mode = PFNGUARD_MODE_SHARE,
		.mem_type = PFNGUARD_TYPE_DEVICE,
		.perms = PFNGUARD_PERM_READ,
		.ipa_pfn = REGION,
		.pages = 1,
	};
	struct pfnguard_region_info region;
	struct pfnguard_decision why;
	u64 par, state;
	int ret = find_region(&region);

	request.pfn = region.pfn;
	if (!ret)
		ret = pfnguard_check(&request, &why, 1);
	if (!ret && why.status)
		ret = -EACCES;
	if (!ret)
		ret = pfnguard_bind(vm, &request, &why);
	if (!ret)
		ret = pfnguard_map(vm, REGION, &why);
	if (!ret)
		ret = pfnguard_probe(vm, REGION, &par, &why);
	/* PAR_EL1.F: the translation failed. */
	if (!ret && par & 1)
		ret = -EFAULT;
	if (!ret)
		ret = pfnguard_unbind(vm, REGION, &state, &why);
	if (!ret && pfnguard_unbind(vm, REGION, &state, &why) != -ENOENT)
		ret = -EEXIST;
	return ret;
}

/* Asks for more than there is, and is told why not. */
static int __init refused(struct pfnguard_vm *vm)
{
	struct pfnguard_request request = {
		.mode = PFNGUARD_MODE_SHARE,
		.mem_type = PFNGUARD_TYPE_CACHEABLE,
		.perms = PFNGUARD_PERM_READ,
		.ipa_pfn = REGION,
		.pages = 1,
	};
	struct pfnguard_region_info region;
	struct pfnguard_decision why = { };
	int ret = find_region(&region);

	if (ret)
		return ret;
	request.pfn = region.pfn;
	ret = pfnguard_bind(vm, &request, &why);
	return ret == -EINVAL && why.rule == PFNGUARD_RULE_R06 ? 0 : -EACCES;
}

static int __init use(struct pfnguard_vm *vm)
{
	int (*const steps[])(struct pfnguard_vm *vm) = {
		lend, give, bind, refused,
	};
	unsigned int i;
	int ret = pfnguard_vm_add_tables(vm, 1, NULL);

	for (i = 0; i < ARRAY_SIZE(steps) && !ret; i++) {
		ret = steps[i](vm);
		if (ret)
			pr_err("%ps answers %d\n", steps[i], ret);
	}
	return ret;
}

static int __init client_init(void)
{
	u64 before[4], after[4];
	struct pfnguard_vm *vm;
	int ret = pfnguard_info(PFNGUARD_INFO_MEMORY, before);

	if (ret)
		return ret;
	vm = pfnguard_vm_create(0, 1, TABLES, NULL);
	if (IS_ERR(vm))
		return PTR_ERR(vm);
	ret = use(vm);
	pfnguard_vm_destroy(vm, count_and_put);
	if (!ret)
		ret = pfnguard_info(PFNGUARD_INFO_MEMORY, after);
	/* What the hypervisor has is as much as before; what was lent is back. */
	if (!ret && (before[2] != after[2] || returned != 1))
		ret = -EUCLEAN;
	return ret;
}
module_init(client_init);

static void __exit client_exit(void)
{
}
module_exit(client_exit);

MODULE_DESCRIPTION("A user of the functions that pfnguard offers to the kernel");
MODULE_LICENSE("Dual MIT/GPL");
