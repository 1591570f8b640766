//! A guest's stage 2 with its pool of table pages.

use core::mem::ManuallyDrop;

use pfnguard_core::addr::{IpaPfn, IpaRange, Pfn, PfnRange};
use pfnguard_core::machine::{GuestLeaf, GuestStage2, PlannedMap, PlannedUnmap, Stage2Attrs, Vmid};
use pfnguard_shared::manifest::BlockSizes;

use super::{Plan, Stage2Config, Tables, Vacancy, Vtcr, scope};
use crate::pool::TablePool;
use crate::tlb::{Stage2Regs, Stage2Scope, Stage2Tlb};
use crate::walk::{BIG_LEVEL, Entry, MID_LEVEL, Walk, pages_at};

/// Bit offset of `VTTBR_EL2.VMID`.
const VMID_SHIFT: u32 = 48;
/// Level of the root table.
const ROOT_LEVEL: u32 = BIG_LEVEL;

/// A guest's stage 2.
///
/// Dropping it frees nothing: the pages are the hypervisor's until [`GuestStage2::destroy`] and
/// [`GuestStage2::take_table`] give them back.
pub struct GuestTables<T> {
    tables: ManuallyDrop<Tables>,
    life: Life,
    tlb: T,
    config: Stage2Config,
    regs: Stage2Regs,
    /// First page past the intermediate physical address space.
    limit: u64,
}

/// Whether there still is a root table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Live,
    Destroyed,
}

impl<T: Stage2Tlb> GuestTables<T> {
    /// Returns an empty stage 2 for `vmid`. The first page of `range` becomes the root, the others
    /// the pool.
    ///
    /// # Safety
    ///
    /// `range` must be the object's alone from now on, mapped through `config.map`, and zero; so
    /// must be every range given to [`GuestStage2::add_tables`].
    pub unsafe fn new(config: Stage2Config, vmid: Vmid, range: PfnRange, tlb: T) -> Self {
        let pool = TablePool::new(config.map);
        // SAFETY: the caller hands over the pages.
        unsafe { pool.add(range) };
        let tables = ManuallyDrop::new(Tables::new(pool, ROOT_LEVEL));
        let vtcr = Vtcr::guest(config.pa_bits, config.vmid16);
        let vttbr = tables.root().0 | u64::from(vmid.0) << VMID_SHIFT;
        let regs = Stage2Regs { vttbr, vtcr: vtcr.value() };
        let limit = vtcr.input_pages();
        Self { tables, life: Life::Live, tlb, config, regs, limit }
    }

    /// Returns the registers that select this stage 2.
    pub fn regs(&self) -> Stage2Regs {
        self.regs
    }

    /// Returns every free page of the pool.
    #[cfg(feature = "hosted")]
    pub fn free_pages(&self) -> impl Iterator<Item = Pfn> {
        self.tables.pool().free_pages()
    }

    /// Returns a walker of the tables, which must still exist.
    fn walk(&self) -> Walk {
        assert!(self.life == Life::Live, "destroyed tables are in use: hypervisor bug");
        self.tables.walk()
    }

    /// Returns the descriptor of the root table for `page`, which must lie below the limit.
    #[inline(always)]
    fn root_entry(&self, page: u64) -> Entry {
        assert_eq!(self.life, Life::Live, "destroyed tables are in use: hypervisor bug");
        // SAFETY: as in `Tables::walk`; the root is of this level since `new`.
        let walk = unsafe { Walk::new(self.tables.pool().map(), self.tables.root(), ROOT_LEVEL) };
        walk.root_entry(page)
    }

    /// Returns what covers the ends of `first..past`, down to level 2.
    #[inline(always)]
    fn ends(&self, first: u64, past: u64) -> Ends {
        let walk = self.walk();
        let start = walk.above(first, MID_LEVEL);
        let last = if start.end() >= past { start } else { walk.above(past - 1, MID_LEVEL) };
        Ends { first, past, start, last }
    }

    /// Returns the first page from `page` on that does not lead to its frame, where `first..past`
    /// are to lead to `pfns`. Out of line: a single page does not get here.
    #[inline(never)]
    fn first_elsewhere(
        &self,
        (first, past): (u64, u64),
        page: u64,
        pfns: &PfnRange,
    ) -> Option<u64> {
        let walk = self.walk();
        let mut page = page;
        while page < past {
            let entry = walk.above(page, MID_LEVEL);
            let end = entry.end().min(past);
            let frame = Pfn(pfns.start().0 + (page - first));
            let elsewhere = walk.first_elsewhere(&entry, (page, end), frame);
            if elsewhere.is_some() {
                return elsewhere;
            }
            page = end;
        }
        None
    }

