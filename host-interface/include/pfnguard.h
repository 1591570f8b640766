/* SPDX-License-Identifier: (MIT OR Apache-2.0) */
/*
 * pfnguard: the ABI between a host kernel, its guests and the hypervisor.
 *
 * Generated from the crate pfnguard-shared by `cargo run -- header`; do not edit.
 *
 * Calls are HVC #0 with the SMCCC 1.2 register convention: function id in x0,
 * arguments in x1..x7, results in x0..x7. x0 is a status, sign-extended: zero,
 * or negative. A refused call has changed nothing and returns
 *
 *   x1  bits 15:0 the rule (0: none), bits 31:16 the subject of the two values
 *   x2  offending page frame number, or PFNGUARD_NO_PFN
 *   x3  requested value
 *   x4  granted value
 *
 * Structures are little-endian and have no padding.
 */
#ifndef _UAPI_PFNGUARD_H
#define _UAPI_PFNGUARD_H

#if !defined(__ASSEMBLY__) && !defined(__ASSEMBLER__)
#if defined(__KERNEL__)
#include <linux/stddef.h>
#include <linux/types.h>
#elif defined(__linux__)
#include <stddef.h>
#include <linux/types.h>
#else
#include <stddef.h>
#include <stdint.h>

typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef int32_t __s32;
typedef uint64_t __u64;
#endif
#endif /* !assembly */

/* ABI version, major half */
#define PFNGUARD_ABI_MAJOR			0
/* ABI version, minor half */
#define PFNGUARD_ABI_MINOR			1
/* x0 of the host's UID call */
#define PFNGUARD_HOST_UID_0			0x3e1a8d6f
/* x1 of the host's UID call */
#define PFNGUARD_HOST_UID_1			0x574bc294
/* x2 of the host's UID call */
#define PFNGUARD_HOST_UID_2			0x6670e1a0
/* x3 of the host's UID call */
#define PFNGUARD_HOST_UID_3			0x6475676e
/* x0 of a guest's UID call */
#define PFNGUARD_GUEST_UID_0			0xb66fb428
/* x1 of a guest's UID call */
#define PFNGUARD_GUEST_UID_1			0xe911c52e
/* x2 of a guest's UID call */
#define PFNGUARD_GUEST_UID_2			0x564bcaa9
/* x3 of a guest's UID call */
#define PFNGUARD_GUEST_UID_3			0x743a004d
/* x2 of a refusal that no single page caused */
#define PFNGUARD_NO_PFN				0xffffffffffffffffULL
/* First eight bytes of a manifest, little-endian: PFNGMANI */
#define PFNGUARD_MANIFEST_MAGIC			0x494e414d474e4650ULL
/* Manifest version */
#define PFNGUARD_MANIFEST_VERSION		1
/* First eight bytes of a migration descriptor, little-endian: PFNGMIGR */
#define PFNGUARD_MIGRATION_MAGIC		0x5247494d474e4650ULL
/* Migration descriptor version */
#define PFNGUARD_MIGRATION_VERSION		1
/* First eight bytes of struct pfnguard_image_header: PFNGUARD */
#define PFNGUARD_IMAGE_MAGIC			0x44524155474e4650ULL
/* Bytes in a page */
#define PFNGUARD_PAGE_SIZE			4096
/* Most pages that one RAM call accepts */
#define PFNGUARD_MAX_RANGE_PAGES		512
/* Most items of a CHECK batch */
#define PFNGUARD_MAX_CHECK_ITEMS		64
/* Offset of the first decision in the argument page, in bytes */
#define PFNGUARD_CHECK_DECISIONS_OFFSET		2048
/* Offset of struct pfnguard_image_header in the image, in bytes */
#define PFNGUARD_IMAGE_HEADER_OFFSET		64
/* Most pages of table memory that one ioctl takes */
#define PFNGUARD_MAX_TABLES			512
/* Most entries in a manifest */
#define PFNGUARD_MAX_ENTRIES			128
/* Most DMA streams of an entry */
#define PFNGUARD_MAX_STREAMS			4
/* Most VMs an entry may let hold it */
#define PFNGUARD_MAX_HOLDERS			8
/* Greatest bound of a poll reset */
#define PFNGUARD_MAX_POLL_READS			1000000
/* Most items of a migration descriptor */
#define PFNGUARD_MAX_MIGRATION_ITEMS		50

/* HostFunction: calls of the host kernel */
/* SMCCC: x0..x3 the service's UID. */
#define PFNGUARD_FN_UID				0x8600ff01
/* SMCCC: x0 the ABI's major version, x1 the minor. */
#define PFNGUARD_FN_REVISION			0x8600ff03
/* x1 InfoSelector. Returns x1..x4 as the selector documents. */
#define PFNGUARD_FN_INFO			0xc6000100
/*
 * x1 region index. Writes a RegionInfo to the argument page; returns x1 first
 * page, x2 pages.
 */
#define PFNGUARD_FN_REGION_INFO			0xc6000101
/*
 * x1 page, shared with the hypervisor. Makes it this CPU's argument page and
 * pins it.
 */
#define PFNGUARD_FN_ARG_PAGE_SET		0xc6000102
/* Forgets this CPU's argument page and unpins it. */
#define PFNGUARD_FN_ARG_PAGE_CLEAR		0xc6000103
/*
 * x1 CPU index. Returns x1 first page, x2 pages of that CPU's trace ring,
 * readable by the host.
 */
#define PFNGUARD_FN_TRACE_INFO			0xc6000104
/* x1 page, x2 count. Lets the hypervisor access host pages. */
#define PFNGUARD_FN_HOST_SHARE_HYP		0xc6000110
/* x1 page, x2 count. Takes that back; pinned pages are busy. */
#define PFNGUARD_FN_HOST_UNSHARE_HYP		0xc6000111
/*
 * x1 VM (not a protected one), x2 page, x3 IPA page, x4 count, x5 Perms. The
 * guest borrows host pages.
 */
#define PFNGUARD_FN_HOST_SHARE_GUEST		0xc6000112
/* x1 VM, x2 page, x3 IPA page, x4 count. The host takes them back. */
#define PFNGUARD_FN_HOST_UNSHARE_GUEST		0xc6000113
/* x1 VM, x2 page, x3 IPA page, x4 count. Ownership moves to the guest. */
#define PFNGUARD_FN_HOST_DONATE_GUEST		0xc6000114
/*
 * x1 VM (being torn down), x2 page, x3 count. Pages come back, zeroed if
 * protected.
 */
#define PFNGUARD_FN_HOST_RECLAIM_GUEST		0xc6000115
/*
 * x1 ContractFlags, x2 vCPUs, x3 first page and x4 pages of table memory.
 * Returns x1 VM.
 */
#define PFNGUARD_FN_VM_CREATE			0xc6000120
/* x1 VM, x2 page, x3 count. Donates more table memory. */
#define PFNGUARD_FN_VM_POOL_ADD			0xc6000121
/* x1 VM. Switches MTE on; refused after the first bind (R21) or run. */
#define PFNGUARD_FN_VM_ENABLE_MTE		0xc6000122
/*
 * x1 VM. No vCPU runs from here on; guest translations go; pages wait for
 * reclaim.
 */
#define PFNGUARD_FN_VM_TEARDOWN			0xc6000123
/*
 * x1 VM, torn down and empty. Gives one table page back: x1 page, x2 pages
 * still held. Repeat until x2 is 0; the VM number is free then.
 */
#define PFNGUARD_FN_VM_FREE			0xc6000124
/*
 * x1 VM, x2 vCPU, x3 entry point, x4 value of the guest's x0. Only a vCPU that
 * never ran; of a protected VM only vCPU 0, before anything ran.
 */
#define PFNGUARD_FN_VCPU_INIT			0xc6000125
/*
 * x1 VM, x2 vCPU, x3 value that completes an MMIO read. Returns x1 ExitReason,
 * x2..x4 facts.
 */
#define PFNGUARD_FN_VCPU_RUN			0xc6000126
/*
 * x1 VM, x2 vCPU, x3 register 0..=30. Returns x1 its value. Not for protected
 * VMs.
 */
#define PFNGUARD_FN_VCPU_GET_REG		0xc6000127
/*
 * x1 VM, x2 vCPU, x3 register 0..=30, x4 value. Of a protected VM only vCPU 0,
 * before anything ran.
 */
