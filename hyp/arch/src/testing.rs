//! What the tests of the tables share: physical memory, a table walker written from the
//! architecture's text, and TLBs that never forget unless they are told to.

extern crate std;

use std::alloc::{Layout, alloc_zeroed};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use pfnguard_core::addr::{Pfn, PfnRange};

use crate::pool::PhysMap;
use crate::tlb::{El2Tlb, Stage2Regs, Stage2Scope, Stage2Tlb};

/// Physical memory of a test: `pages` zero pages from `start`. Never freed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    range: PfnRange,
    host: usize,
}

impl Memory {
    pub(crate) fn new(start: u64, pages: u64) -> Self {
        let range = PfnRange::new(Pfn(start), pages).unwrap();
        let bytes = usize::try_from(pages).unwrap() * 4096;
        let layout = Layout::from_size_align(bytes, 4096).unwrap();
        // SAFETY: the size is not zero.
        let host = unsafe { alloc_zeroed(layout) };
        Self { range, host: host.expose_provenance() }
    }

    pub(crate) fn range(&self) -> PfnRange {
        self.range
    }

    pub(crate) fn map(&self) -> PhysMap {
        let start = usize::try_from(self.range.start().0 << 12).unwrap();
        PhysMap::with_offset(self.host.wrapping_sub(start))
    }

    /// Reads the 64-bit word at a physical address.
    pub(crate) fn word(&self, address: u64) -> u64 {
        assert!(self.range.contains(Pfn(address >> 12)), "{address:#x} is not memory");
        let offset = usize::try_from(address - (self.range.start().0 << 12)).unwrap();
        let pointer = core::ptr::with_exposed_provenance::<u64>(self.host + offset);
        // SAFETY: inside the memory and aligned.
        unsafe { pointer.read() }
    }

    /// Writes the 64-bit word at a physical address.
    pub(crate) fn set_word(&self, address: u64, value: u64) {
        assert!(self.range.contains(Pfn(address >> 12)), "{address:#x} is not memory");
        let offset = usize::try_from(address - (self.range.start().0 << 12)).unwrap();
        let pointer = core::ptr::with_exposed_provenance_mut::<u64>(self.host + offset);
        // SAFETY: inside the memory and aligned.
        unsafe { pointer.write(value) };
    }

    /// Returns whether every word of the page is zero but the first.
    pub(crate) fn is_clear(&self, pfn: Pfn) -> bool {
        (1..512).all(|index| self.word((pfn.0 << 12) + index * 8) == 0)
    }
}

/// A translation as the walker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Descriptor.
    pub(crate) bits: u64,
    /// Output page.
    pub(crate) pfn: u64,
    /// First page that the leaf translates.
    pub(crate) first: u64,
    /// Pages that the leaf translates.
    pub(crate) pages: u64,
}

/// Walks from `table`, which resolves address bits `high..=low` and up to four more bits where
/// tables are concatenated.
fn walk(memory: &Memory, mut table: u64, mut low: u32, high: u32, page: u64) -> Option<Found> {
    let address = page << 12;
    let mut index = address >> low & ((1 << (high - low)) - 1);
    loop {
        let bits = memory.word(table + index * 8);
        let (valid, is_table) = (bits & 1 == 1, bits & 2 == 2);
        if !valid {
            return None;
        }
        let output = bits & 0x0000_ffff_ffff_f000;
        if is_table && low > 12 {
            table = output;
            low -= 9;
            index = address >> low & 511;
            continue;
        }
        assert!(low == 12 || !is_table, "a block has bit 1 clear");
        assert!(low != 12 || is_table, "a page has bit 1 set");
        assert!(low <= 30, "no blocks at level 0");
        let offset = address & ((1 << low) - 1);
        assert_eq!(output & ((1 << low) - 1), 0, "blocks are aligned");
        let pages = 1 << (low - 12);
        return Some(Found {
            bits,
            pfn: (output + offset) >> 12,
            first: page & !(pages - 1),
            pages,
        });
    }
}

