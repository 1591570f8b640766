// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * VMs, as parts of the kernel make them: memory that they borrow and own.
 *
 * What the hypervisor has is marked as offline, so that nobody who reads all of
 * memory trips over it, and is only freed once the hypervisor has given it back.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/err.h>
#include <linux/export.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/unaligned.h>
#include <linux/xarray.h>

#include "kmod.h"

/* Low bits of an entry of pfnguard_vm.pages: permissions, whose page, and whether a loan begins. */
#define PERMS_MASK	0x7UL
#define GIVEN		BIT(3)
#define FIRST		BIT(4)
#define PFN_SHIFT	5

/**
 * struct pfnguard_vm - a VM of the hypervisor
 * @lock: held while its memory changes
 * @pages: pages that it borrows or owns, by intermediate page number
 * @tables: runs of pages for its tables, by their first page
 * @contract: PFNGUARD_CONTRACT_* bits
 * @vcpus: number of vCPUs
 * @number: the hypervisor's name of it
 * @killing: held while it is torn down
 * @dead: it was torn down, or that was tried
 * @stuck: that failed: what it has stays lost
 */
struct pfnguard_vm {
	struct mutex lock;
	struct xarray pages;
	struct xarray tables;
	u32 contract;
	u32 vcpus;
	u16 number;
	spinlock_t killing;
	bool dead;
	bool stuck;
};

static unsigned long pfn_of(const void *entry)
{
	return xa_to_value(entry) >> PFN_SHIFT;
}

static void mark_offline(struct page *page, unsigned long count)
{
	unsigned long i;

	for (i = 0; i < count; i++)
		__SetPageOffline(page + i);
}

/* Frees pages that the hypervisor has given back. */
static void free_returned(unsigned long pfn, unsigned long count)
{
	unsigned long i;

	for (i = 0; i < count; i++) {
		__ClearPageOffline(pfn_to_page(pfn + i));
		__free_page(pfn_to_page(pfn + i));
	}
}

static void *alloc_tables(u32 tables)
{
	if (!tables || tables > PFNGUARD_MAX_TABLES)
		return ERR_PTR(-EINVAL);
	return alloc_pages_exact((size_t)tables << PAGE_SHIFT,
				 PFNGUARD_GFP | __GFP_ZERO) ?:
	       ERR_PTR(-ENOMEM);
}

/* Gives @tables pages to the hypervisor with a call that names the first. */
static int give_tables(struct pfnguard_vm *vm, struct arm_smccc_1_2_regs *regs,
		       unsigned long *pfn, u32 tables,
		       struct pfnguard_decision *why)
{
	void *memory = alloc_tables(tables);
	unsigned long first;
	int ret;

	if (IS_ERR(memory))
		return PTR_ERR(memory);
	first = PHYS_PFN(__pa(memory));
	ret = xa_insert(&vm->tables, first, xa_mk_value(tables),
			GFP_KERNEL_ACCOUNT);
	if (!ret) {
		*pfn = first;
		ret = pfnguard_call(regs, why);
		if (ret)
			xa_erase(&vm->tables, first);
	}
	if (ret)
		free_pages_exact(memory, (size_t)tables << PAGE_SHIFT);
	else
		mark_offline(pfn_to_page(first), tables);
	return ret;
}

/**
 * pfnguard_vm_create() - make a VM
 * @contract: PFNGUARD_CONTRACT_* bits
 * @vcpus: number of vCPUs
 * @tables: pages for its tables, 1 to PFNGUARD_MAX_TABLES
 * @why: gets the reason of a refusal; may be NULL
 *
 * Return: the VM, for pfnguard_vm_destroy(), or an ERR_PTR: -EINVAL, -ENOMEM,
 * -EPERM.
 */
