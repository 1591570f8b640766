//! Calls that change nothing: CHECK, PROBE, REGION_INFO, and what a guest was promised.

use pfnguard_shared::info::{Capabilities, RegionInfo};
use pfnguard_shared::manifest::{BlockSizes, RegionFlags};
use pfnguard_shared::request::{CHECK_DECISIONS_OFFSET, Decision, Request, RequestWord};
use pfnguard_shared::vm::{ContractFlags, Promise, VmState};
use pfnguard_shared::{Mode, NO_PFN, Rule};

use super::{ArgPage, Place, applicant, check_ipa, decision_event};
use crate::addr::{IpaPfn, IpaRange, PFN_LIMIT, PfnRange};
use crate::decide::{BindRequest, Judge, place};
use crate::dispatch::Reply;
use crate::error::{HcallError, Refusal};
use crate::hypervisor::{Cpu, Guests, Unlocked};
use crate::machine::{Clock, GuestStage2, Machine, World};
use crate::manifest::Entry;
use crate::region::{Binding, RegionId, RegionTable};
use crate::vm::VmId;

/// What a guest was promised about a PFNMAP page (R23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promised {
    /// x1 of QUERY: `Perms` in 7:0, `MemType` in 15:8, `Promise` bits in 31:16.
    pub word: u64,
    /// Pages from the first one on that it holds for.
    pub pages: u64,
}

/// PFNMAP_CHECK: judges `items` requests (at most `MAX_CHECK_ITEMS`) of the argument page as
/// [`super::bind`] would now, each for itself, and writes the decisions behind them (R32). The
/// trace names the first that is refused (R34).
///
/// # Errors
/// `NoArgPage`. Refusals of items are decisions, not errors.
pub fn check<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    items: usize,
) -> Result<Reply, HcallError> {
    let page = ArgPage::of(cpu)?;
    let ipa_limit = door.hypervisor().features().guest_ipa_limit();
    let mut guard = door.lock_host();
    let (host, guests) = guard.with_guests();
    let judge = Judge::new(&host.regions);
    let mut batch = Batch { judge, guests, ipa_limit, last: None };
    let mut traced = Traced::No;
    for index in 0..items {
        // One copy, judged where the host can no longer change it.
        let wire: Request = page.read(cpu, 0, index);
        let decision = match batch.judge(&wire) {
            Ok(()) => GRANTED,
            Err(refusal) => {
                if traced == Traced::No {
                    traced = Traced::Yes;
                    trace_first(cpu, &wire, &refusal);
                }
                decision(&refusal)
            }
        };
        page.write(cpu, CHECK_DECISIONS_OFFSET, index, &decision);
    }
    Ok(Reply::NONE)
}

/// Whether the trace names a refused item of the batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Traced {
    No,
    Yes,
}

#[cold]
fn trace_first<M: Machine>(cpu: &mut Cpu<M>, wire: &Request, refusal: &Refusal) {
    cpu.trace.refuse(cpu.local.now(), decision_event(wire), refusal);
}

/// What judges the items of a batch, one after another.
struct Batch<'a, M: Machine> {
    judge: Judge<'a>,
    guests: Guests<'a, M>,
    ipa_limit: IpaPfn,
    last: Option<Last>,
}

/// What is known of an item with the same first word as the one before: the word is well formed,
/// and its VM, which is still locked, is active. What is left to judge is where the pages lie.
struct Last {
    word: RequestWord,
    outcome: Outcome,
}

/// What became of the item before; its neighbours most likely go the same way.
enum Outcome {
    /// The rules granted it. They ask for nothing but the word, the VM and the region, so an item
    /// that has these in common is granted the same.
    Granted(LastGrant),
    /// No page of it lies in an entry.
    Outside,
}

struct LastGrant {
    vm: VmId,
    within: PfnRange,
    blocks: BlockSizes,
}

impl<M: Machine> Batch<'_, M> {
    /// Judges one item. What follows is out of line: the loop keeps its own state in registers.
    #[inline]
    fn judge(&mut self, wire: &Request) -> Result<(), Refusal> {
        match &self.last {
            Some(Last { word, outcome }) if *word == wire.word() => match outcome {
                Outcome::Granted(last) if self.fits_like(last, wire) => Ok(()),
                Outcome::Granted(_) => self.judge_anew(wire),
                Outcome::Outside => self.judge_outside(wire),
            },
            Some(_) | None => self.judge_anew(wire),
        }
    }

    /// Returns whether it is plain that an item has the grant of the one before, and room.
    #[inline(never)]
    fn fits_like(&self, last: &LastGrant, wire: &Request) -> bool {
        let LastGrant { vm: id, within, blocks } = *last;
        let Ok((pfns, ipa)) = place(wire) else { return false };
        let Some(vm) = self.guests.locked(id) else { return false };
        let place = Place { id, vm, pfns, ipa, blocks };
        within.contains_range(&pfns)
            && place.room_at_a_glance(self.judge.table(), self.ipa_limit).is_some()
    }

    /// Judges an item like the one before, which lies in no entry: its place says all.
    #[inline(never)]
    fn judge_outside(&mut self, wire: &Request) -> Result<(), Refusal> {
        match place(wire).ok().and_then(|(pfns, _)| self.judge.refuse_outside(&pfns)) {
            Some(refusal) => Err(refusal.into()),
            None => self.judge_anew(wire),
        }
    }

    /// Judges an item by itself.
    #[inline(never)]
    fn judge_anew(&mut self, wire: &Request) -> Result<(), Refusal> {
        // Another VM may be locked from now on.
        self.last = None;
        let request = BindRequest::decode(wire)?;
        let id = request.vm;
        let vm = self.guests.get(id)?;
        let applicant = applicant(id, vm)?;
        let word = wire.word();
        if let Some(refusal) = self.judge.refuse_outside(&request.pfns) {
            self.last = Some(Last { word, outcome: Outcome::Outside });
            return Err(refusal.into());
        }
        let grant = self.judge.decide::<Refusal>(applicant, &request)?;
        let regions = self.judge.table();
        let within = regions.get(grant.region)?.entry.range;
        let outcome = Outcome::Granted(LastGrant { vm: id, within, blocks: grant.blocks });
        self.last = Some(Last { word, outcome });
        Place::of(vm, &request, &grant).room(regions, self.ipa_limit)?;
        Ok(())
    }
}

