//! What each CPU keeps for itself, reached through `TPIDR_EL2`.

use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, offset_of};

use pfnguard_core::Hypervisor;
use pfnguard_core::hypervisor::{Cpu, MAX_CPUS};
use pfnguard_core::vcpu::CpuIndex;

use crate::boot::MPIDR_AFFINITY;
use crate::fault::FaultRegs;
use crate::layout::Stacks;
use crate::machine::Arm64;
use crate::sysreg::{read, write};

/// One CPU. The first fields are read and written by the vectors.
#[repr(C, align(64))]
pub struct PerCpu {
    /// `APIAKey` of the hypervisor on this CPU.
    hyp_key: UnsafeCell<[u64; 2]>,
    /// Top of the emergency stack.
    emergency_top: usize,
    /// General registers at the time of a fault at EL2.
    fault: UnsafeCell<FaultRegs>,
    index: CpuIndex,
    mpidr: u64,
    stacks: Stacks,
    door: UnsafeCell<Option<Door>>,
}

/// The way into the core, once the CPU is ready for the host.
pub struct Door {
    /// The hypervisor.
    pub hypervisor: &'static Hypervisor<Arm64>,
    /// This CPU's part of it.
    pub cpu: Cpu<Arm64>,
}

/// Offset of the hypervisor's key, for the vectors.
pub(crate) const HYP_KEY: usize = offset_of!(PerCpu, hyp_key);
/// Offset of the emergency stack's top.
pub(crate) const EMERGENCY_TOP: usize = offset_of!(PerCpu, emergency_top);
/// Offset of the registers that a fault leaves.
pub(crate) const FAULT: usize = offset_of!(PerCpu, fault);

struct Slots(UnsafeCell<[MaybeUninit<PerCpu>; MAX_CPUS]>);

// SAFETY: each slot is written once, by the boot CPU before any other CPU runs, and from then on
// its cells belong to the CPU whose slot it is.
unsafe impl Sync for Slots {}

static SLOTS: Slots = Slots(UnsafeCell::new([const { MaybeUninit::uninit() }; MAX_CPUS]));

/// Returns the affinity of this CPU.
pub fn own_mpidr() -> u64 {
    read!("mpidr_el1") & MPIDR_AFFINITY
}

/// Makes the boot CPU's slot and selects it.
pub(crate) fn init_boot_cpu() {
    // SAFETY: called once, by the entry, before anything else runs.
    let boot = unsafe { PerCpu::init(CpuIndex(0), own_mpidr(), Stacks::boot_cpu()) };
    boot.select();
}

impl PerCpu {
    /// Makes the slot of CPU `index`.
    ///
    /// # Safety
    ///
    /// Only the boot CPU runs, the slot was not made before, and the stacks are the CPU's alone.
    ///
    /// # Panics
    ///
    /// Where `index` is not below [`MAX_CPUS`].
    pub unsafe fn init(index: CpuIndex, mpidr: u64, stacks: Stacks) -> &'static Self {
        assert!(index.0 < MAX_CPUS, "CPU {} has no slot", index.0);
        let slot = SLOTS.0.get().cast::<Self>().wrapping_add(index.0);
        let value = Self {
            hyp_key: UnsafeCell::new([0; 2]),
            emergency_top: stacks.emergency.end,
            fault: UnsafeCell::new(FaultRegs::default()),
            index,
            mpidr,
            stacks,
            door: UnsafeCell::new(None),
        };
        // SAFETY: in bounds, and nobody has a reference yet: the caller's promise.
        unsafe { slot.write(value) };
        // SAFETY: just written.
        unsafe { &*slot }
    }

    /// Makes this slot the running CPU's.
    pub(crate) fn select(&'static self) {
        let address = core::ptr::from_ref(self).addr();
        write!("tpidr_el2", u64::try_from(address).expect("addresses have 64 bits"));
    }

    /// Returns the running CPU's slot.
    pub fn current() -> &'static Self {
        let address = usize::try_from(read!("tpidr_el2")).expect("addresses have 64 bits");
        let slot = core::ptr::with_exposed_provenance::<Self>(address);
        // SAFETY: `TPIDR_EL2` holds what `select` put there, from the first Rust code on.
        unsafe { &*slot }
    }

    /// Returns the CPU's number.
    pub fn index(&self) -> CpuIndex {
        self.index
    }

    /// Returns its affinity.
    pub fn mpidr(&self) -> u64 {
        self.mpidr
    }

    /// Returns its stacks.
    pub fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    /// Gives the CPU its way into the core.
    ///
    /// # Safety
    ///
    /// The CPU of this slot does not use it: it is not running, or it is the caller and no borrow
    /// of the old value is left.
    pub unsafe fn open(&self, door: Door) {
        // SAFETY: no other access: the caller's promise.
        unsafe { *self.door.get() = Some(door) };
    }

    /// Returns the way into the core. Only the CPU of this slot may follow it, and not while
    /// another borrow of the door is alive.
    pub(crate) fn door(&self) -> *mut Option<Door> {
        self.door.get()
    }

    /// Sets the hypervisor's `APIAKey` of this CPU.
    ///
    /// # Safety
    ///
    /// No vector of this CPU is using it.
    pub(crate) unsafe fn set_key(&self, key: [u64; 2]) {
        // SAFETY: exclusive: the caller's promise.
        unsafe { *self.hyp_key.get() = key };
    }
}
