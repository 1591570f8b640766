// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * Launch of the hypervisor under the running kernel.
 *
 * The kernel was entered at EL2, left its hyp-stub there and runs at EL1. The
 * stub (Documentation/virt/kvm/arm/hyp-abi.rst) lets anybody at EL1 run code at
 * EL2; this uses it for the last time. Nothing is changed before all CPUs have
 * been checked, and a launch that is refused leaves the kernel as it was. What
 * the steps are is said in pfnguard.h and in the crate pfnguard-shared.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/acpi.h>
#include <linux/arm-smccc.h>
#include <linux/cpumask.h>
#include <linux/io.h>
#include <linux/irqdomain.h>
#include <linux/mm.h>
#include <linux/of.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>

#include <asm/cputype.h>
#include <asm/sysreg.h>
#include <asm/virt.h>

#include "kmod.h"

/* No call of the stub, of KVM or of the hypervisor. */
#define HVC_NOBODY	0x7fffffffUL

/* What an entry of the payload answers. */
struct answer {
	unsigned long code;
	unsigned long first;
	unsigned long second;
};

/* A launch on its way. */
struct launch {
	struct pfnguard_launch_info *info;
	struct pfnguard_memory memory;
	phys_addr_t prepare;
	phys_addr_t enter;
	/* CPUs that have come to the check, and whose turn it is. */
	atomic_t tickets;
	unsigned int turn;
	bool refused;
};

/* Runs the payload's @entry at EL2, on this CPU, with interrupts off. */
static struct answer __init run_at_el2(phys_addr_t entry, unsigned long arg)
{
	register unsigned long x0 asm("x0") = HVC_SOFT_RESTART;
	register unsigned long x1 asm("x1") = entry;
	register unsigned long x2 asm("x2") = arg;

	/* The payload gives x18 to x30 back and changes nothing else of EL1. */
	asm volatile("hvc	#0"
		     : "+r" (x0), "+r" (x1), "+r" (x2)
		     :
		     : "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11",
		       "x12", "x13", "x14", "x15", "x16", "x17", "cc", "memory");
	return (struct answer) { x0, x1, x2 };
}

/* Writes lines back to memory, where EL2 with its MMU off looks, and drops them. */
static void __init clean_to_memory(const void *start, size_t size)
{
	unsigned long line = 4UL << ((read_cpuid_cachetype() >> 16) & 0xf);
	unsigned long addr = (unsigned long)start & ~(line - 1);

	for (; addr < (unsigned long)start + size; addr += line)
		asm volatile("dc civac, %0" : : "r" (addr) : "memory");
	dsb(sy);
}

/* Says why the payload refused. */
static void __init explain(const struct answer *answer)
{
	const char *text = phys_to_virt(answer->first);

	if (!answer->first) {
		pr_err("launch refused: a CPU that the kernel did not name\n");
		return;
	}
	clean_to_memory(text, answer->second);
	pr_err("launch refused: %.*s\n", (int)answer->second, text);
}

/*
 * Whether firmware starts CPUs, and is called by SMC. Under a hypervisor it is
 * HVC, and there is no stub. Without PSCI a CPU may wait for the host elsewhere.
 */
static bool __init has_psci_by_smc(void)
{
	struct device_node *psci = of_find_node_by_path("/psci");
	const char *method;
	bool smc;

	smc = psci && !of_property_read_string(psci, "method", &method) &&
	      !strcmp(method, "smc");
	of_node_put(psci);
	return smc && arm_smccc_1_1_get_conduit() != SMCCC_CONDUIT_HVC;
}

/*
 * Whether the kernel drives a GIC ITS. An ITS writes to memory that its command
 * queue names, past every stage 2: the hypervisor closes it.
 */
static bool __init its_in_use(void)
{
	struct device_node *node;

	for_each_compatible_node(node, NULL, "arm,gic-v3-its") {
		if (irq_find_matching_host(node, DOMAIN_BUS_ANY)) {
			of_node_put(node);
			return true;
		}
	}
	return false;
}

