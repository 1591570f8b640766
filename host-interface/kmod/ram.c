// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * Memory that programs lend and give to their VMs.
 *
 * What is lent is pinned: the kernel can neither free nor move it, whatever the
 * program does to its mappings. What is given are pages that no program ever
 * saw, with a copy: a page with a mapping could be touched by the kernel on
 * behalf of any system call, and the kernel would take the abort.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/mm.h>
#include <linux/uaccess.h>

#include "args.h"
#include "user.h"

/**
 * pfnguard_user_lock_pages() - count pages as locked
 * @user: the VM they are for
 * @count: how many
 *
 * Return: 0, or -ENOMEM over RLIMIT_MEMLOCK.
 */
int pfnguard_user_lock_pages(struct pfnguard_user_vm *user, unsigned long count)
{
	int ret = account_locked_vm(user->mm, count, true);

	if (!ret)
		user->locked += count;
	return ret;
}

/**
 * pfnguard_user_unlock_pages() - count pages no more
 * @user: the VM they were for
 * @count: how many
 */
void pfnguard_user_unlock_pages(struct pfnguard_user_vm *user,
				unsigned long count)
{
	account_locked_vm(user->mm, count, false);
	user->locked -= count;
}

/* Pins all of the caller's pages, or none. */
static int pin_pages(unsigned long address, struct page **pages,
		     unsigned long count, unsigned int flags)
{
	unsigned long done = 0;

	while (done < count) {
		int chunk = min(count - done, 512UL);
		int ret = pin_user_pages_fast(address + (done << PAGE_SHIFT),
					      chunk, flags, pages + done);

		if (ret <= 0 || fatal_signal_pending(current)) {
			unpin_user_pages(pages, done + max(ret, 0));
			return ret < 0 ? ret : ret ? -EINTR : -EFAULT;
		}
		done += ret;
		cond_resched();
	}
	return 0;
}

/* Pins, counts and lends. */
static int share(struct pfnguard_user_vm *user, struct pfnguard_ram_args *args,
		 struct page **pages, unsigned long count)
{
	int ret = pfnguard_user_lock_pages(user, count);

	if (ret)
		return ret;
	/* Always for writing: at the end all of them are marked as dirty. */
	ret = pin_pages(args->address, pages, count, FOLL_LONGTERM | FOLL_WRITE);
	if (!ret) {
		ret = pfnguard_share_pages(user->vm, pages, count,
					   PHYS_PFN(args->guest), args->perms,
					   &args->decision);
		/* Rather lost than used by two. */
		if (ret && !pfnguard_vm_is_stuck(user->vm))
			unpin_user_pages(pages, count);
	}
	if (ret)
		pfnguard_user_unlock_pages(user, count);
	return ret;
}

static struct page **alloc_list(unsigned long count)
{
	return kvcalloc(count, sizeof(struct page *), PFNGUARD_GFP);
}

/**
 * pfnguard_user_share() - lend pages of the caller
 * @user: the VM, locked
 * @args: where they are; good by pfnguard_ram_args()
 *
 * Return: 0 or a negative errno: then none is lent.
 */
int pfnguard_user_share(struct pfnguard_user_vm *user,
			struct pfnguard_ram_args *args)
{
	unsigned long count = PHYS_PFN(args->size);
	struct page **pages;
	int ret;

	/* More than there is would only be refused later. */
	if (count > totalram_pages())
		return -ENOMEM;
	pages = alloc_list(count);
	if (!pages)
		return -ENOMEM;
	ret = share(user, args, pages, count);
	kvfree(pages);
	return ret;
}

/**
 * pfnguard_user_unshare() - take back what was lent
 * @user: the VM, locked
 * @args: where the guest sees it; good by pfnguard_ram_args()
 *
 * Return: 0 or a negative errno: then all is as before.
 */
int pfnguard_user_unshare(struct pfnguard_user_vm *user,
			  struct pfnguard_ram_args *args)
{
	unsigned long count = PHYS_PFN(args->size);
	struct page **pages;
	int ret;

	if (count > user->locked)
		return -ENOENT;
	pages = alloc_list(count);
	if (!pages)
		return -ENOMEM;
	ret = pfnguard_unshare_pages(user->vm, pages, count,
				     PHYS_PFN(args->guest), &args->decision);
	if (!ret) {
		unpin_user_pages_dirty_lock(pages, count, true);
		pfnguard_user_unlock_pages(user, count);
	}
	kvfree(pages);
	return ret;
}

/* Gives @count new pages with a copy of what is at @address. */
static int donate(struct pfnguard_user_vm *user, struct pfnguard_ram_args *args,
		  unsigned long count)
{
	void *memory = alloc_pages_exact(args->size, PFNGUARD_GFP);
	int ret;

	if (!memory)
		return -ENOMEM;
	if (copy_from_user(memory, u64_to_user_ptr(args->address), args->size))
		ret = -EFAULT;
	else
		ret = pfnguard_donate_pages(user->vm, virt_to_page(memory),
					    count, PHYS_PFN(args->guest),
					    &args->decision);
	if (ret)
		free_pages_exact(memory, args->size);
	return ret;
}

/**
 * pfnguard_user_donate() - give pages with a copy of the caller's
 * @user: the VM, locked
 * @args: what is copied, and where the guest sees it; good by
 *	pfnguard_ram_args()
 *
 * Return: 0 or a negative errno: then nothing was given; -E2BIG for more than
 * PFNGUARD_MAX_RANGE_PAGES at once.
 */
int pfnguard_user_donate(struct pfnguard_user_vm *user,
			 struct pfnguard_ram_args *args)
{
	unsigned long count = PHYS_PFN(args->size);
	int ret;

	if (count > PFNGUARD_MAX_RANGE_PAGES)
		return -E2BIG;
	ret = pfnguard_user_lock_pages(user, count);
	if (ret)
		return ret;
	ret = donate(user, args, count);
	if (ret)
		pfnguard_user_unlock_pages(user, count);
	return ret;
}

static void unpin(struct page *page)
{
	unpin_user_pages_dirty_lock(&page, 1, true);
}

/**
 * pfnguard_user_end_loans() - take back all that the VM borrows
 * @user: the VM
 */
void pfnguard_user_end_loans(struct pfnguard_user_vm *user)
{
	pfnguard_vm_end_loans(user->vm, unpin);
}

/**
 * pfnguard_user_destroy_vm() - end the VM, and what it has of the program's
 * @user: the VM
 */
void pfnguard_user_destroy_vm(struct pfnguard_user_vm *user)
{
	pfnguard_vm_destroy(user->vm, unpin);
	pfnguard_user_unlock_pages(user, user->locked);
}