/// Walks stage 2 as the registers say.
pub(crate) fn walk_stage2(memory: &Memory, regs: Stage2Regs, page: u64) -> Option<Found> {
    let bits = 64 - u32::try_from(regs.vtcr & 0x3f).unwrap();
    assert!(page >> (bits - 12) == 0, "beyond the input size");
    let low = match regs.vtcr >> 6 & 0b11 {
        0b01 => 30,
        0b10 => 39,
        _ => panic!("start level of no use here"),
    };
    let table = regs.vttbr & 0x0000_ffff_ffff_fffe;
    let size = (1u64 << (bits - low)).max(512) * 8;
    assert_eq!(table % size, 0, "the root is aligned to its size");
    walk(memory, table, low, bits, page)
}

/// Walks a 48-bit stage 1.
pub(crate) fn walk_stage1(memory: &Memory, root: u64, page: u64) -> Option<Found> {
    walk(memory, root, 39, 48, page)
}

/// What was asked of a TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Publish,
    Stage2(Stage2Regs, Stage2Scope),
    El2(PfnRange),
}

/// TLBs of all CPUs at their worst: they cache every watched page whenever it is translated, and
/// forget only what is invalidated.
#[derive(Clone, Debug)]
pub(crate) struct WorstTlb {
    memory: Memory,
    state: Arc<Mutex<TlbState>>,
}

#[derive(Debug, Default)]
struct TlbState {
    events: Vec<Event>,
    watched: Vec<u64>,
    cached: BTreeMap<u64, Found>,
    /// Watched pages that were translated when an invalidation began.
    walked: Vec<u64>,
}

impl WorstTlb {
    pub(crate) fn new(memory: Memory) -> Self {
        Self { memory, state: Arc::default() }
    }

    /// Speculates on these pages from now on.
    pub(crate) fn watch(&self, pages: impl IntoIterator<Item = u64>) {
        self.state.lock().unwrap().watched.extend(pages);
    }

    /// Translates the watched pages speculatively, as CPUs may at any time.
    pub(crate) fn speculate(&self, walk: impl Fn(&Memory, u64) -> Option<Found>) {
        let mut state = self.state.lock().unwrap();
        let found: Vec<Found> =
            state.watched.iter().filter_map(|page| walk(&self.memory, *page)).collect();
        for found in found {
            if let Some(old) = state.cached.insert(found.first, found) {
                let same = (old.bits, old.pages) == (found.bits, found.pages);
                assert!(same, "a live translation changed: {old:x?} {found:x?}");
            }
        }
    }

    /// Returns whether a TLB may still translate `page`.
    pub(crate) fn holds(&self, page: u64) -> bool {
        let state = self.state.lock().unwrap();
        state.cached.values().any(|found| found.first <= page && page < found.first + found.pages)
    }

    /// Returns the events since the last call.
    pub(crate) fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.state.lock().unwrap().events)
    }

    /// Returns the watched pages that the tables still translated when the last invalidation began.
    pub(crate) fn walked(&self) -> Vec<u64> {
        self.state.lock().unwrap().walked.clone()
    }
}

impl TlbState {
    /// Forgets every entry that covers `page`.
    fn forget(&mut self, page: u64) {
        self.cached.retain(|_, found| page < found.first || page >= found.first + found.pages);
    }
}

impl Stage2Tlb for WorstTlb {
    fn publish(&mut self) {
        self.state.lock().unwrap().events.push(Event::Publish);
    }

    fn invalidate(&mut self, regs: Stage2Regs, scope: Stage2Scope) {
        let mut state = self.state.lock().unwrap();
        state.events.push(Event::Stage2(regs, scope));
        let watched = state.watched.iter().copied();
        let walked = watched.filter(|page| walk_stage2(&self.memory, regs, *page).is_some());
        state.walked = walked.collect();
        match scope {
            Stage2Scope::Vmid => state.cached.clear(),
            Stage2Scope::Leaves { range, stride } => {
                assert_eq!(range.pages() % stride, 0);
                let first = range.start().0;
                (0..range.pages() / stride).for_each(|leaf| state.forget(first + leaf * stride));
            }
        }
    }
}

impl El2Tlb for WorstTlb {
    fn publish(&mut self) {
        self.state.lock().unwrap().events.push(Event::Publish);
    }

    fn invalidate(&mut self, range: PfnRange) {
        let mut state = self.state.lock().unwrap();
        state.events.push(Event::El2(range));
        range.iter().for_each(|pfn| state.forget(pfn.0));
    }
}
