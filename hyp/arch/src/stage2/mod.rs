//! Stage-2 tables of the host and of guests, on aarch64-paging.
//!
//! Discipline: a descriptor only ever changes from invalid to valid or from valid to invalid. So
//! break-before-make is never skipped by accident: removing is one pass of invalid descriptors,
//! one TLB maintenance sequence, then the freed tables; splitting a block is removing it and
//! mapping the rest again. aarch64-paging makes and frees tables, through its offline interface,
//! which maintains nothing: all maintenance is in this module.

mod guest;
mod host;
#[cfg(test)]
mod tests;
mod vtcr;

use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes, VirtualAddress};
use aarch64_paging::paging::{Constraints, MemoryRegion, RootTable, TranslationRegime};
use pfnguard_core::addr::{IpaPfn, IpaRange, PhysAddr};
use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::manifest::BlockSizes;

pub use self::guest::GuestTables;
pub use self::host::{HostTables, host_tables_needed};
pub(crate) use self::vtcr::physical_size;
pub use self::vtcr::{Vmid16, Vtcr};

use crate::attrs::Encoding;
use crate::pool::{PhysMap, TablePool, to_u64, to_usize};
use crate::tlb::Stage2Scope;
use crate::walk::{BIG_LEVEL, Entry, MID_LEVEL, Run, Walk, pages_at, shift_at};

/// What all stage-2 tables of this machine have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Config {
    /// How table pages are seen.
    pub map: PhysMap,
    /// Physical address bits that all CPUs implement, 32 to 52.
    pub pa_bits: u32,
    /// Width of VMIDs.
    pub vmid16: Vmid16,
    /// Meaning of `MemAttr`.
    pub encoding: Encoding,
}

/// The stage-2 regime as aarch64-paging sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Isolation;

impl TranslationRegime for Isolation {
    type Attributes = Stage2Attributes;
    type Asid = ();
    type VaRange = ();

    fn invalidate_va(_: VirtualAddress) {
        unreachable!("tables are written offline; maintenance is this module's own");
    }

    unsafe fn activate(_: PhysicalAddress, _: Self::Asid, _: Self::VaRange) -> usize {
        unreachable!("the world switch selects tables");
    }

    unsafe fn deactivate(_: usize, _: Self::Asid, _: Self::VaRange) {
        unreachable!("the world switch selects tables");
    }
}

/// Tables below one root, and their pool.
struct Tables {
    table: RootTable<Isolation, TablePool>,
    walk: Walk,
}

impl Tables {
    /// Takes the root out of `pool`.
    fn new(pool: TablePool, level: u32) -> Self {
        let map = pool.map();
        let table = RootTable::new(pool, to_usize(u64::from(level)), Isolation);
        let root = PhysAddr(to_u64(table.to_physical().0));
        // SAFETY: the tables are this object's, which lends the walker out only while it is
        // borrowed, and never across a call of aarch64-paging.
        let walk = unsafe { Walk::new(map, root, level) };
        Self { table, walk }
    }

    fn root(&self) -> PhysAddr {
        PhysAddr(to_u64(self.table.to_physical().0))
    }

    fn pool(&self) -> &TablePool {
        self.table.translation()
    }

    fn walk(&self) -> Walk {
        self.walk
    }

    /// Makes the table behind `entry`, which is invalid and on the way to `page`. All of its
    /// descriptors are invalid.
    fn make_table(&mut self, entry: &Entry, page: u64) {
        let pages = pages_at(entry.level + 1);
        let first = page & !(pages - 1);
        // To aarch64-paging an invalid descriptor at an address is not "nothing to do": it makes
        // the table to write it to.
        self.write_invalid((first, first + pages), first + pages_at(0));
    }

    /// Makes the descriptor that covers exactly `pages` invalid, a leaf or a table. Tables that
    /// become unreachable wait in the pool's list of freed ones.
    fn erase(&mut self, pages: (u64, u64)) {
        self.write_invalid(pages, pages.0);
    }

    fn write_invalid(&mut self, (first, past): (u64, u64), pfn: u64) {
        let region = MemoryRegion::new(bytes(first), bytes(past));
        let (pa, none) = (PhysicalAddress(bytes(pfn)), Stage2Attributes::empty());
        self.table
            .map_range(&region, pa, none, Constraints::empty())
            .expect("the range is inside the tables: checked by the caller");
    }

