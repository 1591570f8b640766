//! Who owns which RAM page: sharing, donating and taking back. R15, R35, R44.
//!
//! | from | to | by |
//! |---|---|---|
//! | the host's | lent to the hypervisor | HOST_SHARE_HYP |
//! | lent to the hypervisor, no argument page | the host's | HOST_UNSHARE_HYP |
//! | the host's, lent to guests | lent to guests, once more | HOST_SHARE_GUEST |
//! | lent to guests | lent once less, or the host's | HOST_UNSHARE_GUEST, VM_TEARDOWN |
//! | the host's | a guest's | HOST_DONATE_GUEST |
//! | a guest's | lent to the host | MEM_SHARE |
//! | lent to the host | a guest's | MEM_UNSHARE |
//! | a dying guest's, lent or not | the host's | HOST_RECLAIM_GUEST |
//! | the host's | the hypervisor's | VM_CREATE, VM_POOL_ADD |
//! | the hypervisor's | the host's | VM_FREE |

use std::ops::Range;

use pfnguard_shared::manifest::BlockSizes;
use pfnguard_shared::vm::{PageState, VmState};
use pfnguard_shared::{MemType, Perms};
use rangemap::RangeMap;

use crate::Refused;
use crate::args::Placed;
use crate::call::Outcome;
use crate::machine::{Machine, count};
use crate::refusal::{
    contract, ipa_occupied, ipa_range, not_mapped, not_owner, page_busy, page_state,
};
use crate::state::{Frame, Leaf, State, Vm};
use crate::tables::Mapping;

/// RAM comes in pages and 2 MiB blocks.
const RAM_BLOCKS: BlockSizes = BlockSizes::PAGE.with(BlockSizes::BLOCK_2M);

/// New states of frames: what a commit puts into the map.
type Steps = Vec<(Range<u64>, Frame)>;

/// Calls of the host.
impl State {
    /// The hypervisor may access host pages.
    pub(crate) fn host_share_hyp(&mut self, pages: Range<u64>) -> Result<Outcome, Refused> {
        self.check_host(&pages)?;
        self.frames.insert(pages, Frame::HostLentHyp(0));
        Ok(Outcome::done())
    }

    /// The host takes them back; argument pages are busy.
    pub(crate) fn host_unshare_hyp(&mut self, pages: Range<u64>) -> Result<Outcome, Refused> {
        let back = self.steps(&pages, PageState::HostSharedHyp, |page, found| {
            let unused = |pins| if pins == 0 { Ok(Frame::Host) } else { Err(page_busy(page)) };
            found.pins().map(unused)
        })?;
        self.commit(back);
        Ok(Outcome::done())
    }

    /// A guest borrows host pages; several may borrow the same one, 255 times in all.
    pub(crate) fn host_share_guest(
        &mut self,
        machine: &Machine,
        id: u16,
        placed: &Placed,
        perms: Perms,
    ) -> Result<Outcome, Refused> {
        let vm = self.vm_in(id, VmState::Active)?;
        if vm.is_protected() {
            return Err(contract());
        }
        let mapping = vm.check_target(machine, placed)?;
        let lent = self.steps(&placed.pages, PageState::HostOwned, |page, found| {
            let more = |times: u8| times.checked_add(1).ok_or(page_busy(page));
            found.times_lent().map(|times| more(times).map(Frame::HostLentGuests))
        })?;

        self.commit(lent);
        self.vm_mut(id).map_ram(&mapping, perms);
        Ok(Outcome::done())
    }

    /// The host takes lent pages back from where the guest has them.
    pub(crate) fn host_unshare_guest(
        &mut self,
        machine: &Machine,
        id: u16,
        placed: &Placed,
    ) -> Result<Outcome, Refused> {
        let Placed { pages, ipa } = placed;
        let vm = self.vm_in(id, VmState::Active)?;
        machine.check_ipa(ipa)?;
        vm.check_mapped(placed)?;
        let cut = vm.cut_blocks(ipa);
        vm.check_tables(count(cut.len()))?;
        let back = self.steps(pages, PageState::HostSharedGuest, |_, found| {
            found.times_lent().filter(|times| *times > 0).map(|times| Ok(lent(times - 1)))
        })?;

        self.commit(back);
        self.vm_mut(id).unmap(ipa);
        cut.into_iter().for_each(|table| self.vm_mut(id).tables.insert(table));
        Ok(Outcome::done())
    }