const GRANTED: Decision = Decision { pfn: NO_PFN, ..Decision::zeroed() };

fn decision(refusal: &Refusal) -> Decision {
    Decision {
        status: refusal.status.raw(),
        rule: refusal.rule.map_or(0, Rule::raw),
        subject: refusal.subject.raw(),
        pfn: refusal.pfn,
        requested: refusal.requested,
        granted: refusal.granted,
    }
}

/// PFNMAP_PROBE: asks the CPU what it makes of a guest's page. Returns x1 `PAR_EL1`.
///
/// # Errors
/// `NoObject` and `VmState` for the VM, `Argument` and `IpaRange` for the page; `Contract` where
/// the VM is protected and the page no PFNMAP.
pub fn probe<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
    ipa: IpaPfn,
) -> Result<Reply, HcallError> {
    let ipa_limit = door.hypervisor().features().guest_ipa_limit();
    let limit = PFN_LIMIT.saturating_sub(1);
    let page = IpaRange::single(ipa).ok_or(HcallError::Argument { index: 2, limit })?;
    check_ipa(&page, ipa_limit)?;
    let mut guard = door.lock_host();
    let (host, vm) = guard.with_guest(id)?;
    vm.check_state(VmState::Active)?;
    let protected = vm.contract.contains(ContractFlags::PROTECTED);
    if protected && !host.regions.binding_overlaps(id, &page) {
        return Err(HcallError::Contract);
    }
    Ok(Reply([cpu.local.probe(ipa, vm.stage2.vttbr()), 0, 0, 0]))
}

/// REGION_INFO: writes a region's grants and state to the argument page (R31). Returns x1 its
/// first page, x2 its pages.
///
/// # Errors
/// `NoArgPage`; `NoObject` where the manifest has no such entry.
pub fn region_info<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: RegionId,
) -> Result<Reply, HcallError> {
    let page = ArgPage::of(cpu)?;
    let guard = door.lock_host();
    let info = describe(&guard.regions, id)?;
    page.write(cpu, 0, 0, &info);
    Ok(Reply([info.pfn, info.pages, 0, 0]))
}

fn describe(regions: &RegionTable, id: RegionId) -> Result<RegionInfo, HcallError> {
    let region = regions.get(id)?;
    let entry = &region.entry;
    Ok(RegionInfo {
        name: *entry.name.bytes(),
        pfn: entry.range.start().0,
        pages: entry.range.pages(),
        flags: entry.flags.raw(),
        class: entry.class.raw(),
        modes: entry.modes.raw(),
        types: entry.types.raw(),
        perms: entry.perms.raw(),
        max_vms: entry.max_vms,
        blocks: entry.blocks.raw(),
        reset: entry.reset.kind().raw(),
        state: region.hold.state().raw(),
        holders: u8::try_from(regions.holders(id)).unwrap_or(u8::MAX),
        streams: u8::try_from(entry.streams.len()).unwrap_or(u8::MAX),
        reserved: [0; 2],
        quirk: *entry.quirk.bytes(),
    })
}

/// Returns what the guest was promised from the first page of `ipa` on, as far as one binding
/// reaches (R23), or `None` where no binding holds that page.
pub fn promise(regions: &RegionTable, id: VmId, ipa: IpaRange) -> Option<Promised> {
    let binding = regions.binding_at(id, ipa.start())?;
    let entry = &regions.get(binding.region).ok()?.entry;
    let bits = promise_bits(binding, entry, regions.capabilities());
    let word = u64::from(binding.perms.raw())
        | u64::from(binding.mem_type.raw()) << 8
        | u64::from(bits.raw()) << 16;
    let pages = binding.ipa.intersection(&ipa)?.pages();
    Some(Promised { word, pages })
}

/// Never `TAGS`: the world switch keeps no tag state apart, so guests run without (HCR_EL2.ATA).
fn promise_bits(binding: &Binding, entry: &Entry, capabilities: Capabilities) -> Promise {
    let atomics =
        entry.flags.contains(RegionFlags::ATOMICS) && capabilities.contains(Capabilities::LSE);
    [
        (binding.mode == Mode::Share, Promise::SHARED),
        (entry.flags.contains(RegionFlags::EXCLUSIVES), Promise::EXCLUSIVES),
        (atomics, Promise::ATOMICS),
    ]
    .into_iter()
    .filter(|(holds, _)| *holds)
    .fold(Promise::PRESENT.with(Promise::PFNMAP), |bits, (_, bit)| bits.with(bit))
}
