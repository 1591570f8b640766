// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * /dev/pfnguard: what programs ask for, and the files of their VMs.
 *
 * The device file can be mapped, read-only: the trace ring of CPU n lies at n
 * times the size of a ring.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include <asm/sysreg.h>

#include "args.h"
#include "user.h"

/* PAR_EL1.PA of a translation that succeeds. */
#define PAR_PA		GENMASK_ULL(51, 12)

/* Every argument of a call but CHECK's items. */
union argument {
	struct pfnguard_info_args info;
	struct pfnguard_region_args region;
	struct pfnguard_vm_args vm;
	struct pfnguard_tables_args tables;
	struct pfnguard_ram_args ram;
	struct pfnguard_bind_args bind;
	struct pfnguard_check_args check;
	struct pfnguard_guest_args guest;
};

static DEFINE_MUTEX(vms_lock);
static LIST_HEAD(vms);

/*
 * Copies an argument in; its decision is empty then. That it can be copied out
 * is tried before anything changes.
 */
static int take_argument(union argument *argument, void __user *from,
			 unsigned int call, struct pfnguard_decision *decision)
{
	if (copy_from_user(argument, from, _IOC_SIZE(call)))
		return -EFAULT;
	if (decision)
		*decision = (struct pfnguard_decision) { };
	if (copy_to_user(from, argument, _IOC_SIZE(call)))
		return -EFAULT;
	return 0;
}

/* Copies an argument out, whether the call was refused or not. */
static long return_argument(const union argument *argument, void __user *to,
			    unsigned int call, long ret)
{
	if (copy_to_user(to, argument, _IOC_SIZE(call)))
		return -EFAULT;
	return ret;
}

static long region(unsigned int call, struct pfnguard_region_args *args)
{
	int ret = pfnguard_region_args(args);

	if (ret)
		return ret;
	if (call == PFNGUARD_IOCTL_REGION_RESET) {
		if (!capable(CAP_SYS_ADMIN))
			return -EPERM;
		ret = pfnguard_region_reset(args->index, &args->decision);
	}
	return ret ? ret : pfnguard_region(args->index, &args->info,
					   &args->decision);
}

static void end_vm(struct pfnguard_user_vm *user)
{
	/* What a protected VM has bound ends with the VM: before its bindings go. */
	pfnguard_user_end_loans(user);
	pfnguard_vm_kill(user->vm);
	pfnguard_user_drop_bindings(user);
	pfnguard_user_destroy_vm(user);
	mmdrop(user->mm);
	kfree(user);
}

static int vm_release(struct inode *inode, struct file *file)
{
	struct pfnguard_user_vm *user = file->private_data;

	mutex_lock(&vms_lock);
	list_del(&user->node);
	mutex_unlock(&vms_lock);
	end_vm(user);
	return 0;
}

static int tables(unsigned int call, struct pfnguard_user_vm *user,
		  struct pfnguard_tables_args *args)
{
	int ret = pfnguard_tables_args(call, args);

	if (ret)
		return ret;
	if (call == PFNGUARD_IOCTL_ENABLE_MTE)
		return pfnguard_vm_enable_mte(user->vm, &args->decision);
	ret = pfnguard_user_lock_pages(user, args->tables);
	if (ret)
		return ret;
	ret = pfnguard_vm_add_tables(user->vm, args->tables, &args->decision);
	if (ret)
		pfnguard_user_unlock_pages(user, args->tables);
	return ret;
}

static int ram(unsigned int call, struct pfnguard_user_vm *user,
	       struct pfnguard_ram_args *args)
{
	int ret = pfnguard_ram_args(call, args);

	if (ret)
		return ret;
	switch (call) {
	case PFNGUARD_IOCTL_SHARE_RAM:
		return pfnguard_user_share(user, args);
	case PFNGUARD_IOCTL_UNSHARE_RAM:
		return pfnguard_user_unshare(user, args);
	default:
		return pfnguard_user_donate(user, args);
	}
}

