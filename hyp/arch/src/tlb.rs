//! TLB maintenance: what makes a page that is gone from a table gone for good.
//!
//! Order for stage 2 (Arm ARM, D8.17): stores of invalid descriptors complete (`DSB ISHST`), then
//! everything cached by IPA goes, then (`DSB ISH` between) everything of stage 1, because entries
//! that combine both stages need not match by IPA; `DSB ISH` waits for all CPUs. CPUs with the
//! repeat-TLBI erratum (Arm 1286807, 2441007, 2441009) get the sequence twice.

use pfnguard_core::addr::{IpaRange, PfnRange};

use crate::barrier;

/// Registers that select a stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Regs {
    /// `VTTBR_EL2`: root and VMID.
    pub vttbr: u64,
    /// `VTCR_EL2`.
    pub vtcr: u64,
}

/// What an invalidation must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Scope {
    /// Leaves of at least `stride` pages each, somewhere in `range`, and the tables above them.
    Leaves {
        /// Range that holds all leaves.
        range: IpaRange,
        /// Size in pages of the smallest leaf; `range` is a multiple of it.
        stride: u64,
    },
    /// Everything of the VMID.
    Vmid,
}

/// TLB maintenance of a stage 2, as the tables ask for it.
pub trait Stage2Tlb: Send {
    /// Makes new valid descriptors visible to all table walkers.
    fn publish(&mut self);

    /// Makes earlier stores of invalid descriptors final: on return no CPU uses what was in
    /// `scope`, neither a translation nor a table.
    fn invalidate(&mut self, regs: Stage2Regs, scope: Stage2Scope);
}

/// TLB maintenance of the hypervisor's stage 1, as the tables ask for it.
pub trait El2Tlb: Send {
    /// Makes new valid descriptors visible to all table walkers and to this CPU.
    fn publish(&mut self);

    /// Makes earlier stores of invalid descriptors final for every address of `range`.
    fn invalidate(&mut self, range: PfnRange);
}

/// Whether FEAT_TLBIRANGE is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbiRange {
    /// One instruction invalidates a range.
    Present,
    /// One instruction invalidates one leaf.
    Absent,
}

/// Whether some CPU needs every invalidation twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepeatTlbi {
    /// No CPU has the erratum.
    No,
    /// Some CPU has it.
    Yes,
}

/// The TLBs of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareTlb {
    range: TlbiRange,
    repeat: RepeatTlbi,
}

/// Leaves that are invalidated one by one before a range or the whole VMID is cheaper.
const MAX_SINGLE: u64 = 16;
/// Pages that range instructions cover at most before the whole VMID goes (8 GiB).
const MAX_RANGE: u64 = 1 << 21;
/// `TG` field of a range operand: 4 KiB granule (Arm ARM, C5.5, `TLBI RIPAS2E1IS`).
const RANGE_TG_4K: u64 = 0b01 << 46;
/// Bit offset of the `SCALE` field of a range operand.
const RANGE_SCALE: u32 = 44;
/// Bit offset of the `NUM` field of a range operand.
const RANGE_NUM: u32 = 39;
/// Bit offset of `VTTBR_EL2.VMID`.
const VMID_SHIFT: u32 = 48;

/// One step of a maintenance sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    DsbIshst,
    DsbIsh,
    Isb,
    /// Stage 2 by IPA; operand is the page number.
    Ipas2e1is(u64),
    /// Stage 2 by range of IPA; encoded operand.
    Ripas2e1is(u64),
    /// Stage 1 of the VMID, and entries that combine it with stage 2.
    Vmalle1is,
    /// Both stages of the VMID.
    Vmalls12e1is,
    /// EL2 by address; operand is the page number.
    Vae2is(u64),
    /// EL2 by range; encoded operand.
    Rvae2is(u64),
    /// All of EL2.
    Alle2is,
    /// `VTCR_EL2` and `VTTBR_EL2` change.
    Select(Stage2Regs),
}

impl HardwareTlb {
    /// Describes the TLBs of this machine.
    pub const fn new(range: TlbiRange, repeat: RepeatTlbi) -> Self {
        Self { range, repeat }
    }

