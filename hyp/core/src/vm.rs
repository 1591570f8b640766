//! Virtual machines: contracts, table pools, counts of what they hold; their life from VM_CREATE
//! to the last VM_FREE.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::vm::{ContractFlags, PageState, VmState};
use pfnguard_shared::{Rule, Status, Subject};

use crate::addr::{Pfn, PfnRange};
use crate::dispatch::Reply;
use crate::error::{HcallError, RuleRefusal};
use crate::hypervisor::{Cpu, MAX_VCPUS, MAX_VMS, Unlocked};
use crate::machine::{Features, GuestStage2, Machine, Vmid};
use crate::ownership;
use crate::pfnmap;
use crate::trace::NO_VM;
use crate::vcpu::{Vcpu, VcpuState};
use crate::vmemmap::FrameState;

/// Number of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VmId(u8);

/// A place for a VM.
#[allow(clippy::large_enum_variant, reason = "there is no heap to box a VM in")]
pub enum VmSlot<M: Machine> {
    /// No VM.
    Free,
    /// One VM, from creation until its last page is given back.
    Used(Vm<M>),
}

/// One VM.
pub struct Vm<M: Machine> {
    /// What it declared; sealed at creation, but for MTE until the first bind (R21).
    pub contract: ContractFlags,
    /// Where it is in its life.
    pub state: VmState,
    /// Its translations and table pool.
    pub stage2: M::GuestStage2,
    /// RAM frames that it owns.
    pub owned_pages: u64,
    /// RAM frames that it borrows from the host.
    pub borrowed_pages: u64,
    /// PFNMAP bindings that it holds.
    pub bindings: u64,
    /// Whether it ever bound a region: seals MTE.
    pub bound_once: BoundOnce,
    /// Its vCPUs; the first `vcpu_count` exist.
    pub vcpus: [Vcpu; MAX_VCPUS],
    /// How many vCPUs exist.
    pub vcpu_count: usize,
}

/// Whether a VM ever bound a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundOnce {
    /// Not yet.
    No,
    /// It did: its contract is sealed.
    Yes,
}

impl VmId {
    /// The lowest number.
    pub(crate) const FIRST: Self = Self(0);

    /// Decodes a VM number.
    ///
    /// # Errors
    /// `HcallError::NoObject` where no VM can have it.
    pub fn from_raw(raw: u64) -> Result<Self, HcallError> {
        u8::try_from(raw)
            .ok()
            .filter(|&id| usize::from(id) < MAX_VMS)
            .map(Self)
            .ok_or(HcallError::NoObject { number: raw, limit: vm_limit() })
    }

    /// Returns every number in ascending order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).take(MAX_VMS).map(Self)
    }

    /// Returns the number as it crosses the ABI.
    pub fn raw(self) -> u16 {
        u16::from(self.0)
    }

    /// Returns the number as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Returns the number as a frame record holds it.
    pub(crate) fn byte(self) -> u8 {
        self.0
    }

    /// Returns the VMID: never 0, never shared.
    pub fn vmid(self) -> Vmid {
        Vmid(u16::from(self.0) + 1)
    }

    /// Returns the error for a free slot.
    pub fn not_found(self) -> HcallError {
        HcallError::NoObject { number: u64::from(self.0), limit: vm_limit() }
    }
}

/// A set of VMs: bit by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmSet(u16);

static_assertions::const_assert!(MAX_VMS <= 16);

impl VmSet {
    /// No VM.
    pub const NONE: Self = Self(0);

    fn only(vm: VmId) -> Self {
        Self(1u16.wrapping_shl(u32::from(vm.0)))
    }

    /// Returns whether `vm` is in the set.
    pub fn contains(self, vm: VmId) -> bool {
        self.0 & Self::only(vm).0 != 0
    }

    /// Returns the set with `vm`.
    pub fn with(self, vm: VmId) -> Self {
        Self(self.0 | Self::only(vm).0)
    }

    /// Returns the set without `vm`.
    pub fn without(self, vm: VmId) -> Self {
        Self(self.0 & !Self::only(vm).0)
    }

    /// Returns the number of VMs.
    pub fn count(self) -> u64 {
        u64::from(self.0.count_ones())
    }
}

fn vm_limit() -> u64 {
    u64::try_from(MAX_VMS).unwrap_or(u64::MAX)
}

