//! The hypervisor's own stage 1: an identity map, W^X, one table base (nVHE, `HCR_EL2.E2H` = 0).

use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::mair::{Mair, MairAttribute, NormalMemory};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, RootTable};
use pfnguard_core::addr::{PfnRange, PhysAddr};
use pfnguard_core::machine::El2Stage1;
use pfnguard_shared::PAGE_SHIFT;

use crate::fixmap::{Slots, WINDOW_PAGES, WindowType, Windows, window_page};
use crate::pool::{PhysMap, TablePool, blocks_touched, to_u64, to_usize};
use crate::stage2::physical_size;
use crate::tlb::El2Tlb;
use crate::walk::{BIG_LEVEL, MID_LEVEL, PAGE_LEVEL, Walk, pages_at, shift_at};

/// What a launch-time range may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// Code: read and execute; guarded where the CPU has BTI.
    Text,
    /// Constants: read.
    Rodata,
    /// Data, stacks, pools: read and write. Guard pages are simply in no section.
    Data,
    /// Registers of the console: read and write, Device-nGnRE.
    Device,
}

/// A launch-time range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// The pages.
    pub range: PfnRange,
    /// What they are used for.
    pub kind: SectionKind,
}

/// Whether indirect branches are checked (FEAT_BTI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bti {
    /// The guarded-page bit is reserved.
    Absent,
    /// Text is guarded.
    Present,
}

/// What the EL2 tables are built from.
#[derive(Clone, Copy, Debug)]
pub struct El2Config<'a> {
    /// How table pages are seen.
    pub map: PhysMap,
    /// Launch-time ranges, not overlapping. Pages that hold tables must be among them, as data.
    pub sections: &'a [Section],
    /// Number of CPUs that get windows.
    pub cpus: u64,
    /// FEAT_BTI.
    pub bti: Bti,
}

/// Values of the registers that put the tables in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El2Regs {
    /// `TTBR0_EL2`.
    pub ttbr0: u64,
    /// `TCR_EL2`.
    pub tcr: u64,
    /// `MAIR_EL2`.
    pub mair: u64,
    /// `SCTLR_EL2` with MMU and caches on and nothing that depends on a feature.
    pub sctlr: u64,
}

/// Level of the root table: 48 bits of virtual address.
const ROOT_LEVEL: u32 = 0;
/// Bits of virtual address.
const VA_BITS: u64 = 48;

/// `MAIR_EL2`: types by the indices that `leaf_bits` uses.
pub const MAIR_EL2: Mair = Mair::EMPTY
    .with_attribute(0, MairAttribute::DEVICE_NGNRE)
    .with_attribute(
        1,
        MairAttribute::normal(NormalMemory::NonCacheable, NormalMemory::NonCacheable),
    )
    .with_attribute(2, MairAttribute::normal(WRITE_BACK, WRITE_BACK));
const WRITE_BACK: NormalMemory = NormalMemory::WriteBackNonTransientReadWriteAllocate;
const DEVICE: El23Attributes = El23Attributes::ATTRIBUTE_INDEX_0;
const NON_CACHEABLE: El23Attributes = El23Attributes::ATTRIBUTE_INDEX_1;
const CACHEABLE: El23Attributes = El23Attributes::ATTRIBUTE_INDEX_2;

/// Bits of `TCR_EL2` with E2H = 0 (Arm ARM, D24.2, `TCR_EL2`).
mod tcr {
    /// RES1.
    pub(super) const RES1: u64 = 1 << 31 | 1 << 23;
    /// `IRGN0`: walks are inner write-back, read- and write-allocate.
    pub(super) const IRGN0_WBWA: u64 = 0b01 << 8;
    /// `ORGN0`: the same for the outer caches.
    pub(super) const ORGN0_WBWA: u64 = 0b01 << 10;
    /// `SH0`: walks are inner shareable.
    pub(super) const SH0_INNER: u64 = 0b11 << 12;
    /// Bit offset of `PS`.
    pub(super) const PS_SHIFT: u32 = 16;
}