struct pfnguard_vm *pfnguard_vm_create(u32 contract, u32 vcpus, u32 tables,
				       struct pfnguard_decision *why)
{
	struct pfnguard_vm *vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_VM_CREATE,
		.a1 = contract,
		.a2 = vcpus,
		.a4 = tables,
	};
	int ret;

	if (!vm)
		return ERR_PTR(-ENOMEM);
	mutex_init(&vm->lock);
	spin_lock_init(&vm->killing);
	xa_init(&vm->pages);
	xa_init(&vm->tables);
	ret = give_tables(vm, &regs, &regs.a3, tables, why);
	if (ret) {
		xa_destroy(&vm->tables);
		kfree(vm);
		return ERR_PTR(ret);
	}
	vm->contract = contract;
	vm->vcpus = vcpus;
	vm->number = regs.a1;
	return vm;
}
EXPORT_SYMBOL_GPL(pfnguard_vm_create);

/**
 * pfnguard_vm_number() - the hypervisor's name of a VM
 * @vm: the VM
 *
 * Return: the number.
 */
u16 pfnguard_vm_number(const struct pfnguard_vm *vm)
{
	return vm->number;
}
EXPORT_SYMBOL_GPL(pfnguard_vm_number);

/**
 * pfnguard_vm_add_tables() - give a VM more memory for tables
 * @vm: the VM
 * @tables: pages, 1 to PFNGUARD_MAX_TABLES
 * @why: gets the reason of a refusal; may be NULL
 *
 * Return: 0, -EINVAL, -ENOMEM, -EPERM.
 */
int pfnguard_vm_add_tables(struct pfnguard_vm *vm, u32 tables,
			   struct pfnguard_decision *why)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_VM_POOL_ADD,
		.a1 = vm->number,
		.a3 = tables,
	};
	int ret;

	mutex_lock(&vm->lock);
	ret = give_tables(vm, &regs, &regs.a2, tables, why);
	mutex_unlock(&vm->lock);
	return ret;
}
EXPORT_SYMBOL_GPL(pfnguard_vm_add_tables);

/**
 * pfnguard_vm_enable_mte() - let a VM use memory tagging
 * @vm: the VM, before it binds or runs (R21)
 * @why: gets the reason of a refusal; may be NULL
 *
 * Return: 0 or -EPERM.
 */
int pfnguard_vm_enable_mte(struct pfnguard_vm *vm,
			   struct pfnguard_decision *why)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_VM_ENABLE_MTE,
		.a1 = vm->number,
	};
	int ret;

	mutex_lock(&vm->lock);
	ret = pfnguard_call(&regs, why);
	if (!ret)
		vm->contract |= PFNGUARD_CONTRACT_MTE;
	mutex_unlock(&vm->lock);
	return ret;
}
EXPORT_SYMBOL_GPL(pfnguard_vm_enable_mte);

/* Pages from the first one on that follow each other, as many as a call takes. */
static unsigned long run_of(struct page **pages, unsigned long count)
{
	unsigned long first = page_to_pfn(pages[0]);
	unsigned long n = 1;

	count = min_t(unsigned long, count, PFNGUARD_MAX_RANGE_PAGES);
	while (n < count && page_to_pfn(pages[n]) == first + n)
		n++;
	return n;
}

static void forget(struct pfnguard_vm *vm, u64 ipa_pfn, unsigned long count)
{
	while (count--)
		xa_erase(&vm->pages, ipa_pfn + count);
}

/* Keeps room for pages in the list before the hypervisor is asked. */
static int remember(struct pfnguard_vm *vm, struct page **pages,
		    unsigned long count, u64 ipa_pfn, unsigned long bits)
{
	unsigned long i;

	for (i = 0; i < count; i++) {
		unsigned long entry = page_to_pfn(pages[i]) << PFN_SHIFT | bits |
				      (i ? 0 : FIRST);
		int ret = xa_insert(&vm->pages, ipa_pfn + i, xa_mk_value(entry),
				    GFP_KERNEL_ACCOUNT);

		if (ret) {
			forget(vm, ipa_pfn, i);
			return ret;
		}
	}
	return 0;
}

static int unshare_runs(struct pfnguard_vm *vm, struct page **pages,
			unsigned long count, u64 ipa_pfn,
			struct pfnguard_decision *why)
{
	unsigned long done, run;

