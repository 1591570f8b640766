//! The host's stage 2: an identity map, built lazily.

use pfnguard_core::addr::{Pfn, PfnRange, PhysAddr};
use pfnguard_core::machine::{HostStage2, Stage2Attrs};
use pfnguard_shared::manifest::BlockSizes;

use super::{Plan, Stage2Config, Tables, Vtcr, scope};
use crate::pool::{TablePool, address, blocks_touched};
use crate::tlb::{Stage2Regs, Stage2Scope, Stage2Tlb};
use crate::walk::{BIG_LEVEL, Entry, MID_LEVEL, PAGE_LEVEL, pages_at, shift_at};

/// Table pages for memory outside RAM: two ends of a range, at three levels, and two to spare.
const SPARE: u64 = 8;

/// Returns the number of table pages that the host's identity map of `ram` (ascending) takes in the
/// worst case, every page on its own, and the least that memory outside RAM takes.
///
/// Whatever is given on top makes it rarer that translations of memory outside RAM are dropped.
pub fn host_tables_needed(ram: &[PfnRange], pa_bits: u32) -> u64 {
    let vtcr = Vtcr::host(pa_bits, super::Vmid16::Absent);
    let roots = match vtcr.start_level() {
        0 => 1 + blocks_touched(ram, shift_at(0)),
        // The level-0 table that software keeps above the concatenated ones.
        _ => 1 + vtcr.root_tables(),
    };
    let tables = [BIG_LEVEL, MID_LEVEL].map(|level| blocks_touched(ram, shift_at(level)));
    roots + tables.iter().sum::<u64>() + SPARE
}

/// The host's stage 2.
///
/// The tables always begin with a level-0 table. Where the walk starts at level 1, that table is
/// software's only: its descriptors lead to the concatenated level-1 tables, which are adjacent in
/// memory, and `VTTBR_EL2` points at the first of them.
pub struct HostTables<T> {
    tables: Tables,
    tlb: T,
    config: Stage2Config,
    vtcr: Vtcr,
    regs: Stage2Regs,
    /// First page past the intermediate physical address space.
    limit: u64,
    ram: &'static [PfnRange],
}

impl<T: Stage2Tlb> HostTables<T> {
    /// Returns an empty stage 2 with VMID 0. `ram` is in ascending order; `range` holds at least
    /// [`host_tables_needed`] pages.
    ///
    /// # Safety
    ///
    /// `range` must be the object's alone from now on, mapped through `config.map`, and zero.
    ///
    /// # Panics
    ///
    /// Where `range` has fewer pages than that.
    pub unsafe fn new(
        config: Stage2Config,
        ram: &'static [PfnRange],
        range: PfnRange,
        tlb: T,
    ) -> Self {
        let needed = host_tables_needed(ram, config.pa_bits);
        assert!(range.pages() >= needed, "{range}: {needed} table pages needed");
        let vtcr = Vtcr::host(config.pa_bits, config.vmid16);
        let pool = TablePool::new(config.map);
        // SAFETY: the caller hands over the pages.
        let roots = unsafe { fill(&pool, range, vtcr.root_tables()) };
        let mut tables = Tables::new(pool, 0);
        let root = match vtcr.start_level() {
            0 => tables.root(),
            _ => link_roots(&mut tables, roots, vtcr.root_tables()),
        };
        let regs = Stage2Regs { vttbr: root.0, vtcr: vtcr.value() };
        Self { tables, tlb, config, vtcr, regs, limit: vtcr.input_pages(), ram }
    }

    /// Returns the registers that select this stage 2.
    pub fn regs(&self) -> Stage2Regs {
        self.regs
    }
}

/// Gives `range` to `pool` so that the first pages handed out are the level-0 table and then the
/// `roots` level-1 tables, adjacent and aligned to their total size. Returns the first of them.
///
/// # Safety
///
/// As [`TablePool::add`].
unsafe fn fill(pool: &TablePool, range: PfnRange, roots: u64) -> Pfn {
    let first = (range.start().0 + 1).next_multiple_of(roots);
    let rest = first + roots;
    let parts = [(range.start().0 + 1, first), (rest, range.end().0), (first, rest)];
    let level_0 = (range.start().0, range.start().0 + 1);
    for (start, end) in parts.into_iter().chain([level_0]) {
        let pages = end.checked_sub(start).expect("room for aligned roots: part of the worst case");
        if let Some(part) = PfnRange::new(Pfn(start), pages) {
            // SAFETY: parts of what the caller hands over, each page once.
            unsafe { pool.add(part) };
        }
    }
    Pfn(first)
}

