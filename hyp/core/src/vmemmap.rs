//! The state of every RAM frame: the only truth about RAM. Page-table entries follow from it.
//!
//! Two bytes a frame, plus two a 2 MiB chunk: the chunk's count of frames that the host may not
//! use freely lets a host fault choose a block without looking at every frame.

mod frame;
mod steps;

use core::ops::Range;

use arrayvec::ArrayVec;
use pfnguard_shared::vm::PageState;

use crate::addr::{Pfn, PfnRange};
use crate::error::HcallError;

pub use frame::{Frame, FrameState, HostAccess};
pub use steps::Steps;

/// Most separate ranges of RAM.
pub const MAX_BANKS: usize = 16;
/// Pages in a chunk: one 2 MiB block.
pub const CHUNK_PAGES: u64 = 512;
const CHUNK_SHIFT: u32 = 9;

/// A contiguous range of RAM and where its records are.
#[derive(Clone, Copy, Debug)]
struct Bank {
    range: PfnRange,
    first_frame: usize,
    first_chunk: usize,
}

impl Bank {
    /// Returns where the records of `pages` are, if all of them lie in this bank.
    #[inline]
    fn records(&self, pages: &PfnRange) -> Option<Range<usize>> {
        let start = self.first_frame + index(self.range.offset_of(pages)?);
        Some(start..start + index(pages.pages()))
    }

    fn frames(&self, pages: &PfnRange) -> Range<usize> {
        let start = self.first_frame + index(pages.start().0 - self.range.start().0);
        start..start + index(pages.pages())
    }

    fn chunk_of(&self, pfn: Pfn) -> usize {
        self.first_chunk + index((pfn.0 >> CHUNK_SHIFT) - (self.range.start().0 >> CHUNK_SHIFT))
    }
}

/// A count of pages as an index; every count here is bounded by the records that exist.
fn index(pages: u64) -> usize {
    usize::try_from(pages).expect("page count past usize: hypervisor bug")
}

/// Records needed for some RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Number of [`Frame`] records.
    pub frames: usize,
    /// Number of `u16` chunk summaries.
    pub chunks: usize,
}

/// State of all RAM.
#[derive(Debug)]
pub struct Vmemmap {
    banks: ArrayVec<Bank, MAX_BANKS>,
    frames: &'static mut [Frame],
    /// Frames of each chunk that the host may not use freely.
    closed: &'static mut [u16],
    hyp_pages: u64,
}

/// Proof that every frame of a range is in one state: what a commit consumes.
#[derive(Debug)]
#[must_use]
pub struct Transition<'a> {
    map: &'a mut Vmemmap,
    bank: Bank,
    records: Range<usize>,
    pages: PfnRange,
    old: FrameState,
}

impl Vmemmap {
    /// Returns the records needed for `banks`, which are sorted and disjoint.
    pub fn storage_needed(banks: &[PfnRange]) -> Storage {
        let mut needed = Storage { frames: 0, chunks: 0 };
        for bank in banks {
            needed.frames += index(bank.pages());
            needed.chunks += index(chunks_of(bank));
        }
        needed
    }

    /// Makes the map of `banks`, all of them the host's. The records may hold anything.
    ///
    /// # Panics
    /// Where there are more than [`MAX_BANKS`] banks, they are not sorted and disjoint, or the
    /// storage is smaller than [`Self::storage_needed`]: launch bugs.
    pub fn new(
        banks: &[PfnRange],
        frames: &'static mut [Frame],
        closed: &'static mut [u16],
    ) -> Self {
        assert!(banks.is_sorted_by(|low, high| low.end() <= high.start()), "RAM banks overlap");
        let needed = Self::storage_needed(banks);
        assert!(
            needed.frames <= frames.len() && needed.chunks <= closed.len(),
            "vmemmap too small"
        );
        frames.fill(Frame::new(FrameState::HostOwned));
        closed.fill(0);
        Self { banks: place(banks), frames, closed, hyp_pages: 0 }
    }