/// Bits of `SCTLR_EL2` with E2H = 0 (Arm ARM, D24.2, `SCTLR_EL2`).
mod sctlr {
    /// RES1 in Armv8.0.
    pub(super) const RES1: u64 = 0x30c5_0830;
    /// MMU on.
    pub(super) const M: u64 = 1 << 0;
    /// Data caches on.
    pub(super) const C: u64 = 1 << 2;
    /// A stack pointer that is not 16-byte aligned faults.
    pub(super) const SA: u64 = 1 << 3;
    /// Instruction caches on.
    pub(super) const I: u64 = 1 << 12;
    /// Writable memory is never executable.
    pub(super) const WXN: u64 = 1 << 19;
}

/// Returns `TCR_EL2` for 48 bits of virtual address, 4 KiB granule.
pub fn tcr_el2(pa_bits: u32) -> u64 {
    let walks = tcr::IRGN0_WBWA | tcr::ORGN0_WBWA | tcr::SH0_INNER;
    tcr::RES1 | (64 - VA_BITS) | walks | physical_size(pa_bits) << tcr::PS_SHIFT
}

/// Returns `SCTLR_EL2` with MMU, caches, WXN and stack alignment on. BTI and PAC bits are the
/// caller's to add.
pub const fn sctlr_el2() -> u64 {
    sctlr::RES1 | sctlr::M | sctlr::C | sctlr::SA | sctlr::I | sctlr::WXN
}

/// What a leaf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A launch-time section.
    Section(SectionKind, Bti),
    /// A donated page.
    Donated,
    /// A window on a frame.
    Window(WindowType),
}

/// Returns the attributes of a leaf, without the bit that tells pages from blocks.
fn attributes(access: Access) -> El23Attributes {
    let fixed = El23Attributes::VALID
        | El23Attributes::ACCESSED
        | El23Attributes::INNER_SHAREABLE
        | El23Attributes::USER_RES1;
    let data = El23Attributes::XN;
    let own = match access {
        Access::Section(SectionKind::Text, Bti::Absent) => CACHEABLE | El23Attributes::READ_ONLY,
        Access::Section(SectionKind::Text, Bti::Present) => {
            CACHEABLE | El23Attributes::READ_ONLY | El23Attributes::GP
        }
        Access::Section(SectionKind::Rodata, _) => CACHEABLE | El23Attributes::READ_ONLY | data,
        Access::Section(SectionKind::Data, _) | Access::Donated => CACHEABLE | data,
        Access::Section(SectionKind::Device, _) => DEVICE | data,
        Access::Window(WindowType::Cacheable) => CACHEABLE | data,
        Access::Window(WindowType::Uncached) => NON_CACHEABLE | data,
        Access::Window(WindowType::Device) => DEVICE | data,
    };
    fixed | own
}

/// Returns the descriptor bits of a leaf of `level`.
pub(crate) fn leaf_bits(access: Access, level: u32) -> u64 {
    let kind = match level {
        PAGE_LEVEL => El23Attributes::TABLE_OR_PAGE,
        _ => El23Attributes::empty(),
    };
    to_u64((attributes(access) | kind).bits())
}

/// Returns the number of table pages that the EL2 tables take in the worst case: every page of
/// `ram` (ascending) on its own, `devices` device sections, and windows for `cpus` CPUs.
pub fn el2_tables_needed(ram: &[PfnRange], devices: u64, cpus: u64) -> u64 {
    let levels = [ROOT_LEVEL, BIG_LEVEL, MID_LEVEL];
    let ram: u64 = levels.iter().map(|level| blocks_touched(ram, shift_at(*level))).sum();
    // A small device section touches one block at each of three levels.
    let devices = devices * 3;
    let window_gigabytes = (cpus * WINDOW_PAGES).div_ceil(pages_at(BIG_LEVEL));
    1 + ram + devices + 1 + window_gigabytes + cpus
}

/// The hypervisor's stage 1.
pub struct El2Tables<T> {
    table: RootTable<El2, TablePool>,
    tlb: T,
    cpus: u64,
    pages: u64,
}