#define PFNGUARD_FN_VCPU_SET_REG		0xc6000128
/*
 * x1 items (1..=64) in the argument page: requests in, decisions out. Changes
 * nothing else.
 */
#define PFNGUARD_FN_PFNMAP_CHECK		0xc6000130
/*
 * x1 the first eight bytes of a Request, little-endian, x2 page, x3 IPA page,
 * x4 pages (any length). Announces a region for a VM.
 */
#define PFNGUARD_FN_PFNMAP_BIND			0xc6000131
/* x1 VM, x2 IPA page of a binding. Installs its stage-2 entries now. */
#define PFNGUARD_FN_PFNMAP_MAP			0xc6000132
/*
 * x1 VM, x2 IPA page of a binding. Returns x1 RegionState that the region is in
 * afterwards. Refused for what was donated to a protected VM: its teardown ends
 * that.
 */
#define PFNGUARD_FN_PFNMAP_UNBIND		0xc6000133
/*
 * x1 region index, in quarantine. Reports that its device was reset (External).
 * Returns x1 RegionState.
 */
#define PFNGUARD_FN_PFNMAP_RESET		0xc6000134
/*
 * x1 VM, x2 IPA page (of a protected VM only in a binding). Returns x1 PAR_EL1
 * of AT S12E1R through a write-back stage 1.
 */
#define PFNGUARD_FN_PFNMAP_PROBE		0xc6000135
/*
 * x1 VM. Writes a migration descriptor to the argument page; returns x1 its
 * bytes.
 */
#define PFNGUARD_FN_MIGRATE_EXPORT		0xc6000140
/*
 * Judges the descriptor in the argument page; each item's verdict is written in
 * place. Returns x1 items that fail here, x2 missing Capabilities.
 */
#define PFNGUARD_FN_MIGRATE_CHECK		0xc6000141

/* GuestFunction: calls of a guest */
/* SMCCC: x0..x3 the UID that Linux looks for. */
#define PFNGUARD_GUEST_FN_UID			0x8600ff01
/* x0..x3 a bitmap of the guest functions of this service that exist. */
#define PFNGUARD_GUEST_FN_FEATURES		0x86000000
/* x0 granule in bytes of MEM_SHARE. */
#define PFNGUARD_GUEST_FN_HYP_MEMINFO		0xc6000002
/* x1 IPA of a page. The guest lends its page to the host. */
#define PFNGUARD_GUEST_FN_MEM_SHARE		0xc6000003
/* x1 IPA of a page. The guest takes it back. */
#define PFNGUARD_GUEST_FN_MEM_UNSHARE		0xc6000004
/*
 * x1 InfoSelector: the guest reads the manifest's hash and the platform's
 * abilities.
 */
#define PFNGUARD_GUEST_FN_INFO			0xc6000100
/*
 * x1 IPA page, x2 pages. Returns x1 Perms in bits 7:0, MemType in 15:8, Promise
 * bits in 31:16; x2 pages from the first one on that it holds for (R23).
 */
#define PFNGUARD_GUEST_FN_QUERY			0xc6000180
/* x1..x3 values. Exits to the host with ExitReason::Yield and these values. */
#define PFNGUARD_GUEST_FN_YIELD			0xc6000181

/* Ioctl: calls of /dev/pfnguard */
/* Device, struct pfnguard_info_args: what the hypervisor says of itself. */
#define PFNGUARD_IOCTL_INFO			0xc028b900
/*
 * Device, struct pfnguard_region_args: one region of the manifest. ENOENT
 * behind the last.
 */
#define PFNGUARD_IOCTL_REGION			0xc088b901
/*
 * Device, struct pfnguard_region_args: the driver has reset a region in
 * quarantine (R41, External); the region as it is then. For CAP_SYS_ADMIN.
 */
#define PFNGUARD_IOCTL_REGION_RESET		0xc088b902
/*
 * Device, struct pfnguard_vm_args: a new VM. Returns the file of the VM, which
 * is torn down when the last reference to its file goes. Its calls are for the
 * process that made it.
 */
#define PFNGUARD_IOCTL_CREATE_VM		0xc030b903
/* VM, struct pfnguard_tables_args: more table memory. It counts as locked. */
#define PFNGUARD_IOCTL_ADD_TABLES		0xc028b910
/*
 * VM, struct pfnguard_tables_args, zero: the guest uses memory tagging (R21).
 */
#define PFNGUARD_IOCTL_ENABLE_MTE		0xc028b911
/*
 * VM, not protected, struct pfnguard_ram_args: lends the caller's pages. They
 * are pinned and counted as locked (RLIMIT_MEMLOCK).
 */
#define PFNGUARD_IOCTL_SHARE_RAM		0xc040b912
/*
 * VM, struct pfnguard_ram_args: takes back what one call lent: the same address
 * in the guest and the same size; the other fields are zero.
 */
#define PFNGUARD_IOCTL_UNSHARE_RAM		0xc040b913
/*
 * VM, struct pfnguard_ram_args: gives new pages with a copy of the caller's for
 * good, until the VM is torn down; perms is zero. They count as locked.
 */
#define PFNGUARD_IOCTL_DONATE_RAM		0xc040b914
/*
 * VM, struct pfnguard_check_args: what BIND would answer to each of its items.
 */
#define PFNGUARD_IOCTL_CHECK			0xc010b920
/*
 * VM, struct pfnguard_bind_args: binds the pages behind a PFNMAP mapping of the
 * caller. The mapping's file stays open; when the mapping changes, the binding
 * ends, and with it the VM if it is protected and owns the pages.
 */
#define PFNGUARD_IOCTL_BIND			0xc040b921
/*
 * VM, struct pfnguard_guest_args: installs a binding now, if its mapping is
 * still what it was.
 */
#define PFNGUARD_IOCTL_MAP			0xc030b922
/*
 * VM, struct pfnguard_guest_args: ends a binding; value is the region's state.
 */
#define PFNGUARD_IOCTL_UNBIND			0xc030b923
/*
 * VM, struct pfnguard_guest_args: value is what the CPU's AT S12E1R reports
 * (PAR_EL1).
 */
#define PFNGUARD_IOCTL_PROBE			0xc030b924

/* Status: status in x0 */
/* Done. */
#define PFNGUARD_STATUS_SUCCESS			0
/* No such function (SMCCC NOT_SUPPORTED); ENOSYS. */
#define PFNGUARD_STATUS_NOT_SUPPORTED		(-1)
/* An argument is malformed: reserved bits, misalignment, overflow; EINVAL. */
#define PFNGUARD_STATUS_INVALID_PARAMETER	(-3)
/* The manifest or the platform does not grant this; EPERM. */
#define PFNGUARD_STATUS_DENIED			(-4)
/* No VM, vCPU, region or binding of that name; ENOENT. */
#define PFNGUARD_STATUS_NOT_FOUND		(-5)
/* The page or object is not in the state that the call needs; EPERM. */
#define PFNGUARD_STATUS_WRONG_STATE		(-6)
/* Too little table memory, or a documented limit is reached; ENOMEM. */
#define PFNGUARD_STATUS_NO_MEMORY		(-7)
/* In use or in quarantine, try again after the other side acted; EBUSY. */
#define PFNGUARD_STATUS_BUSY			(-8)
/* Execute permission on memory that must not be executed from; ENOEXEC. */
#define PFNGUARD_STATUS_NO_EXEC			(-9)
/*
 * A combination that no type can satisfy: COW, dirty log, mixed cacheability;
 * EINVAL.
 */
#define PFNGUARD_STATUS_UNSUPPORTED		(-10)