impl<M: Machine> Vm<M> {
    fn new(contract: ContractFlags, vcpus: usize, stage2: M::GuestStage2) -> Self {
        Self {
            contract,
            state: VmState::Active,
            stage2,
            owned_pages: 0,
            borrowed_pages: 0,
            bindings: 0,
            bound_once: BoundOnce::No,
            vcpus: core::array::from_fn(|_| Vcpu::off()),
            vcpu_count: vcpus,
        }
    }

    /// Checks that the VM is in the state `needed`.
    ///
    /// # Errors
    /// `HcallError::VmState` where it is not.
    pub fn check_state(&self, needed: VmState) -> Result<(), HcallError> {
        if self.state == needed {
            return Ok(());
        }
        Err(HcallError::VmState { needed, found: self.state })
    }

    /// Returns a vCPU.
    ///
    /// # Errors
    /// `HcallError::NoObject` where the VM has no vCPU of this number.
    pub fn vcpu(&mut self, number: usize) -> Result<&mut Vcpu, HcallError> {
        let to_register = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let limit = to_register(self.vcpu_count);
        let existing = self.vcpus.iter_mut().take(self.vcpu_count);
        let missing = HcallError::NoObject { number: to_register(number), limit };
        existing.into_iter().nth(number).ok_or(missing)
    }

    /// Accounts for owned pages that went back.
    pub(crate) fn return_owned(&mut self, pages: u64) {
        let left = self.owned_pages.checked_sub(pages);
        self.owned_pages = left.expect("owned page underflow: hypervisor bug");
    }

    /// Accounts for borrowed pages that went back.
    pub(crate) fn return_borrowed(&mut self, pages: u64) {
        let left = self.borrowed_pages.checked_sub(pages);
        self.borrowed_pages = left.expect("borrowed page underflow: hypervisor bug");
    }

    fn running(&self) -> u64 {
        let running = |vcpu: &&Vcpu| matches!(vcpu.state, VcpuState::Running(_));
        u64::try_from(self.vcpus.iter().filter(running).count()).unwrap_or(u64::MAX)
    }

    /// Checks that the host may still say where vCPU `number` starts.
    ///
    /// # Errors
    /// `HcallError::Contract` for a protected VM, but for its first vCPU before anything ran.
    pub(crate) fn check_host_starts(&self, number: usize) -> Result<(), HcallError> {
        let protected = self.contract.contains(ContractFlags::PROTECTED);
        if protected && (number != 0 || self.has_run().is_some()) {
            return Err(HcallError::Contract);
        }
        Ok(())
    }

    fn has_run(&self) -> Option<&Vcpu> {
        self.vcpus.iter().find(|vcpu| match vcpu.state {
            VcpuState::Off | VcpuState::Fresh => false,
            VcpuState::Idle | VcpuState::Running(_) => true,
        })
    }
}

/// VM_CREATE: makes a VM whose tables lie in `tables`, donated by the host. Returns x1 the VM.
///
/// # Errors
/// `Rule` R20 for a contract with MTE on a machine without; `PageState` for the first table page
/// that is not the host's alone; `Full` where there are [`MAX_VMS`] VMs.
pub fn create<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    contract: ContractFlags,
    vcpus: usize,
    tables: PfnRange,
) -> Result<Reply, HcallError> {
    if contract.contains(ContractFlags::MTE) {
        check_mte_exists(door.hypervisor().features())?;
    }
    let mut host = door.lock_host();
    let (host, mut hyp) = host.with_hyp();
    let (hyp, id, slot) = hyp.free_slot()?;
    let donation = host.vmemmap.check(tables, FrameState::HostOwned)?;

    ownership::donate_tables(tables, donation, &mut host.stage2, hyp, cpu);
    slot.fill(Vm::new(contract, vcpus, M::new_guest_stage2(id.vmid(), tables)));
    ownership::record(cpu, id.raw(), &tables, PageState::HostOwned, PageState::HypOwned);
    Ok(Reply([u64::from(id.raw()), 0, 0, 0]))
}

/// VM_POOL_ADD: donates more table memory.
///
/// # Errors
/// `VmState` for a dying VM; `PageState` for the first page that is not the host's alone.
pub fn pool_add<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
    tables: PfnRange,
) -> Result<Reply, HcallError> {
    let mut host = door.lock_host();
    let (host, mut hyp) = host.with_hyp();
    let (hyp, mut guest) = hyp.with_guest(id)?;
    guest.check_state(VmState::Active)?;
    let donation = host.vmemmap.check(tables, FrameState::HostOwned)?;

    ownership::donate_tables(tables, donation, &mut host.stage2, hyp, cpu);
    guest.stage2.add_tables(tables);
    ownership::record(cpu, id.raw(), &tables, PageState::HostOwned, PageState::HypOwned);
    Ok(Reply::NONE)
}

