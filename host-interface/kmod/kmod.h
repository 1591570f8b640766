/* SPDX-License-Identifier: (MIT OR Apache-2.0) */
/* What the files of the module know of each other. */
#ifndef _PFNGUARD_KMOD_H
#define _PFNGUARD_KMOD_H

#include <linux/init.h>
#include <linux/types.h>

#include <pfnguard.h>

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

/* launch.c */
int __init pfnguard_launch(const void *manifest, size_t size,
			   phys_addr_t uart);

#endif /* _PFNGUARD_KMOD_H */