	for (done = 0; done < count; done += run) {
		struct arm_smccc_1_2_regs regs = {
			.a0 = PFNGUARD_FN_HOST_UNSHARE_GUEST,
			.a1 = vm->number,
			.a2 = page_to_pfn(pages[done]),
			.a3 = ipa_pfn + done,
		};
		int ret;

		run = run_of(pages + done, count - done);
		regs.a4 = run;
		ret = pfnguard_call(&regs, why);
		if (ret)
			return ret;
		cond_resched();
	}
	return 0;
}

/* Shares runs of pages; after a refusal those before it are unshared again. */
static int share_runs(struct pfnguard_vm *vm, struct page **pages,
		      unsigned long count, u64 ipa_pfn, u32 perms,
		      struct pfnguard_decision *why)
{
	unsigned long done, run;

	for (done = 0; done < count; done += run) {
		struct arm_smccc_1_2_regs regs = {
			.a0 = PFNGUARD_FN_HOST_SHARE_GUEST,
			.a1 = vm->number,
			.a2 = page_to_pfn(pages[done]),
			.a3 = ipa_pfn + done,
			.a5 = perms,
		};
		int ret;

		run = run_of(pages + done, count - done);
		regs.a4 = run;
		ret = pfnguard_call(&regs, why);
		if (ret) {
			/* What cannot be taken back alone ends with the VM. */
			if (unshare_runs(vm, pages, done, ipa_pfn, NULL))
				pfnguard_vm_kill(vm);
			return ret;
		}
		cond_resched();
	}
	return 0;
}

/**
 * pfnguard_share_pages() - lend pages to a VM that is not protected
 * @vm: the VM
 * @pages: the pages, which stay where they are until the loan ends
 * @count: how many
 * @ipa_pfn: where the guest sees the first
 * @perms: PFNGUARD_PERM_* bits
 * @why: gets the reason of a refusal; may be NULL
 *
 * Return: 0; -EBUSY where the VM has memory there already, -EINVAL, -ENOMEM,
 * -EPERM: then none is lent.
 */
int pfnguard_share_pages(struct pfnguard_vm *vm, struct page **pages,
			 unsigned long count, u64 ipa_pfn, u32 perms,
			 struct pfnguard_decision *why)
{
	int ret;

	if (perms & ~PERMS_MASK)
		return -EINVAL;
	mutex_lock(&vm->lock);
	ret = remember(vm, pages, count, ipa_pfn, perms);
	if (!ret) {
		ret = share_runs(vm, pages, count, ipa_pfn, perms, why);
		if (ret)
			forget(vm, ipa_pfn, count);
	}
	mutex_unlock(&vm->lock);
	return ret;
}
EXPORT_SYMBOL_GPL(pfnguard_share_pages);

/* Finds the loan that begins at @ipa_pfn and has @count pages. */
static int find_loan(struct pfnguard_vm *vm, struct page **pages,
		     unsigned long count, u64 ipa_pfn)
{
	unsigned long i;
	void *entry;

	for (i = 0; i < count; i++) {
		entry = xa_load(&vm->pages, ipa_pfn + i);
		if (!entry || xa_to_value(entry) & GIVEN ||
		    !(xa_to_value(entry) & FIRST) != !!i)
			return -ENOENT;
		pages[i] = pfn_to_page(pfn_of(entry));
	}
	entry = xa_load(&vm->pages, ipa_pfn + count);
	return entry && !(xa_to_value(entry) & (GIVEN | FIRST)) ? -ENOENT : 0;
}

/**
 * pfnguard_unshare_pages() - take back what one call has lent
 * @vm: the VM
 * @pages: gets the pages
 * @count: how many, all of the loan
 * @ipa_pfn: where the guest sees the first
 * @why: gets the reason of a refusal; may be NULL
 *
 * Runs of pages go as they came, so that no block has to be split.
 *
 * Return: 0; -ENOENT for no such loan, -EPERM for a VM that was torn down: then
 * all is as before.
 */
int pfnguard_unshare_pages(struct pfnguard_vm *vm, struct page **pages,
			   unsigned long count, u64 ipa_pfn,
			   struct pfnguard_decision *why)
{
	int ret;

