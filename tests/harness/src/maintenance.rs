//! What a call owes to TLBs and caches for what it changed (R40): whatever was translated before and
//! is not any more was invalidated, and what changed hands was cleaned.
//!
//! The order of table writes and maintenance is for the trace checker; this says that none is
//! missing, for every change that sequences come across.

use std::ops::Range;

use pfnguard_arch::tlb::Stage2Scope;
use pfnguard_core::addr::PfnRange;
use pfnguard_model::machine::Machine;
use pfnguard_model::state::{Binding, Frame, Region, State};
use pfnguard_shared::MemType;
use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::{RegionClass, RegionFlags};

use crate::abstraction::{Changed, Reader};
use crate::machine::Op;
use crate::walker::{Run, Tree};

/// What was done to the machine in one call.
pub struct Done<'a> {
    /// In order.
    pub ops: &'a [Op],
    /// The machine.
    pub machine: &'a Machine,
    /// The state after.
    pub state: &'a State,
}

/// Returns the first debt of a call.
pub fn first_debt(done: &Done<'_>, reader: &Reader) -> Option<String> {
    let changes = &reader.changes;
    let mut debts = Vec::new();
    if changes.host_tables {
        let covered = |pages: &Range<u64>| done.invalidates(0, pages);
        stale(&changes.old_host, &reader.host, "the host", &covered, &mut debts);
    }
    if changes.el2_tables {
        let covered = |pages: &Range<u64>| done.invalidates_el2(pages);
        stale(&changes.old_el2, &reader.el2, "EL2", &covered, &mut debts);
    }
    for (vm, old) in &changes.old_guests {
        let covered = |pages: &Range<u64>| done.invalidates(u64::from(*vm) + 1, pages);
        let none = Tree::default();
        let new = reader.guest(*vm).unwrap_or(&none);
        stale(old, new, "a guest", &covered, &mut debts);
    }
    debts.extend(changes.frames.iter().filter_map(|changed| done.frame_debt(changed)));
    for (vm, old) in &changes.old_bindings {
        let now = done.state.vms.get(vm);
        let kept = |first: &u64| now.is_some_and(|vm| vm.bindings.contains_key(first));
        let gone = old.iter().filter(|(first, _)| !kept(first)).map(|(_, binding)| binding);
        debts.extend(gone.filter_map(|binding| done.release_debt(*vm, binding)));
    }
    let regions = changes.old_regions.iter().zip(&done.state.regions).enumerate();
    debts.extend(regions.filter_map(|(index, (old, new))| done.bind_debt(index, old, new)));
    debts.into_iter().next()
}

/// Notes what a TLB may still hold: translations that are gone or changed, and pages whose leaf has
/// another size now.
fn stale<A: Copy + PartialEq>(
    old: &Tree<A>,
    new: &Tree<A>,
    whose: &str,
    covered: &impl Fn(&Range<u64>) -> bool,
    debts: &mut Vec<String>,
) {
    let mut note = |pages: Range<u64>, what: &str| {
        if !covered(&pages) {
            debts.push(format!("{what} of {whose} was not invalidated: {pages:x?}"));
        }
    };
    let mut next = new.runs.iter().peekable();
    for run in &old.runs {
        while next.peek().is_some_and(|new| new.range().end <= run.first) {
            next.next();
        }
        lost(run, next.clone(), &mut note);
    }
    for table in new.tables.iter().filter(|table| table.0 > 0 && !old.tables.contains(table)) {
        if let Some(pages) = split(old, table) {
            note(pages, "a block that is a table now");
        }
    }
}

/// Notes what of a run is gone or changed; `rest` are the new runs from it on.
fn lost<'a, A: Copy + PartialEq + 'a>(
    run: &Run<A>,
    mut rest: impl Iterator<Item = &'a Run<A>>,
    note: &mut impl FnMut(Range<u64>, &str),
) {
    let Range { start: mut page, end } = run.range();
    while page < end {
        let Some(new) = rest.find(|new| new.range().end > page && new.first < end) else {
            return note(page..end, "a translation");
        };
        if new.first > page {
            note(page..new.first, "a translation");
        }
        let part = new.first.max(page)..new.range().end.min(end);
        page = part.end;
        if !same(run, new) {
            note(part, "a changed translation");
        }
    }
}

/// Returns the pages that a block translated where there is a table now.
fn split<A: Copy + PartialEq>(old: &Tree<A>, table: &(u8, u64, u64)) -> Option<Range<u64>> {
    let pages = resolved(table);
    let mapped = |run: &&Run<A>| run.first < pages.end && pages.start < run.range().end;
    // Above it there was a block, or there was nothing.
    let block = old.runs.iter().find(mapped).filter(|_| !replaced(old, table))?;
    Some(block.first.max(pages.start)..block.range().end.min(pages.end))
}