    /// Issues the sequence for a stage 2 as often as this machine needs it. What to issue is
    /// decided once.
    fn sequence_stage2(self, scope: Stage2Scope) {
        match scope {
            Stage2Scope::Leaves { range, stride } if range.pages() <= stride => {
                self.repeated(|| Self::by_ipa(|| issue(Op::Ipas2e1is(range.start().0))));
            }
            Stage2Scope::Leaves { range, stride } if range.pages() <= MAX_SINGLE * stride => {
                self.repeated(|| Self::by_ipa(|| each_leaf(range, stride)));
            }
            Stage2Scope::Leaves { range, .. } if self.has_range_for(range.pages()) => {
                let (start, pages) = (range.start().0, range.pages());
                let ranges = || for_each_range(start, pages, Op::Ripas2e1is, Op::Ipas2e1is);
                self.repeated(|| Self::by_ipa(ranges));
            }
            Stage2Scope::Leaves { .. } | Stage2Scope::Vmid => self.repeated(|| {
                issue(Op::Vmalls12e1is);
                issue(Op::DsbIsh);
            }),
        }
    }

    /// Then all of stage 1: by IPA may leave entries that combine both stages.
    #[inline(always)]
    fn by_ipa(leaves: impl Fn()) {
        leaves();
        issue(Op::DsbIsh);
        issue(Op::Vmalle1is);
        issue(Op::DsbIsh);
    }

    fn sequence_el2(self, range: PfnRange) {
        let (start, pages) = (range.start().0, range.pages());
        if pages == 1 {
            self.repeated(|| Self::by_address(|| issue(Op::Vae2is(start))));
        } else if pages <= MAX_SINGLE {
            let each = || (start..range.end().0).for_each(|page| issue(Op::Vae2is(page)));
            self.repeated(|| Self::by_address(each));
        } else if self.has_range_for(pages) {
            let ranges = || for_each_range(start, pages, Op::Rvae2is, Op::Vae2is);
            self.repeated(|| Self::by_address(ranges));
        } else {
            self.repeated(|| Self::by_address(|| issue(Op::Alle2is)));
        }
    }

    #[inline(always)]
    fn by_address(addresses: impl Fn()) {
        addresses();
        issue(Op::DsbIsh);
    }

    fn has_range_for(self, pages: u64) -> bool {
        match self.range {
            TlbiRange::Present => pages < MAX_RANGE,
            TlbiRange::Absent => false,
        }
    }

    #[inline(always)]
    fn repeated(self, sequence: impl Fn()) {
        sequence();
        match self.repeat {
            RepeatTlbi::Yes => sequence(),
            RepeatTlbi::No => {}
        }
    }
}

impl Stage2Tlb for HardwareTlb {
    fn publish(&mut self) {
        issue(Op::DsbIshst);
    }

    /// TLBI acts on the VMID in `VTTBR_EL2`, so a foreign VMID is selected for the time of the
    /// sequence. CPUs that translate speculatively out of context (Arm 1319367, 1319537) could
    /// meanwhile cache host stage 1 through guest stage 2, under the guest's VMID: the guest
    /// reaches nothing through such an entry that its own stage 2 does not give it, and the host
    /// has another VMID.
    fn invalidate(&mut self, regs: Stage2Regs, scope: Stage2Scope) {
        let current = selected();
        if current.vttbr >> VMID_SHIFT == regs.vttbr >> VMID_SHIFT {
            issue(Op::DsbIshst);
            self.sequence_stage2(scope);
        } else {
            // What the host's profiling and trace still hold belongs through the host's stage 2.
            barrier::drain_profiling();
            // The full barrier also ends walks that began before the exception to EL2.
            issue(Op::DsbIsh);
            issue(Op::Select(regs));
            issue(Op::Isb);
            self.sequence_stage2(scope);
            issue(Op::Select(current));
        }
        issue(Op::Isb);
    }
}

impl El2Tlb for HardwareTlb {
    fn publish(&mut self) {
        issue(Op::DsbIshst);
        issue(Op::Isb);
    }

    fn invalidate(&mut self, range: PfnRange) {
        issue(Op::DsbIshst);
        self.sequence_el2(range);
        issue(Op::Isb);
    }
}

/// Covers `range` with single operations, one for each leaf of `stride` pages.
#[inline(always)]
fn each_leaf(range: IpaRange, stride: u64) {
    let mut page = range.start().0;
    while page < range.end().0 {
        issue(Op::Ipas2e1is(page));
        page += stride;
    }
}