	mutex_lock(&vm->lock);
	ret = find_loan(vm, pages, count, ipa_pfn);
	if (!ret)
		ret = unshare_runs(vm, pages, count, ipa_pfn, why);
	if (!ret)
		forget(vm, ipa_pfn, count);
	mutex_unlock(&vm->lock);
	return ret;
}
EXPORT_SYMBOL_GPL(pfnguard_unshare_pages);

/**
 * pfnguard_donate_pages() - give pages to a VM until it is destroyed
 * @vm: the VM
 * @first: the first of pages that follow each other, each with a reference of
 *	its own that becomes the VM's, and no mapping
 * @count: how many, at most PFNGUARD_MAX_RANGE_PAGES
 * @ipa_pfn: where the guest sees the first
 * @why: gets the reason of a refusal; may be NULL
 *
 * Whoever touches them from now on gets an abort.
 *
 * Return: 0; -EBUSY where the VM has memory there already, -EINVAL, -ENOMEM,
 * -EPERM: then all are the caller's still.
 */
int pfnguard_donate_pages(struct pfnguard_vm *vm, struct page *first,
			  unsigned long count, u64 ipa_pfn,
			  struct pfnguard_decision *why)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_HOST_DONATE_GUEST,
		.a1 = vm->number,
		.a2 = page_to_pfn(first),
		.a3 = ipa_pfn,
		.a4 = count,
	};
	unsigned long i = 0;
	int ret = 0;

	mutex_lock(&vm->lock);
	for (; i < count && !ret; i++) {
		struct page *page = first + i;

		ret = remember(vm, &page, 1, ipa_pfn + i, GIVEN | PERMS_MASK);
	}
	if (ret)
		i--;
	else
		ret = pfnguard_call(&regs, why);
	if (ret)
		forget(vm, ipa_pfn, i);
	else
		mark_offline(first, count);
	mutex_unlock(&vm->lock);
	return ret;
}
EXPORT_SYMBOL_GPL(pfnguard_donate_pages);

/**
 * pfnguard_vm_kill() - tear a VM down now
 * @vm: the VM, of which only pfnguard_vm_destroy() is left afterwards
 *
 * Does not sleep. When it returns, whoever has called it, the VM runs no more and
 * reaches no memory; pages that it was given and its tables are not free yet. A
 * VM that runs on another CPU cannot be torn down: all that it has is lost then.
 */
void pfnguard_vm_kill(struct pfnguard_vm *vm)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_VM_TEARDOWN,
		.a1 = vm->number,
	};

	spin_lock(&vm->killing);
	if (!vm->dead) {
		WRITE_ONCE(vm->dead, true);
		if (WARN_ON(pfnguard_call(&regs, NULL)))
			WRITE_ONCE(vm->stuck, true);
	}
	spin_unlock(&vm->killing);
}

/**
 * pfnguard_vm_is_stuck() - whether a VM has memory that it cannot lose
 * @vm: the VM
 *
 * Return: true if what it was lent must not be freed.
 */
bool pfnguard_vm_is_stuck(const struct pfnguard_vm *vm)
{
	return READ_ONCE(vm->stuck);
}

/**
 * pfnguard_vm_has_bindings() - whether a VM may have any
 * @vm: the VM
 *
 * Return: false once it was torn down.
 */
bool pfnguard_vm_has_bindings(const struct pfnguard_vm *vm)
{
	return !READ_ONCE(vm->dead) || pfnguard_vm_is_stuck(vm);
}

/* How many pages from @ipa_pfn on lie in a row and are alike, one loan or all given. */
static unsigned long row_of(struct pfnguard_vm *vm, unsigned long ipa_pfn,
			    unsigned long value)
{
	unsigned long n = 1;

	/* Each page that is given is a first one; of a loan only one is. */
	if (!(value & GIVEN))
		value &= ~FIRST;
	while (n < PFNGUARD_MAX_RANGE_PAGES &&
	       xa_load(&vm->pages, ipa_pfn + n) ==
	       xa_mk_value(value + (n << PFN_SHIFT)))
		n++;
	return n;
}

/**
 * pfnguard_vm_end_loans() - take back all that a VM borrows, piece by piece
 * @vm: the VM
 * @put: called for each page that came back; may be NULL
 *
 * Its teardown would do it too, but at once, and nobody else could make a call
 * meanwhile. What does not come back is left to the teardown.
 */
