//! The host's door: decode, execute, answer, record.

use pfnguard_shared::call::HOST_UID;
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::trace::TraceKind;
use pfnguard_shared::{ABI_MAJOR, ABI_MINOR, HostFunction, MAX_RANGE_PAGES, Rule, Status};

use crate::addr::{PFN_LIMIT, Pfn, PfnRange};
use crate::call::HostCall;
use crate::error::HcallError;
use crate::hypervisor::{Cpu, Host, Hypervisor, MAX_CPUS, MAX_VCPUS, MAX_VMS, Unlocked};
use crate::machine::{Clock, Machine};
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

    fn to_registers(self) -> [u64; 8] {
        let Self([x1, x2, x3, x4]) = self;
        [Status::Success.to_register(), x1, x2, x3, x4, 0, 0, 0]
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Serves an `HVC #0` of the host: `regs` are its `x0..=x7`, in and out. Exactly one record of
    /// kind `HostCall` is written, whatever comes in.
    pub fn host_call(&self, cpu: &mut Cpu<M>, regs: &mut [u64; 8]) {
        let event =
            Event { kind: TraceKind::HostCall, vm: NO_VM, a: regs[0], b: regs[1], c: regs[2] };
        let result = HostCall::decode(regs).and_then(|call| execute(&mut self.enter(), cpu, &call));
        let now = cpu.local.now();
        match result {
            Ok(answer) => {
                *regs = answer;
                cpu.trace.record(now, event);
            }
            Err(error) => {
                let refusal = error.refusal();
                *regs = refusal.to_registers();
                cpu.trace.refuse(now, event, &refusal);
            }
        }
    }

    /// Refuses an `HVC` or `SMC` of the host whose immediate is not 0: nothing is defined there.
    pub fn refuse_immediate(&self, cpu: &mut Cpu<M>, regs: &mut [u64; 8]) {
        let event =
            Event { kind: TraceKind::HostCall, vm: NO_VM, a: regs[0], b: regs[1], c: regs[2] };
        let refusal = HcallError::UnknownFunction(regs[0]).refusal();
        *regs = refusal.to_registers();
        cpu.trace.refuse(cpu.local.now(), event, &refusal);
    }
}

/// Executes a decoded call and returns `x0..=x7`: one arm a call.
fn execute<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    call: &HostCall,
) -> Result<[u64; 8], HcallError> {
    let reply = match *call {
        // SMCCC defines these two: they have no status.
        HostCall::Uid => return Ok(uid()),
        HostCall::Revision => return Ok(revision()),
        HostCall::Info(selector) => info(door, selector),
        HostCall::RegionInfo(region) => pfnmap::region_info(door, cpu, region)?,
        HostCall::ArgPageSet { page } => arg_page_set(door, cpu, page)?,
        HostCall::ArgPageClear => arg_page_clear(door, cpu)?,
        HostCall::TraceInfo(index) => trace_info(door, index)?,
        HostCall::HostShareHyp { pages } => ownership::host_share_hyp(door, cpu, pages)?,
        HostCall::HostUnshareHyp { pages } => ownership::host_unshare_hyp(door, cpu, pages)?,
        HostCall::HostShareGuest { vm, pages, ipa, perms } => {
            ownership::host_share_guest(door, cpu, vm, (pages, ipa), perms)?
        }
        HostCall::HostUnshareGuest { vm, pages, ipa } => {
            ownership::host_unshare_guest(door, cpu, vm, (pages, ipa))?
        }
        HostCall::HostDonateGuest { vm, pages, ipa } => {
            ownership::host_donate_guest(door, cpu, vm, (pages, ipa))?
        }
        HostCall::HostReclaimGuest { vm, pages } => {
            ownership::host_reclaim_guest(door, cpu, vm, pages)?
        }
        HostCall::VmCreate { contract, vcpus, tables } => {
            vm::create(door, cpu, contract, vcpus, tables)?
        }
        HostCall::VmPoolAdd { vm, tables } => vm::pool_add(door, cpu, vm, tables)?,
        HostCall::VmEnableMte { vm } => vm::enable_mte(door, vm)?,
        HostCall::VmTeardown { vm } => vm::teardown(door, cpu, vm)?,
        HostCall::VmFree { vm } => vm::free(door, cpu, vm)?,
        HostCall::VcpuInit { vm, vcpu, entry, x0 } => vcpu::init(door, vm, vcpu, (entry, x0))?,
        HostCall::VcpuRun { vm, vcpu, load } => vcpu::run::run(door, cpu, vm, vcpu, load)?,
        HostCall::VcpuGetReg { vm, vcpu, register } => vcpu::get_reg(door, vm, vcpu, register)?,
        HostCall::VcpuSetReg { vm, vcpu, register, value } => {
            vcpu::set_reg(door, vm, vcpu, (register, value))?
        }
        HostCall::PfnmapCheck { items } => pfnmap::check(door, cpu, items)?,
        HostCall::PfnmapBind { ref request } => pfnmap::bind(door, cpu, request)?,
        HostCall::PfnmapMap { vm, ipa } => pfnmap::map(door, cpu, vm, ipa)?,
        HostCall::PfnmapUnbind { vm, ipa } => pfnmap::unbind(door, cpu, vm, ipa)?,
        HostCall::PfnmapReset { region } => pfnmap::reset(door, cpu, region)?,
        HostCall::PfnmapProbe { vm, ipa } => pfnmap::probe(door, cpu, vm, ipa)?,
        HostCall::MigrateExport { vm } => migration::export(door, cpu, vm)?,
        HostCall::MigrateCheck => migration::check(door, cpu)?,
    };
    Ok(reply.to_registers())
}

fn uid() -> [u64; 8] {
    let [x0, x1, x2, x3] = HOST_UID.map(u64::from);
    [x0, x1, x2, x3, 0, 0, 0, 0]
}

fn revision() -> [u64; 8] {
    [ABI_MAJOR.into(), ABI_MINOR.into(), 0, 0, 0, 0, 0, 0]
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
    Reply([map.frame_count(), count(map.bytes()), map.hyp_pages(), host.tables_free()])
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
        unpin(&mut host, old);
    }
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
