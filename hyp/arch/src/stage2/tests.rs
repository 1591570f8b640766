//! Tests of host and guest tables together: they share everything but the pool's source.

extern crate std;

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use pfnguard_core::addr::{IpaPfn, IpaRange, Pfn, PfnRange};
use pfnguard_core::machine::{
    GuestLeaf, GuestStage2, HostStage2, PlannedMap, PlannedUnmap, Stage2Attrs, Stage2Type,
    TagAccess, Vmid,
};
use pfnguard_shared::manifest::BlockSizes;
use pfnguard_shared::{MemType, Perms};

use super::*;
use crate::attrs::{Fwb, MtePerm};
use crate::testing::{Event, Memory, WorstTlb, walk_stage2};

const GIB: u64 = 1 << 18;
const MIB_2: u64 = 512;
const RAM_START: u64 = GIB;
const ENCODING: Encoding = Encoding { fwb: Fwb::Present, mte_perm: MtePerm::Absent };
const RAM: Stage2Attrs =
    Stage2Attrs { mem: Stage2Type::AsStage1, perms: Perms::ALL, tags: TagAccess::Allowed };
const DEVICE: Stage2Attrs = Stage2Attrs {
    mem: Stage2Type::Forced(MemType::Device),
    perms: Perms::READ,
    tags: TagAccess::Allowed,
};

fn pfns(start: u64, pages: u64) -> PfnRange {
    PfnRange::new(Pfn(start), pages).unwrap()
}

fn ipas(start: u64, pages: u64) -> IpaRange {
    IpaRange::new(IpaPfn(start), pages).unwrap()
}

fn config(memory: Memory, pa_bits: u32) -> Stage2Config {
    Stage2Config { map: memory.map(), pa_bits, vmid16: Vmid16::Present, encoding: ENCODING }
}

/// A host stage 2 for RAM of `ram` pages at 1 GiB with `extra` table pages more than needed.
fn host(pa_bits: u32, ram: u64, extra: u64) -> (HostTables<WorstTlb>, Memory, WorstTlb) {
    let ram: &'static [PfnRange] = vec![pfns(RAM_START, ram)].leak();
    let needed = host_tables_needed(ram, pa_bits) + extra;
    let memory = Memory::new(0x48_003, needed);
    let tlb = WorstTlb::new(memory);
    // SAFETY: the memory is new, zero, and only this stage 2's.
    let host =
        unsafe { HostTables::new(config(memory, pa_bits), ram, memory.range(), tlb.clone()) };
    (host, memory, tlb)
}

/// A guest stage 2 with `tables` pages, the root included.
fn guest(tables: u64) -> (GuestTables<WorstTlb>, Memory, WorstTlb) {
    let memory = Memory::new(0x50_000, tables);
    let tlb = WorstTlb::new(memory);
    // SAFETY: the memory is new, zero, and only this stage 2's.
    let guest =
        unsafe { GuestTables::new(config(memory, 40), Vmid(7), memory.range(), tlb.clone()) };
    (guest, memory, tlb)
}

fn host_leaf(host: &HostTables<WorstTlb>, memory: &Memory, page: u64) -> Option<(u64, u64)> {
    walk_stage2(memory, host.regs(), page).map(|found| (found.pfn, found.pages))
}

fn guest_leaf(guest: &GuestTables<WorstTlb>, memory: &Memory, page: u64) -> Option<(u64, u64)> {
    walk_stage2(memory, guest.regs(), page).map(|found| (found.pfn, found.pages))
}

