//! Cache lines that a former owner may have left.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::insn::DcKind;
use crate::memory::{PAGE_SHIFT, page_of};
use crate::violation::Translation;

/// Bytes of a line on every CPU model that the tests use.
pub(crate) const LINE: u64 = 64;
/// Lines of a page.
pub(crate) const LINES: usize = 64;

/// A line since its page was taken from its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// May be the owner's.
    Owners,
    /// Holds what EL2 stored.
    Stored,
    /// Maintained, without a barrier since.
    Issued { cpu: u8 },
    /// In no cache, or the same as memory.
    Done,
}

/// Frames that an owner could cache and has lost.
#[derive(Clone, Debug)]
struct Left {
    past: u64,
    owner: Translation,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// By the first frame; not overlapping.
    left: BTreeMap<u64, Left>,
    /// Frames of these with a line that is not the owner's.
    touched: BTreeMap<u64, Box<[Line; LINES]>>,
    /// Frames with lines that wait for a barrier.
    issued: Vec<u64>,
}

/// A frame with lines that were not maintained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unmaintained {
    pub(crate) frame: u64,
    pub(crate) owner: Translation,
    pub(crate) maintained: usize,
}

impl Lines {
    /// `owner` could cache these frames until now.
    pub(crate) fn lost(&mut self, frames: Range<u64>, owner: Translation) {
        self.forget(&frames);
        self.left.insert(frames.start, Left { past: frames.end, owner });
    }

    /// EL2 uses these frames itself from now on; what their owner left is still to be maintained.
    pub(crate) fn taken_by_el2(&mut self, frames: &Range<u64>) {
        self.cut(frames.start);
        self.cut(frames.end);
        for (_, left) in self.left.range_mut(frames.clone()) {
            left.owner = Translation::El2;
        }
    }

    /// EL2 stored something.
    pub(crate) fn stored(&mut self, address: u64) {
        let lines = Self::lines_at(address);
        self.update(page_of(address), lines, |_| Line::Stored);
    }

    /// `cpu` maintained the line at `address`.
    pub(crate) fn maintained(&mut self, cpu: u8, kind: DcKind, address: u64) {
        let (frame, lines) = (page_of(address), Self::lines_at(address));
        let touched = self.update(frame, lines, |line| match (kind, line) {
            (DcKind::Zero, _) => Line::Stored,
            (DcKind::CleanInvalidate, Line::Owners | Line::Stored)
            // Of what EL2 stored over the whole line, cleaning leaves a copy of memory.
            | (DcKind::Clean, Line::Stored) => Line::Issued { cpu },
            (DcKind::Clean, Line::Owners)
            | (DcKind::Clean | DcKind::CleanInvalidate, Line::Issued { .. } | Line::Done)
            | (DcKind::Other, _) => line,
        });
        if touched && kind != DcKind::Zero && self.issued.last() != Some(&frame) {
            self.issued.push(frame);
        }
    }

    /// `cpu` waited for all maintenance.
    pub(crate) fn waited(&mut self, on: u8) {
        let issued = std::mem::take(&mut self.issued);
        for frame in issued {
            let Some(lines) = self.touched.get_mut(&frame) else { continue };
            let mut others = 0;
            for line in lines.iter_mut() {
                match line {
                    Line::Issued { cpu } if *cpu == on => *line = Line::Done,
                    Line::Issued { .. } => others += 1,
                    Line::Owners | Line::Stored | Line::Done => {}
                }
            }
            if others > 0 {
                self.issued.push(frame);
            }
        }
    }

    /// `next` gets these frames. Returns the first one that another owner left lines of.
    pub(crate) fn given(&mut self, frames: &Range<u64>, next: Translation) -> Option<Unmaintained> {
        let found = self.intersecting(frames).into_iter().filter(|(_, owner)| *owner != next);
        let found = found.flat_map(|(frames, owner)| frames.map(move |frame| (frame, owner)));
        let unmaintained = found.map(|(frame, owner)| {
            let touched = self.touched.get(&frame);
            let done = |lines: &[Line; LINES]| lines.iter().filter(|l| **l == Line::Done).count();
            Unmaintained { frame, owner, maintained: touched.map_or(0, |lines| done(lines)) }
        });
        let first = unmaintained.into_iter().find(|found| found.maintained < LINES);
        self.forget(frames);
        first
    }