/* Subject: what the two values of a refusal are */
/* The values carry nothing. */
#define PFNGUARD_SUBJECT_NONE			0
/* Function id; nothing granted. */
#define PFNGUARD_SUBJECT_FUNCTION		1
/* Index of the argument register, and the greatest value it accepts. */
#define PFNGUARD_SUBJECT_ARGUMENT		2
/* Modes bits: what was asked for and what the entry grants. */
#define PFNGUARD_SUBJECT_MODES			3
/* MemTypes bits. */
#define PFNGUARD_SUBJECT_TYPES			4
/* Perms bits. */
#define PFNGUARD_SUBJECT_PERMISSIONS		5
/* Number of VMs that would hold the region, and how many may. */
#define PFNGUARD_SUBJECT_HOLDERS		6
/* Page counts. */
#define PFNGUARD_SUBJECT_PAGES			7
/* PageState of the frame: the one needed and the one found. */
#define PFNGUARD_SUBJECT_PAGE_STATE		8
/* RegionState: the one needed and the one found. */
#define PFNGUARD_SUBJECT_REGION_STATE		9
/* Capabilities bits: needed and present. */
#define PFNGUARD_SUBJECT_CAPABILITIES		10
/* RegionFlags bits: needed and present in the entry. */
#define PFNGUARD_SUBJECT_REGION_FLAGS		11
/* RequestFlags bits: asked for and accepted. */
#define PFNGUARD_SUBJECT_REQUEST_FLAGS		12
/* HostAlias of the request, and the one that its type accepts. */
#define PFNGUARD_SUBJECT_HOST_ALIAS		13
/* VM or vCPU number, and the number that exist. */
#define PFNGUARD_SUBJECT_OBJECT			14
/* VmState or vCPU state: needed and found. */
#define PFNGUARD_SUBJECT_OBJECT_STATE		15
/* Table pages: needed and left in the pool. */
#define PFNGUARD_SUBJECT_TABLES			16
/*
 * Intermediate physical page number that is occupied or out of range, and the
 * limit.
 */
#define PFNGUARD_SUBJECT_IPA			17
/* Manifest entries: the index the range starts in and the one it ends in. */
#define PFNGUARD_SUBJECT_ENTRY			18
/* Number of stream IDs that nothing translates or blocks; none granted. */
#define PFNGUARD_SUBJECT_STREAMS		19

/* Rule: rule that refused */
/* Default deny: no PFN outside the manifest is bound. */
#define PFNGUARD_RULE_R01			1
/*
 * A request stays within modes, types, permissions, holders and block sizes of
 * its entry.
 */
#define PFNGUARD_RULE_R02			2
/* Device is what a region gets if it grants nothing more. */
#define PFNGUARD_RULE_R03			3
/*
 * AnyUncached only where no action through the mapping can cause an uncontained
 * failure.
 */
#define PFNGUARD_RULE_R04			4
/* AnyUncached never means cacheable. */
#define PFNGUARD_RULE_R05			5
/* Cacheable only for device memory with a cacheable grant, never for MMIO. */
#define PFNGUARD_RULE_R06			6
/* Cacheable needs FEAT_S2FWB and CTR_EL0.DIC. */
#define PFNGUARD_RULE_R07			7
/*
 * Without FWB or DIC, cacheable is for donated regions that maintenance by
 * address reaches.
 */
#define PFNGUARD_RULE_R08			8
/* No fallback to a weaker type, ever. */
#define PFNGUARD_RULE_R09			9
/* No mismatched aliases between the host and a guest, or between guests. */
#define PFNGUARD_RULE_R10			10
/*
 * No execution from uncached memory; execution from cacheable memory needs a
 * grant.
 */
#define PFNGUARD_RULE_R11			11
/* Copy-on-write PFNMAP is refused. */
#define PFNGUARD_RULE_R12			12
/* Dirty logging on PFNMAP is refused. */
#define PFNGUARD_RULE_R13			13
/* One request, one entry: a range that straddles is refused whole. */
#define PFNGUARD_RULE_R14			14
/* RAM is not PFNMAP. */
#define PFNGUARD_RULE_R15			15
/* A VM with MTE gets cacheable PFNMAP only with tag storage or NoTagAccess. */
#define PFNGUARD_RULE_R20			20
/* MTE cannot be switched on after the first bind. */
#define PFNGUARD_RULE_R21			21
/* General-purpose use needs exclusives, atomics and, with MTE, tags. */
#define PFNGUARD_RULE_R22			22
/* A guest can ask what it was promised. */
#define PFNGUARD_RULE_R23			23
/* Everything is decided at bind, and checked again at map. */
#define PFNGUARD_RULE_R30			30
/* Abilities, grants and contracts can be enumerated. */
#define PFNGUARD_RULE_R31			31
/* CHECK gives the same decision and changes nothing. */
#define PFNGUARD_RULE_R32			32
/* A VM's requirements are exported and checked before it migrates. */
#define PFNGUARD_RULE_R33			33
/* Refusals are explained in registers and trace. */
#define PFNGUARD_RULE_R34			34
/* A batch or a range is all or nothing. */
#define PFNGUARD_RULE_R35			35
/*
 * Order of letting go: unmap, invalidate, maintain, reset, and only then the
 * next owner.
 */
#define PFNGUARD_RULE_R40			40
/* Quarantine until the reset contract is satisfied. */
#define PFNGUARD_RULE_R41			41
/* A reset that fails within its bound quarantines for good. */
#define PFNGUARD_RULE_R42			42
/* A quirked entry is blocked, with the reason shown. */
#define PFNGUARD_RULE_R43			43
/* Protected VM memory is zeroed and cleaned before the host gets it back. */
#define PFNGUARD_RULE_R44			44
/*
 * A region with streams is donated only while they are translated or blocked.
 */
#define PFNGUARD_RULE_R45			45
/* The manifest is checked whole before the host loses EL2. */
#define PFNGUARD_RULE_R50			50
/* The manifest is sealed at launch; its SHA-256 can be read. */
#define PFNGUARD_RULE_R51			51
/* The manifest can be written by a person and derived from a device tree. */
#define PFNGUARD_RULE_R52			52

/* InfoSelector: x1 of the INFO call */
/*
 * x1 major << 32 | minor, x2 number of host functions, x3 number of rules, x4
 * zero.
 */
#define PFNGUARD_INFO_ABI			0
/* x1..x4 the manifest's SHA-256, first byte in bits 7:0 of x1 (R51). */
#define PFNGUARD_INFO_MANIFEST_HASH		1
/* x1 most VMs, x2 most vCPUs a VM, x3 regions, x4 most pages a RAM call. */
#define PFNGUARD_INFO_LIMITS			2
/*
 * x1 RAM frames, x2 vmemmap bytes, x3 pages owned by the hypervisor, x4 free
 * host table pages.
 */
#define PFNGUARD_INFO_MEMORY			3
/*
 * x1 Capabilities, x2 physical address bits, x3 guest IPA bits, x4 VMID bits.
 */
#define PFNGUARD_INFO_PLATFORM			4

/* Capabilities: abilities of CPUs and platform */
/* FEAT_S2FWB: stage 2 can force write-back. */
#define PFNGUARD_CAP_FWB			(1ULL << 0)
/* CTR_EL0.DIC: instruction fetches need no invalidation. */
#define PFNGUARD_CAP_DIC			(1ULL << 1)
/* CTR_EL0.IDC: instruction fetches need no data clean. */
#define PFNGUARD_CAP_IDC			(1ULL << 2)
/* FEAT_MTE2: allocation tags in boot RAM. */
#define PFNGUARD_CAP_MTE			(1ULL << 3)
/* FEAT_MTE_PERM: stage 2 can forbid tag access. */
#define PFNGUARD_CAP_MTE_PERM			(1ULL << 4)
/* FEAT_LSE: atomic instructions. */
#define PFNGUARD_CAP_LSE			(1ULL << 5)
/* FEAT_TLBIRANGE: range invalidation. */
#define PFNGUARD_CAP_TLBI_RANGE			(1ULL << 6)
/* The CPU needs every TLB invalidation twice (repeat-TLBI erratum). */
#define PFNGUARD_CAP_REPEAT_TLBI		(1ULL << 7)
/* The manifest allows Normal-NC on this platform at all (R04). */
#define PFNGUARD_CAP_NORMAL_NC			(1ULL << 8)
/* FEAT_BTI. */
#define PFNGUARD_CAP_BTI			(1ULL << 9)
/* FEAT_PAuth. */
#define PFNGUARD_CAP_PAC			(1ULL << 10)

/* Mode: who keeps access */
/* The host keeps ownership and access; the guest borrows. */
#define PFNGUARD_MODE_SHARE			1
/* Ownership moves to the VM; the host loses access. */
#define PFNGUARD_MODE_DONATE			2

