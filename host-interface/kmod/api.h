/* SPDX-License-Identifier: (MIT OR Apache-2.0) */
/*
 * What other parts of the kernel may ask of pfnguard, once it is launched;
 * before that, and where the launch was refused, each answers -ENODEV.
 */
#ifndef _PFNGUARD_API_H
#define _PFNGUARD_API_H

#include <linux/types.h>

#include <pfnguard.h>

struct page;
struct pfnguard_vm;

int pfnguard_info(u64 selector, u64 values[4]);
int pfnguard_region(u32 index, struct pfnguard_region_info *info,
		    struct pfnguard_decision *why);
int pfnguard_region_reset(u32 index, struct pfnguard_decision *why);

struct pfnguard_vm *pfnguard_vm_create(u32 contract, u32 vcpus, u32 tables,
				       struct pfnguard_decision *why);
void pfnguard_vm_destroy(struct pfnguard_vm *vm,
			 void (*put)(struct page *page));
int pfnguard_vm_add_tables(struct pfnguard_vm *vm, u32 tables,
			   struct pfnguard_decision *why);
int pfnguard_vm_enable_mte(struct pfnguard_vm *vm,
			   struct pfnguard_decision *why);
u16 pfnguard_vm_number(const struct pfnguard_vm *vm);

int pfnguard_share_pages(struct pfnguard_vm *vm, struct page **pages,
			 unsigned long count, u64 ipa_pfn, u32 perms,
			 struct pfnguard_decision *why);
int pfnguard_unshare_pages(struct pfnguard_vm *vm, struct page **pages,
			   unsigned long count, u64 ipa_pfn,
			   struct pfnguard_decision *why);
int pfnguard_donate_pages(struct pfnguard_vm *vm, struct page *first,
			  unsigned long count, u64 ipa_pfn,
			  struct pfnguard_decision *why);

int pfnguard_check(const struct pfnguard_request *requests,
		   struct pfnguard_decision *decisions, u32 count);
int pfnguard_bind(struct pfnguard_vm *vm, struct pfnguard_request *request,
		  struct pfnguard_decision *why);
int pfnguard_map(struct pfnguard_vm *vm, u64 ipa_pfn,
		 struct pfnguard_decision *why);
int pfnguard_unbind(struct pfnguard_vm *vm, u64 ipa_pfn, u64 *state,
		    struct pfnguard_decision *why);
int pfnguard_probe(struct pfnguard_vm *vm, u64 ipa_pfn, u64 *par,
		   struct pfnguard_decision *why);

#endif /* _PFNGUARD_API_H */
