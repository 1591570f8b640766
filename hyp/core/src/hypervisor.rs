//! The hypervisor's state, split by the lock that owns each part.
//!
//! Lock order: host, hyp, guest; then the PSCI table as a leaf. A guard is the only way to the
//! next lock, and `&mut` on it proves that it is held. No lock is held while a guest runs.

use core::ops::{Deref, DerefMut};

use crate::addr::{Pfn, PfnRange};
use crate::error::HcallError;
use crate::lock::{TicketMutex, TicketMutexGuard};
use crate::machine::{Features, Machine};
use crate::psci::CpuTable;
use crate::region::RegionTable;
use crate::trace::TraceRing;
use crate::vcpu::CpuIndex;
use crate::vm::{Vm, VmId, VmSlot};
use crate::vmemmap::Vmemmap;

/// Most VMs at once. VMID = VM number + 1: even 8-bit VMIDs suffice and are never shared.
pub const MAX_VMS: usize = 16;
/// Most vCPUs of one VM.
pub const MAX_VCPUS: usize = 8;
/// Most physical CPUs.
pub const MAX_CPUS: usize = 16;

/// What launch hands over; nothing of it can be refused any more.
pub struct Launch<M: Machine> {
    /// State of every RAM frame: the hypervisor's own frames are already marked.
    pub vmemmap: Vmemmap,
    /// Regions of the checked manifest.
    pub regions: RegionTable,
    /// An empty host stage 2.
    pub host_stage2: M::HostStage2,
    /// The hypervisor's stage 1, active.
    pub el2_stage1: M::El2Stage1,
    /// What the machine can do.
    pub features: Features,
    /// Trace ring pages by CPU, in ascending order of index.
    pub trace_pages: [Option<PfnRange>; MAX_CPUS],
    /// The machine's CPUs; the boot CPU is index 0.
    pub cpus: CpuTable,
}

/// The whole hypervisor: one value, made at launch, shared by all CPUs.
pub struct Hypervisor<M: Machine> {
    pub(crate) features: Features,
    pub(crate) trace_pages: [Option<PfnRange>; MAX_CPUS],
    host: TicketMutex<Host<M>>,
    hyp: TicketMutex<Hyp<M>>,
    guests: [TicketMutex<VmSlot<M>>; MAX_VMS],
    cpus: TicketMutex<CpuTable>,
}

/// What the host lock owns: who has which frame and region, and the host's translations.
pub struct Host<M: Machine> {
    /// The truth about RAM.
    pub vmemmap: Vmemmap,
    /// The host's translations, a consequence of the two tables.
    pub stage2: M::HostStage2,
    /// The truth about PFNMAP regions.
    pub regions: RegionTable,
}

/// What the hyp lock owns: the hypervisor's own translations.
pub struct Hyp<M: Machine> {
    /// EL2 stage 1.
    pub stage1: M::El2Stage1,
}

/// State of one physical CPU, owned by that CPU. What every call uses lies in front, where short
/// offsets reach it.
#[repr(C)]
pub struct Cpu<M: Machine> {
    /// Its trace ring.
    pub trace: TraceRing,
    /// Which one.
    pub index: CpuIndex,
    /// Its argument page, pinned.
    pub arg_page: Option<Pfn>,
    /// Its hardware.
    pub local: M::Cpu,
}

/// Proof that this CPU holds no lock: one is made at each door and handed down by `&mut`.
pub struct Unlocked<'a, M: Machine> {
    hv: &'a Hypervisor<M>,
}

/// Proof that the host lock is held.
pub struct HostGuard<'a, M: Machine> {
    hv: &'a Hypervisor<M>,
    host: TicketMutexGuard<'a, Host<M>>,
}

/// Proof that the hyp lock is held.
pub struct HypGuard<'a, M: Machine> {
    hv: &'a Hypervisor<M>,
    hyp: TicketMutexGuard<'a, Hyp<M>>,
}