static int guest(unsigned int call, struct pfnguard_user_vm *user,
		 struct pfnguard_guest_args *args)
{
	int ret = pfnguard_guest_args(args);

	if (ret)
		return ret;
	switch (call) {
	case PFNGUARD_IOCTL_MAP:
		return pfnguard_user_map(user, args);
	case PFNGUARD_IOCTL_UNBIND:
		return pfnguard_user_unbind(user, args);
	default:
		ret = pfnguard_probe(user->vm, PHYS_PFN(args->guest),
				     &args->value, &args->decision);
	}
	/* As in /proc/PID/pagemap: where pages lie is not for everybody. */
	if (!ret && !(args->value & SYS_PAR_EL1_F) && !capable(CAP_SYS_ADMIN))
		args->value &= ~PAR_PA;
	return ret;
}

static int check(struct pfnguard_user_vm *user,
		 const struct pfnguard_check_args *args)
{
	void __user *from = u64_to_user_ptr(args->items);
	struct pfnguard_bind_args *items;
	int ret = pfnguard_check_args(args);
	size_t size;

	if (ret)
		return ret;
	size = args->count * sizeof(*items);
	items = memdup_user(from, size);
	if (IS_ERR(items))
		return PTR_ERR(items);
	ret = pfnguard_user_check(user, items, args->count);
	if (!ret && copy_to_user(from, items, size))
		ret = -EFAULT;
	kfree(items);
	return ret;
}

static long vm_call(struct pfnguard_user_vm *user, unsigned int call,
		    void __user *user_argument)
{
	union argument argument;
	long ret;

	switch (call) {
	case PFNGUARD_IOCTL_ADD_TABLES:
	case PFNGUARD_IOCTL_ENABLE_MTE:
		ret = take_argument(&argument, user_argument, call,
				    &argument.tables.decision) ?:
		      tables(call, user, &argument.tables);
		break;
	case PFNGUARD_IOCTL_SHARE_RAM:
	case PFNGUARD_IOCTL_UNSHARE_RAM:
	case PFNGUARD_IOCTL_DONATE_RAM:
		ret = take_argument(&argument, user_argument, call,
				    &argument.ram.decision) ?:
		      ram(call, user, &argument.ram);
		break;
	case PFNGUARD_IOCTL_CHECK:
		return take_argument(&argument, user_argument, call, NULL) ?:
		       check(user, &argument.check);
	case PFNGUARD_IOCTL_BIND:
		ret = take_argument(&argument, user_argument, call,
				    &argument.bind.decision) ?:
		      pfnguard_user_bind(user, &argument.bind);
		break;
	case PFNGUARD_IOCTL_MAP:
	case PFNGUARD_IOCTL_UNBIND:
	case PFNGUARD_IOCTL_PROBE:
		ret = take_argument(&argument, user_argument, call,
				    &argument.guest.decision) ?:
		      guest(call, user, &argument.guest);
		break;
	default:
		return -ENOTTY;
	}
	return ret == -EFAULT ? ret : return_argument(&argument, user_argument,
						      call, ret);
}

static long vm_ioctl(struct file *file, unsigned int call, unsigned long arg)
{
	struct pfnguard_user_vm *user = file->private_data;
	long ret;

	/* What it binds and lends is its maker's. */
	if (current->mm != user->mm)
		return -EIO;
	if (mutex_lock_killable(&user->lock))
		return -EINTR;
	ret = vm_call(user, call, (void __user *)arg);
	mutex_unlock(&user->lock);
	return ret;
}

