//! The host's door: decode, execute, answer, record.

use pfnguard_shared::call::HOST_UID;
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::trace::TraceKind;
use pfnguard_shared::{ABI_MAJOR, ABI_MINOR, HostFunction, MAX_RANGE_PAGES, Rule, Status};

use crate::addr::{IpaPfn, PFN_LIMIT, Pfn, PfnRange};
use crate::call::{Args, function};
use crate::error::HcallError;
use crate::hypervisor::{Cpu, Host, Hypervisor, MAX_CPUS, MAX_VCPUS, MAX_VMS, Unlocked};
use crate::machine::{ArgWindow, Clock, HostStage2, Machine};
use crate::trace::{Event, NO_VM};
use crate::vcpu::{self, CpuIndex};
use crate::vm;
use crate::vmemmap::FrameState;
use crate::{migration, ownership, pfnmap};

/// What a granted call returns in `x1..=x4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply(pub [u64; 4]);

impl Reply {
    /// Nothing but success.
    pub const NONE: Self = Self([0; 4]);
}

impl<M: Machine> Hypervisor<M> {
    /// Serves an `HVC #0` of the host: `regs` are its `x0..=x7`, in and out. Exactly one record of
    /// kind `HostCall` is written, whatever comes in.
    ///
    /// It only jumps to what serves the call, so that a call pays for no stack frame but its own.
    #[inline]
    pub fn host_call(&self, cpu: &mut Cpu<M>, regs: &mut [u64; 8]) {
        match function(regs[0]) {
            Some(HostFunction::HostShareHyp) => answer(regs, cpu, self, share_hyp),
            Some(HostFunction::HostUnshareHyp) => answer(regs, cpu, self, unshare_hyp),
            Some(function) => {
                answer(regs, cpu, self, |door, cpu, args| execute(door, cpu, function, args));
            }
            None => self.refuse_immediate(cpu, regs),
        }
    }

    /// Refuses a call that is not defined: an unknown function, or an `HVC` or `SMC` whose
    /// immediate is not 0.
    pub fn refuse_immediate(&self, cpu: &mut Cpu<M>, regs: &mut [u64; 8]) {
        answer_refusal(regs, cpu, &HcallError::UnknownFunction(regs[0]));
    }
}

/// Executes a call, answers it and writes its record. The arguments are in the order in which the
/// vectors have them: nothing is moved between registers.
#[inline(never)]
fn answer<M: Machine>(
    regs: &mut [u64; 8],
    cpu: &mut Cpu<M>,
    hypervisor: &Hypervisor<M>,
    execute: impl FnOnce(&mut Unlocked<'_, M>, &mut Cpu<M>, Args<'_>) -> Result<Answer, HcallError>,
) {
    match execute(&mut hypervisor.enter(), cpu, Args(regs)) {
        Ok(answer) => {
            let event = call_event(regs);
            *regs = answer.to_registers();
            cpu.trace.record(cpu.local.now(), event);
        }
        Err(error) => refuse(regs, cpu, &error),
    }
}

/// Answers a refused call and writes its record. Out of line: granted calls are what counts.
#[cold]
fn refuse<M: Machine>(regs: &mut [u64; 8], cpu: &mut Cpu<M>, error: &HcallError) {
    answer_refusal(regs, cpu, error);
}

/// As [`refuse`], inlined: where the error is known, so is the answer.
#[inline(always)]
fn answer_refusal<M: Machine>(regs: &mut [u64; 8], cpu: &mut Cpu<M>, error: &HcallError) {
    let event = call_event(regs);
    let refusal = error.refusal();
    *regs = refusal.to_registers();
    cpu.trace.refuse(cpu.local.now(), event, &refusal);
}

fn call_event(regs: &[u64; 8]) -> Event {
    Event { kind: TraceKind::HostCall, vm: NO_VM, a: regs[0], b: regs[1], c: regs[2] }
}

/// What a granted call puts into the registers.
enum Answer {
    /// Success and `x1..=x4`.
    Reply(Reply),
    /// SMCCC defines `x0..=x3` of this call: it has no status.
    Plain([u64; 4]),
}

impl Answer {
    fn to_registers(&self) -> [u64; 8] {
        match *self {
            Self::Reply(Reply([x1, x2, x3, x4])) => {
                [Status::Success.to_register(), x1, x2, x3, x4, 0, 0, 0]
            }
            Self::Plain([x0, x1, x2, x3]) => [x0, x1, x2, x3, 0, 0, 0, 0],
        }
    }
}

/// HOST_SHARE_HYP.
fn share_hyp<M: Machine>(
    door: &mut Unlocked<'_, M>,
    _: &mut Cpu<M>,
    args: Args<'_>,
) -> Result<Answer, HcallError> {
    ownership::host_share_hyp(door, args.pages(1, 2)?).map(Answer::Reply)
}