/* Checks what can be seen from EL1. */
static int __init check_kernel(void)
{
	struct arm_smccc_res res;

	if (read_sysreg(CurrentEL) != CurrentEL_EL1) {
		pr_err("the kernel itself runs at EL2: boot with kvm-arm.mode=none id_aa64mmfr1.vh=0\n");
		return -ENODEV;
	}
	if (!acpi_disabled) {
		pr_err("this machine is described by ACPI, which this module cannot read: boot with acpi=off\n");
		return -ENODEV;
	}
	if (!has_psci_by_smc() ||
	    !(read_cpuid(ID_AA64PFR0_EL1) & ID_AA64PFR0_EL1_EL2_MASK)) {
		pr_err("no EL2 under this kernel: boot it at EL2, with PSCI by SMC (QEMU: -M virt,virtualization=on)\n");
		return -ENODEV;
	}
	arm_smccc_1_1_hvc(PFNGUARD_FN_UID, &res);
	if (res.a0 == PFNGUARD_HOST_UID_0 && res.a1 == PFNGUARD_HOST_UID_1) {
		pr_err("pfnguard is at EL2 already\n");
		return -EALREADY;
	}
	arm_smccc_1_1_hvc(HVC_NOBODY, &res);
	if (res.a0 != HVC_STUB_ERR) {
		pr_err("KVM or somebody else owns EL2: boot with kvm-arm.mode=none\n");
		return -EBUSY;
	}
	if (its_in_use()) {
		pr_err("the kernel uses the GIC's ITS, which writes to all memory: boot with irqchip.gicv3_nolpi=1\n");
		return -EBUSY;
	}
	return 0;
}

static void __init read_mpidr(void *arg)
{
	*(u64 *)arg = read_cpuid_mpidr() & MPIDR_HWID_BITMASK;
}

/* Lists all CPUs; a CPU that came later could not be checked now. */
static int __init list_cpus(struct pfnguard_launch_info *info)
{
	unsigned int cpu;

	if (num_possible_cpus() > ARRAY_SIZE(info->mpidr)) {
		pr_err("%u CPUs: this hypervisor knows at most %zu\n",
		       num_possible_cpus(), ARRAY_SIZE(info->mpidr));
		return -E2BIG;
	}
	/* One that is not present may wait in the kernel's text, with the stub. */
	for_each_possible_cpu(cpu) {
		if (smp_call_function_single(cpu, read_mpidr,
					     &info->mpidr[info->cpus], true)) {
			pr_err("CPU %u is offline: bring all CPUs online first\n", cpu);
			return -EBUSY;
		}
		info->cpus++;
	}
	return 0;
}

static const struct pfnguard_image_header *__init image_header(void)
{
	return (const void *)pfnguard_payload + PFNGUARD_IMAGE_HEADER_OFFSET;
}

/* Checks that the image is one, and of this module's version. */
static int __init check_image(void)
{
	const struct pfnguard_image_header *header = image_header();
	size_t bytes = pfnguard_payload_end - pfnguard_payload;

	if (bytes < PFNGUARD_IMAGE_HEADER_OFFSET + sizeof(*header) ||
	    header->magic != PFNGUARD_IMAGE_MAGIC ||
	    header->abi_major != PFNGUARD_ABI_MAJOR ||
	    header->abi_minor != PFNGUARD_ABI_MINOR ||
	    header->image_size < bytes) {
		pr_err("the module was built with another version's payload: build it again\n");
		return -ENOEXEC;
	}
	return 0;
}

/* Puts the payload's image into the memory that was taken. */
static void __init place_image(struct launch *launch)
{
	const struct pfnguard_image_header *header = image_header();
	size_t bytes = pfnguard_payload_end - pfnguard_payload;
	void *target = pfn_to_kaddr(launch->memory.pfn);
	phys_addr_t base = PFN_PHYS(launch->memory.pfn);

	memcpy(target, pfnguard_payload, bytes);
	memset(target + bytes, 0, (launch->memory.pages << PAGE_SHIFT) - bytes);
	clean_to_memory(target, launch->memory.pages << PAGE_SHIFT);
	asm volatile("ic ialluis");
	dsb(ish);
	isb();
	launch->prepare = base + header->prepare;
	launch->enter = base + header->enter;
	launch->info->pages = launch->memory.pages;
	clean_to_memory(launch->info, sizeof(*launch->info));
}

static struct answer __init run_prepare(struct launch *launch)
{
	struct answer answer;
	unsigned long flags;

	local_irq_save(flags);
	answer = run_at_el2(launch->prepare, virt_to_phys(launch->info));
	local_irq_restore(flags);
	return answer;
}

