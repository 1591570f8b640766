// SPDX-License-Identifier: (MIT OR Apache-2.0)
#ifdef __KERNEL__
#include <linux/errno.h>
#else
#include <errno.h>
#endif

#include "args.h"

#define PAGE_MASK_BITS	(PFNGUARD_PAGE_SIZE - 1ULL)
#define PAGE_NUMBER(x)	((x) / PFNGUARD_PAGE_SIZE)

/* Whether @size bytes from @start on are pages, and do not end behind the last. */
static int is_range(__u64 start, __u64 size)
{
	return size && !((start | size) & PAGE_MASK_BITS) &&
	       start + size - 1 >= start;
}

/**
 * pfnguard_region_args() - judge the argument of REGION and REGION_RESET
 * @args: the argument
 *
 * Return: 0 or -EINVAL.
 */
int pfnguard_region_args(const struct pfnguard_region_args *args)
{
	return args->reserved ? -EINVAL : 0;
}

/**
 * pfnguard_vm_args() - judge the argument of CREATE_VM
 * @args: the argument
 *
 * Return: 0 or -EINVAL.
 */
int pfnguard_vm_args(const struct pfnguard_vm_args *args)
{
	if (args->reserved || !args->tables ||
	    args->tables > PFNGUARD_MAX_TABLES)
		return -EINVAL;
	return 0;
}

/**
 * pfnguard_tables_args() - judge the argument of ADD_TABLES and ENABLE_MTE
 * @call: PFNGUARD_IOCTL_ADD_TABLES or _ENABLE_MTE
 * @args: the argument
 *
 * Return: 0 or -EINVAL.
 */
int pfnguard_tables_args(unsigned int call,
			 const struct pfnguard_tables_args *args)
{
	if (call == PFNGUARD_IOCTL_ENABLE_MTE)
		return args->reserved || args->tables ? -EINVAL : 0;
	if (args->reserved || !args->tables ||
	    args->tables > PFNGUARD_MAX_TABLES)
		return -EINVAL;
	return 0;
}

/* Permissions of RAM, which only a loan has. */
static int has_good_perms(unsigned int call, __u32 perms)
{
	if (call != PFNGUARD_IOCTL_SHARE_RAM)
		return !perms;
	return perms & PFNGUARD_PERM_READ &&
	       !(perms & ~(PFNGUARD_PERM_READ | PFNGUARD_PERM_WRITE |
			   PFNGUARD_PERM_EXEC));
}

/**
 * pfnguard_ram_args() - judge the argument of a call about RAM
 * @call: PFNGUARD_IOCTL_SHARE_RAM, _UNSHARE_RAM or _DONATE_RAM
 * @args: the argument
 *
 * Return: 0 or -EINVAL.
 */
int pfnguard_ram_args(unsigned int call, const struct pfnguard_ram_args *args)
{
	if (args->reserved || !is_range(args->guest, args->size) ||
	    !has_good_perms(call, args->perms))
		return -EINVAL;
	if (call == PFNGUARD_IOCTL_UNSHARE_RAM)
		return args->address ? -EINVAL : 0;
	return is_range(args->address, args->size) ? 0 : -EINVAL;
}

/**
 * pfnguard_bind_args() - judge the argument of BIND, or an item of CHECK
 * @args: the argument
 * @request: gets what does not depend on the caller's mapping
 *
 * What the hypervisor judges is left to it.
 *
 * Return: 0 or -EINVAL.
 */
int pfnguard_bind_args(const struct pfnguard_bind_args *args,
		       struct pfnguard_request *request)
{
	if (args->reserved || args->flags & PFNGUARD_REQUEST_COW ||
	    !is_range(args->address, args->size) ||
	    !is_range(args->guest, args->size))
		return -EINVAL;
	*request = (struct pfnguard_request) {
		.mode = args->mode,
		.mem_type = args->mem_type,
		.perms = args->perms,
		.flags = args->flags,
		.ipa_pfn = PAGE_NUMBER(args->guest),
		.pages = PAGE_NUMBER(args->size),
	};
	return 0;
}

/**
 * pfnguard_check_args() - judge the argument of CHECK
 * @args: the argument
 *
 * Return: 0 or -EINVAL.
 */
int pfnguard_check_args(const struct pfnguard_check_args *args)
{
	if (args->reserved || !args->count ||
	    args->count > PFNGUARD_MAX_CHECK_ITEMS)
		return -EINVAL;
	return 0;
}

/**
 * pfnguard_guest_args() - judge the argument of a call about a binding
 * @args: the argument
 *
 * Return: 0 or -EINVAL.
 */
int pfnguard_guest_args(const struct pfnguard_guest_args *args)
{
	return args->guest & PAGE_MASK_BITS ? -EINVAL : 0;
}
