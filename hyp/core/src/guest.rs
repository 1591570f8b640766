//! The guests' door: the calls that stock Linux guests make under pKVM, and what was promised (R23).

use pfnguard_shared::call::GUEST_UID;
use pfnguard_shared::info::{Capabilities, InfoSelector};
use pfnguard_shared::trace::TraceKind;
use pfnguard_shared::vm::Promise;
use pfnguard_shared::{
    GuestFunction, MAX_RANGE_PAGES, MemType, NO_PFN, PAGE_SHIFT, PAGE_SIZE, Status,
};

use crate::addr::{IpaPfn, IpaRange, PFN_LIMIT};
use crate::dispatch::{self, Reply};
use crate::error::{HcallError, Refusal};
use crate::hypervisor::{Cpu, Host, Unlocked};
use crate::machine::{Clock, Features, GuestStage2, Machine};
use crate::ownership;
use crate::pfnmap;
use crate::trace::Event;
use crate::vm::{Vm, VmId};
use crate::vmemmap::FrameState;

/// A call of a guest, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented at GuestFunction, which names the registers")]
pub enum GuestCall {
    Uid,
    Features,
    HypMeminfo,
    MemShare { ipa: IpaPfn },
    MemUnshare { ipa: IpaPfn },
    Info(InfoSelector),
    Query { ipa: IpaRange },
    Yield([u64; 3]),
}

/// What follows a guest's call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCall {
    /// The guest runs on.
    Resume,
    /// The host gets these values.
    Yield([u64; 3]),
}

impl GuestCall {
    /// Decodes `x0..=x3`.
    ///
    /// # Errors
    /// `UnknownFunction`; `Argument` for registers out of range.
    pub fn decode(regs: [u64; 4]) -> Result<Self, HcallError> {
        let unknown = HcallError::UnknownFunction(regs[0]);
        let function = u32::try_from(regs[0]).ok().and_then(GuestFunction::from_raw);
        Ok(match function.ok_or(unknown)? {
            GuestFunction::Uid => Self::Uid,
            GuestFunction::Features => Self::Features,
            GuestFunction::HypMeminfo => {
                zero(&regs, 1)?;
                Self::HypMeminfo
            }
            GuestFunction::MemShare => Self::MemShare { ipa: page(&regs)? },
            GuestFunction::MemUnshare => Self::MemUnshare { ipa: page(&regs)? },
            GuestFunction::Info => Self::Info(selector(regs[1])?),
            GuestFunction::Query => Self::Query { ipa: range(&regs)? },
            GuestFunction::Yield => Self::Yield([regs[1], regs[2], regs[3]]),
        })
    }
}

/// The byte address of a page in `x1`; `x2` and `x3` are reserved, as stock guests know them.
fn page(regs: &[u64; 4]) -> Result<IpaPfn, HcallError> {
    zero(regs, 2)?;
    let aligned = regs[1].trailing_zeros() >= PAGE_SHIFT;
    let ipa = IpaPfn(regs[1] >> PAGE_SHIFT);
    let limit = (PFN_LIMIT - 1) << PAGE_SHIFT;
    if aligned && ipa.0 < PFN_LIMIT {
        return Ok(ipa);
    }
    Err(HcallError::Argument { index: 1, limit })
}

fn zero(regs: &[u64; 4], from: usize) -> Result<(), HcallError> {
    let set = (from..regs.len()).find(|&register| regs[register] != 0);
    set.map_or(Ok(()), |register| {
        let index = u64::try_from(register).unwrap_or(u64::MAX);
        Err(HcallError::Argument { index, limit: 0 })
    })
}

fn selector(raw: u64) -> Result<InfoSelector, HcallError> {
    let known = InfoSelector::from_raw(raw);
    // How much memory the host has is none of a guest's business.
    known
        .filter(|selector| *selector != InfoSelector::Memory)
        .ok_or(HcallError::Argument { index: 1, limit: InfoSelector::Platform.raw() })
}

fn range(regs: &[u64; 4]) -> Result<IpaRange, HcallError> {
    IpaRange::new(IpaPfn(regs[1]), regs[2])
        .ok_or(HcallError::Argument { index: 2, limit: PFN_LIMIT })
}

