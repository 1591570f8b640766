//! Steps: changes of state that depend on each frame's own state.

use super::{Bank, Frame, FrameState, HostAccess, Vmemmap, refusal};
use crate::addr::PfnRange;
use crate::error::HcallError;

/// Proof that a step is possible for every frame of a range, each from its own state.
#[derive(Debug)]
#[must_use]
pub struct Steps<'a, S> {
    map: &'a mut Vmemmap,
    bank: Bank,
    pages: PfnRange,
    first: Run,
    step: S,
}

/// Adjacent frames with the same record, and where a step takes them.
#[derive(Clone, Copy, Debug)]
struct Run {
    old: FrameState,
    new: FrameState,
    length: usize,
}

impl Run {
    /// Returns the run that `frames` start with, or the state from which there is no step.
    #[inline(always)]
    fn first_of(
        frames: &[Frame],
        step: &impl Fn(FrameState) -> Option<FrameState>,
    ) -> Result<Self, FrameState> {
        let (first, rest) = frames.split_first().expect("ranges are not empty");
        let old = first.state();
        let new = step(old).ok_or(old)?;
        let length = 1 + rest.iter().position(|frame| frame != first).unwrap_or(rest.len());
        Ok(Self { old, new, length })
    }
}

impl Vmemmap {
    /// Checks that `step`, which says what follows a state or that nothing does, is possible from
    /// the state of every frame. `needed` is what a refusal names.
    ///
    /// # Errors
    /// As [`Self::check`], for the first frame where it is not.
    // The proof is larger than what this target copies without a call: it must stay in registers.
    #[inline(always)]
    pub fn check_steps<S: Fn(FrameState) -> Option<FrameState>>(
        &mut self,
        pages: PfnRange,
        needed: FrameState,
        step: S,
    ) -> Result<Steps<'_, S>, HcallError> {
        let bank = self.bank_with(&pages, needed)?;
        let frames = &self.frames[bank.frames(&pages)];
        let first = Run::first_of(frames, &step);
        let first = first.map_err(|found| refusal(pages.start(), needed, found))?;
        if first.length < frames.len() {
            check_rest(&pages, frames, first.length, needed, &step)?;
        }
        Ok(Steps { map: self, bank, pages, first, step })
    }

    /// Takes checked steps for frames behind a first run. Out of line, as [`check_rest`].
    #[inline(never)]
    fn commit_rest(
        &mut self,
        bank: &Bank,
        pages: PfnRange,
        step: &dyn Fn(FrameState) -> Option<FrameState>,
    ) {
        let mut rest = Some(pages);
        while let Some(pages) = rest {
            let run = Run::first_of(&self.frames[bank.frames(&pages)], &step);
            rest = self.put(bank, pages, run.expect("unchecked step: hypervisor bug"));
        }
    }

    /// Puts the run at the start of `pages` into its new state, and returns the pages behind it.
    #[inline(always)]
    fn put(&mut self, bank: &Bank, pages: PfnRange, run: Run) -> Option<PfnRange> {
        match &mut self.frames[bank.frames(&pages)] {
            [only] => *only = Frame::new(run.new),
            frames => frames[..run.length].fill(Frame::new(run.new)),
        }
        let length = u64::try_from(run.length).expect("at most one call's pages: hypervisor bug");
        let done = PfnRange::new(pages.start(), length).expect("part of a range");
        self.account(bank, &done, run.old, run.new);
        PfnRange::new(done.end(), pages.pages() - length)
    }
}

impl<S: Fn(FrameState) -> Option<FrameState>> Steps<'_, S> {
    /// Returns the state of the first frame before the step.
    pub fn first(&self) -> FrameState {
        self.first.old
    }

    /// Returns whether the host may now use any of the frames.
    #[inline]
    pub fn any_open(&self) -> bool {
        let is_open = |state: FrameState| state.host_access() != HostAccess::None;
        let frames = &self.map.frames[self.bank.frames(&self.pages)];
        let mut rest = frames.iter().skip(self.first.length);
        is_open(self.first.old) || rest.any(|frame| is_open(frame.state()))
    }

    /// Takes the step for every frame, a run of equal records at a time.
    #[inline(always)]
    pub fn commit(self) {
        let Self { map, bank, pages, first, step } = self;
        let rest = map.put(&bank, pages, first);
        rest.into_iter().for_each(|rest| map.commit_rest(&bank, rest, &step));
    }
}

/// Checks frames behind a first run. Out of line, and one for all steps: calls on one page have
/// none, and runs of equal frames ask for their step once.
#[inline(never)]
fn check_rest(
    pages: &PfnRange,
    frames: &[Frame],
    first: usize,
    needed: FrameState,
    step: &dyn Fn(FrameState) -> Option<FrameState>,
) -> Result<(), HcallError> {
    let mut same = None;
    for (pfn, frame) in pages.iter().zip(frames).skip(first) {
        if same == Some(*frame) {
            continue;
        }
        let found = frame.state();
        step(found).ok_or_else(|| refusal(pfn, needed, found))?;
        same = Some(*frame);
    }
    Ok(())
}