/* Modes: a set of modes */
/* The region may be shared. */
#define PFNGUARD_MODES_SHARE			(1ULL << 0)
/* The region may be donated. */
#define PFNGUARD_MODES_DONATE			(1ULL << 1)

/* MemType: memory type */
/* Device-nGnRE, whatever the guest's stage 1 says. */
#define PFNGUARD_TYPE_DEVICE			1
/*
 * Normal Non-cacheable: the guest's stage 1 chooses among Normal-NC and Device
 * types.
 */
#define PFNGUARD_TYPE_ANY_UNCACHED		2
/* Normal write-back cacheable. */
#define PFNGUARD_TYPE_CACHEABLE			3

/* MemTypes: a set of memory types */
/* Device-nGnRE. */
#define PFNGUARD_TYPES_DEVICE			(1ULL << 0)
/* Normal Non-cacheable. */
#define PFNGUARD_TYPES_ANY_UNCACHED		(1ULL << 1)
/* Normal write-back. */
#define PFNGUARD_TYPES_CACHEABLE		(1ULL << 2)

/* Perms: permissions of a guest */
/* Loads. */
#define PFNGUARD_PERM_READ			(1ULL << 0)
/* Stores; only together with READ. */
#define PFNGUARD_PERM_WRITE			(1ULL << 1)
/* Instruction fetches. */
#define PFNGUARD_PERM_EXEC			(1ULL << 2)

/* HostAlias: the host's own mapping of a request's pages */
/* The host has no mapping. */
#define PFNGUARD_ALIAS_NONE			0
/* Device or Normal Non-cacheable. */
#define PFNGUARD_ALIAS_UNCACHED			1
/* Normal write-back. */
#define PFNGUARD_ALIAS_CACHEABLE		2

/* RequestFlags: properties of a request */
/* The VMA is copy-on-write (refused, R12). */
#define PFNGUARD_REQUEST_COW			(1ULL << 0)
/* The memslot wants dirty logging (refused, R13). */
#define PFNGUARD_REQUEST_DIRTY_LOG		(1ULL << 1)
/* The guest will run programs from this memory (R22). */
#define PFNGUARD_REQUEST_GENERAL_PURPOSE	(1ULL << 2)
/* Install the stage-2 entries at once instead of at the first guest access. */
#define PFNGUARD_REQUEST_MAP_NOW		(1ULL << 3)

/* ContractFlags: contract of a VM */
/* RAM is donated, registers are hidden from the host. */
#define PFNGUARD_CONTRACT_PROTECTED		(1ULL << 0)
/* The guest uses memory tagging. */
#define PFNGUARD_CONTRACT_MTE			(1ULL << 1)
/* The guest runs programs from every PFNMAP region it binds (R22). */
#define PFNGUARD_CONTRACT_GENERAL_PURPOSE	(1ULL << 2)

/* VmState: life of a VM */
/* Runs and binds. */
#define PFNGUARD_VM_ACTIVE			1
/* Torn down; waits for its pages to be reclaimed. */
#define PFNGUARD_VM_DYING			2

/* ExitReason: why VCPU_RUN returned */
/* A physical interrupt is pending for the host. */
#define PFNGUARD_EXIT_INTERRUPT			0
/* The guest waits for an interrupt (WFI). */
#define PFNGUARD_EXIT_WAIT			1
/*
 * Access of a VM that is not protected to an address nothing maps. x2 IPA, x3
 * MmioAccess bits with the access size in bytes in bits 15:8, x4 the value of a
 * store. Run again with x3 the value of a load.
 */
#define PFNGUARD_EXIT_MMIO			2
/*
 * An access that cannot be emulated: no syndrome, an instruction fetch, a
 * forbidden one, or any of a protected VM to an address nothing maps. x2 IPA.
 */
#define PFNGUARD_EXIT_FAULT			3
/* Guest call Yield. x2..x4 its arguments. */
#define PFNGUARD_EXIT_YIELD			4
/* The guest asked PSCI to power off or reset. x2 the function id. */
#define PFNGUARD_EXIT_POWER			5
/*
 * The guest did what this hypervisor does not offer. x2 the exception class.
 */
#define PFNGUARD_EXIT_UNSUPPORTED		6

/* MmioAccess: low bits of x3 of an MMIO exit */
/* A store; otherwise a load. */
#define PFNGUARD_MMIO_WRITE			(1ULL << 0)
/* The loaded value is sign-extended. */
#define PFNGUARD_MMIO_SIGNED			(1ULL << 1)

/* PageState: state of a RAM frame */
/* Not RAM, or RAM that was never the host's. */
#define PFNGUARD_PAGE_NO_PAGE			0
/* The host's alone. */
#define PFNGUARD_PAGE_HOST_OWNED		1
/* The host's, lent to the hypervisor. */
#define PFNGUARD_PAGE_HOST_SHARED_HYP		2
/* The host's, lent to one or more guests. */
#define PFNGUARD_PAGE_HOST_SHARED_GUEST		3
/* The hypervisor's. */
#define PFNGUARD_PAGE_HYP_OWNED			4
/* A guest's alone. */
#define PFNGUARD_PAGE_GUEST_OWNED		5
/* A guest's, lent to the host. */
#define PFNGUARD_PAGE_GUEST_SHARED_HOST		6
/* The hypervisor's, readable by the host (trace rings). */
#define PFNGUARD_PAGE_HYP_READABLE		7

/* Promise: bits 31:16 of x1 of QUERY */
/* Something is mapped or bound here. */
#define PFNGUARD_PROMISE_PRESENT		(1ULL << 0)
/* It is a PFNMAP region, not RAM. */
#define PFNGUARD_PROMISE_PFNMAP			(1ULL << 1)
/* The host has access too. */
#define PFNGUARD_PROMISE_SHARED			(1ULL << 2)
/* Tags work. */
#define PFNGUARD_PROMISE_TAGS			(1ULL << 3)
/* Exclusives work. */
#define PFNGUARD_PROMISE_EXCLUSIVES		(1ULL << 4)
/* Atomics work. */
#define PFNGUARD_PROMISE_ATOMICS		(1ULL << 5)

/* RegionState: life of a region */
/* The host's; nobody has bound it. */
#define PFNGUARD_REGION_FREE			0
/* Bound by one or more VMs, and by the host. */
#define PFNGUARD_REGION_SHARED			1
/* Owned by one VM. */
#define PFNGUARD_REGION_DONATED			2
/* Waiting for its reset contract (R41); bound by nobody, the host included. */
#define PFNGUARD_REGION_QUARANTINED		3
/* The reset failed (R42): nobody gets it until the machine restarts. */
#define PFNGUARD_REGION_LOST			4

/* PlatformFlags: facts about the platform */
/* Normal-NC is forbidden everywhere, whatever an entry grants (R04). */
#define PFNGUARD_PLATFORM_NORMAL_NC_FORBIDDEN	(1ULL << 0)

/* RegionClass: what lies behind a region's pages */
/* Registers: reads and writes have side effects. */
#define PFNGUARD_CLASS_MMIO			1
/* Device-attached memory: speculative reads are harmless. */
#define PFNGUARD_CLASS_MEMORY			2

/* BlockSizes: stage-2 block sizes */
/* 4 KiB pages; always set. */
#define PFNGUARD_SIZES_PAGE			(1ULL << 0)
/* 2 MiB blocks. */
#define PFNGUARD_SIZES_BLOCK_2M			(1ULL << 1)
/* 1 GiB blocks. */
#define PFNGUARD_SIZES_BLOCK_1G			(1ULL << 2)

/* RegionFlags: properties of a manifest entry */
/* Cache maintenance by address reaches the memory (R08). */
#define PFNGUARD_ENTRY_CMO_BY_ADDRESS		(1ULL << 0)
/* The memory has MTE tag storage (R20). */
#define PFNGUARD_ENTRY_TAGS			(1ULL << 1)
/* Exclusives work (R22). */
#define PFNGUARD_ENTRY_EXCLUSIVES		(1ULL << 2)
/* LSE atomics work (R22). */
#define PFNGUARD_ENTRY_ATOMICS			(1ULL << 3)
/* Zero the memory when a VM lets go (R40). */
#define PFNGUARD_ENTRY_ZERO_ON_RETURN		(1ULL << 4)
/* Blocked from assignment; quirk says why (R43). */
#define PFNGUARD_ENTRY_QUIRKED			(1ULL << 5)
/*
 * No action through a Normal-NC mapping can cause an uncontained failure (R04).
 */