/// Serves a guest call: decodes, executes, answers in `x0..=x4`, records.
pub fn call<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    regs: &mut [u64; 31],
) -> AfterCall {
    let claim = [regs[0], regs[1], regs[2], regs[3]];
    let vm_number = vm.raw();
    let event = Event {
        kind: TraceKind::GuestCall,
        vm: vm_number,
        a: claim[0],
        b: claim[1],
        c: vm_number.into(),
    };
    let result = GuestCall::decode(claim).and_then(|call| execute(door, cpu, vm, call));
    let now = cpu.local.now();
    match result {
        Ok(Answer { regs: answer, after }) => {
            regs[..answer.len()].copy_from_slice(&answer);
            cpu.trace.record(now, event);
            after
        }
        Err(error) => {
            let refusal = error.refusal();
            regs[..REGISTERS].copy_from_slice(&for_guest(&refusal));
            cpu.trace.refuse(now, event, &refusal);
            AfterCall::Resume
        }
    }
}

/// Registers that an answer fills: `x0..=x4`.
const REGISTERS: usize = 5;

/// A refusal as a guest sees it: physical page numbers and the host's state are not its business.
fn for_guest(refusal: &Refusal) -> [u64; REGISTERS] {
    [refusal.status.to_register(), refusal.rule_word(), NO_PFN, 0, 0]
}

struct Answer {
    regs: [u64; REGISTERS],
    after: AfterCall,
}

impl From<Reply> for Answer {
    fn from(Reply(values): Reply) -> Self {
        let status = Status::Success.to_register();
        let regs = [status, values[0], values[1], values[2], values[3]];
        Self { regs, after: AfterCall::Resume }
    }
}

impl Answer {
    /// An answer without a status: `x0` carries a value, as SMCCC and pKVM define these calls.
    fn raw(values: [u64; 4]) -> Self {
        let regs = [values[0], values[1], values[2], values[3], 0];
        Self { regs, after: AfterCall::Resume }
    }
}

fn execute<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    call: GuestCall,
) -> Result<Answer, HcallError> {
    Ok(match call {
        GuestCall::Uid => Answer::raw(GUEST_UID.map(u64::from)),
        GuestCall::Features => Answer::raw([STOCK_FUNCTIONS, 0, 0, 0]),
        GuestCall::HypMeminfo => {
            Answer::raw([u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX), 0, 0, 0])
        }
        GuestCall::MemShare { ipa } => ownership::guest_share_host(door, cpu, vm, ipa)?.into(),
        GuestCall::MemUnshare { ipa } => ownership::guest_unshare_host(door, cpu, vm, ipa)?.into(),
        GuestCall::Info(selector) => dispatch::info(door, selector).into(),
        GuestCall::Query { ipa } => query(door, vm, ipa)?.into(),
        GuestCall::Yield(values) => {
            Answer { after: AfterCall::Yield(values), ..Answer::from(Reply::NONE) }
        }
    })
}

/// Bit n: vendor function number n exists, as stock guests count them (FEATURES, HYP_MEMINFO,
/// MEM_SHARE, MEM_UNSHARE).
const STOCK_FUNCTIONS: u64 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;

/// QUERY: what the guest was promised from a page on, and for how many pages the same holds (R23).
fn query<M: Machine>(
    door: &mut Unlocked<'_, M>,
    id: VmId,
    ipa: IpaRange,
) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let limit = ownership::ipa_limit(&features);
    let known = limit
        .0
        .checked_sub(ipa.start().0)
        .and_then(|max| IpaRange::new(ipa.start(), ipa.pages().min(max)));
    let outside = HcallError::IpaRange { ipa: ipa.start(), limit: limit.0 };
    let ipa = known.ok_or(outside)?;
    let mut host = door.lock_host();
    let (host, guest) = host.with_guest(id)?;
    if let Some(promised) = pfnmap::promise(&host.regions, id, ipa) {
        return Ok(Reply([promised.word, promised.pages, 0, 0]));
    }
    let (word, pages) = match ram_promise(host, &guest, &features, ipa.start()) {
        Some(word) => (word, ram_run(host, &guest, &features, &ipa, word)),
        None => (0, empty_run(host, id, &guest, &ipa)),
    };
    Ok(Reply([word, pages, 0, 0]))
}