    /// A guest gets host pages for its own, with their contents.
    pub(crate) fn host_donate_guest(
        &mut self,
        machine: &Machine,
        id: u16,
        placed: &Placed,
    ) -> Result<Outcome, Refused> {
        let vm = self.vm_in(id, VmState::Active)?;
        let mapping = vm.check_target(machine, placed)?;
        self.check_host(&placed.pages)?;

        self.frames.insert(placed.pages.clone(), Frame::Guest(id));
        self.vm_mut(id).map_ram(&mapping, Perms::ALL);
        Ok(Outcome::done())
    }

    /// Pages of a dying VM are the host's again; those of a protected one read zero (R44).
    pub(crate) fn host_reclaim_guest(
        &mut self,
        id: u16,
        pages: Range<u64>,
    ) -> Result<Outcome, Refused> {
        let vm = self.vm_in(id, VmState::Dying)?;
        let back = self.steps(&pages, PageState::GuestOwned, |page, found| {
            let mine =
                |owner| if owner == id { Ok(Frame::Host) } else { Err(not_owner(page, id, owner)) };
            found.guest().map(mine)
        })?;
        let secret = vm.is_protected();

        self.commit(back);
        Ok(if secret { Outcome::done().zeroes(pages) } else { Outcome::done() })
    }
}

/// Calls of a guest.
impl State {
    /// MEM_SHARE: the guest lends its own page to the host.
    pub(crate) fn mem_share(
        &mut self,
        machine: &Machine,
        id: u16,
        ipa: u64,
    ) -> Result<(), Refused> {
        self.mem_step(machine, id, ipa, (Frame::Guest(id), Frame::GuestLentHost(id)))
    }

    /// MEM_UNSHARE: the guest takes it back.
    pub(crate) fn mem_unshare(
        &mut self,
        machine: &Machine,
        id: u16,
        ipa: u64,
    ) -> Result<(), Refused> {
        self.mem_step(machine, id, ipa, (Frame::GuestLentHost(id), Frame::Guest(id)))
    }

    fn mem_step(
        &mut self,
        machine: &Machine,
        id: u16,
        ipa: u64,
        (from, to): (Frame, Frame),
    ) -> Result<(), Refused> {
        let vm = self.vm_in(id, VmState::Active)?;
        machine.check_ipa(&(ipa..ipa + 1))?;
        let page = vm.frame_of(ipa).ok_or(not_mapped(ipa))?;
        let step = self.steps(&(page..page + 1), from.page_state(), |_, found| {
            (found == from).then_some(Ok(to))
        })?;

        self.commit(step);
        Ok(())
    }
}

/// Frames.
impl State {
    /// Every page is the host's alone.
    pub(crate) fn check_host(&self, pages: &Range<u64>) -> Result<(), Refused> {
        let host = |_, found| (found == Frame::Host).then_some(Ok(found));
        self.steps(pages, PageState::HostOwned, host).map(|_| ())
    }

    /// The new state of every frame, or the refusal for the first that cannot take the step; `None`
    /// is a frame in another state than the call needs. A range that leaves RAM is refused for
    /// that first.
    pub(crate) fn steps(
        &self,
        pages: &Range<u64>,
        needed: PageState,
        step: impl Fn(u64, Frame) -> Option<Result<Frame, Refused>>,
    ) -> Result<Steps, Refused> {
        if let Some(outside) = self.frames.gaps(pages).next() {
            return Err(page_state(outside.start, needed, None));
        }
        let mut steps = Steps::new();
        for (run, found) in self.frames.overlapping(pages) {
            let run = run.start.max(pages.start)..run.end.min(pages.end);
            let wrong = || Err(page_state(run.start, needed, Some(*found)));
            let new = step(run.start, *found).unwrap_or_else(wrong)?;
            steps.push((run, new));
        }
        Ok(steps)
    }

    pub(crate) fn commit(&mut self, steps: Steps) {
        for (run, new) in steps {
            self.frames.insert(run, new);
        }
    }

    /// What a VM borrows goes back with its translations: one count for each guest page.
    pub(crate) fn return_borrowed(&mut self, pages: &RangeMap<u64, Leaf>) {
        for (ipa, leaf) in pages.iter() {
            let run = leaf.frames(ipa);
            let found = self.frames.overlapping(&run);
            let back: Steps = found
                .filter_map(|(part, frame)| {
                    let times = frame.times_lent().filter(|times| *times > 0)?;
                    Some((part.start.max(run.start)..part.end.min(run.end), lent(times - 1)))
                })
                .collect();
            self.commit(back);
        }
    }

    /// RAM frames that a VM owns.
    pub(crate) fn owned_by(&self, id: u16) -> u64 {
        let owned = self.frames.iter().filter(|(_, frame)| frame.guest() == Some(id));
        owned.map(|(run, _)| run.end - run.start).sum()
    }
}