/// Makes the level-0 descriptors for all of `roots` concatenated tables and returns the address of
/// the first one.
fn link_roots(tables: &mut Tables, roots: Pfn, count: u64) -> PhysAddr {
    for index in 0..count {
        let first = index * pages_at(0);
        let entry = tables.walk().above(first, 0);
        tables.make_table(&entry, first);
        let table = tables.walk().above(first, 0).output();
        assert!(table == address(Pfn(roots.0 + index)), "root table {table} is not adjacent");
    }
    address(roots)
}

impl<T: Stage2Tlb> HostTables<T> {
    /// Drops the leaf of one page: the common case, and no table goes with it.
    fn unmap_page(&mut self, page: u64) {
        let walk = self.tables.walk();
        let leaf = (page < self.limit).then(|| walk.find(page)).filter(Entry::is_leaf);
        let Some(leaf) = leaf else { return };
        walk.clear(&leaf);
        self.tlb.invalidate(self.regs, scope(leaf.run()));
    }

    /// Drops every leaf that covers pages of `range`.
    #[inline(never)]
    fn unmap_range(&mut self, range: PfnRange) {
        let (first, past) = (range.start().0, range.end().0.min(self.limit));
        let Some(run) = self.tables.erase_leaves(first, past) else { return };
        self.tlb.invalidate(self.regs, scope(run));
        // SAFETY: the only tables freed since the last maintenance lay in the run.
        unsafe { self.tables.recycle() };
    }

    /// Drops every translation of memory outside RAM and frees the tables that held them.
    fn drop_non_ram(&mut self) {
        let mut start = 0;
        for index in 0..=self.ram.len() {
            let next = self.ram.get(index);
            let end = next.map_or(self.limit, |range| range.start().0);
            self.drop_subtrees(start, end);
            start = next.map_or(end, |range| range.end().0);
        }
        self.tlb.invalidate(self.regs, Stage2Scope::Vmid);
        // SAFETY: every translation and table of the VMID has just been invalidated.
        unsafe { self.tables.recycle() };
    }

    /// Erases `first..past`, which holds no RAM.
    fn drop_subtrees(&mut self, first: u64, past: u64) {
        let mut page = first;
        while page < past {
            page = self.drop_next(page, past);
        }
    }

    /// Erases the largest subtree or block at `page` and returns where to go on. A block that
    /// reaches past the end goes too and faults back.
    fn drop_next(&mut self, page: u64, past: u64) -> u64 {
        // Concatenated root tables stay.
        for level in self.vtcr.start_level()..PAGE_LEVEL {
            let entry = self.tables.walk().above(page, level);
            if !entry.is_valid() {
                return entry.end();
            }
            if entry.is_leaf() || (entry.first == page && entry.end() <= past) {
                self.tables.erase((entry.first, entry.end()));
                return entry.end();
            }
        }
        let end = (page + 1).next_multiple_of(pages_at(MID_LEVEL)).min(past);
        // What goes here is invalidated with everything else.
        let _ = self.tables.erase_leaves(page, end);
        end
    }
}

impl<T: Stage2Tlb> HostStage2 for HostTables<T> {
    fn map(&mut self, range: PfnRange, attrs: Stage2Attrs) {
        let (first, past) = (range.start().0, range.end().0);
        assert!(past <= self.limit, "{range}: past the address space: hypervisor bug");
        let bits = self.config.encoding.encode(attrs).expect("attributes were checked");
        let plan = Plan { first, past, pfn: first, blocks: BlockSizes::ALL };
        if plan.tables(&self.tables.walk()) > self.tables_free() {
            self.drop_non_ram();
        }
        plan.apply(&mut self.tables, bits);
        self.tlb.publish();
    }

    fn unmap(&mut self, range: PfnRange) {
        match range.pages() {
            1 => self.unmap_page(range.start().0),
            _ => self.unmap_range(range),
        }
    }

    fn lookup(&self, pfn: Pfn) -> Option<Stage2Attrs> {
        let inside = pfn.0 < self.limit;
        let entry = inside.then(|| self.tables.walk().find(pfn.0)).filter(Entry::is_leaf)?;
        self.config.encoding.decode(entry.stage2_attributes())
    }

    fn tables_free(&self) -> u64 {
        self.tables.pool().free()
    }
}
