// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * Regions that programs bind: tied to the mapping that the program has of them.
 *
 * The mapping says which pages are meant, whether they are for the program to
 * give, and how the kernel maps them. Its file stays open while they are bound.
 * When the mapping changes or goes, the binding ends before the change takes
 * effect (an MMU interval notifier); a protected VM that owns the pages cannot
 * lose them alone, and is torn down.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "args.h"
#include "user.h"

/**
 * struct binding - pages of a region in a VM
 * @node: in the VM's list
 * @notifier: hears of changes of the program's mapping
 * @user: the VM
 * @file: what the mapping is of
 * @request: what was granted
 * @lock: held while it begins, ends or is installed
 * @bound: whether it has not ended
 */
struct binding {
	struct list_head node;
	struct mmu_interval_notifier notifier;
	struct pfnguard_user_vm *user;
	struct file *file;
	struct pfnguard_request request;
	spinlock_t lock;
	bool bound;
};

/* Ends a binding whose mapping changes, in whatever context that happens. */
static void end_binding(struct binding *binding)
{
	struct pfnguard_vm *vm = binding->user->vm;

	if (!binding->bound)
		return;
	binding->bound = false;
	if (pfnguard_unbind(vm, binding->request.ipa_pfn, NULL, NULL))
		pfnguard_vm_kill(vm);
	fput(binding->file);
	binding->file = NULL;
}

static bool mapping_changes(struct mmu_interval_notifier *notifier,
			    const struct mmu_notifier_range *range,
			    unsigned long seq)
{
	struct binding *binding = container_of(notifier, struct binding,
					       notifier);

	spin_lock(&binding->lock);
	mmu_interval_set_seq(notifier, seq);
	end_binding(binding);
	spin_unlock(&binding->lock);
	return true;
}

static const struct mmu_interval_notifier_ops notifier_ops = {
	.invalidate = mapping_changes,
};

/* How the kernel maps a page, in the hypervisor's terms. */
static u8 alias_of(pgprot_t prot)
{
	switch (pgprot_val(prot) & PTE_ATTRINDX_MASK) {
	case PTE_ATTRINDX(MT_NORMAL):
	case PTE_ATTRINDX(MT_NORMAL_TAGGED):
		return PFNGUARD_ALIAS_CACHEABLE;
	default:
		return PFNGUARD_ALIAS_UNCACHED;
	}
}

/* Whether the mapping is one that the program may bind like this. */
static int judge_mapping(struct vm_area_struct *vma, unsigned long start,
			 struct pfnguard_request *request,
			 struct pfnguard_decision *why)
{
	/* Of fetches the mapping says nothing; the manifest does. */
	u8 perms = PFNGUARD_PERM_EXEC;

	if (!vma || request->pages > PHYS_PFN(vma->vm_end - start) ||
	    !(vma->vm_flags & VM_PFNMAP) || !vma->vm_file)
		return pfnguard_refuse(why, PFNGUARD_STATUS_INVALID_PARAMETER,
				       0, 0, 0, 0);
	if (vma->vm_flags & VM_READ)
		perms |= PFNGUARD_PERM_READ;
	if (vma->vm_flags & VM_WRITE)
		perms |= PFNGUARD_PERM_WRITE;
	if (request->perms & PFNGUARD_PERM_READ & ~perms ||
	    request->perms & PFNGUARD_PERM_WRITE & ~perms)
		return pfnguard_refuse(why, PFNGUARD_STATUS_DENIED,
				       PFNGUARD_RULE_R02,
				       PFNGUARD_SUBJECT_PERMISSIONS,
				       request->perms, perms);
	/* Its driver does not say that Normal-NC is safe. */
	if (request->mem_type == PFNGUARD_TYPE_ANY_UNCACHED &&
	    !(vma->vm_flags & VM_ALLOW_ANY_UNCACHED))
		return pfnguard_refuse(why, PFNGUARD_STATUS_DENIED,
				       PFNGUARD_RULE_R04,
				       PFNGUARD_SUBJECT_TYPES,
				       PFNGUARD_TYPES_ANY_UNCACHED,
				       PFNGUARD_TYPES_DEVICE);
	if (is_cow_mapping(vma->vm_flags))
		request->flags |= PFNGUARD_REQUEST_COW;
	return 0;
}