/// VM_ENABLE_MTE: changes the contract while nothing rests on it.
///
/// # Errors
/// `VmState` for a dying VM; `Rule` R20 on a machine without MTE, R21 after the first bind or run.
pub fn enable_mte<M: Machine>(door: &mut Unlocked<'_, M>, id: VmId) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let mut guest = door.lock_guest(id)?;
    guest.check_state(VmState::Active)?;
    check_mte_exists(&features)?;
    match guest.bound_once {
        BoundOnce::No if guest.has_run().is_none() => {}
        BoundOnce::No | BoundOnce::Yes => return Err(sealed_contract()),
    }
    guest.contract = guest.contract.with(ContractFlags::MTE);
    Ok(Reply::NONE)
}

/// VM_TEARDOWN: ends the VM's life. What it borrowed and bound goes, after its translations; what it
/// owns waits for HOST_RECLAIM_GUEST. Time is linear in what the VM has mapped of borrowed RAM.
///
/// # Errors
/// `VmState` for a VM that is dying already; `VmBusy` where a vCPU runs.
pub fn teardown<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let mut host = door.lock_host();
    let (host, mut guest) = host.with_guest(id)?;
    guest.check_state(VmState::Active)?;
    match guest.running() {
        0 => {}
        remaining => return Err(HcallError::VmBusy { remaining }),
    }
    guest.state = VmState::Dying;
    ownership::return_all_borrowed(host, cpu, &features, id, &mut guest);
    guest.stage2.destroy();
    pfnmap::release_all(host, cpu, id, &mut guest);
    Ok(Reply::NONE)
}

/// VM_FREE: gives one table page of a dying VM back to the host. Returns x1 the page, x2 how many
/// are left; with the last one the VM's number is free.
///
/// # Errors
/// `VmState` for a VM that was not torn down; `VmBusy` while it holds pages or bindings.
pub fn free<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
) -> Result<Reply, HcallError> {
    let mut host = door.lock_host();
    let (host, mut hyp) = host.with_hyp();
    let (hyp, mut guest) = hyp.with_guest(id)?;
    guest.check_state(VmState::Dying)?;
    match guest.owned_pages + guest.borrowed_pages + guest.bindings {
        0 => {}
        remaining => return Err(HcallError::VmBusy { remaining }),
    }
    let table: Pfn = guest.stage2.take_table().expect("VM without a root table: hypervisor bug");
    ownership::return_table(table, host, hyp, cpu);
    let left = guest.stage2.tables_free();
    if left == 0 {
        guest.release();
    }
    let page = PfnRange::single(table).expect("table past the address space: hypervisor bug");
    ownership::record(cpu, NO_VM, &page, PageState::HypOwned, PageState::HostOwned);
    Ok(Reply([table.0, left, 0, 0]))
}

fn check_mte_exists(features: &Features) -> Result<(), HcallError> {
    if features.capabilities.contains(Capabilities::MTE) {
        return Ok(());
    }
    Err(HcallError::Rule(RuleRefusal {
        status: Status::Denied,
        rule: Rule::R20,
        subject: Subject::Capabilities,
        pfn: None,
        requested: Capabilities::MTE.raw(),
        granted: features.capabilities.raw(),
    }))
}

fn sealed_contract() -> HcallError {
    HcallError::Rule(RuleRefusal {
        status: Status::Denied,
        rule: Rule::R21,
        subject: Subject::None,
        pfn: None,
        requested: u64::from(ContractFlags::MTE.raw()),
        granted: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_vm_has_the_hosts_vmid_and_no_two_have_the_same() {
        let vmids: std::vec::Vec<u16> = VmId::all().map(|vm| vm.vmid().0).collect();
        assert_eq!(vmids, (1..=16).collect::<std::vec::Vec<u16>>());
    }

    #[test]
    fn a_set_holds_what_was_added_and_not_taken_out() {
        let [first, second] = [0, 15].map(|raw| VmId::from_raw(raw).unwrap());
        let both = VmSet::NONE.with(first).with(second);
        assert_eq!((both.count(), both.contains(first), both.contains(second)), (2, true, true));
        assert_eq!(both.without(first), VmSet::NONE.with(second));
        assert_eq!(VmSet::NONE.without(first), VmSet::NONE);
        assert!(!both.without(second).contains(second));
    }
}