    /// Marks frames as the hypervisor's at launch: its image, stacks, tables and records.
    ///
    /// # Errors
    /// `PageState` where a frame is not RAM or was marked before; nothing is marked then.
    pub fn mark_hyp(&mut self, pages: PfnRange) -> Result<(), HcallError> {
        self.check(pages, FrameState::HostOwned)?.commit(FrameState::HypOwned);
        Ok(())
    }

    /// Marks frames as the hypervisor's and readable by the host at launch: trace rings.
    ///
    /// # Errors
    /// As [`Self::mark_hyp`].
    pub fn mark_hyp_readable(&mut self, pages: PfnRange) -> Result<(), HcallError> {
        self.check(pages, FrameState::HostOwned)?.commit(FrameState::HypReadable);
        Ok(())
    }

    /// Returns the state of a frame; `NoPage` outside RAM.
    pub fn state(&self, pfn: Pfn) -> FrameState {
        self.bank_of(pfn).map_or(FrameState::NoPage, |bank| {
            self.frames[bank.first_frame + index(pfn.0 - bank.range.start().0)].state()
        })
    }

    /// Returns whether a frame is RAM.
    pub fn is_ram(&self, pfn: Pfn) -> bool {
        self.bank_of(pfn).is_some()
    }

    /// Returns every range of RAM in ascending order.
    pub fn banks(&self) -> impl Iterator<Item = PfnRange> {
        self.banks.iter().map(|bank| bank.range)
    }

    /// Returns whether `range` holds a page of RAM.
    pub fn touches_ram(&self, range: &PfnRange) -> bool {
        self.banks().any(|bank| bank.overlaps(range))
    }

    /// Calls `each` with every run of adjacent frames with the same record.
    pub fn for_each_run(&self, mut each: impl FnMut(PfnRange, FrameState)) {
        for bank in &self.banks {
            let mut next = bank.range.start();
            for run in self.frames[bank.frames(&bank.range)].chunk_by(Frame::eq) {
                let length = u64::try_from(run.len()).unwrap_or(u64::MAX);
                let pages = PfnRange::new(next, length).expect("part of a bank: hypervisor bug");
                each(pages, run[0].state());
                next = pages.end();
            }
        }
    }

    /// Returns the number of RAM frames.
    pub fn frame_count(&self) -> u64 {
        self.banks().map(|bank| bank.pages()).sum()
    }

    /// Returns the bytes that the records take.
    pub fn bytes(&self) -> usize {
        size_of_val(self.frames) + size_of_val(self.closed)
    }

    /// Returns the number of frames that are the hypervisor's.
    pub fn hyp_pages(&self) -> u64 {
        self.hyp_pages
    }