/// Covers `pages` pages from `start` with range operations: `(NUM + 1) << (5 * SCALE + 1)` pages
/// each (Arm ARM, C5.5), and a single one where the count is odd.
fn for_each_range(start: u64, pages: u64, many: fn(u64) -> Op, single: fn(u64) -> Op) {
    let (mut start, mut left) = (start, pages);
    for scale in (0..4u32).rev() {
        let shift = 5 * scale + 1;
        let count = left >> shift;
        if count > 0 {
            let fields = u64::from(scale) << RANGE_SCALE | (count - 1) << RANGE_NUM;
            issue(many(RANGE_TG_4K | fields | start));
            start += count << shift;
            left -= count << shift;
        }
    }
    if left > 0 {
        issue(single(start));
    }
}

/// Returns what `VTCR_EL2` and `VTTBR_EL2` select now.
#[inline(always)]
fn selected() -> Stage2Regs {
    #[cfg(target_arch = "aarch64")]
    {
        let (vttbr, vtcr): (u64, u64);
        // SAFETY: reading the registers has no effect.
        unsafe {
            core::arch::asm!("mrs {0}, vttbr_el2", "mrs {1}, vtcr_el2",
                out(reg) vttbr, out(reg) vtcr, options(nomem, nostack, preserves_flags))
        };
        Stage2Regs { vttbr, vtcr }
    }
    #[cfg(not(target_arch = "aarch64"))]
    Stage2Regs { vttbr: 0, vtcr: 0 }
}

/// Executes one step. The asm has a memory clobber: stores to tables stay before it.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn issue(op: Op) {
    macro_rules! run {
        ($instruction:literal $(, $operand:expr)*) => {
            // SAFETY: TLB maintenance removes cached copies of what the tables say; it changes no
            // memory and nothing that this program computes with.
            unsafe {
                core::arch::asm!($instruction $(, in(reg) $operand)*,
                    options(nostack, preserves_flags))
            }
        };
    }
    match op {
        Op::DsbIshst => barrier::dsb_ishst(),
        Op::DsbIsh => barrier::dsb_ish(),
        Op::Isb => barrier::isb(),
        Op::Ipas2e1is(page) => run!("tlbi ipas2e1is, {0}", page),
        // TLBI RIPAS2E1IS, by its encoding: the target's baseline lacks the name.
        Op::Ripas2e1is(operand) => run!("sys #4, c8, c0, #2, {0}", operand),
        Op::Vmalle1is => run!("tlbi vmalle1is"),
        Op::Vmalls12e1is => run!("tlbi vmalls12e1is"),
        Op::Vae2is(page) => run!("tlbi vae2is, {0}", page),
        // TLBI RVAE2IS.
        Op::Rvae2is(operand) => run!("sys #4, c8, c2, #1, {0}", operand),
        Op::Alle2is => run!("tlbi alle2is"),
        Op::Select(regs) => {
            // EL1&0 is out of context at EL2; nobody translates between the two writes.
            run!("msr vtcr_el2, {0}", regs.vtcr);
            run!("msr vttbr_el2, {0}", regs.vttbr);
        }
    }
}