#define PFNGUARD_ENTRY_NC_SAFE			(1ULL << 6)
/*
 * The host has no access either: registers through which it could make a device
 * write anywhere, and no SMMU would see it (a GIC ITS). Nothing can be granted.
 */
#define PFNGUARD_ENTRY_HOST_CLOSED		(1ULL << 7)

/* ResetKind: reset contract of a region */
/* Nothing. */
#define PFNGUARD_RESET_NONE			0
/* A read of reset_addr orders earlier writes. */
#define PFNGUARD_RESET_READBACK			1
/*
 * Reads of reset_addr, masked, must equal reset_value within reset_bound reads.
 */
#define PFNGUARD_RESET_POLL			2
/* The host's driver reports that it reset the device. */
#define PFNGUARD_RESET_EXTERNAL			3

/* TraceKind: kind of a trace record */
/* A host call ended. a function id, b x1 and c x2 of the call. */
#define PFNGUARD_TRACE_HOST_CALL		1
/* A guest call ended. a function id, b x1, c the VM. */
#define PFNGUARD_TRACE_GUEST_CALL		2
/*
 * A BIND was judged, or is the first item that a CHECK refused. a the
 * RequestWord, b PFN, c pages.
 */
#define PFNGUARD_TRACE_DECISION			3
/*
 * Pages changed state. a first page, b pages, c old << 8 | new PageState, VM in
 * 31:16. Not written for HostShareHyp and HostUnshareHyp: their HostCall says
 * all of it.
 */
#define PFNGUARD_TRACE_OWNERSHIP		4
/*
 * A region changed state. a region index, b old << 8 | new RegionState, c VM.
 */
#define PFNGUARD_TRACE_REGION			5
/*
 * The host touched what is not its own, and got an abort, or ones of a device.
 * a IPA, b ESR, c ELR.
 */
#define PFNGUARD_TRACE_HOST_ABORT		6
/* An SMC was answered. a function id, b result. */
#define PFNGUARD_TRACE_SMC			7
/* A system register access or instruction of EL1 was refused. a ESR, b ELR. */
#define PFNGUARD_TRACE_TRAP			8

/* LaunchStep: what an entry of the image is for */
/* Compare this CPU with the one that prepared the launch. */
#define PFNGUARD_LAUNCH_CHECK			1
/* Take EL2 for good. */
#define PFNGUARD_LAUNCH_COMMIT			2

/* LaunchAnswer: what it answers */
/* Done. */
#define PFNGUARD_LAUNCHED_DONE			0
/*
 * The hypervisor needs more memory: x1 pages, the image's included. Nothing has
 * changed.
 */
#define PFNGUARD_LAUNCHED_MORE_MEMORY		1
/*
 * No launch: x1 the physical address, x2 the bytes of a line of text that says
 * why.
 */
#define PFNGUARD_LAUNCHED_REFUSED		2

#if !defined(__ASSEMBLY__) && !defined(__ASSEMBLER__)

/**
 * struct pfnguard_request - One PFNMAP request, as an item of a CHECK batch and
 * as the arguments of BIND.
 * @vm: VM number.
 * @mode: Mode.
 * @mem_type: MemType.
 * @perms: Perms bits.
 * @flags: RequestFlags bits.
 * @alias: HostAlias.
 * @reserved: Zero.
 * @pfn: First page of the range.
 * @ipa_pfn: First intermediate physical page number in the guest.
 * @pages: Length in pages; not zero.
 */
struct pfnguard_request {
	__u16 vm;
	__u8 mode;
	__u8 mem_type;
	__u8 perms;
	__u8 flags;
	__u8 alias;
	__u8 reserved;
	__u64 pfn;
	__u64 ipa_pfn;
	__u64 pages;
};

/**
 * struct pfnguard_decision - The decision on one item of a CHECK batch.
 * @status: Status.
 * @rule: Rule of a refusal, or 0.
 * @subject: Subject of requested and granted.
 * @pfn: Offending PFN, or all ones.
 * @requested: Requested value.
 * @granted: Granted value.
 */
struct pfnguard_decision {
	__s32 status;
	__u16 rule;
	__u16 subject;
	__u64 pfn;
	__u64 requested;
	__u64 granted;
};

/**
 * struct pfnguard_region_info - One region, as REGION_INFO writes it to the
 * argument page.
 * @name: Name from the manifest, UTF-8, zero padded.
 * @pfn: First page.
 * @pages: Length in pages.
 * @flags: RegionFlags bits.
 * @region_class: RegionClass.
 * @modes: Modes bits.
 * @types: MemTypes bits.
 * @perms: Perms bits.
 * @max_vms: VMs that may hold it at once.
 * @blocks: BlockSizes bits.
 * @reset: ResetKind.
 * @state: RegionState.
 * @holders: VMs that hold it now.
 * @streams: Number of DMA stream IDs.
 * @reserved: Zero.
 * @quirk: Reason why a quirked entry is blocked, UTF-8, zero padded.
 */
struct pfnguard_region_info {
	__u8 name[32];
	__u64 pfn;
	__u64 pages;
	__u32 flags;
	__u8 region_class;
	__u8 modes;
	__u8 types;
	__u8 perms;
	__u8 max_vms;
	__u8 blocks;
	__u8 reset;
	__u8 state;
	__u8 holders;
	__u8 streams;
	__u8 reserved[2];
	__u8 quirk[32];
};

/**
 * struct pfnguard_info_args - Argument of INFO.
 * @selector: InfoSelector.
 * @values: x1 to x4 of the hypervisor's answer.
 */
struct pfnguard_info_args {
	__u64 selector;
	__u64 values[4];
};

/**
 * struct pfnguard_region_args - Argument of REGION and REGION_RESET.
 * @index: Index, in the order of the manifest.
 * @reserved: Zero.
 * @info: The region.
 * @decision: Why not.
 */
struct pfnguard_region_args {
	__u32 index;
	__u32 reserved;
	struct pfnguard_region_info info;
	struct pfnguard_decision decision;
};

/**
 * struct pfnguard_vm_args - Argument of CREATE_VM.
 * @contract: ContractFlags.
 * @vcpus: Number of vCPUs.
 * @tables: Pages of table memory, at most MAX_TABLES.
 * @reserved: Zero.
 * @decision: Why not.
 */
struct pfnguard_vm_args {
	__u32 contract;
	__u32 vcpus;
	__u32 tables;
	__u32 reserved;
	struct pfnguard_decision decision;
};

/**
 * struct pfnguard_tables_args - Argument of ADD_TABLES and ENABLE_MTE.
 * @tables: Pages, at most MAX_TABLES.
 * @reserved: Zero.
 * @decision: Why not.
 */
struct pfnguard_tables_args {
	__u32 tables;
	__u32 reserved;
	struct pfnguard_decision decision;
};

/**
 * struct pfnguard_ram_args - Argument of calls about RAM.
 * @address: The caller's address.
 * @size: Bytes.
 * @guest: Where the guest sees it.
 * @perms: Perms bits.
 * @reserved: Zero.
 * @decision: Why not.
 */
struct pfnguard_ram_args {
	__u64 address;
	__u64 size;
	__u64 guest;
	__u32 perms;
	__u32 reserved;
	struct pfnguard_decision decision;
};

/**
 * struct pfnguard_bind_args - Argument of BIND, and an item of CHECK.
 * @address: The caller's mapping of the pages.
 * @size: Bytes; all of them in one mapping.
 * @guest: Where the guest sees them.
 * @mode: Mode.
 * @mem_type: MemType.
 * @perms: Perms bits.
 * @flags: RequestFlags bits but COW, which the kernel finds out.
 * @reserved: Zero.
 * @decision: The answer.
 */
struct pfnguard_bind_args {
	__u64 address;
	__u64 size;
	__u64 guest;
	__u8 mode;
	__u8 mem_type;
	__u8 perms;
	__u8 flags;
	__u32 reserved;
	struct pfnguard_decision decision;
};