    /// Checks that every frame is in the state `needed`.
    ///
    /// # Errors
    /// `Pinned` where the only difference is that the hypervisor uses a frame; `PageState` for the
    /// first other frame.
    // Always: the proof stays in registers, and where both states are known, little is left of it.
    #[inline(always)]
    pub fn check(
        &mut self,
        pages: PfnRange,
        needed: FrameState,
    ) -> Result<Transition<'_>, HcallError> {
        let found = self.banks.iter().find_map(|bank| Some((*bank, bank.records(&pages)?)));
        match found {
            Some((bank, records)) if self.all_are(records.clone(), needed) => {
                Ok(Transition { map: self, bank, records, pages, old: needed })
            }
            Some(_) | None => Err(self.first_refusal(&pages, needed)),
        }
    }

    #[inline]
    fn all_are(&self, records: Range<usize>, needed: FrameState) -> bool {
        let wanted = Frame::new(needed);
        self.frames[records].iter().all(|frame| *frame == wanted)
    }

    /// Says why a check of `pages` failed. Out of line: a check that passes is what counts.
    #[cold]
    fn first_refusal(&self, pages: &PfnRange, needed: FrameState) -> HcallError {
        if let Err(outside) = self.bank_with(pages, needed) {
            return outside;
        }
        let differs = |pfn: &Pfn| self.state(*pfn) != needed;
        let pfn = pages.iter().find(differs).expect("refused without a reason: hypervisor bug");
        refusal(pfn, needed, self.state(pfn))
    }

    #[inline]
    fn bank_of(&self, pfn: Pfn) -> Option<&Bank> {
        self.banks.iter().find(|bank| bank.range.contains(pfn))
    }

    /// Finds the one bank that holds all of `pages`.
    #[inline(always)]
    fn bank_with(&self, pages: &PfnRange, needed: FrameState) -> Result<Bank, HcallError> {
        let bank = self.bank_of(pages.start()).copied();
        let outside = bank.map_or(pages.start(), |bank| bank.range.end());
        bank.filter(|bank| bank.range.contains_range(pages))
            .ok_or_else(|| refusal(outside, needed, FrameState::NoPage))
    }

    /// Counts frames of `pages` as closed to the host, or as open again.
    #[inline]
    fn count_closed(&mut self, bank: &Bank, pages: &PfnRange, change: fn(u16, u16) -> Option<u16>) {
        let mut next = pages.start();
        loop {
            let chunk_end = Pfn((next.0 | (CHUNK_PAGES - 1)) + 1);
            let end = chunk_end.min(pages.end());
            let by = u16::try_from(end.0 - next.0).expect("chunk of 512 pages: hypervisor bug");
            let count = &mut self.closed[bank.chunk_of(next)];
            *count = change(*count, by).expect("chunk count out of range: hypervisor bug");
            if end == pages.end() {
                return;
            }
            next = end;
        }
    }

    /// Accounts for frames of one state going to another. Inlined where both are known, it is
    /// nothing for lending and taking back.
    #[inline]
    fn account(&mut self, bank: &Bank, pages: &PfnRange, old: FrameState, new: FrameState) {
        if old.host_access() != new.host_access() || old.is_hyp() != new.is_hyp() {
            self.recount(bank, pages, old, new);
        }
    }

    fn recount(&mut self, bank: &Bank, pages: &PfnRange, old: FrameState, new: FrameState) {
        match (is_closed(old), is_closed(new)) {
            (Closed::No, Closed::Yes) => self.count_closed(bank, pages, u16::checked_add),
            (Closed::Yes, Closed::No) => self.count_closed(bank, pages, u16::checked_sub),
            (Closed::No, Closed::No) | (Closed::Yes, Closed::Yes) => {}
        }
        let hyp_pages = match (old.is_hyp(), new.is_hyp()) {
            (true, false) => self.hyp_pages.checked_sub(pages.pages()),
            (false, true) => self.hyp_pages.checked_add(pages.pages()),
            (true, true) | (false, false) => return,
        };
        self.hyp_pages = hyp_pages.expect("hyp page count out of range: hypervisor bug");
    }
}

/// What a fault of the host asks.
impl Vmemmap {
    /// Returns the 1 GiB or 2 MiB block around `pfn`, the larger first, if all of it is RAM that
    /// the host may use freely.
    pub fn open_block(&self, pfn: Pfn) -> Option<PfnRange> {
        let bank = self.bank_of(pfn)?;
        [CHUNK_PAGES * CHUNK_PAGES, CHUNK_PAGES]
            .into_iter()
            .filter_map(|pages| PfnRange::aligned_around(pfn, pages))
            .find(|block| bank.range.contains_range(block) && self.all_open(bank, block))
    }

    fn all_open(&self, bank: &Bank, block: &PfnRange) -> bool {
        let first = bank.chunk_of(block.start());
        let chunks = index(block.pages() >> CHUNK_SHIFT);
        self.closed[first..first + chunks].iter().all(|&closed| closed == 0)
    }

