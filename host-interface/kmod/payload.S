/* SPDX-License-Identifier: (MIT OR Apache-2.0) */
/*
 * The payload's image, position independent and without a symbol or a
 * relocation of its own: the module copies it to where it is to run.
 */
#include <linux/linkage.h>

	.section .init.rodata, "a"
	.balign 8
SYM_DATA_START(pfnguard_payload)
	.incbin "payload.img"
SYM_DATA_END_LABEL(pfnguard_payload, SYM_L_GLOBAL, pfnguard_payload_end)