#[test]
fn the_host_map_is_an_identity_in_the_largest_blocks_at_every_address_size() {
    for pa_bits in [32, 36, 39, 40, 42, 43, 44, 48, 52] {
        let (mut host, memory, _) = host(pa_bits, GIB, 0);
        let top = 1 << (pa_bits.min(48) - 12);
        host.map(pfns(RAM_START, GIB), RAM);
        host.map(pfns(top - MIB_2 - 1, MIB_2 + 1), DEVICE);
        let found = [RAM_START, RAM_START + GIB - 1, top - 1, top - MIB_2 - 1, 0]
            .map(|page| host_leaf(&host, &memory, page));
        let expected = [
            Some((RAM_START, GIB)),
            Some((RAM_START + GIB - 1, GIB)),
            Some((top - 1, MIB_2)),
            Some((top - MIB_2 - 1, 1)),
            None,
        ];
        assert_eq!(found, expected, "{pa_bits} bits");
        assert_eq!(host.lookup(Pfn(RAM_START + 5)), Some(RAM));
        assert_eq!(host.lookup(Pfn(top - 1)), Some(DEVICE));
        assert_eq!(host.lookup(Pfn(top)), None);
    }
}

#[test]
fn unmapping_a_page_of_a_block_drops_the_block_with_one_sequence_after_the_store() {
    let (mut host, memory, tlb) = host(40, GIB, 0);
    let page = RAM_START + 3 * MIB_2 + 17;
    host.map(pfns(RAM_START + 2 * MIB_2, 2 * MIB_2), RAM);
    tlb.watch([page, RAM_START + 2 * MIB_2]);
    tlb.speculate(|memory, page| walk_stage2(memory, host.regs(), page));
    tlb.events();

    host.unmap(pfns(page, 1));

    let range = ipas(RAM_START + 3 * MIB_2, MIB_2);
    let scope = Stage2Scope::Leaves { range, stride: MIB_2 };
    assert_eq!(tlb.events(), [Event::Stage2(host.regs(), scope)]);
    assert_eq!(tlb.walked(), [RAM_START + 2 * MIB_2], "the page was gone before the sequence");
    assert!(!tlb.holds(page));
    assert_eq!(host_leaf(&host, &memory, page), None);
    assert_eq!(
        host_leaf(&host, &memory, RAM_START + 2 * MIB_2),
        Some((RAM_START + 2 * MIB_2, MIB_2))
    );
}

#[test]
fn unmapping_what_is_not_mapped_maintains_nothing() {
    let (mut host, _, tlb) = host(48, GIB, 0);
    host.unmap(pfns(RAM_START, 512));
    assert_eq!(tlb.events(), []);
}

#[test]
fn a_range_over_pages_blocks_and_holes_is_one_sequence() {
    let (mut host, memory, tlb) = host(48, GIB, 0);
    host.map(pfns(RAM_START + 100, 50), RAM);
    host.map(pfns(RAM_START + 200, 312), RAM);
    host.map(pfns(RAM_START + MIB_2, MIB_2), RAM);
    tlb.watch((RAM_START..RAM_START + 2 * MIB_2).step_by(7));
    tlb.speculate(|memory, page| walk_stage2(memory, host.regs(), page));
    tlb.events();

    host.unmap(pfns(RAM_START + 120, 500));

    let range = ipas(RAM_START + 120, 2 * MIB_2 - 120);
    let scope = Stage2Scope::Leaves { range, stride: 1 };
    assert_eq!(tlb.events(), [Event::Stage2(host.regs(), scope)]);
    for page in RAM_START..RAM_START + 2 * MIB_2 {
        let mapped = (RAM_START + 100..RAM_START + 120).contains(&page);
        assert_eq!(host_leaf(&host, &memory, page).is_some(), mapped, "{page:#x}");
        assert!(mapped || !tlb.holds(page), "{page:#x}");
    }
}

#[test]
fn tables_freed_by_an_unmap_come_back_zero() {
    let (mut host, memory, _) = host(48, GIB, 0);
    let free = host.tables_free();
    host.map(pfns(RAM_START + 1, MIB_2 - 1), RAM);
    host.map(pfns(RAM_START, 1), RAM);
    assert_eq!(host.tables_free(), free - 3, "levels 1 to 3");
    host.unmap(pfns(RAM_START, MIB_2));
    assert_eq!(host.tables_free(), free - 2, "the level-3 table");
    let clear = memory.range().iter().filter(|pfn| memory.is_clear(*pfn)).count();
    assert!(u64::try_from(clear).unwrap() >= host.tables_free());
}