    /// Erases all leaves that cover pages of `first..past`, and whatever else they cover, and
    /// returns what must be invalidated; `None` where there was none. Level-3 tables inside go too.
    fn erase_leaves(&mut self, first: u64, past: u64) -> Option<Run> {
        let start = self.walk().above(first, MID_LEVEL);
        self.erase_leaves_from(&start, first, past)
    }

    /// Erases as [`Self::erase_leaves`] does; `start` covers `first` down to level 2.
    #[inline]
    fn erase_leaves_from(&mut self, start: &Entry, first: u64, past: u64) -> Option<Run> {
        if start.end() >= past {
            return if first < past { self.erase_in(start, first, past) } else { None };
        }
        self.erase_leaves_across(start, first, past)
    }

    /// Erases `first..past`, which reaches past what `start` covers.
    #[inline(never)]
    fn erase_leaves_across(&mut self, start: &Entry, first: u64, past: u64) -> Option<Run> {
        let mut run = self.erase_in(start, first, start.end());
        let mut page = start.end();
        while page < past {
            let entry = self.walk().above(page, MID_LEVEL);
            let end = entry.end().min(past);
            let more = self.erase_in(&entry, page, end);
            more.into_iter().for_each(|more| extend(&mut run, more));
            page = end;
        }
        run
    }

    /// Erases `first..past`, which `entry` covers down to level 2.
    #[inline]
    fn erase_in(&mut self, entry: &Entry, first: u64, past: u64) -> Option<Run> {
        if entry.is_leaf() {
            self.walk().clear(entry);
            return Some(entry.run());
        }
        if !entry.is_table() {
            return None;
        }
        if past - first == entry.pages() {
            self.erase((first, past));
            return Some(Run { first, past, stride: 1 });
        }
        let cleared = self.walk().clear_pages(entry, first, past);
        cleared.map(|(first, past)| Run { first, past, stride: 1 })
    }

    /// Gives freed tables back to the pool.
    ///
    /// # Safety
    ///
    /// TLB maintenance for everything that was erased must have completed.
    unsafe fn recycle(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.pool().recycle() };
    }
}

/// Returns the scope that covers all leaves of `run`.
fn scope(run: Run) -> Stage2Scope {
    match IpaRange::new(IpaPfn(run.first), run.past - run.first) {
        Some(range) => Stage2Scope::Leaves { range, stride: run.stride },
        None => Stage2Scope::Vmid,
    }
}

/// Adds leaves behind those already in `run`.
fn extend(run: &mut Option<Run>, more: Run) {
    let (first, least) = run.map_or((more.first, more.stride), |run| (run.first, run.stride));
    *run = Some(Run { first, past: more.past, stride: more.stride.min(least) });
}

fn bytes(pages: u64) -> usize {
    to_usize(pages << PAGE_SHIFT)
}

/// A mapping of pages to frames that is about to be made.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// First page.
    first: u64,
    /// First page past the last.
    past: u64,
    /// Frame of the first page.
    pfn: u64,
    /// Block sizes that may be used. 1 GiB only together with 2 MiB: a 1 GiB block may have to be
    /// split later.
    blocks: BlockSizes,
}

impl Plan {
    /// Returns the number of table pages that the plan takes.
    fn tables(&self, walk: &Walk) -> u64 {
        let (mut tables, mut page) = (0, self.first);
        while page < self.past {
            let entry = walk.above(page, MID_LEVEL);
            if !entry.is_valid() {
                tables += self.tables_below(&entry);
            }
            page = entry.end();
        }
        tables
    }

    /// Finds out in one walk that nothing is mapped there, how many table pages the plan takes, and
    /// what covers its first page down to level 2; or the first page that is mapped.
    // Inlined, as what it returns is larger than what this target copies without a call.
    #[inline(always)]
    fn survey(&self, walk: &Walk) -> Result<Vacancy, u64> {
        let start = walk.above(self.first, MID_LEVEL);
        if start.is_table() && start.end() >= self.past {
            return match walk.first_leaf_of(&start, self.first, self.past) {
                Some(mapped) => Err(mapped),
                None => Ok(Vacancy { start, tables: 0 }),
            };
        }
        match walk.first_leaf(self.first, self.past) {
            Some(mapped) => Err(mapped),
            None => Ok(Vacancy { start, tables: self.tables(walk) }),
        }
    }

