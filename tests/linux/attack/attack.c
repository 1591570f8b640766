// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * What a kernel that has been taken over tries: accesses to a page that is not
 * its own, through its own alias of all RAM.
 *
 *   echo "read 0x7a200000" > /dev/attack
 *   echo "hvc 0" > /dev/attack
 *
 * Whoever writes dies of the abort; where the access goes through, the write
 * does too. Calls of the kernel's hyp-stub are made as they are, and answered
 * in the log.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

static ssize_t attack_write(struct file *file, const char __user *text,
			    size_t size, loff_t *pos)
{
	char order[32] = "";
	char what[8];
	u64 address;
	struct arm_smccc_res res;
	u64 *target;

	if (size >= sizeof(order) || copy_from_user(order, text, size))
		return -EFAULT;
	if (sscanf(order, "%7s %llx", what, &address) != 2)
		return -EINVAL;
	if (!strcmp(what, "hvc")) {
		/* Vectors and entry of an attacker, if there were a stub. */
		arm_smccc_1_1_hvc(address, 0x40000000, 0x40000000, &res);
		pr_info("hvc %llu answers %#lx\n", address, res.a0);
		return size;
	}
	target = phys_to_virt(address);
	pr_info("%s at %016lx\n", what, (unsigned long)target);
	if (!strcmp(what, "write"))
		WRITE_ONCE(*target, 0);
	else if (!strcmp(what, "read"))
		(void)READ_ONCE(*target);
	else
		return -EINVAL;
	return size;
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