void pfnguard_vm_end_loans(struct pfnguard_vm *vm,
			   void (*put)(struct page *page))
{
	unsigned long ipa_pfn = 0;
	void *entry;

	xa_for_each(&vm->pages, ipa_pfn, entry) {
		unsigned long value = xa_to_value(entry);
		struct arm_smccc_1_2_regs regs = {
			.a0 = PFNGUARD_FN_HOST_UNSHARE_GUEST,
			.a1 = vm->number,
			.a2 = pfn_of(entry),
			.a3 = ipa_pfn,
		};
		unsigned long i, n;

		if (value & GIVEN)
			continue;
		n = row_of(vm, ipa_pfn, value);
		regs.a4 = n;
		if (!pfnguard_call(&regs, NULL)) {
			for (i = 0; put && i < n; i++)
				put(pfn_to_page(pfn_of(entry) + i));
			forget(vm, ipa_pfn, n);
		}
		ipa_pfn += n - 1;
		cond_resched();
	}
}

/* Takes back what the dead VM was given, from @ipa_pfn on; returns pages. */
static unsigned long reclaim_row(struct pfnguard_vm *vm, unsigned long ipa_pfn,
				 unsigned long value)
{
	unsigned long n = row_of(vm, ipa_pfn, value);
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_HOST_RECLAIM_GUEST,
		.a1 = vm->number,
		.a2 = value >> PFN_SHIFT,
		.a3 = n,
	};

	/* What does not come back is lost, rather than used by two. */
	if (!WARN_ON(pfnguard_call(&regs, NULL)))
		free_returned(value >> PFN_SHIFT, n);
	return n;
}

static void take_back(struct pfnguard_vm *vm, void (*put)(struct page *page))
{
	unsigned long ipa_pfn = 0;
	void *entry;

	xa_for_each(&vm->pages, ipa_pfn, entry) {
		unsigned long value = xa_to_value(entry);

		if (value & GIVEN)
			ipa_pfn += reclaim_row(vm, ipa_pfn, value) - 1;
		else if (put && !vm->stuck)
			put(pfn_to_page(pfn_of(entry)));
		cond_resched();
	}
}

static void free_tables(struct pfnguard_vm *vm)
{
	unsigned long left = 1;

	while (left) {
		struct arm_smccc_1_2_regs regs = {
			.a0 = PFNGUARD_FN_VM_FREE,
			.a1 = vm->number,
		};

		if (WARN_ON(pfnguard_call(&regs, NULL)))
			return;
		free_returned(regs.a1, 1);
		left = regs.a2;
		cond_resched();
	}
}

/**
 * pfnguard_vm_destroy() - end a VM and everything that it has
 * @vm: the VM; nobody else uses it
 * @put: called for each page that it still borrows, once it has lost it; may
 *	be NULL
 *
 * Pages that it was given are freed, zeroed if it was protected.
 */
void pfnguard_vm_destroy(struct pfnguard_vm *vm,
			 void (*put)(struct page *page))
{
	pfnguard_vm_end_loans(vm, put);
	pfnguard_vm_kill(vm);
	take_back(vm, put);
	if (!vm->stuck)
		free_tables(vm);
	xa_destroy(&vm->pages);
	xa_destroy(&vm->tables);
	kfree(vm);
}
EXPORT_SYMBOL_GPL(pfnguard_vm_destroy);

/**
 * pfnguard_bind() - bind a part of a region, or all of it
 * @vm: the VM
 * @request: what is asked for; its VM is filled in
 * @why: gets the reason of a refusal; may be NULL
 *
 * For any context.
 *
 * Return: 0, or the errno of the refusal.
 */
int pfnguard_bind(struct pfnguard_vm *vm, struct pfnguard_request *request,
		  struct pfnguard_decision *why)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PFNGUARD_FN_PFNMAP_BIND,
		.a2 = request->pfn,
		.a3 = request->ipa_pfn,
		.a4 = request->pages,
	};

	request->vm = vm->number;
	/* The fields before the first page, as one word. */
	regs.a1 = get_unaligned_le64(request);
	return pfnguard_call(&regs, why);
}
EXPORT_SYMBOL_GPL(pfnguard_bind);

