//! Virtual CPUs: their registers and whether they run.

pub mod run;
pub mod syndrome;

use pfnguard_shared::vm::{ContractFlags, VmState};

use crate::dispatch::Reply;
use crate::error::HcallError;
use crate::hypervisor::Unlocked;
use crate::machine::Machine;
use crate::vm::VmId;

/// Registers of a guest CPU. The layout is read by the world switch in `pfnguard-arch`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct VcpuContext {
    /// `x0..=x30`.
    pub regs: [u64; 31],
    /// Program counter.
    pub pc: u64,
    /// Processor state, in the format of `SPSR_EL2`.
    pub pstate: u64,
    /// EL1 and EL0 system registers.
    pub sysregs: Sysregs,
}

/// EL1 and EL0 system registers that belong to a guest (Arm ARM, D24.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "the architecture's own names")]
pub struct Sysregs {
    pub sp_el0: u64,
    pub sp_el1: u64,
    pub elr_el1: u64,
    pub spsr_el1: u64,
    pub sctlr_el1: u64,
    pub actlr_el1: u64,
    pub cpacr_el1: u64,
    pub ttbr0_el1: u64,
    pub ttbr1_el1: u64,
    pub tcr_el1: u64,
    pub mair_el1: u64,
    pub amair_el1: u64,
    pub esr_el1: u64,
    pub afsr0_el1: u64,
    pub afsr1_el1: u64,
    pub far_el1: u64,
    pub par_el1: u64,
    pub vbar_el1: u64,
    pub contextidr_el1: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub tpidr_el1: u64,
    pub csselr_el1: u64,
    pub cntkctl_el1: u64,
    pub mdscr_el1: u64,
    /// Pointer authentication keys IA, IB, DA, DB, GA; low half first. Unused without FEAT_PAuth.
    pub pauth_keys: [u64; 10],
    /// `RGSR_EL1`, `GCR_EL1`, `TFSR_EL1`, `TFSRE0_EL1`. Unused without FEAT_MTE2.
    pub mte: [u64; 4],
}

/// `PSTATE` of a CPU out of reset: EL1h, all exceptions masked (Arm ARM, `SPSR_EL2`).
const PSTATE_RESET: u64 = 0x3c5;
/// `SCTLR_EL1` out of reset: MMU and caches off, RES1 bits of Armv8.0 set.
const SCTLR_EL1_RESET: u64 = 0x30d0_0800;

impl VcpuContext {
    /// Returns a CPU out of reset at `entry` with `x0` set and every other register zero.
    pub fn reset(entry: u64, x0: u64) -> Self {
        let mut regs = [0; 31];
        regs[0] = x0;
        let sysregs = Sysregs { sctlr_el1: SCTLR_EL1_RESET, ..Sysregs::default() };
        Self { regs, pc: entry, pstate: PSTATE_RESET, sysregs }
    }
}

/// Index of a physical CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuIndex(pub usize);

/// A load that the host completes before the guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingLoad {
    /// Destination register; 31 is the zero register.
    pub register: usize,
    /// Bytes: 1, 2, 4 or 8.
    pub bytes: u32,
    /// How the value is widened.
    pub widen: Widen,
}

/// How a loaded value fills the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Widen {
    /// Zeroes above.
    Zero,
    /// Sign to 32 bits, zeroes above.
    Sign32,
    /// Sign to 64 bits.
    Sign64,
}

/// One virtual CPU.
#[derive(Debug)]
pub struct Vcpu {
    /// Where it is in its life.
    pub state: VcpuState,
    /// Registers; those of the last exit while it does not run.
    pub context: VcpuContext,
    /// A load that VCPU_RUN completes.
    pub pending: Option<PendingLoad>,
}

/// Where a vCPU is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuState {
    /// Exists, never initialised.
    Off,
    /// Initialised, never run: registers of a protected VM may still be set.
    Fresh,
    /// Stopped between runs.
    Idle,
    /// Loaded on a physical CPU.
    Running(CpuIndex),
}

impl Vcpu {
    /// Returns a vCPU that was never initialised.
    pub fn off() -> Self {
        Self { state: VcpuState::Off, context: VcpuContext::reset(0, 0), pending: None }
    }
}

