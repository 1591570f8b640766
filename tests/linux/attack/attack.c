// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * What a kernel that has been taken over tries: accesses to a page that is not
 * its own, through whatever alias it makes.
 *
 *   echo "read 0x7a200000" > /dev/attack	through the linear map; or write
 *   echo "exec 0x7a200000" > /dev/attack	through an executable alias
 *   echo "table 0x7a200000" > /dev/attack	as a table of translations
 *   echo "io 0x10000000" > /dev/attack	as a device's register; the answer is logged
 *   echo "pair 0x10000000" > /dev/attack	as two at once
 *   echo "hvc 0" > /dev/attack		a call of the kernel's hyp-stub
 *
 * Whoever writes dies of the abort; where the access goes through, the write
 * does too. What a table and the hyp-stub answer is in the log.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/mman.h>
#include <linux/mm.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

/* Accesses as a driver makes them, through a mapping of a device's memory. */
static int touch_io(u64 address)
{
	void __iomem *target = ioremap(address, PAGE_SIZE);

	if (!target)
		return -ENOMEM;
	writel(0, target);
	pr_info("io answers %#x %#x\n", readl(target), readw(target));
	iounmap(target);
	return 0;
}

/* A load of two registers, of which no syndrome tells. */
static int load_pair(u64 address)
{
	void __iomem *target = ioremap(address, PAGE_SIZE);
	u64 first, second;

	if (!target)
		return -ENOMEM;
	pr_info("pair at %016lx\n", (unsigned long)target);
	asm volatile("ldp %0, %1, [%2]"
		     : "=&r" (first), "=&r" (second) : "r" (target));
	iounmap(target);
	return 0;
}

static void flush_translations(void)
{
	dsb(ishst);
	asm volatile("tlbi vmalle1is");
	dsb(ish);
	isb();
}

/* Finds the kernel's own entry for an address. */
static pte_t *entry_of(unsigned long addr)
{
	phys_addr_t root = read_sysreg(ttbr1_el1) & GENMASK_ULL(47, 12);
	pgd_t *pgd = pgd_offset_pgd(phys_to_virt(root), addr);

	return pte_offset_kernel(pmd_offset(pud_offset(p4d_offset(pgd, addr), addr), addr), addr);
}

/* Jumps into a page through an executable alias of it. */
static int execute(u64 address)
{
	struct page *page = phys_to_page(address);
	void (*target)(void);
	pte_t *entry;

	target = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!target)
		return -ENOMEM;
	entry = entry_of((unsigned long)target);
	WRITE_ONCE(*entry, __pte(pte_val(READ_ONCE(*entry)) & ~PTE_PXN));
	flush_translations();
	pr_info("exec at %016lx\n", (unsigned long)target);
	target();
	vunmap(target);
	return 0;
}

/*
 * Puts a page in place of a table of the caller's own translations, and loads
 * through it. The load has a fixup: the answer is -EFAULT.
 */
static int walk_through(u64 address)
{
	unsigned long user = vm_mmap(NULL, 0, 2 * PMD_SIZE, PROT_READ,
				     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	unsigned long at = ALIGN(user, PMD_SIZE);
	pmd_t *pmd, old;
	u32 value;
	int ret;

	if (IS_ERR_VALUE(user) || get_user(value, (u32 __user *)at))
		return -ENOMEM;
	pmd = pmd_offset(pud_offset(p4d_offset(pgd_offset(current->mm, at), at), at), at);
	old = READ_ONCE(*pmd);
	preempt_disable();
	WRITE_ONCE(*pmd, __pmd(address | PMD_TYPE_TABLE));
	flush_translations();
	pagefault_disable();
	ret = get_user(value, (u32 __user *)at);
	pagefault_enable();
	WRITE_ONCE(*pmd, old);
	flush_translations();
	preempt_enable();
	pr_info("table answers %d\n", ret);
	vm_munmap(user, 2 * PMD_SIZE);
	return 0;
}

/* Loads or stores through the linear map. */
static int touch(const char *what, u64 address)
{
	u64 *target = phys_to_virt(address);

	pr_info("%s at %016lx\n", what, (unsigned long)target);
	if (!strcmp(what, "write"))
		WRITE_ONCE(*target, 0);
	else
		(void)READ_ONCE(*target);
	return 0;
}

/* Vectors and entry of an attacker, if there were a stub. */
static int call_stub(u64 number)
{
	struct arm_smccc_res res;

	arm_smccc_1_1_hvc(number, 0x40000000, 0x40000000, &res);
	pr_info("hvc %llu answers %#lx\n", number, res.a0);
	return 0;
}

static int attack(const char *what, u64 value)
{
	if (!strcmp(what, "hvc"))
		return call_stub(value);
	if (!strcmp(what, "io"))
		return touch_io(value);
	if (!strcmp(what, "pair"))
		return load_pair(value);
	if (!strcmp(what, "exec"))
		return execute(value);
	if (!strcmp(what, "table"))
		return walk_through(value);
	if (!strcmp(what, "read") || !strcmp(what, "write"))
		return touch(what, value);
	return -EINVAL;
}

static ssize_t attack_write(struct file *file, const char __user *text,
			    size_t size, loff_t *pos)
{
	char order[32] = "";
	char what[8];
	u64 value;
	int ret;

	if (size >= sizeof(order) || copy_from_user(order, text, size))
		return -EFAULT;
	if (sscanf(order, "%7s %llx", what, &value) != 2)
		return -EINVAL;
	ret = attack(what, value);
	return ret ? ret : size;
}

static const struct file_operations attack_fops = {
	.owner = THIS_MODULE,
	.write = attack_write,
};

static struct miscdevice attack_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "attack",
	.fops = &attack_fops,
};
module_misc_device(attack_device);

MODULE_DESCRIPTION("Attacks on pages that the kernel has lost");
MODULE_LICENSE("Dual MIT/GPL");