    /// Returns the longest run of pages around `pfn`, within its chunk, to which the host has the
    /// same access, or `None` where `pfn` is not RAM.
    pub fn uniform_run(&self, pfn: Pfn) -> Option<PfnRange> {
        let bank = self.bank_of(pfn)?;
        let chunk = PfnRange::aligned_around(pfn, CHUNK_PAGES)?.intersection(&bank.range)?;
        let frames = &self.frames[bank.frames(&chunk)];
        let at = index(pfn.0 - chunk.start().0);
        let access = frames[at].state().host_access();
        let same = |frame: &&Frame| frame.state().host_access() == access;
        let before = u64::try_from(frames[..at].iter().rev().take_while(same).count()).ok()?;
        let after = u64::try_from(frames[at..].iter().take_while(same).count()).ok()?;
        PfnRange::new(Pfn(pfn.0 - before), before + after)
    }
}

enum Closed {
    Yes,
    No,
}

fn is_closed(state: FrameState) -> Closed {
    match state.host_access() {
        HostAccess::Full => Closed::No,
        HostAccess::ReadOnly | HostAccess::None => Closed::Yes,
    }
}

impl Transition<'_> {
    /// Puts every frame into the state `new`.
    #[inline]
    pub fn commit(self, new: FrameState) {
        self.map.frames[self.records].fill(Frame::new(new));
        self.map.account(&self.bank, &self.pages, self.old, new);
    }
}

#[cold]
fn refusal(pfn: Pfn, needed: FrameState, found: FrameState) -> HcallError {
    let other =
        HcallError::PageState { pfn, needed: needed.page_state(), found: found.page_state() };
    match (needed.owner(), found.owner()) {
        (Some(vm), Some(owner)) if vm != owner => HcallError::NotOwner { pfn, vm, owner },
        (Some(_) | None, Some(_) | None) if is_pinned(needed, found) => HcallError::Pinned { pfn },
        (Some(_) | None, Some(_) | None) => other,
    }
}

/// An argument page where a page lent to the hypervisor is needed: only its pins keep it.
fn is_pinned(needed: FrameState, found: FrameState) -> bool {
    let lent = PageState::HostSharedHyp;
    needed.page_state() == lent && found.page_state() == lent
}

fn chunks_of(bank: &PfnRange) -> u64 {
    let last = (bank.end().0 - 1) >> CHUNK_SHIFT;
    last - (bank.start().0 >> CHUNK_SHIFT) + 1
}

/// Gives each bank its records; adjacent banks become one, so that a range may cross their seam.
fn place(ranges: &[PfnRange]) -> ArrayVec<Bank, MAX_BANKS> {
    let mut banks: ArrayVec<Bank, MAX_BANKS> = ArrayVec::new();
    let (mut frame, mut chunk) = (0, 0);
    for range in ranges {
        match banks.last_mut().filter(|bank| bank.range.end() == range.start()) {
            Some(bank) => bank.range = joined(&bank.range, range),
            None => banks.push(Bank { range: *range, first_frame: frame, first_chunk: chunk }),
        }
        frame += index(range.pages());
        chunk += index(chunks_of(range));
    }
    banks
}

fn joined(low: &PfnRange, high: &PfnRange) -> PfnRange {
    PfnRange::new(low.start(), low.pages() + high.pages())
        .expect("RAM past the address space: launch bug")
}

/// For tests of whoever changes frames.
#[cfg(any(test, feature = "fake"))]
impl Vmemmap {
    /// Returns the record of every frame, bank by bank.
    pub fn records(&self) -> &[Frame] {
        self.frames
    }

    /// Asserts that chunk counts and the hypervisor's count say what the frames say.
    pub fn assert_summaries(&self) {
        let mut hyp = 0;
        for bank in &self.banks {
            let mut closed: std::collections::BTreeMap<usize, u16> = Default::default();
            for pfn in bank.range.iter() {
                let state = self.state(pfn);
                hyp += u64::from(state.is_hyp());
                let count = closed.entry(bank.chunk_of(pfn)).or_default();
                *count += u16::from(state.host_access() != HostAccess::Full);
            }
            for (chunk, count) in closed {
                assert_eq!(self.closed[chunk], count, "chunk {chunk}");
            }
        }
        assert_eq!(self.hyp_pages, hyp, "pages of the hypervisor");
    }
}

#[cfg(test)]
mod tests;