    /// Removes all translations between `ends`.
    #[inline(always)]
    fn remove(&mut self, ends: Ends) {
        let run = self.tables.erase_leaves_from(&ends.start, ends.first, ends.past);
        let Some(run) = run else { return };
        self.tlb.invalidate(self.regs, scope(run));
        // SAFETY: the only tables freed since the last maintenance lay in the run.
        unsafe { self.tables.recycle() };
        if ends.cut_blocks() {
            self.restore(ends.below(), Side::Below, ends.first);
            self.restore(ends.above(), Side::Above, ends.past);
            self.tlb.publish();
        }
    }

    /// Maps what is left of `block` in `first..past` as before.
    fn restore(&mut self, block: Option<Entry>, side: Side, cut: u64) {
        let Some(block) = block else { return };
        let (first, past) = match side {
            Side::Below => (block.first, cut),
            Side::Above => (cut, block.end()),
        };
        let pfn = block.output().pfn().0 + (first - block.first);
        // Where a 1 GiB block was allowed, so are 2 MiB blocks (`Plan`).
        let plan = Plan { first, past, pfn, blocks: BlockSizes::ALL };
        plan.apply(&mut self.tables, block.stage2_attributes());
    }
}

/// The ends of a range that is about to be unmapped, and what covers them down to level 2.
#[derive(Clone, Copy, Debug)]
struct Ends {
    /// First page.
    first: u64,
    /// First page past the last.
    past: u64,
    /// What covers the first page.
    start: Entry,
    /// What covers the last page.
    last: Entry,
}

impl Ends {
    /// Returns whether a block reaches out of the range.
    #[inline]
    fn cut_blocks(&self) -> bool {
        self.below().is_some() || self.above().is_some()
    }

    /// Returns the block that reaches out at the low end.
    #[inline]
    fn below(&self) -> Option<Entry> {
        (self.start.is_leaf() && self.start.first < self.first).then_some(self.start)
    }

    /// Returns the block that reaches out at the high end.
    #[inline]
    fn above(&self) -> Option<Entry> {
        (self.last.is_leaf() && self.last.end() > self.past).then_some(self.last)
    }

    /// Returns the most tables that what stays of cut blocks takes.
    #[inline]
    fn tables(&self) -> u64 {
        if self.cut_blocks() { self.split_tables() } else { 0 }
    }

    fn split_tables(&self) -> u64 {
        let (below, above) = (self.below(), self.above());
        let same_block = below.is_some() && below == above;
        let piece = |cut: u64| cut / pages_at(MID_LEVEL);
        let page_tables = |block: Option<Entry>, cut: u64| {
            let cut_inside = !cut.is_multiple_of(pages_at(MID_LEVEL));
            u64::from(block.is_some_and(|block| block.level == BIG_LEVEL) && cut_inside)
        };
        let blocks = u64::from(below.is_some()) + u64::from(above.is_some() && !same_block);
        let (low, high) = (page_tables(below, self.first), page_tables(above, self.past));
        match same_block && piece(self.first) == piece(self.past) {
            true => blocks + low.max(high),
            false => blocks + low + high,
        }
    }
}

/// A checked mapping, with what the check found.
pub struct GuestMap<'a, T> {
    stage2: &'a mut GuestTables<T>,
    plan: Plan,
    vacancy: Vacancy,
}

impl<T: Stage2Tlb> PlannedMap for GuestMap<'_, T> {
    /// Exact.
    #[inline(always)]
    fn tables(&self) -> u64 {
        self.vacancy.tables
    }

    #[inline(always)]
    fn commit(self, attrs: Stage2Attrs) {
        let Self { stage2, plan, vacancy } = self;
        let bits = stage2.config.encoding.encode(attrs).expect("attributes were checked");
        plan.apply_from(&vacancy.start, &mut stage2.tables, bits);
        stage2.tlb.publish();
    }
}

/// A checked removal, with what the check found.
pub struct GuestUnmap<'a, T> {
    stage2: &'a mut GuestTables<T>,
    ends: Ends,
}

impl<T: Stage2Tlb> PlannedUnmap for GuestUnmap<'_, T> {
    #[inline(always)]
    fn tables(&self) -> u64 {
        self.ends.tables()
    }

    #[inline(always)]
    fn commit(self) {
        self.stage2.remove(self.ends);
    }
}

/// Which part of a split block stays.
#[derive(Clone, Copy, Debug)]
enum Side {
    Below,
    Above,
}

impl<T: Stage2Tlb> GuestStage2 for GuestTables<T> {
    type Map<'a>
        = GuestMap<'a, T>
    where
        T: 'a;
    type Unmap<'a>
        = GuestUnmap<'a, T>
    where
        T: 'a;

