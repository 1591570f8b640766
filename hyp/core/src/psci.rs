//! PSCI, relayed: every CPU that the host starts enters the hypervisor first.

use arrayvec::ArrayVec;
use pfnguard_shared::PAGE_SHIFT;

use crate::addr::Pfn;
use crate::hypervisor::{Cpu, Hypervisor, MAX_CPUS, Unlocked};
use crate::machine::{Firmware, Machine};
use crate::vcpu::CpuIndex;
use crate::vmemmap::HostAccess;

/// Function ids (Arm DEN0022). The 64-bit form of an id has bit 30 set.
pub mod function {
    /// `PSCI_VERSION`.
    pub const VERSION: u32 = 0x8400_0000;
    /// `CPU_SUSPEND`.
    pub const CPU_SUSPEND: u32 = 0x8400_0001;
    /// `CPU_OFF`.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// `CPU_ON`.
    pub const CPU_ON: u32 = 0x8400_0003;
    /// `AFFINITY_INFO`.
    pub const AFFINITY_INFO: u32 = 0x8400_0004;
    /// `MIGRATE_INFO_TYPE`.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// `SYSTEM_OFF`.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// `SYSTEM_RESET`.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// `PSCI_FEATURES`.
    pub const FEATURES: u32 = 0x8400_000a;
    /// `SYSTEM_RESET2`.
    pub const SYSTEM_RESET2: u32 = 0x8400_0012;
    /// Bit that tells the 64-bit form of an id.
    pub const SMC64: u32 = 1 << 30;
}

/// Results (Arm DEN0022, 5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciError {
    /// No such function, or not here.
    NotSupported,
    /// No such CPU or state.
    InvalidParameters,
    /// Not allowed.
    Denied,
    /// The CPU is on.
    AlreadyOn,
    /// The CPU was told to come on and has not arrived.
    OnPending,
    /// The entry is not memory that the host may execute.
    InvalidAddress,
}

impl PsciError {
    /// Returns the value of `x0`.
    pub fn to_register(self) -> u64 {
        let code: i64 = match self {
            Self::NotSupported => -1,
            Self::InvalidParameters => -2,
            Self::Denied => -3,
            Self::AlreadyOn => -4,
            Self::OnPending => -5,
            Self::InvalidAddress => -9,
        };
        code.cast_unsigned()
    }
}

/// Affinity fields of `MPIDR_EL1` (Arm ARM): Aff3 in 39:32, Aff2 to Aff0 in 23:0.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// Where the host wants a CPU to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// Its program counter at EL1.
    pub entry: u64,
    /// Its `x0`.
    pub context: u64,
}

/// Whether a CPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuState {
    /// Off, or on its way there.
    Off,
    /// Told to come on; it has not reached the hypervisor.
    Pending(HostEntry),
    /// On.
    On,
}

/// A CPU of the machine.
#[derive(Clone, Copy, Debug)]
struct KnownCpu {
    mpidr: u64,
    state: CpuState,
}

/// The machine's CPUs, sealed at launch but for their state.
#[derive(Debug)]
pub struct CpuTable {
    cpus: ArrayVec<KnownCpu, MAX_CPUS>,
}

impl CpuTable {
    /// Makes the table from each CPU's `MPIDR_EL1`. The first one is the boot CPU and is on.
    ///
    /// # Panics
    /// Where there are more than [`MAX_CPUS`]: a launch bug.
    pub fn new(mpidrs: &[u64], others: CpuState) -> Self {
        let known = |(index, mpidr): (usize, &u64)| {
            let state = if index == 0 { CpuState::On } else { others };
            KnownCpu { mpidr: mpidr & AFFINITY, state }
        };
        Self { cpus: mpidrs.iter().enumerate().map(known).collect() }
    }

    /// Returns the index of the CPU with these affinity fields.
    pub fn find(&self, mpidr: u64) -> Option<CpuIndex> {
        self.cpus.iter().position(|cpu| cpu.mpidr == mpidr).map(CpuIndex)
    }

    /// Returns the state of a CPU.
    ///
    /// # Panics
    /// Where there is no such CPU.
    pub fn state(&self, CpuIndex(index): CpuIndex) -> CpuState {
        self.cpus[index].state
    }

    /// Marks a CPU that is off as coming on, and returns which it is.
    ///
    /// # Errors
    /// `InvalidParameters`, `AlreadyOn`, `OnPending`.
    fn start(&mut self, target: u64, entry: HostEntry) -> Result<CpuIndex, PsciError> {
        let index = self.find(target).ok_or(PsciError::InvalidParameters)?;
        match self.state(index) {
            CpuState::Off => {}
            CpuState::On => return Err(PsciError::AlreadyOn),
            CpuState::Pending(_) => return Err(PsciError::OnPending),
        }
        self.set(index, CpuState::Pending(entry));
        Ok(index)
    }

    /// Takes the mark back. A CPU that failed to go off meanwhile stays on.
    fn cancel(&mut self, index: CpuIndex) {
        match self.state(index) {
            CpuState::Pending(_) => self.set(index, CpuState::Off),
            CpuState::Off | CpuState::On => {}
        }
    }