/*
 * Looks a page up, and has it mapped if it is not. -EAGAIN where the mappings
 * could have changed meanwhile.
 */
static int look_up(struct vm_area_struct *vma, unsigned long address,
		   bool write, struct follow_pfnmap_args *page)
{
	bool unlocked = false;
	int ret;

	*page = (struct follow_pfnmap_args) { .vma = vma, .address = address };
	if (!follow_pfnmap_start(page)) {
		if (!write || page->writable)
			return 0;
		follow_pfnmap_end(page);
	}
	ret = fixup_user_fault(vma->vm_mm, address,
			       write ? FAULT_FLAG_WRITE : 0, &unlocked);
	if (ret || unlocked)
		return ret ? ret : -EAGAIN;
	ret = follow_pfnmap_start(page);
	if (!ret && write && !page->writable) {
		follow_pfnmap_end(page);
		return -EFAULT;
	}
	return ret;
}

/* Finds the pages, which have to lie in a row and be mapped alike. */
static int find_pages(struct vm_area_struct *vma, unsigned long start,
		      struct pfnguard_request *request)
{
	bool write = request->perms & PFNGUARD_PERM_WRITE;
	u64 i;

	for (i = 0; i < request->pages; i++) {
		struct follow_pfnmap_args page;
		int ret = look_up(vma, start + (i << PAGE_SHIFT), write, &page);
		unsigned long pfn;
		u8 alias;

		if (ret)
			return ret;
		pfn = page.pfn;
		alias = alias_of(page.pgprot);
		follow_pfnmap_end(&page);
		if (!i) {
			request->pfn = pfn;
			request->alias = alias;
		} else if (pfn != request->pfn + i || alias != request->alias) {
			return -EINVAL;
		}
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static int resolve_once(struct mm_struct *mm, unsigned long start,
			struct pfnguard_request *request, struct file **file,
			struct pfnguard_decision *why)
{
	struct vm_area_struct *vma;
	int ret = mmap_read_lock_killable(mm);

	if (ret)
		return ret;
	vma = vma_lookup(mm, start);
	ret = judge_mapping(vma, start, request, why);
	if (!ret)
		ret = find_pages(vma, start, request);
	if (!ret && file)
		*file = get_file(vma->vm_file);
	mmap_read_unlock(mm);
	return ret;
}

/* Completes a request with what the caller's mapping says. */
static int resolve(struct mm_struct *mm, unsigned long start,
		   struct pfnguard_request *request, struct file **file,
		   struct pfnguard_decision *why)
{
	u8 flags = request->flags;
	int ret;

	do {
		if (fatal_signal_pending(current))
			return -EINTR;
		request->flags = flags;
		ret = resolve_once(mm, start, request, file, why);
	} while (ret == -EAGAIN);
	return ret;
}

/* Binds what the mapping is of, unless the mapping has changed: -EAGAIN. */
static int bind_once(struct binding *binding, struct pfnguard_bind_args *args)
{
	struct pfnguard_request request;
	unsigned long seq;
	int ret;

	/* Good: it was judged before. */
	pfnguard_bind_args(args, &request);
	seq = mmu_interval_read_begin(&binding->notifier);
	ret = resolve(binding->user->mm, args->address, &request,
		      &binding->file, &args->decision);
	if (ret)
		return ret;
	spin_lock(&binding->lock);
	if (mmu_interval_read_retry(&binding->notifier, seq)) {
		ret = -EAGAIN;
	} else {
		ret = pfnguard_bind(binding->user->vm, &request,
				    &args->decision);
		binding->request = request;
		binding->bound = !ret;
	}
	spin_unlock(&binding->lock);
	if (ret) {
		fput(binding->file);
		binding->file = NULL;
	}
	return ret;
}

/* Lets go of a binding that has ended or never began. */
static void free_binding(struct binding *binding)
{
	mmu_interval_notifier_remove(&binding->notifier);
	if (binding->file)
		fput(binding->file);
	kfree(binding);
}

static bool is_bound(struct binding *binding)
{
	bool bound;

	spin_lock(&binding->lock);
	bound = binding->bound;
	spin_unlock(&binding->lock);
	return bound;
}

/* Lets go of all bindings that have ended by themselves. */
static void sweep(struct pfnguard_user_vm *user)
{
	struct binding *binding, *next;

	list_for_each_entry_safe(binding, next, &user->bindings, node) {
		if (!is_bound(binding)) {
			list_del(&binding->node);
			free_binding(binding);
		}
	}
}

static struct binding *new_binding(struct pfnguard_user_vm *user,
				   const struct pfnguard_bind_args *args)
{
	struct binding *binding = kzalloc(sizeof(*binding), GFP_KERNEL_ACCOUNT);
	int ret;

	if (!binding)
		return ERR_PTR(-ENOMEM);
	spin_lock_init(&binding->lock);
	binding->user = user;
	ret = mmu_interval_notifier_insert(&binding->notifier, user->mm,
					   args->address, args->size,
					   &notifier_ops);
	if (ret) {
		kfree(binding);
		return ERR_PTR(ret);
	}
	return binding;
}

/**
 * pfnguard_user_bind() - bind what the caller has mapped
 * @user: the VM, locked
 * @args: what is asked for; its decision says why not
 *
 * Return: 0 or a negative errno.
 */
int pfnguard_user_bind(struct pfnguard_user_vm *user,
		       struct pfnguard_bind_args *args)
{
	struct pfnguard_request request;
	struct binding *binding;
	int ret = pfnguard_bind_args(args, &request);

	if (ret)
		return ret;
	sweep(user);
	binding = new_binding(user, args);
	if (IS_ERR(binding))
		return PTR_ERR(binding);
	do {
		ret = bind_once(binding, args);
	} while (ret == -EAGAIN);
	if (ret)
		free_binding(binding);
	else
		list_add_tail(&binding->node, &user->bindings);
	return ret;
}

/* Says of one item what can be said without the hypervisor. */
static int judge_item(struct pfnguard_user_vm *user,
		      struct pfnguard_bind_args *item,
		      struct pfnguard_request *request)
{
	int ret = pfnguard_bind_args(item, request);

	item->decision = (struct pfnguard_decision) { };
	if (!ret)
		ret = resolve(user->mm, item->address, request, NULL,
			      &item->decision);
	if (ret && !item->decision.status)
		pfnguard_refuse(&item->decision,
				PFNGUARD_STATUS_INVALID_PARAMETER, 0, 0, 0, 0);
	request->vm = pfnguard_vm_number(user->vm);
	return ret;
}

/**
 * pfnguard_user_check() - say what binding each of some items would answer
 * @user: the VM, locked
 * @items: what would be asked for; each gets its decision
 * @count: how many, at most PFNGUARD_MAX_CHECK_ITEMS
 *
 * Return: 0, or a negative errno if there are no answers.
 */
int pfnguard_user_check(struct pfnguard_user_vm *user,
			struct pfnguard_bind_args *items, u32 count)
{
	struct {
		struct pfnguard_request requests[PFNGUARD_MAX_CHECK_ITEMS];
		struct pfnguard_decision decisions[PFNGUARD_MAX_CHECK_ITEMS];
		u8 item[PFNGUARD_MAX_CHECK_ITEMS];
	} *batch = kzalloc(sizeof(*batch), GFP_KERNEL_ACCOUNT);
	u32 i, left = 0;
	int ret = 0;

	if (!batch)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		if (!judge_item(user, &items[i], &batch->requests[left]))
			batch->item[left++] = i;
	}
	if (fatal_signal_pending(current))
		ret = -EINTR;
	else if (left)
		ret = pfnguard_check(batch->requests, batch->decisions, left);
	for (i = 0; i < left && !ret; i++)
		items[batch->item[i]].decision = batch->decisions[i];
	kfree(batch);
	return ret;
}

static struct binding *find_binding(struct pfnguard_user_vm *user,
				    const struct pfnguard_guest_args *args)
{
	struct binding *binding;

	sweep(user);
	list_for_each_entry(binding, &user->bindings, node) {
		if (binding->request.ipa_pfn == PHYS_PFN(args->guest))
			return binding;
	}
	return NULL;
}

/**
 * pfnguard_user_map() - install a binding, while its mapping is what it was
 * @user: the VM, locked
 * @args: which binding
 *
 * Return: 0; -ENOENT for no binding, or one that has ended.
 */
int pfnguard_user_map(struct pfnguard_user_vm *user,
		      struct pfnguard_guest_args *args)
{
	struct binding *binding = find_binding(user, args);
	int ret = -ENOENT;