    #[inline(always)]
    fn plan_map(
        &mut self,
        ipa: IpaPfn,
        pfns: PfnRange,
        blocks: BlockSizes,
    ) -> Result<GuestMap<'_, T>, IpaPfn> {
        let (first, past) = (ipa.0, ipa.0 + pfns.pages());
        assert!(past <= self.limit, "{ipa} is past the address space: hypervisor bug");
        let plan = Plan { first, past, pfn: pfns.start().0, blocks };
        let vacancy = plan.survey(&self.walk()).map_err(IpaPfn)?;
        Ok(GuestMap { stage2: self, plan, vacancy })
    }

    #[inline(always)]
    fn plan_unmap(&mut self, ipa: IpaPfn, pfns: PfnRange) -> Result<GuestUnmap<'_, T>, IpaPfn> {
        let (first, past) = (ipa.0, ipa.0 + pfns.pages());
        assert!(past <= self.limit, "{ipa} is past the address space: hypervisor bug");
        let ends = self.ends(first, past);
        let end = ends.start.end().min(past);
        let mut elsewhere = self.walk().first_elsewhere(&ends.start, (first, end), pfns.start());
        if elsewhere.is_none() && end < past {
            elsewhere = self.first_elsewhere((first, past), end, &pfns);
        }
        match elsewhere {
            Some(page) => Err(IpaPfn(page)),
            None => Ok(GuestUnmap { stage2: self, ends }),
        }
    }

    fn add_tables(&mut self, range: PfnRange) {
        // SAFETY: promised by the caller of `new`, as the contract of this method demands.
        unsafe { self.tables.pool().add(range) };
    }

    fn take_table(&mut self) -> Option<Pfn> {
        self.tables.pool().take()
    }

    fn tables_free(&self) -> u64 {
        self.tables.pool().free()
    }

    /// Exact.
    fn tables_to_map(&self, ipa: IpaPfn, pfns: PfnRange, blocks: BlockSizes) -> u64 {
        let past = ipa.0 + pfns.pages();
        let plan = Plan { first: ipa.0, past, pfn: pfns.start().0, blocks };
        plan.tables(&self.walk())
    }

    /// One descriptor of the root table tells, where it is invalid and covers all.
    #[inline(always)]
    fn tables_if_vacant(&self, ipa: IpaPfn, pfns: PfnRange, blocks: BlockSizes) -> Option<u64> {
        let past = ipa.0 + pfns.pages();
        if past > self.limit {
            return None;
        }
        let root = self.root_entry(ipa.0);
        let plan = Plan { first: ipa.0, past, pfn: pfns.start().0, blocks };
        if root.is_valid() || past > root.end() {
            return None;
        }
        Some(plan.tables_in_gibibyte(ipa.0, past))
    }

    fn tables_to_unmap(&self, ipa: IpaRange) -> u64 {
        self.ends(ipa.start().0, ipa.end().0.min(self.limit)).tables()
    }

    fn lookup(&self, ipa: IpaPfn) -> Option<GuestLeaf> {
        let inside = ipa.0 < self.limit;
        let entry = inside.then(|| self.walk().find(ipa.0)).filter(Entry::is_leaf)?;
        let attrs = self.config.encoding.decode(entry.stage2_attributes())?;
        Some(GuestLeaf { pfn: Pfn(entry.output().pfn().0 + (ipa.0 - entry.first)), attrs })
    }

    fn first_mapped(&self, ipa: IpaRange) -> Option<IpaPfn> {
        let past = ipa.end().0.min(self.limit);
        self.walk().first_leaf(ipa.start().0, past).map(IpaPfn)
    }

    fn map(&mut self, ipa: IpaPfn, pfns: PfnRange, attrs: Stage2Attrs, blocks: BlockSizes) {
        let (first, past) = (ipa.0, ipa.0 + pfns.pages());
        assert!(past <= self.limit, "page {ipa} is past the address space: hypervisor bug");
        let bits = self.config.encoding.encode(attrs).expect("attributes were checked");
        let plan = Plan { first, past, pfn: pfns.start().0, blocks };
        plan.apply(&mut self.tables, bits);
        self.tlb.publish();
    }

    fn unmap(&mut self, ipa: IpaRange) {
        self.remove(self.ends(ipa.start().0, ipa.end().0.min(self.limit)));
    }

    fn destroy(&mut self) {
        assert!(self.life == Life::Live, "destroyed twice: hypervisor bug");
        let root = self.tables.root();
        for gibibyte in 0..self.limit.div_ceil(pages_at(ROOT_LEVEL)) {
            let entry = self.root_entry(gibibyte * pages_at(ROOT_LEVEL));
            if entry.is_valid() {
                self.tables.erase((entry.first, entry.end()));
            }
        }
        self.tlb.invalidate(self.regs, Stage2Scope::Vmid);
        self.life = Life::Destroyed;
        // SAFETY: the root is the pool's first page; its VMID's TLB entries are gone, and from now
        // on nothing reads it (`walk`).
        unsafe { self.tables.pool().retire(root) };
        // SAFETY: every table of the VMID has just been invalidated.
        unsafe { self.tables.recycle() };
    }

    fn vttbr(&self) -> u64 {
        self.regs.vttbr
    }
}