    /// Returns the line that `address` lies in.
    fn lines_at(address: u64) -> usize {
        usize::try_from((address & ((1 << PAGE_SHIFT) - 1)) / LINE).unwrap_or(0)
    }

    /// Changes one line of a frame that somebody lost. Returns whether somebody did.
    fn update(&mut self, frame: u64, line: usize, change: impl FnOnce(Line) -> Line) -> bool {
        let last = self.left.range(..=frame).next_back();
        if last.is_none_or(|(_, left)| left.past <= frame) {
            return false;
        }
        let lines = self.touched.entry(frame).or_insert_with(|| Box::new([Line::Owners; LINES]));
        lines[line] = change(lines[line]);
        true
    }

    /// Returns the parts of `frames` that somebody lost.
    fn intersecting(&self, frames: &Range<u64>) -> Vec<(Range<u64>, Translation)> {
        let before = self.left.range(..frames.start).next_back();
        let all = before.into_iter().chain(self.left.range(frames.clone()));
        let parts = all.map(|(start, left)| {
            ((*start).max(frames.start)..left.past.min(frames.end), left.owner)
        });
        parts.filter(|(part, _)| !part.is_empty()).collect()
    }

    /// Makes `frame` the first of its part.
    fn cut(&mut self, frame: u64) {
        let Some((_, left)) = self.left.range_mut(..frame).next_back() else { return };
        if left.past > frame {
            let rest = left.clone();
            left.past = frame;
            self.left.insert(frame, rest);
        }
    }

    fn forget(&mut self, frames: &Range<u64>) {
        if self.left.is_empty() {
            return;
        }
        self.cut(frames.start);
        self.cut(frames.end);
        self.left.extract_if(frames.clone(), |_, _| true).for_each(drop);
        self.touched.extract_if(frames.clone(), |_, _| true).for_each(drop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Translation = Translation::Stage2 { vmid: 0 };
    const GUEST: Translation = Translation::Stage2 { vmid: 1 };

    fn clean(lines: &mut Lines, frame: u64, count: u64) {
        for line in 0..count {
            lines.maintained(0, DcKind::CleanInvalidate, (frame << PAGE_SHIFT) + line * LINE);
        }
    }

    #[test]
    fn parts_of_what_was_lost_are_told_apart() {
        let mut lines = Lines::default();
        lines.lost(0..512, HOST);
        lines.lost(5..6, GUEST);
        assert_eq!(lines.given(&(5..6), GUEST), None);
        assert_eq!(lines.given(&(0..5), HOST), None);
        let left = lines.given(&(6..7), GUEST).unwrap();
        assert_eq!((left.frame, left.owner, left.maintained), (6, HOST, 0));
        assert_eq!(lines.given(&(6..7), GUEST), None, "reported once");
    }

    #[test]
    fn maintenance_counts_once_the_cpu_that_did_it_has_waited() {
        let mut lines = Lines::default();
        lines.lost(3..4, HOST);
        clean(&mut lines, 3, 64);
        lines.waited(1);
        assert_eq!(lines.given(&(3..4), GUEST).map(|left| left.maintained), Some(0));
        lines.lost(3..4, HOST);
        clean(&mut lines, 3, 64);
        lines.waited(0);
        assert_eq!(lines.given(&(3..4), GUEST), None);
    }

    #[test]
    fn maintenance_before_the_loss_is_none() {
        let mut lines = Lines::default();
        clean(&mut lines, 3, 64);
        lines.waited(0);
        lines.lost(3..4, HOST);
        assert!(lines.given(&(3..4), GUEST).is_some());
    }

    #[test]
    fn what_el2_stores_is_maintained_again() {
        let mut lines = Lines::default();
        lines.lost(3..4, HOST);
        lines.taken_by_el2(&(0..8));
        clean(&mut lines, 3, 64);
        lines.waited(0);
        lines.stored(3 << PAGE_SHIFT | 64);
        let left = lines.given(&(3..4), HOST).unwrap();
        assert_eq!((left.owner, left.maintained), (Translation::El2, 63));
    }
}