/// The promise about a page of RAM, packed for QUERY; `None` where no RAM is mapped: what a
/// binding has installed there is promised by its region.
fn ram_promise<M: Machine>(
    host: &Host<M>,
    guest: &Vm<M>,
    features: &Features,
    ipa: IpaPfn,
) -> Option<u64> {
    let leaf = guest.stage2.lookup(ipa)?;
    let mut promise = Promise::PRESENT.with(Promise::EXCLUSIVES);
    match host.vmemmap.state(leaf.pfn) {
        FrameState::HostSharedGuest { .. } | FrameState::GuestSharedHost { .. } => {
            promise = promise.with(Promise::SHARED);
        }
        FrameState::NoPage => return None,
        FrameState::HostOwned
        | FrameState::HostSharedHyp { .. }
        | FrameState::HypOwned
        | FrameState::HypReadable
        | FrameState::GuestOwned { .. } => {}
    }
    // Never `TAGS`: the world switch keeps no tag state apart, so guests run without (HCR_EL2.ATA).
    if features.capabilities.contains(Capabilities::LSE) {
        promise = promise.with(Promise::ATOMICS);
    }
    let mem_type = u64::from(MemType::Cacheable.raw());
    let perms = u64::from(leaf.attrs.perms.raw());
    Some(u64::from(promise.raw()) << 16 | mem_type << 8 | perms)
}

/// How many pages have the same promise; counts no further than one call may take.
fn ram_run<M: Machine>(
    host: &Host<M>,
    guest: &Vm<M>,
    features: &Features,
    ipa: &IpaRange,
    word: u64,
) -> u64 {
    let limit = ipa.iter().zip(0..MAX_RANGE_PAGES);
    let same = limit.take_while(|(ipa, _)| ram_promise(host, guest, features, *ipa) == Some(word));
    u64::try_from(same.count()).unwrap_or(MAX_RANGE_PAGES)
}

/// How many pages have nothing mapped or bound.
fn empty_run<M: Machine>(host: &Host<M>, id: VmId, guest: &Vm<M>, ipa: &IpaRange) -> u64 {
    let mapped = guest.stage2.first_mapped(*ipa).unwrap_or(ipa.end());
    let bound = host.regions.first_bound(id, ipa).unwrap_or(ipa.end());
    mapped.min(bound).0 - ipa.start().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stock_guests_find_the_calls_they_know() {
        for function in [
            GuestFunction::Features,
            GuestFunction::HypMeminfo,
            GuestFunction::MemShare,
            GuestFunction::MemUnshare,
        ] {
            let number = function.raw() & 0xffff;
            assert_eq!(STOCK_FUNCTIONS >> number & 1, 1, "{}", function.name());
        }
        assert_eq!(STOCK_FUNCTIONS.count_ones(), 4);
    }

    #[test]
    fn a_share_of_half_a_page_or_with_reserved_registers_is_refused() {
        let share =
            |x1, x2| GuestCall::decode([u64::from(GuestFunction::MemShare.raw()), x1, x2, 0]);
        assert_eq!(share(0x4000_0000, 0), Ok(GuestCall::MemShare { ipa: IpaPfn(0x4_0000) }));
        assert!(matches!(share(0x4000_0800, 0), Err(HcallError::Argument { index: 1, .. })));
        let last = (PFN_LIMIT - 1) << PAGE_SHIFT;
        assert_eq!(share(last, 0), Ok(GuestCall::MemShare { ipa: IpaPfn(PFN_LIMIT - 1) }));
        for past in [PFN_LIMIT << PAGE_SHIFT, u64::MAX << PAGE_SHIFT] {
            assert_eq!(share(past, 0), Err(HcallError::Argument { index: 1, limit: last }));
        }
        assert!(matches!(share(0x4000_0000, 1), Err(HcallError::Argument { index: 2, .. })));
    }

    #[test]
    fn a_guest_cannot_ask_for_the_hosts_memory() {
        let info = |x1| GuestCall::decode([u64::from(GuestFunction::Info.raw()), x1, 0, 0]);
        assert!(matches!(info(InfoSelector::Memory.raw()), Err(HcallError::Argument { .. })));
        assert!(info(InfoSelector::ManifestHash.raw()).is_ok());
    }
}