impl<T: El2Tlb + Clone> El2Tables<T> {
    /// Returns tables with all sections mapped and windows for all CPUs, not yet in force.
    ///
    /// # Safety
    ///
    /// `range` must be the object's alone from now on, mapped through `config.map`, and zero.
    ///
    /// # Panics
    ///
    /// Where sections overlap or `range` is too small ([`el2_tables_needed`]).
    pub unsafe fn new(config: El2Config<'_>, range: PfnRange, tlb: T) -> Self {
        let pool = TablePool::new(config.map);
        // SAFETY: the caller hands over the pages.
        unsafe { pool.add(range) };
        let table = RootTable::new(pool, to_usize(u64::from(ROOT_LEVEL)), El2);
        let mut tables = Self { table, tlb, cpus: config.cpus, pages: 0 };
        for section in config.sections {
            let access = Access::Section(section.kind, config.bti);
            tables.map_section(section.range, access);
        }
        for cpu in 0..config.cpus {
            tables.make_table(window_page(cpu));
        }
        tables
    }

    /// Returns the registers that put the tables in force on a CPU.
    pub fn regs(&self, pa_bits: u32) -> El2Regs {
        El2Regs {
            ttbr0: self.root().0,
            tcr: tcr_el2(pa_bits),
            mair: MAIR_EL2.0,
            sctlr: sctlr_el2(),
        }
    }

    /// Returns the windows of `cpu`.
    ///
    /// # Safety
    ///
    /// Must be called at most once for each CPU.
    ///
    /// # Panics
    ///
    /// Where the tables were built for fewer CPUs.
    pub unsafe fn windows(&self, cpu: u64) -> Windows<T> {
        assert!(cpu < self.cpus, "no windows for CPU {cpu}: hypervisor bug");
        let map = self.table.translation().map();
        let slots = |page, level| {
            let entry = self.walk().above(page, level);
            assert!((entry.level, entry.bits) == (level, 0), "{entry}, where a window belongs");
            Slots { descriptors: map.pointer(entry.slot).cast(), page }
        };
        let pages = slots(window_page(cpu), PAGE_LEVEL);
        let block = slots(window_page(cpu) + pages_at(MID_LEVEL), MID_LEVEL);
        // SAFETY: nothing else writes descriptors at these addresses: sections and donated pages
        // lie below (`map_section`, `map`), other CPUs have others, and this CPU asks once (caller).
        unsafe { Windows::new(self.tlb.clone(), pages, block) }
    }
}

impl<T> El2Tables<T> {
    fn root(&self) -> PhysAddr {
        PhysAddr(to_u64(self.table.to_physical().0))
    }

    fn walk(&self) -> Walk {
        // SAFETY: the tables are this object's, and the reader is used only while it is borrowed.
        unsafe { Walk::new(self.table.translation().map(), self.root(), ROOT_LEVEL) }
    }

    /// Writes the identity translation of a launch-time range, in the largest blocks.
    fn map_section(&mut self, range: PfnRange, access: Access) {
        let (first, past) = (range.start().0, range.end().0);
        assert!(past <= window_page(0), "{range}: past the identity map");
        let occupied = self.walk().first_leaf(first, past);
        assert!(occupied.is_none(), "{range} overlap another section");
        self.map_range((first, past), first, attributes(access));
    }

    /// Makes the level-3 table for `page`; all of its descriptors are invalid.
    fn make_table(&mut self, page: u64) {
        // To aarch64-paging an invalid descriptor at an address is not "nothing to do": it makes
        // the tables to write it to.
        self.map_range((page, page + 1), page + pages_at(0), El23Attributes::empty());
    }

    fn map_range(&mut self, (first, past): (u64, u64), pfn: u64, bits: El23Attributes) {
        let bytes = |page: u64| to_usize(page << PAGE_SHIFT);
        let region = MemoryRegion::new(bytes(first), bytes(past));
        self.table
            .map_range(&region, PhysicalAddress(bytes(pfn)), bits, Constraints::empty())
            .expect("the range is inside the tables: checked by the caller");
    }
}