fn same<A: PartialEq>(old: &Run<A>, new: &Run<A>) -> bool {
    old.pfn.wrapping_sub(old.first) == new.pfn.wrapping_sub(new.first) && old.attrs == new.attrs
}

/// Returns the pages that a table resolves.
fn resolved(&(level, first, _): &(u8, u64, u64)) -> Range<u64> {
    first..first + 512 * crate::walker::pages_at(level)
}

/// Whether another frame held the same table before.
fn replaced<A>(old: &Tree<A>, table: &(u8, u64, u64)) -> bool {
    old.tables.iter().any(|known| (known.0, known.1) == (table.0, table.1))
}

impl Done<'_> {
    fn invalidates(&self, vmid: u64, pages: &Range<u64>) -> bool {
        let scopes = self.ops.iter().filter_map(|op| match op {
            Op::Invalidate { vttbr, scope } if vttbr >> 48 == vmid => Some(scope),
            _ => None,
        });
        let ranges = scopes.map(|scope| match scope {
            Stage2Scope::Vmid => 0..u64::MAX,
            Stage2Scope::Leaves { range, .. } => range.start().0..range.end().0,
        });
        covers(ranges, pages)
    }

    fn invalidates_el2(&self, pages: &Range<u64>) -> bool {
        let ranges = self.ops.iter().filter_map(|op| match op {
            Op::InvalidateEl2 { range } => Some(as_range(range)),
            _ => None,
        });
        covers(ranges, pages)
    }

    fn cleans(&self, pages: &Range<u64>) -> bool {
        let ranges = self.ops.iter().filter_map(|op| match op {
            Op::CleanInvalidate { range } | Op::Zero { range } => Some(as_range(range)),
            _ => None,
        });
        covers(ranges, pages)
    }

    fn can(&self, capability: Capabilities) -> bool {
        self.machine.capabilities().contains(capability)
    }

    /// Without FWB what changes hands is cleaned; without DIC instructions are forgotten. What is
    /// lent to the hypervisor it reaches as the host does.
    fn frame_debt(&self, changed: &Changed) -> Option<String> {
        let host = |frame: Frame| matches!(frame, Frame::Host | Frame::HostLentHyp(_));
        if host(changed.old) && host(changed.new) {
            return None;
        }
        let page = changed.pfn;
        if !self.can(Capabilities::FWB) && !self.cleans(&(page..page + 1)) {
            return Some(format!("{page:#x} changed hands and was not cleaned"));
        }
        let zeroed = self.ops.iter().any(|op| matches!(op, Op::Zero { .. }));
        let forgotten = self.ops.contains(&Op::ForgetInstructions) || zeroed;
        let stale = !self.can(Capabilities::DIC) && !forgotten;
        stale.then(|| format!("{page:#x} changed hands and old instructions may run"))
    }

    /// What the host may have cached of a region is cleaned before the first VM has it (R08).
    fn bind_debt(&self, index: usize, old: &Region, new: &Region) -> Option<String> {
        let entry = &self.machine.entries[index];
        let memory = entry.class == RegionClass::Memory.raw();
        let cleanable = entry.flags & RegionFlags::CMO_BY_ADDRESS.raw() != 0;
        let taken = old.state == RegionState::Free && new.state != RegionState::Free;
        let pages = self.machine.region_pages(index);
        let owed = taken && memory && cleanable && !self.cleans(&pages);
        owed.then(|| format!("the host lost {pages:x?}, which was not cleaned"))
    }

    /// Cacheable device memory is cleaned when a VM lets go of it (R08, R40).
    fn release_debt(&self, vm: u16, binding: &Binding) -> Option<String> {
        let flags = self.machine.entries[binding.region].flags;
        let has = |flag: RegionFlags| flags & flag.raw() != 0;
        let pages = binding.pfn..binding.pfn + binding.pages;
        let cacheable = binding.leaf.mem_type == MemType::Cacheable;
        if cacheable && has(RegionFlags::CMO_BY_ADDRESS) && !self.cleans(&pages) {
            return Some(format!("VM {vm} let go of {pages:x?}, which was not cleaned"));
        }
        None
    }
}

/// Whether all of `pages` was zeroed: a page that is zero anyway may have lines that are not.
pub fn zeroes(ops: &[Op], pages: &Range<u64>) -> bool {
    let ranges = ops.iter().filter_map(|op| match op {
        Op::Zero { range } | Op::ZeroDevice { range } => Some(as_range(range)),
        _ => None,
    });
    covers(ranges, pages)
}

fn as_range(range: &PfnRange) -> Range<u64> {
    range.start().0..range.end().0
}

/// Whether the ranges together hold all of `pages`.
fn covers(ranges: impl Iterator<Item = Range<u64>>, pages: &Range<u64>) -> bool {
    let mut left = pages.clone();
    let mut ranges: Vec<_> = ranges.filter(|range| range.end > left.start).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    for range in ranges {
        if range.start <= left.start {
            left.start = left.start.max(range.end);
        }
    }
    left.start >= left.end
}