/// Proof that one guest's lock is held and that the slot holds a VM.
pub struct GuestGuard<'a, M: Machine> {
    slot: TicketMutexGuard<'a, VmSlot<M>>,
}

impl<M: Machine> Hypervisor<M> {
    /// Makes the hypervisor from what launch found.
    pub fn new(launch: Launch<M>) -> Self {
        // What refusals call present is what INFO says: the platform's word on Normal-NC included.
        let capabilities = launch.regions.capabilities();
        Self {
            features: Features { capabilities, ..launch.features },
            trace_pages: launch.trace_pages,
            host: TicketMutex::new(Host {
                vmemmap: launch.vmemmap,
                stage2: launch.host_stage2,
                regions: launch.regions,
            }),
            hyp: TicketMutex::new(Hyp { stage1: launch.el2_stage1 }),
            guests: [const { TicketMutex::new(VmSlot::Free) }; MAX_VMS],
            cpus: TicketMutex::new(launch.cpus),
        }
    }

    /// Returns what the machine can do.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Passes a door: called once by each entry point, which holds no lock.
    pub(crate) fn enter(&self) -> Unlocked<'_, M> {
        Unlocked { hv: self }
    }

    fn lock_used(&self, id: VmId) -> Result<GuestGuard<'_, M>, HcallError> {
        let slot = self.guests.get(id.index()).ok_or_else(|| id.not_found())?;
        GuestGuard::new(slot.lock(), id)
    }
}

impl<M: Machine> Unlocked<'_, M> {
    /// Returns what needs no lock.
    pub fn hypervisor(&self) -> &Hypervisor<M> {
        self.hv
    }

    /// Locks the host: first in the order.
    pub fn lock_host(&mut self) -> HostGuard<'_, M> {
        HostGuard { hv: self.hv, host: self.hv.host.lock() }
    }

    /// Locks a guest alone.
    ///
    /// # Errors
    /// `HcallError::NoObject` where the slot is free.
    pub fn lock_guest(&mut self, id: VmId) -> Result<GuestGuard<'_, M>, HcallError> {
        self.hv.lock_used(id)
    }

    /// Locks the table of CPUs: a leaf.
    pub fn lock_cpus(&mut self) -> TicketMutexGuard<'_, CpuTable> {
        self.hv.cpus.lock()
    }
}

impl<'a, M: Machine> HostGuard<'a, M> {
    /// Locks the hypervisor's own state: second in the order. The host stays usable beside it.
    pub fn with_hyp(&mut self) -> (&mut Host<M>, HypGuard<'_, M>) {
        let hyp = HypGuard { hv: self.hv, hyp: self.hv.hyp.lock() };
        (&mut self.host, hyp)
    }

    /// Locks a guest: last in the order. The host stays usable beside it.
    ///
    /// # Errors
    /// `HcallError::NoObject` where the slot is free.
    pub fn with_guest(
        &mut self,
        id: VmId,
    ) -> Result<(&mut Host<M>, GuestGuard<'_, M>), HcallError> {
        let guest = self.hv.lock_used(id)?;
        Ok((&mut self.host, guest))
    }

    /// Lends the guests, one locked at a time: last in the order.
    pub fn with_guests(&mut self) -> (&mut Host<M>, Guests<'_, M>) {
        (&mut self.host, Guests { hv: self.hv, locked: None })
    }
}

/// The guests, of which the one that was asked for last is locked.
pub struct Guests<'a, M: Machine> {
    hv: &'a Hypervisor<M>,
    locked: Option<(VmId, GuestGuard<'a, M>)>,
}