/// Returns the parts of `range` that lie in one level-3 table each.
fn by_table(range: PfnRange) -> impl Iterator<Item = (u64, u64)> {
    let (first, past) = (range.start().0, range.end().0);
    let size = pages_at(MID_LEVEL);
    let tables = first / size..past.div_ceil(size);
    tables.map(move |table| ((table * size).max(first), ((table + 1) * size).min(past)))
}

impl<T: El2Tlb> El2Stage1 for El2Tables<T> {
    fn map(&mut self, range: PfnRange) {
        assert!(range.end().0 <= window_page(0), "{range}: past the identity map");
        // Pages only, so that any part can be removed again.
        let bits = leaf_bits(Access::Donated, PAGE_LEVEL);
        for (first, past) in by_table(range) {
            if !self.walk().above(first, MID_LEVEL).is_valid() {
                self.make_table(first);
            }
            let entry = self.walk().above(first, MID_LEVEL);
            assert!(entry.is_table(), "{range} are in a block: hypervisor bug");
            self.walk().set_pages(&entry, first, past, first << PAGE_SHIFT | bits);
        }
        self.pages += range.pages();
        self.tlb.publish();
    }

    /// Tables stay, also empty ones: they were reserved for good at launch.
    fn unmap(&mut self, range: PfnRange) {
        for (first, past) in by_table(range) {
            let entry = self.walk().above(first, MID_LEVEL);
            assert!(entry.is_table(), "{range} were not donated: hypervisor bug");
            let cleared = self.walk().clear_pages(&entry, first, past);
            assert!(cleared == Some((first, past)), "{range} were not mapped: hypervisor bug");
        }
        self.tlb.invalidate(range);
        let left = self.pages.checked_sub(range.pages());
        self.pages = left.expect("more pages unmapped than mapped: hypervisor bug");
    }