/// Records one step (tests) or does nothing: there is no TLB to maintain.
#[cfg(not(target_arch = "aarch64"))]
fn issue(op: Op) {
    barrier::dsb_ish();
    #[cfg(test)]
    tests::ISSUED.with_borrow_mut(|issued| issued.push(op));
    #[cfg(not(test))]
    let _ = op;
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::cell::RefCell;
    use std::vec;
    use std::vec::Vec;

    use pfnguard_core::addr::{IpaPfn, Pfn};

    use super::*;

    std::thread_local! {
        pub(super) static ISSUED: RefCell<Vec<Op>> = const { RefCell::new(Vec::new()) };
    }

    /// The host's registers: what `selected` returns off target.
    const HOST: Stage2Regs = Stage2Regs { vttbr: 0, vtcr: 0 };
    const GUEST: Stage2Regs = Stage2Regs { vttbr: 7 << 48 | 0x4000_0000, vtcr: 5 };

    fn issued(run: impl FnOnce()) -> Vec<Op> {
        ISSUED.take();
        run();
        ISSUED.take()
    }

    fn leaves(start: u64, pages: u64, stride: u64) -> Stage2Scope {
        let range = IpaRange::new(IpaPfn(start), pages).unwrap();
        Stage2Scope::Leaves { range, stride }
    }

    fn tlb(range: TlbiRange) -> HardwareTlb {
        HardwareTlb::new(range, RepeatTlbi::No)
    }

    #[test]
    fn a_page_goes_by_ipa_and_then_all_of_stage_1_goes() {
        let mut tlb = tlb(TlbiRange::Absent);
        let ops = issued(|| Stage2Tlb::invalidate(&mut tlb, HOST, leaves(0x1234, 1, 1)));
        let by_ipa = [Op::DsbIshst, Op::Ipas2e1is(0x1234), Op::DsbIsh];
        assert_eq!(ops, [&by_ipa[..], &[Op::Vmalle1is, Op::DsbIsh, Op::Isb]].concat());
    }

    #[test]
    fn one_instruction_per_block_is_enough() {
        let mut tlb = tlb(TlbiRange::Absent);
        let ops = issued(|| Stage2Tlb::invalidate(&mut tlb, HOST, leaves(512, 1024, 512)));
        assert_eq!(ops[1..3], [Op::Ipas2e1is(512), Op::Ipas2e1is(1024)]);
        assert_eq!(ops.len(), 7);
    }

    #[test]
    fn many_leaves_without_range_instructions_take_the_whole_vmid() {
        let mut tlb = tlb(TlbiRange::Absent);
        let ops = issued(|| Stage2Tlb::invalidate(&mut tlb, HOST, leaves(0, 512, 1)));
        assert_eq!(ops, [Op::DsbIshst, Op::Vmalls12e1is, Op::DsbIsh, Op::Isb]);
    }

    #[test]
    fn a_foreign_vmid_is_selected_for_the_sequence_and_the_old_one_restored() {
        let mut tlb = tlb(TlbiRange::Absent);
        let ops = issued(|| Stage2Tlb::invalidate(&mut tlb, GUEST, Stage2Scope::Vmid));
        let sequence = [Op::Vmalls12e1is, Op::DsbIsh];
        let before = [Op::DsbIsh, Op::Select(GUEST), Op::Isb];
        assert_eq!(ops, [&before[..], &sequence, &[Op::Select(HOST), Op::Isb]].concat());
    }

    #[test]
    fn the_erratum_repeats_the_whole_sequence() {
        let mut tlb = HardwareTlb::new(TlbiRange::Absent, RepeatTlbi::Yes);
        let ops = issued(|| Stage2Tlb::invalidate(&mut tlb, HOST, leaves(1, 1, 1)));
        let once = [Op::Ipas2e1is(1), Op::DsbIsh, Op::Vmalle1is, Op::DsbIsh];
        assert_eq!(ops, [&[Op::DsbIshst][..], &once, &once, &[Op::Isb]].concat());
    }

    /// Decodes a range operand by the architecture's formula, pages from `BaseADDR` on.
    fn covered(op: Op) -> (u64, u64) {
        match op {
            Op::Ripas2e1is(operand) | Op::Rvae2is(operand) => {
                assert_eq!(operand >> 46 & 0b11, 0b01, "granule");
                let (num, scale) = (operand >> 39 & 0b1_1111, operand >> 44 & 0b11);
                let base = operand & ((1 << 37) - 1);
                (base, base + ((num + 1) << (5 * scale + 1)))
            }
            Op::Ipas2e1is(page) | Op::Vae2is(page) => (page, page + 1),
            Op::DsbIshst | Op::DsbIsh | Op::Isb | Op::Vmalle1is | Op::Vmalls12e1is => (0, 0),
            Op::Alle2is | Op::Select(_) => (0, 0),
        }
    }

    #[test]
    fn range_operands_cover_every_page_once() {
        let mut tlb = tlb(TlbiRange::Present);
        for pages in [17, 64, 511, 512, 1000, 4096, 262_144, 262_145, MAX_RANGE - 1] {
            let range = PfnRange::new(Pfn(0x40_123), pages).unwrap();
            let ops = issued(|| El2Tlb::invalidate(&mut tlb, range));
            let mut next = 0x40_123;
            for (start, end) in ops.into_iter().map(covered).filter(|(_, end)| *end > 0) {
                assert_eq!(start, next);
                next = end;
            }
            assert_eq!(next, 0x40_123 + pages);
        }
    }

    #[test]
    fn el2_ranges_without_range_instructions_take_all_of_el2() {
        let mut tlb = tlb(TlbiRange::Absent);
        let range = PfnRange::new(Pfn(1), 17).unwrap();
        let ops = issued(|| El2Tlb::invalidate(&mut tlb, range));
        assert_eq!(ops, vec![Op::DsbIshst, Op::Alle2is, Op::DsbIsh, Op::Isb]);
    }
}