/// The host's page, lent so many times.
fn lent(times: u8) -> Frame {
    if times == 0 { Frame::Host } else { Frame::HostLentGuests(times) }
}

impl Frame {
    /// How often the host's page is lent to guests, unless it is not to be lent.
    pub(crate) fn times_lent(self) -> Option<u8> {
        match self {
            Self::Host => Some(0),
            Self::HostLentGuests(times) => Some(times),
            Self::HostLentHyp(_)
            | Self::Hyp
            | Self::HypReadable
            | Self::Guest(_)
            | Self::GuestLentHost(_) => None,
        }
    }

    /// CPUs whose argument page it is, of a page that is lent to the hypervisor.
    pub(crate) fn pins(self) -> Option<u8> {
        match self {
            Self::HostLentHyp(pins) => Some(pins),
            Self::Host
            | Self::HostLentGuests(_)
            | Self::Hyp
            | Self::HypReadable
            | Self::Guest(_)
            | Self::GuestLentHost(_) => None,
        }
    }

    /// The VM that owns it.
    pub(crate) fn guest(self) -> Option<u16> {
        match self {
            Self::Guest(vm) | Self::GuestLentHost(vm) => Some(vm),
            Self::Host
            | Self::HostLentHyp(_)
            | Self::HostLentGuests(_)
            | Self::Hyp
            | Self::HypReadable => None,
        }
    }
}

impl Leaf {
    /// Where a run of guest pages leads.
    pub(crate) fn frames(&self, ipa: &Range<u64>) -> Range<u64> {
        let start = ipa.start.wrapping_add(self.offset);
        start..start + (ipa.end - ipa.start)
    }
}

impl Machine {
    /// The guest's address space holds `ipa`.
    pub(crate) fn check_ipa(&self, ipa: &Range<u64>) -> Result<(), Refused> {
        let limit = self.ipa_limit();
        if ipa.end > limit { Err(ipa_range(ipa.start, limit)) } else { Ok(()) }
    }
}

/// What a guest maps.
impl Vm {
    /// `ipa` can take new RAM: in range, occupied by nothing, and there are tables.
    fn check_target(&self, machine: &Machine, placed: &Placed) -> Result<Mapping, Refused> {
        let Placed { pages, ipa } = placed;
        machine.check_ipa(ipa)?;
        self.check_vacant(ipa)?;
        let offset = pages.start.wrapping_sub(ipa.start);
        let mapping = Mapping { ipa: ipa.clone(), offset, blocks: RAM_BLOCKS };
        self.check_tables(self.tables.missing(&mapping))?;
        Ok(mapping)
    }

    /// Nothing is mapped or bound in `ipa`; the refusal names the first page.
    pub(crate) fn check_vacant(&self, ipa: &Range<u64>) -> Result<(), Refused> {
        self.first_occupied(ipa).map_or(Ok(()), |page| Err(ipa_occupied(page)))
    }

    pub(crate) fn first_occupied(&self, ipa: &Range<u64>) -> Option<u64> {
        let mapped = self.pages.overlapping(ipa).next().map(|(run, _)| run.start);
        let bound = self.bindings_in(ipa).next().map(|(first, _)| *first);
        mapped.into_iter().chain(bound).min().map(|page| page.max(ipa.start))
    }

    /// The guest has exactly these frames at these pages.
    fn check_mapped(&self, placed: &Placed) -> Result<(), Refused> {
        let Placed { pages, ipa } = placed;
        let offset = pages.start.wrapping_sub(ipa.start);
        let mut next = ipa.start;
        for (run, leaf) in self.pages.overlapping(ipa) {
            if run.start > next || leaf.offset != offset {
                break;
            }
            next = run.end;
        }
        if next >= ipa.end {
            return Ok(());
        }
        Err(not_mapped(next).at(next.wrapping_add(offset)))
    }

    /// Guest RAM is always write-back (R15).
    fn map_ram(&mut self, mapping: &Mapping, perms: Perms) {
        let offset = mapping.offset;
        let leaf = Leaf { offset, mem_type: MemType::Cacheable, perms, no_tags: false };
        self.map(mapping, leaf);
    }

    pub(crate) fn map(&mut self, mapping: &Mapping, leaf: Leaf) {
        self.tables.make(mapping);
        self.pages.insert(mapping.ipa.clone(), leaf);
    }

    pub(crate) fn unmap(&mut self, ipa: &Range<u64>) {
        self.pages.remove(ipa.clone());
        self.tables.unmap(ipa);
    }

    /// The frame behind a page of the guest.
    pub(crate) fn frame_of(&self, ipa: u64) -> Option<u64> {
        self.pages.get(&ipa).map(|leaf| ipa.wrapping_add(leaf.offset))
    }
}