    /// Returns the number of tables to create below an invalid descriptor.
    fn tables_below(&self, entry: &Entry) -> u64 {
        let (first, past) = (self.first.max(entry.first), self.past.min(entry.end()));
        match entry.level {
            0 => 1 + self.tables_by_gibibyte(first, past),
            BIG_LEVEL => self.tables_in_gibibyte(first, past),
            _ => u64::from(!self.fits(MID_LEVEL, first, past)),
        }
    }

    fn tables_by_gibibyte(&self, first: u64, past: u64) -> u64 {
        let (mut tables, mut page) = (0, first);
        while page < past {
            let end = (page + 1).next_multiple_of(pages_at(BIG_LEVEL)).min(past);
            tables += self.tables_in_gibibyte(page, end);
            page = end;
        }
        tables
    }

    /// Returns the number of tables for `first..past`, which lies in one GiB without tables.
    #[inline(always)]
    fn tables_in_gibibyte(&self, first: u64, past: u64) -> u64 {
        match self.fits(BIG_LEVEL, first, past) {
            true => 0,
            false => 1 + self.page_tables(first, past),
        }
    }

    /// Returns the number of level-3 tables for `first..past`, which lies in one GiB.
    #[inline(always)]
    fn page_tables(&self, first: u64, past: u64) -> u64 {
        let shift = shift_at(MID_LEVEL);
        let touched = ((past - 1) >> shift) - (first >> shift) + 1;
        if !self.allows(MID_LEVEL) {
            return touched;
        }
        let whole = (past >> shift).saturating_sub(first.div_ceil(pages_at(MID_LEVEL)));
        touched - whole
    }

    /// Returns whether one descriptor of `level` maps `first..past`.
    #[inline(always)]
    fn fits(&self, level: u32, first: u64, past: u64) -> bool {
        self.allows(level)
            && past - first == pages_at(level)
            && first.is_multiple_of(pages_at(level))
    }

    /// Returns whether blocks of `level` are allowed and possible with this alignment of frames to
    /// pages.
    fn allows(&self, level: u32) -> bool {
        let needed = match level {
            BIG_LEVEL => BlockSizes::BLOCK_1G.with(BlockSizes::BLOCK_2M),
            MID_LEVEL => BlockSizes::BLOCK_2M,
            _ => return false,
        };
        let aligned = self.first.wrapping_sub(self.pfn).is_multiple_of(pages_at(level));
        aligned && self.blocks.contains(needed)
    }

    /// Stores the descriptors; `start` covers the first page down to level 2.
    #[inline(always)]
    fn apply_from(&self, start: &Entry, tables: &mut Tables, bits: Stage2Attributes) {
        if start.is_table() && start.end() >= self.past {
            let page_bits = to_u64((bits | Stage2Attributes::TABLE_OR_PAGE).bits());
            let bits = self.pfn << PAGE_SHIFT | page_bits;
            return tables.walk().set_pages(start, self.first, self.past, bits);
        }
        self.apply(tables, bits);
    }

    /// Stores the descriptors, all of which are invalid.
    fn apply(&self, tables: &mut Tables, bits: Stage2Attributes) {
        let bits = to_u64(bits.bits());
        let page_bits = bits | to_u64(Stage2Attributes::TABLE_OR_PAGE.bits());
        let mut page = self.first;
        while page < self.past {
            let walk = tables.walk();
            let entry = walk.above(page, MID_LEVEL);
            let end = entry.end().min(self.past);
            let frame = (self.pfn + (page - self.first)) << PAGE_SHIFT;
            if entry.is_table() {
                walk.set_pages(&entry, page, end, frame | page_bits);
                page = end;
            } else if self.fits(entry.level, page, end) {
                walk.set_block(&entry, frame | bits);
                page = end;
            } else {
                assert!(!entry.is_valid(), "mapping over {entry}: hypervisor bug");
                tables.make_table(&entry, page);
            }
        }
    }
}

/// What [`Plan::survey`] found.
#[derive(Clone, Copy, Debug)]
struct Vacancy {
    /// What covers the first page, down to level 2.
    start: Entry,
    /// Table pages that the plan takes.
    tables: u64,
}
