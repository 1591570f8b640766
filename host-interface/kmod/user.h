/* SPDX-License-Identifier: (MIT OR Apache-2.0) */
/* VMs of programs: what device.c, ram.c and binding.c share. */
#ifndef _PFNGUARD_USER_H
#define _PFNGUARD_USER_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/sched.h>

#include "kmod.h"

/**
 * struct pfnguard_user_vm - a VM of a program
 * @vm: the VM
 * @mm: the program's memory; only who runs in it makes calls
 * @node: in the list of all VMs
 * @lock: held while its bindings and memory change
 * @bindings: its bindings
 * @locked: pages that count as locked in @mm
 * @pid: who made it
 * @comm: what that called itself
 */
struct pfnguard_user_vm {
	struct pfnguard_vm *vm;
	struct mm_struct *mm;
	struct list_head node;
	struct mutex lock;
	struct list_head bindings;
	unsigned long locked;
	pid_t pid;
	char comm[TASK_COMM_LEN];
};

/* binding.c */
int pfnguard_user_bind(struct pfnguard_user_vm *user,
		       struct pfnguard_bind_args *args);
int pfnguard_user_check(struct pfnguard_user_vm *user,
			struct pfnguard_bind_args *items, u32 count);
int pfnguard_user_map(struct pfnguard_user_vm *user,
		      struct pfnguard_guest_args *args);
int pfnguard_user_unbind(struct pfnguard_user_vm *user,
			 struct pfnguard_guest_args *args);
void pfnguard_user_drop_bindings(struct pfnguard_user_vm *user);
void pfnguard_user_show(struct pfnguard_user_vm *user, struct seq_file *out);

/* ram.c */
int pfnguard_user_lock_pages(struct pfnguard_user_vm *user,
			     unsigned long count);
void pfnguard_user_unlock_pages(struct pfnguard_user_vm *user,
				unsigned long count);
int pfnguard_user_share(struct pfnguard_user_vm *user,
			struct pfnguard_ram_args *args);
int pfnguard_user_unshare(struct pfnguard_user_vm *user,
			  struct pfnguard_ram_args *args);
int pfnguard_user_donate(struct pfnguard_user_vm *user,
			 struct pfnguard_ram_args *args);
void pfnguard_user_end_loans(struct pfnguard_user_vm *user);
void pfnguard_user_destroy_vm(struct pfnguard_user_vm *user);

#endif /* _PFNGUARD_USER_H */