impl<M: Machine> Guests<'_, M> {
    /// Returns a guest, which stays locked until another is asked for.
    ///
    /// # Errors
    /// `HcallError::NoObject` where the slot is free.
    #[inline]
    pub fn get(&mut self, id: VmId) -> Result<&Vm<M>, HcallError> {
        match &self.locked {
            Some((locked, _)) if *locked == id => {}
            Some(_) | None => self.lock(id)?,
        }
        let (_, guard) = self.locked.as_ref().expect("locked above");
        Ok(guard)
    }

    /// Returns a guest, if it is the one that is locked.
    #[inline]
    pub fn locked(&self, id: VmId) -> Option<&Vm<M>> {
        self.locked.as_ref().filter(|(locked, _)| *locked == id).map(|(_, guard)| &**guard)
    }

    #[inline(never)]
    fn lock(&mut self, id: VmId) -> Result<(), HcallError> {
        // First the one unlocks: there is no order among guests.
        self.locked = None;
        self.locked = Some((id, self.hv.lock_used(id)?));
        Ok(())
    }
}

impl<M: Machine> HypGuard<'_, M> {
    /// Locks a guest: last in the order. The hypervisor's state stays usable beside it.
    ///
    /// # Errors
    /// `HcallError::NoObject` where the slot is free.
    pub fn with_guest(&mut self, id: VmId) -> Result<(&mut Hyp<M>, GuestGuard<'_, M>), HcallError> {
        let guest = self.hv.lock_used(id)?;
        Ok((&mut self.hyp, guest))
    }

    /// Finds a free slot and locks it, for a VM to be put there.
    ///
    /// # Errors
    /// `HcallError::Full` where there is none.
    pub fn free_slot(&mut self) -> Result<(&mut Hyp<M>, VmId, FreeSlot<'_, M>), HcallError> {
        for (id, slot) in VmId::all().zip(&self.hv.guests) {
            let guard = slot.lock();
            if matches!(*guard, VmSlot::Free) {
                return Ok((&mut self.hyp, id, FreeSlot { slot: guard }));
            }
        }
        Err(HcallError::Full { limit: u64::try_from(MAX_VMS).unwrap_or(u64::MAX) })
    }
}

/// A locked slot without a VM.
pub struct FreeSlot<'a, M: Machine> {
    slot: TicketMutexGuard<'a, VmSlot<M>>,
}

impl<M: Machine> FreeSlot<'_, M> {
    /// Puts `vm` there.
    pub fn fill(mut self, vm: Vm<M>) {
        *self.slot = VmSlot::Used(vm);
    }
}

impl<'a, M: Machine> GuestGuard<'a, M> {
    fn new(slot: TicketMutexGuard<'a, VmSlot<M>>, id: VmId) -> Result<Self, HcallError> {
        if matches!(*slot, VmSlot::Free) {
            return Err(id.not_found());
        }
        Ok(Self { slot })
    }

    /// Ends the VM: its slot is free again.
    pub fn release(mut self) {
        *self.slot = VmSlot::Free;
    }
}

impl<M: Machine> Deref for GuestGuard<'_, M> {
    type Target = Vm<M>;

    fn deref(&self) -> &Vm<M> {
        match &*self.slot {
            VmSlot::Used(vm) => vm,
            VmSlot::Free => unreachable!("guest guard over a free slot: hypervisor bug"),
        }
    }
}

impl<M: Machine> DerefMut for GuestGuard<'_, M> {
    fn deref_mut(&mut self) -> &mut Vm<M> {
        match &mut *self.slot {
            VmSlot::Used(vm) => vm,
            VmSlot::Free => unreachable!("guest guard over a free slot: hypervisor bug"),
        }
    }
}

impl<M: Machine> Deref for HostGuard<'_, M> {
    type Target = Host<M>;

    fn deref(&self) -> &Host<M> {
        &self.host
    }
}

impl<M: Machine> DerefMut for HostGuard<'_, M> {
    fn deref_mut(&mut self) -> &mut Host<M> {
        &mut self.host
    }
}

impl<M: Machine> Deref for HypGuard<'_, M> {
    type Target = Hyp<M>;

    fn deref(&self) -> &Hyp<M> {
        &self.hyp
    }
}

impl<M: Machine> DerefMut for HypGuard<'_, M> {
    fn deref_mut(&mut self) -> &mut Hyp<M> {
        &mut self.hyp
    }
}
