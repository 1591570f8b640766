// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * Calls of the hypervisor, and what they answer in the kernel's terms.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/cpuhotplug.h>
#include <linux/errno.h>
#include <linux/export.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/string.h>

#include "kmod.h"

/* Linked in, this is there for other drivers where the launch was refused, too. */
static bool launched __ro_after_init;

/* A page of each CPU through which tables of values go; the CPU's alone. */
static DEFINE_PER_CPU(void *, argument_page);

static int errno_of(s32 status)
{
	switch (status) {
	case PFNGUARD_STATUS_SUCCESS:
		return 0;
	case PFNGUARD_STATUS_NOT_SUPPORTED:
		return -EOPNOTSUPP;
	case PFNGUARD_STATUS_DENIED:
	case PFNGUARD_STATUS_WRONG_STATE:
		return -EPERM;
	case PFNGUARD_STATUS_NOT_FOUND:
		return -ENOENT;
	case PFNGUARD_STATUS_NO_MEMORY:
		return -ENOMEM;
	case PFNGUARD_STATUS_BUSY:
		return -EBUSY;
	case PFNGUARD_STATUS_NO_EXEC:
		return -ENOEXEC;
	default:
		return -EINVAL;
	}
}

/**
 * pfnguard_refuse() - write down why a call is refused
 * @why: gets the reason; may be NULL
 * @status: PFNGUARD_STATUS_*
 * @rule: PFNGUARD_RULE_*, or 0
 * @subject: PFNGUARD_SUBJECT_* of the two values
 * @requested: what was asked for
 * @granted: what could have been had
 *
 * Return: the errno of @status.
 */
int pfnguard_refuse(struct pfnguard_decision *why, s32 status, u16 rule,
		    u16 subject, u64 requested, u64 granted)
{
	if (why)
		*why = (struct pfnguard_decision) {
			.status = status,
			.rule = rule,
			.subject = subject,
			.pfn = PFNGUARD_NO_PFN,
			.requested = requested,
			.granted = granted,
		};
	return errno_of(status);
}

/**
 * pfnguard_call() - make a call of the hypervisor
 * @regs: x0 to x7; those that the call returns are there afterwards
 * @why: gets what a refusal says; may be NULL
 *
 * Return: 0, or the errno of the refusal, which has changed nothing; -ENODEV
 * without a hypervisor.
 */
int pfnguard_call(struct arm_smccc_1_2_regs *regs,
		  struct pfnguard_decision *why)
{
	s32 status;

	/* Whoever is at EL2 then could take the call for one of its own. */
	if (!launched)
		return -ENODEV;
	/* Not by arm_smccc_1_1_hvc(): its SVE hint would change the id. */
	arm_smccc_1_2_hvc(regs, regs);
	status = (s32)regs->a0;
	if (!status)
		return 0;
	if (why)
		*why = (struct pfnguard_decision) {
			.status = status,
			.rule = regs->a1 & 0xffff,
			.subject = (regs->a1 >> 16) & 0xffff,
			.pfn = regs->a2,
			.requested = regs->a3,
			.granted = regs->a4,
		};
	return errno_of(status);
}

/**
 * pfnguard_info() - ask what the hypervisor says of itself
 * @selector: PFNGUARD_INFO_*
 * @values: gets x1 to x4 of the answer
 *
 * Return: 0, or -EINVAL for an unknown selector.
 */
int pfnguard_info(u64 selector, u64 values[4])
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_INFO,
		.a1 = selector,
	};
	int ret = pfnguard_call(&regs, NULL);

	if (ret)
		return ret;
	values[0] = regs.a1;
	values[1] = regs.a2;
	values[2] = regs.a3;
	values[3] = regs.a4;
	return 0;
}
EXPORT_SYMBOL_GPL(pfnguard_info);

/**
 * pfnguard_region() - ask for one region of the manifest
 * @index: in the order of the manifest
 * @info: gets what the manifest says of it, and who holds it
 * @why: gets the reason of a refusal; may be NULL
 *
 * Return: 0, or -ENOENT behind the last region.
 */
int pfnguard_region(u32 index, struct pfnguard_region_info *info,
		    struct pfnguard_decision *why)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_REGION_INFO,
		.a1 = index,
	};
	int ret;

	preempt_disable();
	ret = pfnguard_call(&regs, why);
	if (!ret)
		memcpy(info, __this_cpu_read(argument_page), sizeof(*info));
	preempt_enable();
	return ret;
}
EXPORT_SYMBOL_GPL(pfnguard_region);