/// VCPU_INIT: puts a vCPU that never ran into its reset state. Of a protected VM the host starts
/// only the first, before anything ran: a CPU that started later wherever the host likes would do
/// with the guest's memory what the host likes.
///
/// # Errors
/// `VmState` for a dying VM; `NoObject` where it has no such vCPU; `Contract` for a protected VM as
/// said; `VcpuBusy` where the vCPU ran before.
pub fn init<M: Machine>(
    door: &mut Unlocked<'_, M>,
    id: VmId,
    number: usize,
    (entry, x0): (u64, u64),
) -> Result<Reply, HcallError> {
    let mut guest = door.lock_guest(id)?;
    guest.check_state(VmState::Active)?;
    guest.vcpu(number)?;
    guest.check_host_starts(number)?;
    let vcpu = guest.vcpu(number)?;
    match vcpu.state {
        VcpuState::Off | VcpuState::Fresh => {}
        VcpuState::Idle | VcpuState::Running(_) => return Err(busy(number)),
    }
    vcpu.context = VcpuContext::reset(entry, x0);
    vcpu.state = VcpuState::Fresh;
    Ok(Reply::NONE)
}

/// VCPU_GET_REG: returns x1 a register of a stopped vCPU.
///
/// # Errors
/// `NoObject`; `Contract` for a protected VM; `VcpuBusy` while the vCPU runs.
pub fn get_reg<M: Machine>(
    door: &mut Unlocked<'_, M>,
    id: VmId,
    number: usize,
    register: usize,
) -> Result<Reply, HcallError> {
    let mut guest = door.lock_guest(id)?;
    if guest.contract.contains(ContractFlags::PROTECTED) {
        return Err(HcallError::Contract);
    }
    let vcpu = guest.vcpu(number)?;
    vcpu.check_stopped(number)?;
    Ok(Reply([vcpu.context.regs[register], 0, 0, 0]))
}

/// VCPU_SET_REG: writes a register of a stopped vCPU; of a protected VM only of the first one, and
/// only before anything ran.
///
/// # Errors
/// As [`get_reg`].
pub fn set_reg<M: Machine>(
    door: &mut Unlocked<'_, M>,
    id: VmId,
    number: usize,
    (register, value): (usize, u64),
) -> Result<Reply, HcallError> {
    let mut guest = door.lock_guest(id)?;
    guest.vcpu(number)?.check_stopped(number)?;
    guest.check_host_starts(number)?;
    let vcpu = guest.vcpu(number)?;
    vcpu.context.regs[register] = value;
    Ok(Reply::NONE)
}

impl Vcpu {
    fn check_stopped(&self, number: usize) -> Result<(), HcallError> {
        match self.state {
            VcpuState::Off | VcpuState::Fresh | VcpuState::Idle => Ok(()),
            VcpuState::Running(_) => Err(busy(number)),
        }
    }
}

fn busy(number: usize) -> HcallError {
    HcallError::VcpuBusy { number: u64::try_from(number).unwrap_or(u64::MAX) }
}

impl PendingLoad {
    /// Writes what the host read into the destination register.
    pub fn complete(&self, regs: &mut [u64; 31], value: u64) {
        // Register 31 is the zero register: there is nothing to write.
        if let Some(register) = regs.get_mut(self.register) {
            *register = self.widened(value);
        }
    }

    fn widened(&self, value: u64) -> u64 {
        let unused = 64 - 8 * self.bytes.min(8);
        let zero = value << unused >> unused;
        let sign = (value << unused).cast_signed() >> unused;
        match self.widen {
            Widen::Zero => zero,
            Widen::Sign32 => sign.cast_unsigned() & u64::from(u32::MAX),
            Widen::Sign64 => sign.cast_unsigned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(bytes: u32, widen: Widen, value: u64) -> u64 {
        let mut context = VcpuContext::reset(0, 0);
        PendingLoad { register: 3, bytes, widen }.complete(&mut context.regs, value);
        context.regs[3]
    }

    #[test]
    fn a_cpu_out_of_reset_has_its_mmu_and_caches_off() {
        let context = VcpuContext::reset(0x8000, 7);
        assert_eq!((context.pc, context.regs[0], context.pstate), (0x8000, 7, 0x3c5));
        assert_eq!(context.sysregs, Sysregs { sctlr_el1: 0x30d0_0800, ..Sysregs::default() });
    }

    #[test]
    fn a_load_fills_the_register_as_the_instruction_says() {
        assert_eq!(loaded(1, Widen::Zero, 0xffff_ff80), 0x80);
        assert_eq!(loaded(1, Widen::Sign32, 0x80), 0xffff_ff80);
        assert_eq!(loaded(2, Widen::Sign64, 0x8000), 0xffff_ffff_ffff_8000);
        assert_eq!(loaded(4, Widen::Sign64, 0x7fff_ffff), 0x7fff_ffff);
        assert_eq!(loaded(8, Widen::Zero, u64::MAX), u64::MAX);
    }

    #[test]
    fn a_load_into_the_zero_register_changes_nothing() {
        let mut context = VcpuContext::reset(0x1000, 7);
        let before = context.clone();
        PendingLoad { register: 31, bytes: 8, widen: Widen::Zero }.complete(&mut context.regs, 1);
        assert_eq!(context, before);
    }
}