static const struct file_operations vm_fops = {
	.owner = THIS_MODULE,
	.release = vm_release,
	.unlocked_ioctl = vm_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static int make_vm(struct pfnguard_user_vm *user, struct pfnguard_vm_args *args)
{
	int ret;

	mutex_init(&user->lock);
	INIT_LIST_HEAD(&user->bindings);
	user->mm = current->mm;
	user->pid = task_tgid_nr(current);
	get_task_comm(user->comm, current);
	ret = pfnguard_user_lock_pages(user, args->tables);
	if (ret)
		return ret;
	user->vm = pfnguard_vm_create(args->contract, args->vcpus, args->tables,
				      &args->decision);
	if (IS_ERR(user->vm)) {
		pfnguard_user_unlock_pages(user, args->tables);
		return PTR_ERR(user->vm);
	}
	mmgrab(user->mm);
	return 0;
}

static long create_vm(struct pfnguard_vm_args *args)
{
	struct pfnguard_user_vm *user;
	int ret = pfnguard_vm_args(args);

	if (ret)
		return ret;
	user = kzalloc(sizeof(*user), GFP_KERNEL_ACCOUNT);
	if (!user)
		return -ENOMEM;
	ret = make_vm(user, args);
	if (ret) {
		kfree(user);
		return ret;
	}
	mutex_lock(&vms_lock);
	list_add_tail(&user->node, &vms);
	mutex_unlock(&vms_lock);
	/* From here on the file can be closed, by another thread too. */
	ret = anon_inode_getfd("pfnguard-vm", &vm_fops, user,
			       O_RDWR | O_CLOEXEC);
	if (ret < 0) {
		mutex_lock(&vms_lock);
		list_del(&user->node);
		mutex_unlock(&vms_lock);
		end_vm(user);
	}
	return ret;
}

static long device_ioctl(struct file *file, unsigned int call,
			 unsigned long arg)
{
	void __user *user_argument = (void __user *)arg;
	union argument argument;
	long ret;

	switch (call) {
	case PFNGUARD_IOCTL_INFO:
		ret = take_argument(&argument, user_argument, call, NULL) ?:
		      pfnguard_info(argument.info.selector,
				    argument.info.values);
		break;
	case PFNGUARD_IOCTL_REGION:
	case PFNGUARD_IOCTL_REGION_RESET:
		ret = take_argument(&argument, user_argument, call,
				    &argument.region.decision) ?:
		      region(call, &argument.region);
		break;
	case PFNGUARD_IOCTL_CREATE_VM:
		ret = take_argument(&argument, user_argument, call,
				    &argument.vm.decision) ?:
		      create_vm(&argument.vm);
		/* A file that was made is not taken back. */
		if (ret >= 0)
			return ret;
		break;
	default:
		return -ENOTTY;
	}
	return ret == -EFAULT ? ret : return_argument(&argument, user_argument,
						      call, ret);
}

static int device_mmap(struct file *file, struct vm_area_struct *vma)
{
	unsigned long pfn, pages, size = vma->vm_end - vma->vm_start;
	int ret = pfnguard_trace_ring(0, &pfn, &pages);

	if (ret)
		return ret;
	/* Its records have addresses of the kernel, and everybody's pages. */
	if (!perfmon_capable())
		return -EPERM;
	if (vma->vm_flags & (VM_WRITE | VM_EXEC) || vma->vm_pgoff % pages ||
	    size > pages << PAGE_SHIFT)
		return -EINVAL;
	if (vma->vm_pgoff / pages >= nr_cpu_ids)
		return -ENOENT;
	ret = pfnguard_trace_ring(vma->vm_pgoff / pages, &pfn, &pages);
	if (ret)
		return ret;
	vm_flags_clear(vma, VM_MAYWRITE | VM_MAYEXEC);
	return remap_pfn_range(vma, vma->vm_start, pfn, size,
			       vma->vm_page_prot);
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = device_mmap,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pfnguard",
	.fops = &device_fops,
	.mode = 0600,
};

/**
 * pfnguard_make_device() - show /dev/pfnguard
 *
 * Return: 0 or a negative errno.
 */
int __init pfnguard_make_device(void)
{
	return misc_register(&device);
}

/**
 * pfnguard_show_vms() - list the VMs of programs, and what they have
 * @out: gets the lines
 */
void pfnguard_show_vms(struct seq_file *out)
{
	struct pfnguard_user_vm *user;

	mutex_lock(&vms_lock);
	list_for_each_entry(user, &vms, node)
		pfnguard_user_show(user, out);
	mutex_unlock(&vms_lock);
}