/**
 * pfnguard_region_reset() - say that a region's device was reset
 * @index: in the order of the manifest
 * @why: gets the reason of a refusal; may be NULL
 *
 * The caller's driver has done it: the hypervisor cannot know (R41).
 *
 * Return: 0, -ENOENT, or -EPERM for a region that is not in quarantine or has
 * another reset contract.
 */
int pfnguard_region_reset(u32 index, struct pfnguard_decision *why)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_PFNMAP_RESET,
		.a1 = index,
	};

	return pfnguard_call(&regs, why);
}
EXPORT_SYMBOL_GPL(pfnguard_region_reset);

/**
 * pfnguard_check() - ask what would be decided
 * @requests: as they would be bound
 * @decisions: gets one for each
 * @count: how many, at most PFNGUARD_MAX_CHECK_ITEMS
 *
 * Return: 0, or -EINVAL for a count that is none.
 */
int pfnguard_check(const struct pfnguard_request *requests,
		   struct pfnguard_decision *decisions, u32 count)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_PFNMAP_CHECK,
		.a1 = count,
	};
	void *page;
	int ret;

	if (!launched)
		return -ENODEV;
	if (count > PFNGUARD_MAX_CHECK_ITEMS)
		return -EINVAL;
	preempt_disable();
	page = __this_cpu_read(argument_page);
	memcpy(page, requests, count * sizeof(*requests));
	ret = pfnguard_call(&regs, NULL);
	if (!ret)
		memcpy(decisions, page + PFNGUARD_CHECK_DECISIONS_OFFSET,
		       count * sizeof(*decisions));
	preempt_enable();
	return ret;
}
EXPORT_SYMBOL_GPL(pfnguard_check);

static int unshare_argument_page(unsigned int cpu)
{
	struct arm_smccc_1_2_regs unshare = {
		.a0 = PFNGUARD_FN_HOST_UNSHARE_HYP,
		.a1 = PHYS_PFN(__pa(per_cpu(argument_page, cpu))),
		.a2 = 1,
	};

	return pfnguard_call(&unshare, NULL);
}

static int lend_argument_page(unsigned int cpu)
{
	void *page = per_cpu(argument_page, cpu);
	struct arm_smccc_1_2_regs share = {
		.a0 = PFNGUARD_FN_HOST_SHARE_HYP,
		.a2 = 1,
	};
	struct arm_smccc_1_2_regs set = { .a0 = PFNGUARD_FN_ARG_PAGE_SET };
	int ret;

	if (!page)
		return -ENXIO;
	share.a1 = PHYS_PFN(__pa(page));
	set.a1 = share.a1;
	ret = pfnguard_call(&share, NULL);
	if (ret)
		return ret;
	ret = pfnguard_call(&set, NULL);
	if (ret)
		WARN_ON(unshare_argument_page(cpu));
	return ret;
}

/* The CPU goes in any case. */
static int take_argument_page(unsigned int cpu)
{
	struct arm_smccc_1_2_regs clear = { .a0 = PFNGUARD_FN_ARG_PAGE_CLEAR };

	WARN_ON(pfnguard_call(&clear, NULL) || unshare_argument_page(cpu));
	return 0;
}

/**
 * pfnguard_alloc_arguments() - get a page for each CPU's arguments
 *
 * Return: 0 or -ENOMEM.
 */
int __init pfnguard_alloc_arguments(void)
{
	unsigned int cpu;

	for_each_present_cpu(cpu) {
		per_cpu(argument_page, cpu) = (void *)get_zeroed_page(GFP_KERNEL);
		if (!per_cpu(argument_page, cpu)) {
			pfnguard_free_arguments();
			return -ENOMEM;
		}
	}
	return 0;
}

/** pfnguard_free_arguments() - give the pages back that no CPU has lent yet */
void __init pfnguard_free_arguments(void)
{
	unsigned int cpu;

	for_each_present_cpu(cpu) {
		free_page((unsigned long)per_cpu(argument_page, cpu));
		per_cpu(argument_page, cpu) = NULL;
	}
}

/**
 * pfnguard_lend_arguments() - let the hypervisor, which is there now, have them
 *
 * Each CPU lends its page when it comes and takes it back when it goes.
 *
 * Return: 0 or a negative errno.
 */
int __init pfnguard_lend_arguments(void)
{
	int ret;

	launched = true;
	ret = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "pfnguard:arguments",
				lend_argument_page, take_argument_page);
	return min(ret, 0);
}
