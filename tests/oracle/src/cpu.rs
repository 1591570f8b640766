//! One CPU: its registers, and what it has begun in a call.

use std::collections::VecDeque;
use std::ops::Range;

use crate::insn::{Reach, Waits};
use crate::record::Record;
use crate::removal::Removal;
use crate::report::{Call, Counts};
use crate::violation::Translation;

/// Records of a CPU that a violation shows.
const HISTORY: usize = 24;
/// Bit offset of `VTTBR_EL2.VMID`.
const VMID_SHIFT: u32 = 48;

/// A CPU.
#[derive(Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) vtcr: u64,
    pub(crate) tcr: u64,
    /// As written, and as far as it is certain to be in force.
    pub(crate) vttbr: u64,
    vttbr_in_force: u64,
    pub(crate) call: Option<(Call, Counts)>,
    history: VecDeque<Record>,
    /// Frames that somebody got since EL2 was entered.
    given: Vec<(Translation, Range<u64>)>,
    /// Descriptors that became valid, and may not be in use yet.
    fresh: Vec<Fresh>,
}

/// Who reads a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The walkers of all CPUs.
    All,
    /// EL2 on this CPU, through a window.
    Window,
}

/// How far a descriptor that became valid is from its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Stored,
    /// Walkers see it.
    Visible,
}

/// A descriptor that became valid.
#[derive(Clone, Debug)]
pub(crate) struct Fresh {
    pub(crate) slot: u64,
    /// What it leads to.
    pub(crate) made: Removal,
    reader: Reader,
    phase: Phase,
}

impl Cpu {
    /// Notes a record.
    pub(crate) fn note(&mut self, record: Record) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(record);
    }

    /// Returns its last records, oldest first.
    pub(crate) fn history(&self) -> Vec<Record> {
        self.history.iter().copied().collect()
    }

    /// Begins a call.
    pub(crate) fn entered(&mut self, call: Call) {
        self.synchronised();
        self.given.clear();
        self.call = Some((call, Counts::default()));
    }

    /// Ends a call. Returns it, and a descriptor that walkers need not see yet.
    pub(crate) fn returned(&mut self) -> (Option<(Call, Counts)>, Option<Fresh>) {
        self.synchronised();
        self.given.clear();
        let unseen = self.fresh.drain(..).find(|fresh| fresh.phase == Phase::Stored);
        (self.call.take(), unseen)
    }

    /// What was written before is in force: `ISB`, an exception or its return.
    pub(crate) fn synchronised(&mut self) {
        self.vttbr_in_force = self.vttbr;
        self.fresh.retain(|fresh| fresh.phase == Phase::Stored);
    }

    /// Returns the VMID that maintenance acts on, where that is certain.
    pub(crate) fn vmid_in_force(&self) -> Option<u16> {
        let vmid = |vttbr: u64| u16::try_from(vttbr >> VMID_SHIFT).ok();
        let (written, in_force) = (vmid(self.vttbr), vmid(self.vttbr_in_force));
        if written == in_force { written } else { None }
    }

    /// Stored a valid descriptor.
    pub(crate) fn made(&mut self, slot: u64, made: Removal, reader: Reader) {
        self.fresh.push(Fresh { slot, made, reader, phase: Phase::Stored });
    }

    /// Stored an invalid descriptor: nobody waits for the one before.
    pub(crate) fn removed(&mut self, slot: u64) {
        self.fresh.retain(|fresh| fresh.slot != slot);
    }

    /// Executed a `DSB`.
    pub(crate) fn waited(&mut self, reach: Reach, waits: Waits) {
        if waits == Waits::Loads {
            return;
        }
        for fresh in &mut self.fresh {
            if reach != Reach::Local || fresh.reader == Reader::Window {
                fresh.phase = Phase::Visible;
            }
        }
    }

    /// Uses a window. Returns one of its descriptors that need not be in use yet.
    pub(crate) fn unusable(&mut self) -> Option<Fresh> {
        let index = self.fresh.iter().position(|fresh| fresh.reader == Reader::Window)?;
        Some(self.fresh.swap_remove(index))
    }

    /// Gave frames to somebody.
    pub(crate) fn gave(&mut self, to: Translation, frames: &Range<u64>) {
        match self.given.last_mut() {
            Some((last, range)) if *last == to && range.end == frames.start => {
                range.end = frames.end;
            }
            Some(_) | None => self.given.push((to, frames.clone())),
        }
    }

    /// Returns whether somebody else got some of `frames` in this call, while `owner` had them.
    pub(crate) fn gave_before(&self, owner: Translation, frames: &Range<u64>) -> bool {
        let overlaps = |given: &Range<u64>| given.start < frames.end && frames.start < given.end;
        self.given.iter().any(|(to, given)| *to != owner && overlaps(given))
    }

    /// Forgets what was only found, in tables that became known, not given.
    pub(crate) fn forget_given(&mut self) {
        self.given.clear();
    }
}