/* Gives the hypervisor memory until it has enough, and lets it get ready. */
static int __init prepare(struct launch *launch)
{
	unsigned long pages = PFN_UP(image_header()->image_size);

	for (;;) {
		struct answer answer;
		int ret = pfnguard_take_memory(launch->info, pages,
					       &launch->memory);

		if (ret)
			return ret;
		place_image(launch);
		answer = run_prepare(launch);
		if (answer.code == PFNGUARD_LAUNCHED_DONE)
			return 0;
		if (answer.code != PFNGUARD_LAUNCHED_MORE_MEMORY) {
			explain(&answer);
			return -EINVAL;
		}
		if (WARN_ON(answer.first <= pages))
			return -EINVAL;
		pfnguard_free_memory(&launch->memory);
		pages = answer.first;
	}
}

/* Checks this CPU when it is its turn. */
static void __init check_cpu(struct launch *launch)
{
	unsigned int ticket = atomic_inc_return(&launch->tickets) - 1;
	struct answer answer;

	/* Sees what the CPU before found: pairs with its release below. */
	while (smp_load_acquire(&launch->turn) != ticket)
		cpu_relax();
	answer = run_at_el2(launch->enter, PFNGUARD_LAUNCH_CHECK);
	if (answer.code != PFNGUARD_LAUNCHED_DONE) {
		explain(&answer);
		launch->refused = true;
	}
	/* What this CPU found is there before the next one looks. */
	smp_store_release(&launch->turn, ticket + 1);
}

/* On every CPU at once: all of them enter, or none does. */
static int __init take_el2(void *data)
{
	struct launch *launch = data;

	/* Somebody may have left before all were stopped. */
	if (num_online_cpus() != launch->info->cpus)
		return -EAGAIN;
	check_cpu(launch);
	/* All verdicts are in: pairs with each CPU's release. */
	while (smp_load_acquire(&launch->turn) != launch->info->cpus)
		cpu_relax();
	if (launch->refused)
		return -ENODEV;
	run_at_el2(launch->enter, PFNGUARD_LAUNCH_COMMIT);
	return 0;
}

static int __init launch_with(struct launch *launch)
{
	int ret = list_cpus(launch->info);

	if (!ret)
		ret = pfnguard_list_ram(launch->info);
	if (!ret)
		ret = prepare(launch);
	if (!ret)
		ret = stop_machine(take_el2, launch, cpu_present_mask);
	if (ret == -EAGAIN)
		pr_err("a CPU went offline during launch: bring it online and try again\n");
	if (ret) {
		pfnguard_free_memory(&launch->memory);
		return ret;
	}
	pfnguard_keep_memory(&launch->memory);
	pr_info("EL2 taken on %u CPUs, memory %#llx..%#llx\n",
		launch->info->cpus, PFN_PHYS(launch->memory.pfn),
		PFN_PHYS(launch->memory.pfn + launch->memory.pages));
	return 0;
}

/**
 * pfnguard_launch() - put the hypervisor under this kernel, for good
 * @manifest: the platform-safety manifest
 * @size: its bytes
 * @uart: physical address of a PL011 for what goes wrong at EL2, or 0
 *
 * Says in one line what is wrong, and changes nothing then.
 *
 * Return: 0; -ENODEV where EL2 cannot be had or a CPU differs from another,
 * -EALREADY and -EBUSY where somebody has it, -EBUSY and -EAGAIN where a CPU is
 * offline, -EINVAL where the hypervisor refuses, -ENOEXEC, -ENOMEM, -E2BIG.
 */
int __init pfnguard_launch(const void *manifest, size_t size, phys_addr_t uart)
{
	struct launch launch = { .tickets = ATOMIC_INIT(0) };
	void *copy;
	int ret = check_image();

	if (!ret)
		ret = check_kernel();
	if (ret)
		return ret;
	/* What EL2 reads with its MMU off has no alias and one address. */
	copy = kmemdup(manifest, size, GFP_KERNEL);
	launch.info = kzalloc(sizeof(*launch.info), GFP_KERNEL);
	if (copy && launch.info) {
		clean_to_memory(copy, size);
		launch.info->manifest = virt_to_phys(copy);
		launch.info->manifest_size = size;
		launch.info->uart = uart;
		ret = launch_with(&launch);
	} else {
		ret = -ENOMEM;
	}
	kfree(launch.info);
	kfree(copy);
	return ret;
}