/**
 * struct pfnguard_check_args - Argument of CHECK.
 * @items: Address of an array of struct pfnguard_bind_args; each gets its
 * decision.
 * @count: Its length, at most MAX_CHECK_ITEMS.
 * @reserved: Zero.
 */
struct pfnguard_check_args {
	__u64 items;
	__u32 count;
	__u32 reserved;
};

/**
 * struct pfnguard_guest_args - Argument of calls about a binding.
 * @guest: First byte of the binding in the guest.
 * @value: What the call returns.
 * @decision: Why not.
 */
struct pfnguard_guest_args {
	__u64 guest;
	__u64 value;
	struct pfnguard_decision decision;
};

/**
 * struct pfnguard_manifest_header - Start of a manifest.
 * @magic: MAGIC.
 * @version: VERSION.
 * @length: Length in bytes, header and entries.
 * @sha256: SHA-256 of all bytes but these 32.
 * @entries: Number of entries.
 * @flags: PlatformFlags bits.
 * @reserved: Zero.
 */
struct pfnguard_manifest_header {
	__u8 magic[8];
	__u32 version;
	__u32 length;
	__u8 sha256[32];
	__u32 entries;
	__u32 flags;
	__u64 reserved;
};

/**
 * struct pfnguard_manifest_entry - One region of the manifest.
 * @name: Name, UTF-8, zero padded, unique.
 * @base: First byte; page aligned.
 * @size: Bytes; page aligned, not zero.
 * @flags: RegionFlags bits.
 * @region_class: RegionClass.
 * @modes: Modes bits.
 * @types: MemTypes bits; DEVICE is always set where modes is not empty.
 * @perms: Perms bits.
 * @max_vms: VMs that may hold it at once; 0 only where modes is empty.
 * @blocks: BlockSizes bits.
 * @reset: ResetKind.
 * @reset_width: Width in bytes of the reset register: 4 or 8; 0 where reset
 * reads none.
 * @stream_count: Number of valid streams.
 * @reserved: Zero.
 * @reset_addr: Physical address of the reset register, inside an MMIO entry of
 * this manifest.
 * @reset_mask: Mask for Poll.
 * @reset_value: Value for Poll.
 * @reset_bound: Most reads for Poll.
 * @reserved2: Zero.
 * @streams: SMMU stream IDs of the device.
 * @quirk: Why a quirked entry is blocked, UTF-8, zero padded.
 */
struct pfnguard_manifest_entry {
	__u8 name[32];
	__u64 base;
	__u64 size;
	__u32 flags;
	__u8 region_class;
	__u8 modes;
	__u8 types;
	__u8 perms;
	__u8 max_vms;
	__u8 blocks;
	__u8 reset;
	__u8 reset_width;
	__u8 stream_count;
	__u8 reserved[3];
	__u64 reset_addr;
	__u64 reset_mask;
	__u64 reset_value;
	__u32 reset_bound;
	__u32 reserved2;
	__u32 streams[4];
	__u8 quirk[32];
};

/**
 * struct pfnguard_migration_header - Start of a descriptor.
 * @magic: MAGIC.
 * @version: VERSION.
 * @items: Number of items.
 * @contract: ContractFlags bits of the VM.
 * @reserved: Zero.
 * @capabilities: Capabilities bits that the VM's bindings rest on.
 * @status: Status of the contract, written by MIGRATE_CHECK.
 * @rule: Rule, written by MIGRATE_CHECK.
 * @subject: Subject, written by MIGRATE_CHECK.
 * @missing: Missing Capabilities bits, written by MIGRATE_CHECK.
 */
struct pfnguard_migration_header {
	__u8 magic[8];
	__u32 version;
	__u32 items;
	__u32 contract;
	__u32 reserved;
	__u64 capabilities;
	__s32 status;
	__u16 rule;
	__u16 subject;
	__u64 missing;
};

/**
 * struct pfnguard_migration_item - One binding of the VM.
 * @name: Name of the region.
 * @offset_pages: First page of the binding, relative to the region.
 * @pages: Length in pages.
 * @ipa_pfn: First intermediate physical page number.
 * @flags: RegionFlags bits that the binding rests on.
 * @mode: Mode.
 * @mem_type: MemType.
 * @perms: Perms bits.
 * @request_flags: RequestFlags bits.
 * @status: Status of the item, written by MIGRATE_CHECK.
 * @rule: Rule, written by MIGRATE_CHECK.
 * @subject: Subject, written by MIGRATE_CHECK.
 * @reserved: Zero.
 */
struct pfnguard_migration_item {
	__u8 name[32];
	__u64 offset_pages;
	__u64 pages;
	__u64 ipa_pfn;
	__u32 flags;
	__u8 mode;
	__u8 mem_type;
	__u8 perms;
	__u8 request_flags;
	__s32 status;
	__u16 rule;
	__u16 subject;
	__u64 reserved;
};

/**
 * struct pfnguard_ring_header - Start of a ring.
 * @written: Records written so far; the newest is number written - 1.
 * @capacity: Records that fit.
 * @record_size: Bytes in a record.
 * @cpu: CPU index.
 * @frequency: Counter frequency in Hz (CNTFRQ_EL0).
 * @reserved: Zero.
 */
struct pfnguard_ring_header {
	__u64 written;
	__u32 capacity;
	__u32 record_size;
	__u32 cpu;
	__u32 frequency;
	__u64 reserved[5];
};

/**
 * struct pfnguard_trace_record - One record.
 * @sequence: Number of this record, from 0.
 * @time: CNTVCT_EL0 when it was written.
 * @kind: TraceKind.
 * @rule: Rule, or 0.
 * @status: Status.
 * @subject: Subject of a refusal's values, which are b, requested, and c,
 * granted (R34); or 0.
 * @vm: VM number, or all ones.
 * @reserved: Zero.
 * @a: Depends on kind.
 * @b: Depends on kind; of a refusal the requested value.
 * @c: Depends on kind; of a refusal the granted value.
 * @pfn: Offending PFN of a refusal, or all ones.
 */
struct pfnguard_trace_record {
	__u64 sequence;
	__u64 time;
	__u16 kind;
	__u16 rule;
	__s32 status;
	__u16 subject;
	__u16 vm;
	__u32 reserved;
	__u64 a;
	__u64 b;
	__u64 c;
	__u64 pfn;
};

/**
 * struct pfnguard_image_header - What the module has to know of the image, at
 * its byte 64.
 * @magic: "PFNGUARD".
 * @abi_major: ABI version, major half.
 * @abi_minor: ABI version, minor half.
 * @image_size: Bytes from the image's start that it needs at least, stacks
 * included.
 * @prepare: Offset of the entry that prepares a launch.
 * @enter: Offset of the entry of each CPU.
 */
struct pfnguard_image_header {
	__u64 magic;
	__u32 abi_major;
	__u32 abi_minor;
	__u64 image_size;
	__u64 prepare;
	__u64 enter;
};

/**
 * struct pfnguard_launch_info - The machine, as the kernel knows it; 8-byte
 * aligned and cleaned to the point of coherency.
 * @pages: Pages from the start of the image on that are the hypervisor's.
 * @manifest: Physical address of the manifest.
 * @manifest_size: Bytes of the manifest.
 * @uart: Physical address of a PL011 that reports what is wrong at EL2, or 0.
 * @cpus: CPUs in mpidr: all that there are, and all of them run.
 * @banks: Ranges in ram.
 * @mpidr: MPIDR_EL1 of each CPU.
 * @ram: All RAM that the kernel uses: first page and number of pages of each
 * range, ascending and disjoint.
 */
struct pfnguard_launch_info {
	__u64 pages;
	__u64 manifest;
	__u64 manifest_size;
	__u64 uart;
	__u32 cpus;
	__u32 banks;
	__u64 mpidr[16];
	__u64 ram[32];
};

#ifdef __cplusplus
#define PFNGUARD_ASSERT static_assert
#else
#define PFNGUARD_ASSERT _Static_assert
#endif
PFNGUARD_ASSERT(sizeof(struct pfnguard_request) == 32,
		"size of pfnguard_request");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, vm) == 0,
		"offset of pfnguard_request.vm");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, mode) == 2,
		"offset of pfnguard_request.mode");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, mem_type) == 3,
		"offset of pfnguard_request.mem_type");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, perms) == 4,
		"offset of pfnguard_request.perms");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, flags) == 5,
		"offset of pfnguard_request.flags");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, alias) == 6,
		"offset of pfnguard_request.alias");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, reserved) == 7,
		"offset of pfnguard_request.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, pfn) == 8,
		"offset of pfnguard_request.pfn");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, ipa_pfn) == 16,
		"offset of pfnguard_request.ipa_pfn");