    fn pages(&self) -> u64 {
        self.pages
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use pfnguard_core::addr::Pfn;

    use super::*;
    use crate::testing::{Event, Found, Memory, WorstTlb, walk_stage1};

    /// 16 MiB of RAM that begin and end inside a 2 MiB block.
    const RAM: PfnRange = range(0x4_0010, 4096);
    const SECTIONS: [Section; 5] = [
        Section { range: range(0x4_0200, 20), kind: SectionKind::Text },
        Section { range: range(0x4_0214, 5), kind: SectionKind::Rodata },
        Section { range: range(0x4_0219, 4), kind: SectionKind::Data },
        // A guard page is left out here.
        Section { range: range(0x4_021e, 1506), kind: SectionKind::Data },
        Section { range: range(0x9000, 1), kind: SectionKind::Device },
    ];

    const fn range(start: u64, pages: u64) -> PfnRange {
        PfnRange::new(Pfn(start), pages).unwrap()
    }

    fn tables(bti: Bti) -> (std::mem::ManuallyDrop<El2Tables<WorstTlb>>, Memory, WorstTlb) {
        let memory = Memory::new(0x4_0400, el2_tables_needed(&[RAM], 1, 3));
        let tlb = WorstTlb::new(memory);
        let config = El2Config { map: memory.map(), sections: &SECTIONS, cpus: 3, bti };
        // SAFETY: the memory is new, zero, and only these tables'.
        let tables = unsafe { El2Tables::new(config, memory.range(), tlb.clone()) };
        (std::mem::ManuallyDrop::new(tables), memory, tlb)
    }

    fn leaf(tables: &El2Tables<WorstTlb>, memory: &Memory, page: u64) -> Option<Found> {
        walk_stage1(memory, tables.regs(48).ttbr0, page)
    }

    #[test]
    fn sections_are_identity_mapped_with_their_permissions_and_nothing_else_is() {
        let (tables, memory, _) = tables(Bti::Present);
        for page in (0x8ff0..0x9010).chain(0x4_0000..0x4_1400) {
            let section = SECTIONS.iter().find(|section| section.range.contains(Pfn(page)));
            let found = leaf(&tables, &memory, page);
            assert_eq!(found.map(|found| found.pfn), section.map(|_| page), "{page:#x}");
            let (Some(found), Some(section)) = (found, section) else { continue };
            let bit = |bit: u32| found.bits >> bit & 1;
            let (read_only, never_executed, guarded) = (bit(7), bit(54), bit(50));
            let expected = match section.kind {
                SectionKind::Text => (1, 0, 1),
                SectionKind::Rodata => (1, 1, 0),
                SectionKind::Data | SectionKind::Device => (0, 1, 0),
            };
            assert_eq!((read_only, never_executed, guarded), expected, "{page:#x}");
            assert_eq!((bit(10), bit(6), found.bits >> 8 & 0b11), (1, 1, 0b11), "AF, RES1, SH");
        }
    }

    #[test]
    fn nothing_is_writable_and_executable() {
        let kinds =
            [SectionKind::Text, SectionKind::Rodata, SectionKind::Data, SectionKind::Device];
        let sections = kinds.map(|kind| Access::Section(kind, Bti::Absent));
        let windows = [WindowType::Cacheable, WindowType::Uncached, WindowType::Device];
        let windows = windows.map(Access::Window);
        for access in sections.into_iter().chain(windows).chain([Access::Donated]) {
            let bits = attributes(access);
            let writable = !bits.contains(El23Attributes::READ_ONLY);
            assert!(!writable || bits.contains(El23Attributes::XN), "{access:?}");
        }
    }

    #[test]
    fn the_guarded_bit_is_clear_where_it_is_reserved() {
        let (tables, memory, _) = tables(Bti::Absent);
        assert_eq!(leaf(&tables, &memory, 0x4_0200).unwrap().bits >> 50 & 1, 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of pages")]
    fn all_of_ram_can_be_donated_page_by_page_and_taken_back() {
        let (mut tables, memory, tlb) = tables(Bti::Absent);
        let taken = |page: &Pfn| SECTIONS.iter().any(|section| section.range.contains(*page));
        let free: std::vec::Vec<Pfn> = RAM.iter().filter(|page| !taken(page)).collect();
        for pfn in &free {
            tables.map(PfnRange::single(*pfn).unwrap());
            assert_eq!(leaf(&tables, &memory, pfn.0).unwrap().pages, 1);
        }
        assert_eq!(usize::try_from(tables.pages()).unwrap(), free.len());
        tlb.watch([0x4_0c00, 0x4_0e00, 0x4_0022, 0x4_0bff]);
        let root = tables.regs(48).ttbr0;
        tlb.speculate(|memory, page| walk_stage1(memory, root, page));
        tables.unmap(range(0x4_0c00, 513));
        tables.unmap(range(0x4_0020, 3));
        assert!(!tlb.holds(0x4_0c00) && !tlb.holds(0x4_0e00) && !tlb.holds(0x4_0022));
        assert!(leaf(&tables, &memory, 0x4_0bff).is_some());
        assert!(leaf(&tables, &memory, 0x4_0c00).is_none());
        assert_eq!(usize::try_from(tables.pages()).unwrap(), free.len() - 516);
    }

    #[test]
    fn taking_back_is_one_sequence() {
        let (mut tables, _, tlb) = tables(Bti::Absent);
        tables.map(range(0x4_0c00, 4));
        tlb.events();
        tables.unmap(range(0x4_0c01, 2));
        assert_eq!(tlb.events(), [Event::El2(range(0x4_0c01, 2))]);
    }

    #[test]
    #[should_panic(expected = "in use: hypervisor bug")]
    fn a_donated_page_over_a_section_is_our_own_bug() {
        let (mut tables, _, _) = tables(Bti::Absent);
        tables.map(range(0x4_0218, 1));
    }

    #[test]
    fn registers_have_the_architectures_values() {
        assert_eq!(MAIR_EL2.0, 0xff_44_04);
        assert_eq!(tcr_el2(40), 1 << 31 | 1 << 23 | 0b010 << 16 | 0b11_01_01 << 8 | 16);
        assert_eq!(tcr_el2(48), 1 << 31 | 1 << 23 | 0b101 << 16 | 0b11_01_01 << 8 | 16);
        assert_eq!(sctlr_el2(), 0x30cd_183d);
    }
}