/* Makes a call about a binding that returns a value. */
static int call_binding(struct pfnguard_vm *vm, u32 function, u64 ipa_pfn,
			u64 *value, struct pfnguard_decision *why)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = function,
		.a1 = vm->number,
		.a2 = ipa_pfn,
	};
	int ret = pfnguard_call(&regs, why);

	if (!ret && value)
		*value = regs.a1;
	return ret;
}

/**
 * pfnguard_map() - install a binding's translations now
 * @vm: the VM
 * @ipa_pfn: first page of the binding in the guest
 * @why: gets the reason of a refusal; may be NULL
 *
 * Return: 0 or -ENOENT.
 */
int pfnguard_map(struct pfnguard_vm *vm, u64 ipa_pfn,
		 struct pfnguard_decision *why)
{
	return call_binding(vm, PFNGUARD_FN_PFNMAP_MAP, ipa_pfn, NULL, why);
}
EXPORT_SYMBOL_GPL(pfnguard_map);

/**
 * pfnguard_unbind() - end a binding
 * @vm: the VM
 * @ipa_pfn: first page of the binding in the guest
 * @state: gets the PFNGUARD_REGION_* that the region is in; may be NULL
 * @why: gets the reason of a refusal; may be NULL
 *
 * Return: 0, -ENOENT, or -EPERM for what a protected VM owns: only the VM's end
 * ends that.
 */
int pfnguard_unbind(struct pfnguard_vm *vm, u64 ipa_pfn, u64 *state,
		    struct pfnguard_decision *why)
{
	return call_binding(vm, PFNGUARD_FN_PFNMAP_UNBIND, ipa_pfn, state, why);
}
EXPORT_SYMBOL_GPL(pfnguard_unbind);

/**
 * pfnguard_probe() - ask the CPU what a guest's page is
 * @vm: the VM
 * @ipa_pfn: page in the guest
 * @par: gets PAR_EL1 of AT S12E1R
 * @why: gets the reason of a refusal; may be NULL
 *
 * Return: 0, -ENOENT or -EPERM.
 */
int pfnguard_probe(struct pfnguard_vm *vm, u64 ipa_pfn, u64 *par,
		   struct pfnguard_decision *why)
{
	return call_binding(vm, PFNGUARD_FN_PFNMAP_PROBE, ipa_pfn, par, why);
}
EXPORT_SYMBOL_GPL(pfnguard_probe);

/**
 * pfnguard_vm_show() - list what a VM has but its bindings
 * @vm: the VM
 * @pid: who made it
 * @comm: what that called itself
 * @out: gets a line for the VM and for each run of pages
 */
void pfnguard_vm_show(struct pfnguard_vm *vm, pid_t pid, const char *comm,
		      struct seq_file *out)
{
	unsigned long pfn, ipa_pfn = 0;
	void *entry;

	mutex_lock(&vm->lock);
	seq_printf(out, "vm number=%#x contract=%#x vcpus=%#x pid=%d comm=",
		   vm->number, vm->contract, vm->vcpus, pid);
	seq_escape(out, comm, " \t\n\\");
	seq_printf(out, " dead=%d\n", vm->dead);
	xa_for_each(&vm->tables, pfn, entry)
		seq_printf(out, "tables vm=%#x pfn=%#lx pages=%#lx\n",
			   vm->number, pfn, xa_to_value(entry));
	xa_for_each(&vm->pages, ipa_pfn, entry) {
		unsigned long value = xa_to_value(entry);
		unsigned long n = row_of(vm, ipa_pfn, value);

		seq_printf(out, "%s vm=%#x ipa=%#lx pfn=%#lx pages=%#lx perms=%#lx\n",
			   value & GIVEN ? "given" : "lent", vm->number, ipa_pfn,
			   value >> PFN_SHIFT, n, value & PERMS_MASK);
		ipa_pfn += n - 1;
		cond_resched();
	}
	mutex_unlock(&vm->lock);
}