/// HOST_UNSHARE_HYP.
fn unshare_hyp<M: Machine>(
    door: &mut Unlocked<'_, M>,
    _: &mut Cpu<M>,
    args: Args<'_>,
) -> Result<Answer, HcallError> {
    ownership::host_unshare_hyp(door, args.pages(1, 2)?).map(Answer::Reply)
}

/// Executes every other call.
#[inline]
#[allow(clippy::wildcard_enum_match_arm, reason = "one level of three; `execute_other` names all")]
fn execute<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    function: HostFunction,
    args: Args<'_>,
) -> Result<Answer, HcallError> {
    match function {
        HostFunction::Uid => Ok(Answer::Plain(HOST_UID.map(u64::from))),
        HostFunction::Revision => Ok(Answer::Plain([ABI_MAJOR.into(), ABI_MINOR.into(), 0, 0])),
        other => execute_other(door, cpu, other, args).map(Answer::Reply),
    }
}

#[inline(never)]
fn execute_other<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    function: HostFunction,
    args: Args<'_>,
) -> Result<Reply, HcallError> {
    use HostFunction as F;
    match function {
        F::Uid | F::Revision | F::HostShareHyp | F::HostUnshareHyp => {
            unreachable!("decided before: hypervisor bug")
        }
        F::Info => Ok(info(door, args.selector()?)),
        F::RegionInfo => pfnmap::region_info(door, cpu, args.region()?),
        F::ArgPageSet => arg_page_set(door, cpu, Pfn(args.raw(1))),
        F::ArgPageClear => arg_page_clear(door, cpu),
        F::TraceInfo => trace_info(door, args.cpu()?),
        F::HostShareGuest => {
            let (vm, placed) = (args.vm()?, args.placed_pages()?);
            ownership::host_share_guest(door, cpu, vm, placed, args.perms()?)
        }
        F::HostUnshareGuest => {
            ownership::host_unshare_guest(door, cpu, args.vm()?, args.placed_pages()?)
        }
        F::HostDonateGuest => {
            ownership::host_donate_guest(door, cpu, args.vm()?, args.placed_pages()?)
        }
        F::HostReclaimGuest => {
            ownership::host_reclaim_guest(door, cpu, args.vm()?, args.pages(2, 3)?)
        }
        F::VmCreate | F::VmPoolAdd | F::VmEnableMte | F::VmTeardown | F::VmFree => {
            execute_vm(door, cpu, function, args)
        }
        F::VcpuInit | F::VcpuRun | F::VcpuGetReg | F::VcpuSetReg => {
            execute_vcpu(door, cpu, function, args)
        }
        F::PfnmapCheck => pfnmap::check(door, cpu, args.items()?),
        F::PfnmapBind => pfnmap::bind(door, cpu, &args.request()),
        F::PfnmapMap => pfnmap::map(door, cpu, args.vm()?, IpaPfn(args.raw(2))),
        F::PfnmapUnbind => pfnmap::unbind(door, cpu, args.vm()?, IpaPfn(args.raw(2))),
        F::PfnmapReset => pfnmap::reset(door, cpu, args.region()?),
        F::PfnmapProbe => pfnmap::probe(door, cpu, args.vm()?, IpaPfn(args.raw(2))),
        F::MigrateExport => migration::export(door, cpu, args.vm()?),
        F::MigrateCheck => migration::check(door, cpu),
    }
}

#[inline(never)]
#[allow(clippy::wildcard_enum_match_arm, reason = "one level of three; `execute_other` names all")]
fn execute_vm<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    function: HostFunction,
    args: Args<'_>,
) -> Result<Reply, HcallError> {
    use HostFunction as F;
    match function {
        F::VmCreate => {
            let (contract, vcpus) = (args.contract()?, args.vcpu_count()?);
            vm::create(door, cpu, contract, vcpus, args.pages(3, 4)?)
        }
        F::VmPoolAdd => vm::pool_add(door, cpu, args.vm()?, args.pages(2, 3)?),
        F::VmEnableMte => vm::enable_mte(door, args.vm()?),
        F::VmTeardown => vm::teardown(door, cpu, args.vm()?),
        F::VmFree => vm::free(door, cpu, args.vm()?),
        other => unreachable!("call {:#x} is decided elsewhere: hypervisor bug", other.raw()),
    }
}

#[inline(never)]
#[allow(clippy::wildcard_enum_match_arm, reason = "one level of three; `execute_other` names all")]
fn execute_vcpu<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    function: HostFunction,
    args: Args<'_>,
) -> Result<Reply, HcallError> {
    use HostFunction as F;
    let (vm, vcpu) = (args.vm()?, args.vcpu()?);
    match function {
        F::VcpuInit => vcpu::init(door, vm, vcpu, (args.raw(3), args.raw(4))),
        F::VcpuRun => vcpu::run::run(door, cpu, vm, vcpu, args.raw(3)),
        F::VcpuGetReg => vcpu::get_reg(door, vm, vcpu, args.register()?),
        F::VcpuSetReg => vcpu::set_reg(door, vm, vcpu, (args.register()?, args.raw(4))),
        other => unreachable!("call {:#x} is decided elsewhere: hypervisor bug", other.raw()),
    }
}