#[test]
#[cfg_attr(miri, ignore = "thousands of pages")]
fn all_of_ram_in_pages_fits_into_what_was_reserved() {
    for pa_bits in [40, 48] {
        let (mut host, memory, _) = host(pa_bits, 16 * MIB_2, 0);
        (0..16 * MIB_2).for_each(|page| host.map(pfns(RAM_START + page, 1), RAM));
        assert_eq!(host_leaf(&host, &memory, RAM_START + 77), Some((RAM_START + 77, 1)));
        assert!(host.tables_free() >= 8);
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of pages")]
fn when_tables_run_out_memory_outside_ram_is_dropped_and_ram_stays() {
    let (mut host, memory, tlb) = host(40, 4 * MIB_2, 0);
    host.map(pfns(RAM_START + 1, 1), RAM);
    tlb.watch([GIB / 2 + 1]);
    host.map(pfns(GIB / 2 + 1, 1), DEVICE);
    tlb.speculate(|memory, page| walk_stage2(memory, host.regs(), page));

    let far = (2..40).map(|index| index * 3 * GIB + 1);
    far.for_each(|page| host.map(pfns(page, 1), DEVICE));

    let dropped = tlb.events().contains(&Event::Stage2(host.regs(), Stage2Scope::Vmid));
    assert!(dropped, "the pool never ran low");
    assert_eq!(host_leaf(&host, &memory, RAM_START + 1), Some((RAM_START + 1, 1)));
    assert_eq!(host_leaf(&host, &memory, GIB / 2 + 1), None);
    assert!(!tlb.holds(GIB / 2 + 1));
    (2..4 * MIB_2).for_each(|page| host.map(pfns(RAM_START + page, 1), RAM));
    assert_eq!(host.lookup(Pfn(RAM_START + 4 * MIB_2 - 1)), Some(RAM));
}

#[test]
#[should_panic(expected = "in use: hypervisor bug")]
fn mapping_over_a_translation_is_our_own_bug() {
    let (mut host, _, _) = host(40, GIB, 0);
    host.map(pfns(RAM_START, 1), RAM);
    host.map(pfns(RAM_START, 2), DEVICE);
}

#[test]
fn a_gibibyte_of_a_region_is_one_descriptor_without_tables() {
    let (mut guest, memory, tlb) = guest(1);
    let (ipa, frames) = (IpaPfn(2 * GIB), pfns(32 * GIB, GIB));
    assert_eq!(guest.tables_to_map(ipa, frames, BlockSizes::ALL), 0);
    guest.map(ipa, frames, DEVICE, BlockSizes::ALL);
    assert_eq!(guest_leaf(&guest, &memory, 2 * GIB + 5), Some((32 * GIB + 5, GIB)));
    let leaf = GuestLeaf { pfn: Pfn(32 * GIB + 5), attrs: DEVICE };
    assert_eq!(guest.lookup(IpaPfn(2 * GIB + 5)), Some(leaf));
    assert_eq!(tlb.events(), [Event::Publish]);
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of thousands of pages")]
fn blocks_are_no_larger_than_allowed() {
    let table = [
        (BlockSizes::PAGE, 1),
        (BlockSizes::PAGE.with(BlockSizes::BLOCK_1G), 1),
        (BlockSizes::PAGE.with(BlockSizes::BLOCK_2M), MIB_2),
        (BlockSizes::ALL, GIB),
    ];
    for (blocks, pages) in table {
        let (mut guest, memory, _) = guest(515);
        let (ipa, frames) = (IpaPfn(0), pfns(GIB, GIB));
        let needed = guest.tables_to_map(ipa, frames, blocks);
        let free = guest.tables_free();
        guest.map(ipa, frames, RAM, blocks);
        assert_eq!(free - guest.tables_free(), needed, "{blocks:?}");
        for page in [0, 1, GIB / 2 - 1, GIB / 2, GIB - 1] {
            assert_eq!(guest_leaf(&guest, &memory, page), Some((GIB + page, pages)), "{blocks:?}");
        }
    }
}

#[test]
fn splitting_a_gibibyte_keeps_the_rest_and_takes_what_was_announced() {
    // First page and pages of the hole, tables.
    let table = [
        (0, 1, 2),
        (GIB - 1, 1, 2),
        (5, 1, 2),
        (MIB_2, MIB_2, 1),
        (MIB_2 + 1, MIB_2, 3),
        (MIB_2 - 1, 2, 3),
        (0, GIB, 0),
        (7, GIB - 14, 3),
    ];
    for (first, pages, tables) in table {
        let (mut guest, memory, tlb) = guest(4);
        guest.map(IpaPfn(GIB), pfns(3 * GIB, GIB), DEVICE, BlockSizes::ALL);
        tlb.watch([GIB + first, GIB + first + pages - 1]);
        tlb.speculate(|memory, page| walk_stage2(memory, guest.regs(), page));
        let hole = ipas(GIB + first, pages);
        assert_eq!(guest.tables_to_unmap(hole), tables, "{first:#x}+{pages:#x}");
        tlb.events();

        guest.unmap(hole);

        assert_eq!(guest.tables_free(), 3 - tables, "{first:#x}+{pages:#x}");
        let sequences = tlb.events().into_iter().filter(|event| *event != Event::Publish).count();
        assert_eq!(sequences, 1);
        assert!(!tlb.holds(GIB + first) && !tlb.holds(GIB + first + pages - 1));
        for page in [0, 1, first, first + pages - 1, first + pages, first.max(1) - 1, GIB - 1] {
            let gone = (first..first + pages).contains(&page) || page >= GIB;
            let found = guest_leaf(&guest, &memory, GIB + page).map(|(pfn, _)| pfn);
            assert_eq!(
                found,
                (!gone).then_some(3 * GIB + page),
                "{first:#x}+{pages:#x}: {page:#x}"
            );
        }
    }
}

#[test]
fn a_hole_across_two_blocks_splits_both() {
    let (mut guest, memory, _) = guest(5);
    guest.map(IpaPfn(0), pfns(MIB_2, 2 * MIB_2), RAM, BlockSizes::ALL);
    let hole = ipas(MIB_2 - 1, 2);
    assert_eq!(guest.tables_to_unmap(hole), 2);
    guest.unmap(hole);
    let found = [MIB_2 - 2, MIB_2 - 1, MIB_2, MIB_2 + 1]
        .map(|page| guest_leaf(&guest, &memory, page).map(|(pfn, _)| pfn));
    assert_eq!(found, [Some(2 * MIB_2 - 2), None, None, Some(2 * MIB_2 + 1)]);
}

#[test]
fn the_first_mapped_page_is_found_across_absent_subtrees() {
    let (mut guest, _, _) = guest(4);
    assert_eq!(guest.first_mapped(ipas(0, 1 << 27)), None);
    guest.map(IpaPfn(300 * GIB + 700), pfns(5, 10), RAM, BlockSizes::PAGE);
    assert_eq!(guest.first_mapped(ipas(0, 1 << 27)), Some(IpaPfn(300 * GIB + 700)));
    assert_eq!(guest.first_mapped(ipas(300 * GIB + 705, 9)), Some(IpaPfn(300 * GIB + 705)));
    assert_eq!(guest.first_mapped(ipas(300 * GIB + 710, 9)), None);
}

#[test]
fn the_worst_case_of_a_map_counts_missing_tables_only() {
    let (mut guest, _, _) = guest(8);
    assert_eq!(guest.tables_to_map(IpaPfn(10), pfns(5, 1), BlockSizes::PAGE), 2);
    assert_eq!(guest.tables_to_map(IpaPfn(MIB_2 - 1), pfns(5, 2), BlockSizes::PAGE), 3);
    assert_eq!(guest.tables_to_map(IpaPfn(GIB - 1), pfns(5, 2), BlockSizes::PAGE), 4);
    guest.map(IpaPfn(10), pfns(1, 1), RAM, BlockSizes::PAGE);
    assert_eq!(guest.tables_to_map(IpaPfn(11), pfns(5, 1), BlockSizes::PAGE), 0);
    assert_eq!(guest.tables_to_map(IpaPfn(MIB_2), pfns(5, 1), BlockSizes::PAGE), 1);
}

#[test]
fn a_planned_map_names_the_first_page_in_use_and_otherwise_takes_what_it_announced() {
    // First page, pages, first page in use; pages 10 to 12 and the block at 2 * MIB_2 are mapped.
    let table = [
        (9, 1, None),
        (13, MIB_2, None),
        (8, 9, Some(10)),
        (12, 1, Some(12)),
        (MIB_2, 2 * MIB_2, Some(2 * MIB_2)),
        (2 * MIB_2 + 7, 1, Some(2 * MIB_2 + 7)),
        (3 * MIB_2 - 1, 2, Some(3 * MIB_2 - 1)),
        (GIB - 1, 2, None),
    ];
    for (first, pages, used) in table {
        let (mut guest, memory, _) = guest(10);
        guest.map(IpaPfn(10), pfns(1, 3), RAM, BlockSizes::PAGE);
        guest.map(IpaPfn(2 * MIB_2), pfns(MIB_2, MIB_2), RAM, BlockSizes::ALL);
        let (frames, free) = (pfns(GIB + first, pages), guest.tables_free());
        let needed = guest.tables_to_map(IpaPfn(first), frames, BlockSizes::ALL);
        let plan = guest.plan_map(IpaPfn(first), frames, BlockSizes::ALL);
        assert_eq!(plan.as_ref().err().copied(), used.map(IpaPfn), "{first:#x}+{pages:#x}");
        let Ok(plan) = plan else { continue };
        assert_eq!(plan.tables(), needed);
        plan.commit(RAM);
        assert_eq!(free - guest.tables_free(), needed, "{first:#x}+{pages:#x}");
        for page in [first, first + pages - 1] {
            let found = guest_leaf(&guest, &memory, page).map(|(pfn, _)| pfn);
            assert_eq!(found, Some(GIB + page));
        }
    }
}

#[test]
fn a_planned_unmap_names_the_first_page_that_leads_elsewhere_and_otherwise_removes_all() {
    // First page, pages, frame of the first, first page that leads elsewhere; pages 10 to 12 lead
    // to 1 to 3, the block at MIB_2 to 4 * MIB_2 and on.
    let block = 4 * MIB_2;
    let table = [
        (10, 3, 1, None),
        (11, 1, 2, None),
        (10, 3, 2, Some(10)),
        (10, 4, 1, Some(13)),
        (9, 2, 0, Some(9)),
        (MIB_2, MIB_2, block, None),
        (MIB_2 + 5, 3, block + 5, None),
        (MIB_2 + 5, 3, block + 6, Some(MIB_2 + 5)),
        (MIB_2, MIB_2 + 1, block, Some(2 * MIB_2)),
        (GIB, 1, 0, Some(GIB)),
    ];
    for (first, pages, frame, elsewhere) in table {
        let (mut guest, memory, tlb) = guest(10);
        guest.map(IpaPfn(10), pfns(1, 3), RAM, BlockSizes::PAGE);
        guest.map(IpaPfn(MIB_2), pfns(block, MIB_2), RAM, BlockSizes::ALL);
        tlb.watch([first, first + pages - 1]);
        tlb.speculate(|memory, page| walk_stage2(memory, guest.regs(), page));
        let needed = guest.tables_to_unmap(ipas(first, pages));
        let plan = guest.plan_unmap(IpaPfn(first), pfns(frame, pages));
        assert_eq!(plan.as_ref().err().copied(), elsewhere.map(IpaPfn), "{first:#x}+{pages:#x}");
        let Ok(plan) = plan else { continue };
        assert_eq!(plan.tables(), needed);
        plan.commit();
        assert!(!tlb.holds(first) && !tlb.holds(first + pages - 1), "{first:#x}+{pages:#x}");
        assert_eq!(guest.first_mapped(ipas(first, pages)), None);
        let below = guest_leaf(&guest, &memory, first - 1).map(|(pfn, _)| pfn);
        assert_eq!(below, (first > 10 && first != MIB_2).then(|| frame - 1));
    }
}

#[test]
fn destroying_gives_back_every_table_zeroed_after_one_sequence() {
    let (mut guest, memory, tlb) = guest(20);
    guest.map(IpaPfn(3), pfns(0, 600), RAM, BlockSizes::PAGE);
    guest.map(IpaPfn(4 * GIB), pfns(GIB, GIB), DEVICE, BlockSizes::ALL);
    guest.map(IpaPfn(500 * GIB), pfns(MIB_2, MIB_2), RAM, BlockSizes::ALL);
    tlb.watch([3, 4 * GIB, 500 * GIB]);
    tlb.speculate(|memory, page| walk_stage2(memory, guest.regs(), page));
    tlb.events();
    let regs = guest.regs();

    guest.destroy();

    assert_eq!(tlb.events(), [Event::Stage2(regs, Stage2Scope::Vmid)]);
    assert_eq!(tlb.walked(), []);
    let mut pages: Vec<u64> = std::iter::from_fn(|| guest.take_table()).map(|pfn| pfn.0).collect();
    pages.sort_unstable();
    assert_eq!(pages, memory.range().iter().map(|pfn| pfn.0).collect::<Vec<_>>());
    assert!(memory.range().iter().all(|pfn| memory.is_clear(pfn) && memory.word(pfn.0 << 12) == 0));
}

#[test]
fn vttbr_names_root_and_vmid() {
    let (guest, memory, _) = guest(3);
    assert_eq!(guest.vttbr(), 7 << 48 | memory.range().start().0 << 12);
}

/// A generator of numbers that are the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Pages of the address space that random operations use: the end of one GiB and the start of the
/// next.
const SPACE: (u64, u64) = (GIB - 3 * MIB_2, GIB + 3 * MIB_2);

#[test]
#[cfg_attr(miri, ignore = "thousands of pages")]
fn random_guest_operations_agree_with_a_map_from_page_to_page() {
    let (mut guest, memory, tlb) = guest(12);
    let mut model: BTreeMap<u64, u64> = BTreeMap::new();
    let mut random = Random(0x9e37_79b9);
    tlb.watch((SPACE.0..SPACE.1).step_by(3));
    for round in 0..120 {
        let first = SPACE.0 + random.below(SPACE.1 - SPACE.0);
        let pages = 1 + random.below((SPACE.1 - first).min(2 * MIB_2));
        let range = ipas(first, pages);
        let mapped = model.range(first..first + pages).next().map(|(page, _)| IpaPfn(*page));
        assert_eq!(guest.first_mapped(range), mapped);
        let free = guest.tables_free();
        if mapped.is_none() {
            // The same offset in a 2 MiB block half of the time.
            let frame = first + 8 * GIB + random.below(2) * 3;
            let frames = pfns(frame, pages);
            let needed = guest.tables_to_map(IpaPfn(first), frames, BlockSizes::ALL);
            guest.map(IpaPfn(first), frames, RAM, BlockSizes::ALL);
            assert_eq!(free - guest.tables_free(), needed, "round {round}");
            model.extend((0..pages).map(|page| (first + page, frame + page)));
        } else {
            let most = guest.tables_to_unmap(range);
            guest.unmap(range);
            assert!(guest.tables_free() + most >= free, "round {round}");
            model.retain(|page, _| !(first..first + pages).contains(page));
        }
        tlb.speculate(|memory, page| walk_stage2(memory, guest.regs(), page));
        for page in SPACE.0..SPACE.1 {
            let found = guest_leaf(&guest, &memory, page).map(|(pfn, _)| pfn);
            assert_eq!(found, model.get(&page).copied(), "round {round}: {page:#x}");
            assert!(found.is_some() || !tlb.holds(page), "round {round}: stale {page:#x}");
        }
    }
}