PFNGUARD_ASSERT(offsetof(struct pfnguard_request, pages) == 24,
		"offset of pfnguard_request.pages");
PFNGUARD_ASSERT(sizeof(struct pfnguard_decision) == 32,
		"size of pfnguard_decision");
PFNGUARD_ASSERT(offsetof(struct pfnguard_decision, status) == 0,
		"offset of pfnguard_decision.status");
PFNGUARD_ASSERT(offsetof(struct pfnguard_decision, rule) == 4,
		"offset of pfnguard_decision.rule");
PFNGUARD_ASSERT(offsetof(struct pfnguard_decision, subject) == 6,
		"offset of pfnguard_decision.subject");
PFNGUARD_ASSERT(offsetof(struct pfnguard_decision, pfn) == 8,
		"offset of pfnguard_decision.pfn");
PFNGUARD_ASSERT(offsetof(struct pfnguard_decision, requested) == 16,
		"offset of pfnguard_decision.requested");
PFNGUARD_ASSERT(offsetof(struct pfnguard_decision, granted) == 24,
		"offset of pfnguard_decision.granted");
PFNGUARD_ASSERT(sizeof(struct pfnguard_region_info) == 96,
		"size of pfnguard_region_info");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, name) == 0,
		"offset of pfnguard_region_info.name");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, pfn) == 32,
		"offset of pfnguard_region_info.pfn");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, pages) == 40,
		"offset of pfnguard_region_info.pages");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, flags) == 48,
		"offset of pfnguard_region_info.flags");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, region_class) == 52,
		"offset of pfnguard_region_info.class");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, modes) == 53,
		"offset of pfnguard_region_info.modes");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, types) == 54,
		"offset of pfnguard_region_info.types");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, perms) == 55,
		"offset of pfnguard_region_info.perms");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, max_vms) == 56,
		"offset of pfnguard_region_info.max_vms");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, blocks) == 57,
		"offset of pfnguard_region_info.blocks");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, reset) == 58,
		"offset of pfnguard_region_info.reset");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, state) == 59,
		"offset of pfnguard_region_info.state");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, holders) == 60,
		"offset of pfnguard_region_info.holders");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, streams) == 61,
		"offset of pfnguard_region_info.streams");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, reserved) == 62,
		"offset of pfnguard_region_info.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_info, quirk) == 64,
		"offset of pfnguard_region_info.quirk");
PFNGUARD_ASSERT(sizeof(struct pfnguard_info_args) == 40,
		"size of pfnguard_info_args");
PFNGUARD_ASSERT(offsetof(struct pfnguard_info_args, selector) == 0,
		"offset of pfnguard_info_args.selector");
PFNGUARD_ASSERT(offsetof(struct pfnguard_info_args, values) == 8,
		"offset of pfnguard_info_args.values");
PFNGUARD_ASSERT(sizeof(struct pfnguard_region_args) == 136,
		"size of pfnguard_region_args");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_args, index) == 0,
		"offset of pfnguard_region_args.index");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_args, reserved) == 4,
		"offset of pfnguard_region_args.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_args, info) == 8,
		"offset of pfnguard_region_args.info");
PFNGUARD_ASSERT(offsetof(struct pfnguard_region_args, decision) == 104,
		"offset of pfnguard_region_args.decision");
PFNGUARD_ASSERT(sizeof(struct pfnguard_vm_args) == 48,
		"size of pfnguard_vm_args");
PFNGUARD_ASSERT(offsetof(struct pfnguard_vm_args, contract) == 0,
		"offset of pfnguard_vm_args.contract");
PFNGUARD_ASSERT(offsetof(struct pfnguard_vm_args, vcpus) == 4,
		"offset of pfnguard_vm_args.vcpus");
PFNGUARD_ASSERT(offsetof(struct pfnguard_vm_args, tables) == 8,
		"offset of pfnguard_vm_args.tables");
PFNGUARD_ASSERT(offsetof(struct pfnguard_vm_args, reserved) == 12,
		"offset of pfnguard_vm_args.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_vm_args, decision) == 16,
		"offset of pfnguard_vm_args.decision");
PFNGUARD_ASSERT(sizeof(struct pfnguard_tables_args) == 40,
		"size of pfnguard_tables_args");
PFNGUARD_ASSERT(offsetof(struct pfnguard_tables_args, tables) == 0,
		"offset of pfnguard_tables_args.tables");
PFNGUARD_ASSERT(offsetof(struct pfnguard_tables_args, reserved) == 4,
		"offset of pfnguard_tables_args.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_tables_args, decision) == 8,
		"offset of pfnguard_tables_args.decision");
PFNGUARD_ASSERT(sizeof(struct pfnguard_ram_args) == 64,
		"size of pfnguard_ram_args");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ram_args, address) == 0,
		"offset of pfnguard_ram_args.address");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ram_args, size) == 8,
		"offset of pfnguard_ram_args.size");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ram_args, guest) == 16,
		"offset of pfnguard_ram_args.guest");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ram_args, perms) == 24,
		"offset of pfnguard_ram_args.perms");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ram_args, reserved) == 28,
		"offset of pfnguard_ram_args.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ram_args, decision) == 32,
		"offset of pfnguard_ram_args.decision");
PFNGUARD_ASSERT(sizeof(struct pfnguard_bind_args) == 64,
		"size of pfnguard_bind_args");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, address) == 0,
		"offset of pfnguard_bind_args.address");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, size) == 8,
		"offset of pfnguard_bind_args.size");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, guest) == 16,
		"offset of pfnguard_bind_args.guest");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, mode) == 24,
		"offset of pfnguard_bind_args.mode");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, mem_type) == 25,
		"offset of pfnguard_bind_args.mem_type");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, perms) == 26,
		"offset of pfnguard_bind_args.perms");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, flags) == 27,
		"offset of pfnguard_bind_args.flags");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, reserved) == 28,
		"offset of pfnguard_bind_args.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_bind_args, decision) == 32,
		"offset of pfnguard_bind_args.decision");
PFNGUARD_ASSERT(sizeof(struct pfnguard_check_args) == 16,
		"size of pfnguard_check_args");
PFNGUARD_ASSERT(offsetof(struct pfnguard_check_args, items) == 0,
		"offset of pfnguard_check_args.items");
PFNGUARD_ASSERT(offsetof(struct pfnguard_check_args, count) == 8,
		"offset of pfnguard_check_args.count");
PFNGUARD_ASSERT(offsetof(struct pfnguard_check_args, reserved) == 12,
		"offset of pfnguard_check_args.reserved");
PFNGUARD_ASSERT(sizeof(struct pfnguard_guest_args) == 48,
		"size of pfnguard_guest_args");
PFNGUARD_ASSERT(offsetof(struct pfnguard_guest_args, guest) == 0,
		"offset of pfnguard_guest_args.guest");
PFNGUARD_ASSERT(offsetof(struct pfnguard_guest_args, value) == 8,
		"offset of pfnguard_guest_args.value");
PFNGUARD_ASSERT(offsetof(struct pfnguard_guest_args, decision) == 16,
		"offset of pfnguard_guest_args.decision");
PFNGUARD_ASSERT(sizeof(struct pfnguard_manifest_header) == 64,
		"size of pfnguard_manifest_header");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_header, magic) == 0,
		"offset of pfnguard_manifest_header.magic");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_header, version) == 8,
		"offset of pfnguard_manifest_header.version");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_header, length) == 12,
		"offset of pfnguard_manifest_header.length");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_header, sha256) == 16,
		"offset of pfnguard_manifest_header.sha256");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_header, entries) == 48,
		"offset of pfnguard_manifest_header.entries");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_header, flags) == 52,
		"offset of pfnguard_manifest_header.flags");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_header, reserved) == 56,
		"offset of pfnguard_manifest_header.reserved");