	if (!binding)
		return ret;
	spin_lock(&binding->lock);
	if (binding->bound)
		ret = pfnguard_map(user->vm, binding->request.ipa_pfn,
				   &args->decision);
	spin_unlock(&binding->lock);
	return ret;
}

/**
 * pfnguard_user_unbind() - end a binding
 * @user: the VM, locked
 * @args: which binding; gets the state of the region
 *
 * Return: 0; -ENOENT for no binding, or one that has ended; -EPERM for what a
 * protected VM owns.
 */
int pfnguard_user_unbind(struct pfnguard_user_vm *user,
			 struct pfnguard_guest_args *args)
{
	struct binding *binding = find_binding(user, args);
	int ret = -ENOENT;

	if (!binding)
		return ret;
	spin_lock(&binding->lock);
	if (binding->bound) {
		ret = pfnguard_unbind(user->vm, binding->request.ipa_pfn,
				      &args->value, &args->decision);
		binding->bound = ret;
	}
	spin_unlock(&binding->lock);
	sweep(user);
	return ret;
}

/**
 * pfnguard_user_drop_bindings() - forget all bindings of a VM that is dead
 * @user: the VM
 */
void pfnguard_user_drop_bindings(struct pfnguard_user_vm *user)
{
	struct binding *binding, *next;

	list_for_each_entry_safe(binding, next, &user->bindings, node) {
		list_del(&binding->node);
		free_binding(binding);
	}
}

/**
 * pfnguard_user_show() - list a VM, what it has, and its bindings
 * @user: the VM
 * @out: gets the lines
 */
void pfnguard_user_show(struct pfnguard_user_vm *user, struct seq_file *out)
{
	struct binding *binding;

	/* Who holds it may wait for memory that never comes. */
	if (!mutex_trylock(&user->lock)) {
		seq_printf(out, "busy vm=%#x\n", pfnguard_vm_number(user->vm));
		return;
	}
	pfnguard_vm_show(user->vm, user->pid, user->comm, out);
	list_for_each_entry(binding, &user->bindings, node) {
		const struct pfnguard_request *it = &binding->request;

		if (pfnguard_vm_has_bindings(user->vm) && is_bound(binding))
			seq_printf(out, "bind vm=%#x ipa=%#llx pfn=%#llx pages=%#llx mode=%#x type=%#x perms=%#x flags=%#x\n",
				   it->vm, it->ipa_pfn, it->pfn, it->pages,
				   it->mode, it->mem_type, it->perms, it->flags);
	}
	mutex_unlock(&user->lock);
}
