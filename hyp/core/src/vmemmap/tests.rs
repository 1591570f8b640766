use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use pfnguard_shared::vm::PageState;

use super::*;
use crate::hypervisor::MAX_VMS;
use crate::vm::VmId;

fn range(first: u64, pages: u64) -> PfnRange {
    PfnRange::new(Pfn(first), pages).unwrap()
}

fn map(banks: &[PfnRange]) -> Vmemmap {
    let needed = Vmemmap::storage_needed(banks);
    let frames = Box::leak(vec![Frame::NO_PAGE; needed.frames].into_boxed_slice());
    let chunks = Box::leak(vec![0xffff; needed.chunks].into_boxed_slice());
    Vmemmap::new(banks, frames, chunks)
}

fn all_states() -> Vec<FrameState> {
    let vms = VmId::all();
    let mut states = vec![
        FrameState::NoPage,
        FrameState::HostOwned,
        FrameState::HypOwned,
        FrameState::HypReadable,
    ];
    states.extend((0..=u8::MAX).map(|pins| FrameState::HostSharedHyp { pins }));
    states.extend((1..=u8::MAX).map(|count| FrameState::HostSharedGuest { count }));
    for vm in vms {
        states.extend([FrameState::GuestOwned { vm }, FrameState::GuestSharedHost { vm }]);
    }
    states
}

#[test]
fn every_state_survives_its_record_and_no_two_share_one() {
    let states = all_states();
    assert_eq!(states.len(), 4 + 256 + 255 + 2 * MAX_VMS);
    let mut records = Vec::new();
    for state in states {
        let record = Frame::new(state);
        assert_eq!(record.state(), state);
        assert!(!records.contains(&record), "{state:?}");
        records.push(record);
    }
}

#[test]
fn a_frame_costs_two_bytes_and_a_chunk_two_more() {
    let map = map(&[range(0x4_0000, 2048)]);
    assert_eq!(map.bytes(), 2048 * 2 + 4 * 2);
}

#[test]
fn nothing_but_ram_has_a_state() {
    let mut map = map(&[range(100, 50), range(200, 50)]);
    for (pfn, is_ram) in [(99, false), (100, true), (149, true), (150, false), (249, true)] {
        assert_eq!(map.is_ram(Pfn(pfn)), is_ram);
        let expected = if is_ram { FrameState::HostOwned } else { FrameState::NoPage };
        assert_eq!(map.state(Pfn(pfn)), expected);
    }
    let found = map.check(range(140, 20), FrameState::HostOwned).unwrap_err();
    let (needed, no_page) = (PageState::HostOwned, PageState::NoPage);
    assert_eq!(found, HcallError::PageState { pfn: Pfn(150), needed, found: no_page });
    assert_eq!(map.state(Pfn(u64::MAX)), FrameState::NoPage);
}

#[test]
fn a_range_may_cross_the_seam_of_adjacent_banks() {
    let mut map = map(&[range(512, 700), range(1212, 700), range(4096, 512)]);
    assert!(map.mark_hyp(range(1200, 30)).is_ok());
    assert!(map.mark_hyp(range(4096, 3)).is_ok());
    assert_eq!(map.hyp_pages(), 33);
    map.assert_summaries();
}

#[test]
fn marking_twice_or_outside_ram_marks_nothing() {
    let mut map = map(&[range(512, 512)]);
    map.mark_hyp(range(600, 4)).unwrap();
    assert!(map.mark_hyp_readable(range(590, 20)).is_err());
    assert!(map.mark_hyp(range(1020, 8)).is_err());
    assert_eq!(map.hyp_pages(), 4);
    map.assert_summaries();
}

#[test]
fn a_block_is_open_only_if_every_frame_is() {
    let mut map = map(&[range(0, 3 * 512 + 100)]);
    assert_eq!(map.open_block(Pfn(700)), Some(range(512, 512)));
    map.mark_hyp_readable(range(1023, 1)).unwrap();
    assert_eq!(map.open_block(Pfn(700)), None);
    assert_eq!(map.open_block(Pfn(1024)), Some(range(1024, 512)));
    assert_eq!(map.open_block(Pfn(1536)), None, "the chunk is not all RAM");
}

#[test]
#[cfg_attr(miri, ignore = "two GiB of frames")]
fn a_gibibyte_is_open_until_one_frame_is_not() {
    let gib = CHUNK_PAGES * CHUNK_PAGES;
    let mut map = map(&[range(gib, 2 * gib)]);
    assert_eq!(map.open_block(Pfn(gib + 5)), Some(range(gib, gib)));
    map.mark_hyp(range(gib + 700, 1)).unwrap();
    assert_eq!(map.open_block(Pfn(gib + 5)), Some(range(gib, 512)));
    assert_eq!(map.open_block(Pfn(2 * gib)), Some(range(2 * gib, gib)));
    let owned = map.check(range(gib + 700, 1), FrameState::HypOwned).unwrap();
    owned.commit(FrameState::HostOwned);
    assert_eq!(map.open_block(Pfn(gib + 5)), Some(range(gib, gib)));
}

#[test]
fn a_run_ends_where_access_changes_and_at_its_chunk() {
    let mut map = map(&[range(512, 1024)]);
    map.mark_hyp(range(600, 1)).unwrap();
    let lent = map.check(range(610, 2), FrameState::HostOwned).unwrap();
    lent.commit(FrameState::HostSharedHyp { pins: 0 });
    assert_eq!(map.uniform_run(Pfn(599)), Some(range(512, 88)));
    assert_eq!(map.uniform_run(Pfn(600)), Some(range(600, 1)));
    assert_eq!(map.uniform_run(Pfn(611)), Some(range(601, 423)), "lent pages stay the host's");
    assert_eq!(map.uniform_run(Pfn(5)), None);
}

#[test]
fn counts_are_kept_by_chunk_wherever_a_range_begins_and_ends() {
    // A bank that begins and ends within a chunk.
    for (first, pages) in [(0x150, 1), (0x1f0, 0x20), (0x1ff, 0x202), (0x200, 0x200), (0x5f0, 0x10)]
    {
        let mut map = map(&[range(0x150, 0x4b0)]);
        map.mark_hyp(range(first, pages)).unwrap();
        map.assert_summaries();
        for chunk in [0x200, 0x400] {
            let closed = first < chunk + 512 && chunk < first + pages;
            assert_eq!(map.open_block(Pfn(chunk)).is_none(), closed, "{first:#x} {chunk:#x}");
        }
    }
}