PFNGUARD_ASSERT(sizeof(struct pfnguard_manifest_entry) == 144,
		"size of pfnguard_manifest_entry");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, name) == 0,
		"offset of pfnguard_manifest_entry.name");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, base) == 32,
		"offset of pfnguard_manifest_entry.base");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, size) == 40,
		"offset of pfnguard_manifest_entry.size");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, flags) == 48,
		"offset of pfnguard_manifest_entry.flags");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, region_class) == 52,
		"offset of pfnguard_manifest_entry.class");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, modes) == 53,
		"offset of pfnguard_manifest_entry.modes");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, types) == 54,
		"offset of pfnguard_manifest_entry.types");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, perms) == 55,
		"offset of pfnguard_manifest_entry.perms");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, max_vms) == 56,
		"offset of pfnguard_manifest_entry.max_vms");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, blocks) == 57,
		"offset of pfnguard_manifest_entry.blocks");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, reset) == 58,
		"offset of pfnguard_manifest_entry.reset");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, reset_width) == 59,
		"offset of pfnguard_manifest_entry.reset_width");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, stream_count) == 60,
		"offset of pfnguard_manifest_entry.stream_count");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, reserved) == 61,
		"offset of pfnguard_manifest_entry.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, reset_addr) == 64,
		"offset of pfnguard_manifest_entry.reset_addr");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, reset_mask) == 72,
		"offset of pfnguard_manifest_entry.reset_mask");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, reset_value) == 80,
		"offset of pfnguard_manifest_entry.reset_value");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, reset_bound) == 88,
		"offset of pfnguard_manifest_entry.reset_bound");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, reserved2) == 92,
		"offset of pfnguard_manifest_entry.reserved2");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, streams) == 96,
		"offset of pfnguard_manifest_entry.streams");
PFNGUARD_ASSERT(offsetof(struct pfnguard_manifest_entry, quirk) == 112,
		"offset of pfnguard_manifest_entry.quirk");
PFNGUARD_ASSERT(sizeof(struct pfnguard_migration_header) == 48,
		"size of pfnguard_migration_header");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, magic) == 0,
		"offset of pfnguard_migration_header.magic");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, version) == 8,
		"offset of pfnguard_migration_header.version");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, items) == 12,
		"offset of pfnguard_migration_header.items");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, contract) == 16,
		"offset of pfnguard_migration_header.contract");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, reserved) == 20,
		"offset of pfnguard_migration_header.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, capabilities) == 24,
		"offset of pfnguard_migration_header.capabilities");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, status) == 32,
		"offset of pfnguard_migration_header.status");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, rule) == 36,
		"offset of pfnguard_migration_header.rule");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, subject) == 38,
		"offset of pfnguard_migration_header.subject");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_header, missing) == 40,
		"offset of pfnguard_migration_header.missing");
PFNGUARD_ASSERT(sizeof(struct pfnguard_migration_item) == 80,
		"size of pfnguard_migration_item");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, name) == 0,
		"offset of pfnguard_migration_item.name");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, offset_pages) == 32,
		"offset of pfnguard_migration_item.offset_pages");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, pages) == 40,
		"offset of pfnguard_migration_item.pages");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, ipa_pfn) == 48,
		"offset of pfnguard_migration_item.ipa_pfn");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, flags) == 56,
		"offset of pfnguard_migration_item.flags");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, mode) == 60,
		"offset of pfnguard_migration_item.mode");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, mem_type) == 61,
		"offset of pfnguard_migration_item.mem_type");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, perms) == 62,
		"offset of pfnguard_migration_item.perms");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, request_flags) == 63,
		"offset of pfnguard_migration_item.request_flags");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, status) == 64,
		"offset of pfnguard_migration_item.status");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, rule) == 68,
		"offset of pfnguard_migration_item.rule");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, subject) == 70,
		"offset of pfnguard_migration_item.subject");
PFNGUARD_ASSERT(offsetof(struct pfnguard_migration_item, reserved) == 72,
		"offset of pfnguard_migration_item.reserved");
PFNGUARD_ASSERT(sizeof(struct pfnguard_ring_header) == 64,
		"size of pfnguard_ring_header");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ring_header, written) == 0,
		"offset of pfnguard_ring_header.written");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ring_header, capacity) == 8,
		"offset of pfnguard_ring_header.capacity");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ring_header, record_size) == 12,
		"offset of pfnguard_ring_header.record_size");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ring_header, cpu) == 16,
		"offset of pfnguard_ring_header.cpu");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ring_header, frequency) == 20,
		"offset of pfnguard_ring_header.frequency");
PFNGUARD_ASSERT(offsetof(struct pfnguard_ring_header, reserved) == 24,
		"offset of pfnguard_ring_header.reserved");
PFNGUARD_ASSERT(sizeof(struct pfnguard_trace_record) == 64,
		"size of pfnguard_trace_record");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, sequence) == 0,
		"offset of pfnguard_trace_record.sequence");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, time) == 8,
		"offset of pfnguard_trace_record.time");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, kind) == 16,
		"offset of pfnguard_trace_record.kind");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, rule) == 18,
		"offset of pfnguard_trace_record.rule");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, status) == 20,
		"offset of pfnguard_trace_record.status");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, subject) == 24,
		"offset of pfnguard_trace_record.subject");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, vm) == 26,
		"offset of pfnguard_trace_record.vm");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, reserved) == 28,
		"offset of pfnguard_trace_record.reserved");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, a) == 32,
		"offset of pfnguard_trace_record.a");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, b) == 40,
		"offset of pfnguard_trace_record.b");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, c) == 48,
		"offset of pfnguard_trace_record.c");
PFNGUARD_ASSERT(offsetof(struct pfnguard_trace_record, pfn) == 56,
		"offset of pfnguard_trace_record.pfn");
PFNGUARD_ASSERT(sizeof(struct pfnguard_image_header) == 40,
		"size of pfnguard_image_header");
PFNGUARD_ASSERT(offsetof(struct pfnguard_image_header, magic) == 0,
		"offset of pfnguard_image_header.magic");
PFNGUARD_ASSERT(offsetof(struct pfnguard_image_header, abi_major) == 8,
		"offset of pfnguard_image_header.abi_major");
PFNGUARD_ASSERT(offsetof(struct pfnguard_image_header, abi_minor) == 12,
		"offset of pfnguard_image_header.abi_minor");
PFNGUARD_ASSERT(offsetof(struct pfnguard_image_header, image_size) == 16,
		"offset of pfnguard_image_header.image_size");
PFNGUARD_ASSERT(offsetof(struct pfnguard_image_header, prepare) == 24,
		"offset of pfnguard_image_header.prepare");
PFNGUARD_ASSERT(offsetof(struct pfnguard_image_header, enter) == 32,
		"offset of pfnguard_image_header.enter");
PFNGUARD_ASSERT(sizeof(struct pfnguard_launch_info) == 424,
		"size of pfnguard_launch_info");
PFNGUARD_ASSERT(offsetof(struct pfnguard_launch_info, pages) == 0,
		"offset of pfnguard_launch_info.pages");
PFNGUARD_ASSERT(offsetof(struct pfnguard_launch_info, manifest) == 8,
		"offset of pfnguard_launch_info.manifest");
PFNGUARD_ASSERT(offsetof(struct pfnguard_launch_info, manifest_size) == 16,
		"offset of pfnguard_launch_info.manifest_size");
PFNGUARD_ASSERT(offsetof(struct pfnguard_launch_info, uart) == 24,
		"offset of pfnguard_launch_info.uart");
PFNGUARD_ASSERT(offsetof(struct pfnguard_launch_info, cpus) == 32,
		"offset of pfnguard_launch_info.cpus");
PFNGUARD_ASSERT(offsetof(struct pfnguard_launch_info, banks) == 36,
		"offset of pfnguard_launch_info.banks");
PFNGUARD_ASSERT(offsetof(struct pfnguard_launch_info, mpidr) == 40,
		"offset of pfnguard_launch_info.mpidr");
PFNGUARD_ASSERT(offsetof(struct pfnguard_launch_info, ram) == 168,
		"offset of pfnguard_launch_info.ram");
#undef PFNGUARD_ASSERT

#endif /* !assembly */

#endif /* _UAPI_PFNGUARD_H */
