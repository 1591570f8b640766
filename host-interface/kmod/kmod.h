/* SPDX-License-Identifier: (MIT OR Apache-2.0) */
/* What the files of the module know of each other. */
#ifndef _PFNGUARD_KMOD_H
#define _PFNGUARD_KMOD_H

#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/types.h>

#include "api.h"

struct arm_smccc_1_2_regs;
struct seq_file;

/*
 * Memory that becomes the hypervisor's or a guest's. Nobody is killed for it: a
 * program that asks for too much gets an error.
 */
#define PFNGUARD_GFP	(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

/* payload.S */
extern const u8 pfnguard_payload[];
extern const u8 pfnguard_payload_end[];

/**
 * struct pfnguard_memory - physically contiguous memory for the hypervisor
 * @pfn: first page
 * @pages: number of pages, 0 if there is none
 */
struct pfnguard_memory {
	unsigned long pfn;
	unsigned long pages;
};

/* memory.c */
int __init pfnguard_list_ram(struct pfnguard_launch_info *info);
int __init pfnguard_take_memory(const struct pfnguard_launch_info *info,
				unsigned long pages,
				struct pfnguard_memory *memory);
void __init pfnguard_keep_memory(const struct pfnguard_memory *memory);
void __init pfnguard_free_memory(struct pfnguard_memory *memory);

void pfnguard_show_memory(struct seq_file *out);

/* call.c */
int pfnguard_call(struct arm_smccc_1_2_regs *regs,
		  struct pfnguard_decision *why);
int pfnguard_refuse(struct pfnguard_decision *why, s32 status, u16 rule,
		    u16 subject, u64 requested, u64 granted);
int __init pfnguard_alloc_arguments(void);
void __init pfnguard_free_arguments(void);
int __init pfnguard_lend_arguments(void);

/* vm.c */
void pfnguard_vm_kill(struct pfnguard_vm *vm);
bool pfnguard_vm_is_stuck(const struct pfnguard_vm *vm);
bool pfnguard_vm_has_bindings(const struct pfnguard_vm *vm);
void pfnguard_vm_end_loans(struct pfnguard_vm *vm,
			   void (*put)(struct page *page));
void pfnguard_vm_show(struct pfnguard_vm *vm, pid_t pid, const char *comm,
		      struct seq_file *out);

/* debugfs.c */
void __init pfnguard_make_debugfs(void);
int pfnguard_trace_ring(u32 cpu, unsigned long *pfn, unsigned long *pages);

/* device.c */
int __init pfnguard_make_device(void);
void pfnguard_show_vms(struct seq_file *out);

/* launch.c */
int __init pfnguard_launch(const void *manifest, size_t size,
			   phys_addr_t uart);

#endif /* _PFNGUARD_KMOD_H */