/// INFO: what the service says of itself (R31, R51).
pub(crate) fn info<M: Machine>(door: &mut Unlocked<'_, M>, selector: InfoSelector) -> Reply {
    let features = *door.hypervisor().features();
    match selector {
        InfoSelector::Abi => {
            let version = u64::from(ABI_MAJOR) << 32 | u64::from(ABI_MINOR);
            Reply([version, count(HostFunction::COUNT), count(Rule::ALL.len()), 0])
        }
        InfoSelector::ManifestHash => Reply(hash_words(door.lock_host().regions.sha256())),
        InfoSelector::Limits => {
            let regions = door.lock_host().regions.count();
            Reply([count(MAX_VMS), count(MAX_VCPUS), regions, MAX_RANGE_PAGES])
        }
        InfoSelector::Memory => memory_info(&door.lock_host()),
        InfoSelector::Platform => {
            let capabilities = door.lock_host().regions.capabilities();
            let bits = [features.pa_bits, features.guest_ipa_bits, features.vmid_bits];
            let [pa, ipa, vmid] = bits.map(u64::from);
            Reply([capabilities.raw(), pa, ipa, vmid])
        }
    }
}

fn memory_info<M: Machine>(host: &Host<M>) -> Reply {
    let map = &host.vmemmap;
    let tables = host.stage2.tables_free();
    Reply([map.frame_count(), count(map.bytes()), map.hyp_pages(), tables])
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// First byte of the hash in bits 7:0 of the first word.
fn hash_words(hash: &[u8; 32]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(hash.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// ARG_PAGE_SET: pins a page that is lent to the hypervisor as this CPU's argument page, in place
/// of the one before.
///
/// # Errors
/// `PageState` where the page is not lent; `Pinned` where too many CPUs use it.
fn arg_page_set<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    page: Pfn,
) -> Result<Reply, HcallError> {
    let mut host = door.lock_host();
    pin(&mut host, page)?;
    if let Some(old) = cpu.arg_page.replace(page) {
        cpu.local.hide();
        unpin(&mut host, old);
    }
    cpu.local.show(page);
    Ok(Reply::NONE)
}

/// ARG_PAGE_CLEAR.
///
/// # Errors
/// `NoArgPage` where this CPU has none.
fn arg_page_clear<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
) -> Result<Reply, HcallError> {
    let page = cpu.arg_page.take().ok_or(HcallError::NoArgPage)?;
    // Before the host may give the page to somebody else.
    cpu.local.hide();
    unpin(&mut door.lock_host(), page);
    Ok(Reply::NONE)
}

fn pin<M: Machine>(host: &mut Host<M>, page: Pfn) -> Result<(), HcallError> {
    let range =
        PfnRange::single(page).ok_or(HcallError::Argument { index: 1, limit: PFN_LIMIT - 1 })?;
    // In any other state there is no pin, and the check refuses.
    let pins = host.vmemmap.state(page).pins();
    let more = pins.checked_add(1).ok_or(HcallError::Pinned { pfn: page })?;
    let lent = host.vmemmap.check(range, FrameState::HostSharedHyp { pins })?;
    lent.commit(FrameState::HostSharedHyp { pins: more });
    Ok(())
}

fn unpin<M: Machine>(host: &mut Host<M>, page: Pfn) {
    let range = PfnRange::single(page).expect("pinned page past the address space: hypervisor bug");
    let pins = host.vmemmap.state(page).pins();
    let fewer = pins.checked_sub(1).expect("page pin underflow: hypervisor bug");
    let pinned = host.vmemmap.check(range, FrameState::HostSharedHyp { pins });
    let pinned = pinned.expect("pinned page changed state: hypervisor bug");
    pinned.commit(FrameState::HostSharedHyp { pins: fewer });
}

/// TRACE_INFO: where a CPU's trace ring is.
///
/// # Errors
/// `NoObject` where there is no such CPU.
fn trace_info<M: Machine>(
    door: &mut Unlocked<'_, M>,
    CpuIndex(index): CpuIndex,
) -> Result<Reply, HcallError> {
    let pages = door.hypervisor().trace_pages.get(index).copied().flatten();
    let missing = HcallError::NoObject { number: count(index), limit: count(MAX_CPUS) };
    let pages = pages.ok_or(missing)?;
    Ok(Reply([pages.start().0, pages.pages(), 0, 0]))
}

#[cfg(test)]
mod tests;
