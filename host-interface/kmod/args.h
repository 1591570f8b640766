/* SPDX-License-Identifier: (MIT OR Apache-2.0) */
/*
 * What a program may put into the structures of its calls: everything that can
 * be said without knowing the program's memory.
 *
 * These files include nothing of the kernel's but types and error numbers, so
 * that they can be built, tested and fuzzed as a program.
 */
#ifndef _PFNGUARD_ARGS_H
#define _PFNGUARD_ARGS_H

#include <pfnguard.h>

int pfnguard_region_args(const struct pfnguard_region_args *args);
int pfnguard_vm_args(const struct pfnguard_vm_args *args);
int pfnguard_tables_args(unsigned int call,
			 const struct pfnguard_tables_args *args);
int pfnguard_ram_args(unsigned int call, const struct pfnguard_ram_args *args);
int pfnguard_bind_args(const struct pfnguard_bind_args *args,
		       struct pfnguard_request *request);
int pfnguard_check_args(const struct pfnguard_check_args *args);
int pfnguard_guest_args(const struct pfnguard_guest_args *args);

#endif /* _PFNGUARD_ARGS_H */