    fn set(&mut self, CpuIndex(index): CpuIndex, state: CpuState) {
        self.cpus[index].state = state;
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Takes note that a CPU has entered the hypervisor after CPU_ON, and returns where the host
    /// wants it.
    ///
    /// # Panics
    /// Where nobody had called it: firmware or the hypervisor is broken.
    pub fn cpu_online(&self, index: CpuIndex) -> HostEntry {
        let mut door = self.enter();
        let mut cpus = door.lock_cpus();
        match cpus.state(index) {
            CpuState::Pending(entry) => {
                cpus.set(index, CpuState::On);
                entry
            }
            CpuState::Off | CpuState::On => panic!("CPU {} came on uncalled", index.0),
        }
    }
}

/// CPU_ON: checks, marks, and asks the firmware to start the CPU in the hypervisor. Returns `x0`.
pub(crate) fn cpu_on<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    target: u64,
    entry: HostEntry,
) -> u64 {
    if let Err(error) = check_entry(door, entry.entry) {
        return error.to_register();
    }
    let index = match door.lock_cpus().start(target, entry) {
        Ok(index) => index,
        Err(error) => return error.to_register(),
    };
    let cookie = u64::try_from(index.0).unwrap_or(u64::MAX);
    let own_entry = cpu.local.cpu_entry().0;
    // Always the 64-bit call, whichever the host made: the other would cut the entry to 32 bits.
    let call = u64::from(function::CPU_ON | function::SMC64);
    let [result, ..] = cpu.local.smc([call, target, own_entry, cookie]);
    if result != 0 {
        door.lock_cpus().cancel(index);
    }
    result
}

/// A CPU may only start where the host could have jumped itself.
fn check_entry<M: Machine>(door: &mut Unlocked<'_, M>, entry: u64) -> Result<(), PsciError> {
    let access = door.lock_host().vmemmap.state(Pfn(entry >> PAGE_SHIFT)).host_access();
    match access {
        HostAccess::Full if entry.trailing_zeros() >= 2 => Ok(()),
        HostAccess::Full | HostAccess::ReadOnly | HostAccess::None => {
            Err(PsciError::InvalidAddress)
        }
    }
}

/// CPU_OFF: returns only where the firmware refuses, with `x0`.
pub(crate) fn cpu_off<M: Machine>(door: &mut Unlocked<'_, M>, cpu: &mut Cpu<M>) -> u64 {
    // Marked first: once the CPU is off it can say nothing. A CPU_ON that comes too early is
    // refused by the firmware, and its answer is relayed.
    door.lock_cpus().set(cpu.index, CpuState::Off);
    let [result, ..] = cpu.local.smc([u64::from(function::CPU_OFF), 0, 0, 0]);
    door.lock_cpus().set(cpu.index, CpuState::On);
    result
}

/// AFFINITY_INFO of one CPU: returns `x0`.
pub(crate) fn affinity_info<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    function: u32,
    target: u64,
) -> u64 {
    const ON: u64 = 0;
    const ON_PENDING: u64 = 2;
    let state = {
        let cpus = door.lock_cpus();
        cpus.find(target).map(|index| cpus.state(index))
    };
    match state {
        Some(CpuState::On) => ON,
        Some(CpuState::Pending(_)) => ON_PENDING,
        // Off, or on its way: only the firmware knows when it is done.
        Some(CpuState::Off) => cpu.local.smc([u64::from(function), target, 0, 0])[0],
        None => PsciError::InvalidParameters.to_register(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: HostEntry = HostEntry { entry: 0x4000_0000, context: 7 };

    /// Arm DEN 0022F, 5.2.2.
    #[test]
    fn errors_are_the_specification_s_negative_numbers() {
        for (error, code) in [
            (PsciError::NotSupported, -1i64),
            (PsciError::InvalidParameters, -2),
            (PsciError::Denied, -3),
            (PsciError::AlreadyOn, -4),
            (PsciError::OnPending, -5),
            (PsciError::InvalidAddress, -9),
        ] {
            assert_eq!(error.to_register().cast_signed(), code, "{error:?}");
        }
    }

    #[test]
    fn a_cpu_is_started_once() {
        let mut cpus = CpuTable::new(&[0x8000_0000, 0x8000_0001, 0x8000_0100], CpuState::Off);
        assert_eq!(cpus.start(0, ENTRY), Err(PsciError::AlreadyOn));
        assert_eq!(cpus.start(0x100, ENTRY), Ok(CpuIndex(2)));
        assert_eq!(cpus.start(0x100, ENTRY), Err(PsciError::OnPending));
        assert_eq!(cpus.start(2, ENTRY), Err(PsciError::InvalidParameters));
        assert_eq!(cpus.start(0x8000_0001, ENTRY), Err(PsciError::InvalidParameters));
        assert_eq!(cpus.state(CpuIndex(1)), CpuState::Off);
    }
}
