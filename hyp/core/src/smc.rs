//! The host's SMCs: PSCI is relayed, a few architecture calls are answered or forwarded, and
//! everything else does not exist.

use pfnguard_shared::trace::TraceKind;

use crate::hypervisor::{Cpu, Hypervisor};
use crate::machine::{Clock, Firmware, Machine};
use crate::psci::function as psci;
use crate::psci::{self as relay, HostEntry, PsciError};
use crate::reset;
use crate::trace::{Event, NO_VM};

/// Function ids outside PSCI (Arm DEN0028, DEN0098).
mod function {
    /// `SMCCC_VERSION`.
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
    /// `SMCCC_ARCH_FEATURES`.
    pub const ARCH_FEATURES: u32 = 0x8000_0001;
    /// `SMCCC_ARCH_WORKAROUND_3`.
    pub const WORKAROUND_3: u32 = 0x8000_3fff;
    /// `SMCCC_ARCH_WORKAROUND_2`.
    pub const WORKAROUND_2: u32 = 0x8000_7fff;
    /// `SMCCC_ARCH_WORKAROUND_1`.
    pub const WORKAROUND_1: u32 = 0x8000_8000;
    /// `TRNG_VERSION`, the first of the entropy calls.
    pub const TRNG_VERSION: u32 = 0x8400_0050;
    /// `TRNG_RND`, the last of them.
    pub const TRNG_RND: u32 = 0x8400_0053;
    /// `TRNG_RND` in its 64-bit form.
    pub const TRNG_RND64: u32 = 0xc400_0053;
}

/// SMCCC 1.2, as `SMCCC_VERSION` returns it: firmware may not answer at all, and what is answered
/// here follows 1.2.
const SMCCC_1_2: u64 = 0x1_0002;

/// What is done about an SMC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmcAction {
    /// Answered here; `x0` of the answer.
    Answer(u64),
    /// The firmware is asked with the same registers.
    Forward,
    /// The firmware is asked, often and harmlessly: no record.
    ForwardQuietly,
    /// CPU_ON.
    CpuOn {
        /// Affinity fields of the CPU.
        target: u64,
        /// Where it starts.
        entry: HostEntry,
    },
    /// CPU_OFF.
    CpuOff,
    /// AFFINITY_INFO of one CPU.
    AffinityInfo {
        /// Affinity fields of the CPU.
        target: u64,
    },
    /// SYSTEM_RESET.
    Reset,
}

/// Decides what is done about an SMC. The default is that the function does not exist.
pub fn decide(regs: &[u64; 8]) -> SmcAction {
    let id = function_id(regs[0]);
    match id {
        function::SMCCC_VERSION => SmcAction::Answer(SMCCC_1_2),
        function::ARCH_FEATURES => arch_features(function_id(regs[1])),
        function::WORKAROUND_1 | function::WORKAROUND_2 | function::WORKAROUND_3 => {
            SmcAction::ForwardQuietly
        }
        function::TRNG_VERSION..=function::TRNG_RND | function::TRNG_RND64 => SmcAction::Forward,
        psci::VERSION | psci::MIGRATE_INFO_TYPE | psci::SYSTEM_OFF => SmcAction::Forward,
        psci::SYSTEM_RESET => SmcAction::Reset,
        psci::FEATURES => psci_features(function_id(regs[1])),
        psci::CPU_OFF => SmcAction::CpuOff,
        _ => decide_sized(id & !psci::SMC64, sized(id, regs)),
    }
}

/// PSCI functions that exist in a 32-bit and a 64-bit form.
fn decide_sized(id: u32, [x1, x2, x3]: [u64; 3]) -> SmcAction {
    match id {
        psci::CPU_ON => {
            SmcAction::CpuOn { target: x1, entry: HostEntry { entry: x2, context: x3 } }
        }
        psci::CPU_SUSPEND => suspend(x1),
        psci::AFFINITY_INFO if x2 == 0 => SmcAction::AffinityInfo { target: x1 },
        // Levels above the CPU are optional since PSCI 1.0.
        psci::AFFINITY_INFO => SmcAction::Answer(PsciError::InvalidParameters.to_register()),
        // Neither a warm reset nor a vendor's: what they leave as it is, nobody here knows.
        psci::SYSTEM_RESET2 => SmcAction::Reset,
        _ => NOT_SUPPORTED,
    }
}

const NOT_SUPPORTED: SmcAction = SmcAction::Answer(u64::MAX);

/// The id is in `w0`: the upper half of the register means nothing, nor does what a fast call says
/// of SVE state (SMCCC 1.3, 2.5): a kernel that was launched under has asked the firmware for the
/// version, and may give the hint.
fn function_id(x0: u64) -> u32 {
    const FAST: u32 = 1 << 31;
    const SVE_HINT: u32 = 1 << 16;
    let id = u32::try_from(x0 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    if id & FAST == 0 { id } else { id & !SVE_HINT }
}

/// Arguments of a 32-bit function are 32 bits wide.
fn sized(id: u32, regs: &[u64; 8]) -> [u64; 3] {
    let args = [regs[1], regs[2], regs[3]];
    if id & psci::SMC64 != 0 { args } else { args.map(|arg| arg & u64::from(u32::MAX)) }
}

/// Standby goes to the firmware. A power-down state would bring the CPU back through an entry of
/// the host's choice; it is denied. The state type is bit 16
/// in the original format and bit 30 in the extended one: either counts.
fn suspend(power_state: u64) -> SmcAction {
    const POWER_DOWN: u64 = 1 << 16 | 1 << 30;
    if power_state & POWER_DOWN == 0 {
        SmcAction::ForwardQuietly
    } else {
        SmcAction::Answer(PsciError::Denied.to_register())
    }
}

fn arch_features(queried: u32) -> SmcAction {
    match queried {
        function::SMCCC_VERSION | function::ARCH_FEATURES => SmcAction::Answer(0),
        function::WORKAROUND_1 | function::WORKAROUND_2 | function::WORKAROUND_3 => {
            SmcAction::Forward
        }
        _ => NOT_SUPPORTED,
    }
}

fn psci_features(queried: u32) -> SmcAction {
    match queried {
        function::SMCCC_VERSION => SmcAction::Answer(0),
        psci::VERSION
        | psci::CPU_OFF
        | psci::MIGRATE_INFO_TYPE
        | psci::SYSTEM_OFF
        | psci::SYSTEM_RESET
        | psci::FEATURES => SmcAction::Forward,
        _ => match queried & !psci::SMC64 {
            psci::CPU_ON | psci::CPU_SUSPEND | psci::AFFINITY_INFO | psci::SYSTEM_RESET2 => {
                SmcAction::Forward
            }
            _ => NOT_SUPPORTED,
        },
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Serves an `SMC #0` of the host: `regs` are its `x0..=x7`, in and out.
    pub fn smc(&self, cpu: &mut Cpu<M>, regs: &mut [u64; 8]) {
        let id = function_id(regs[0]);
        match decide(regs) {
            SmcAction::Answer(value) => {
                regs[0] = value;
                record(cpu, id, value);
            }
            SmcAction::Forward => {
                // Recorded before: SYSTEM_OFF does not come back.
                record(cpu, id, 0);
                forward(cpu, regs);
            }
            SmcAction::ForwardQuietly => forward(cpu, regs),
            SmcAction::CpuOn { target, entry } => {
                regs[0] = relay::cpu_on(&mut self.enter(), cpu, target, entry);
                record(cpu, id, regs[0]);
            }
            SmcAction::CpuOff => {
                record(cpu, id, 0);
                regs[0] = relay::cpu_off(&mut self.enter(), cpu);
            }
            SmcAction::AffinityInfo { target } => {
                regs[0] = relay::affinity_info(&mut self.enter(), cpu, id, target);
                record(cpu, id, regs[0]);
            }
            SmcAction::Reset => {
                // Recorded before: it does not come back.
                record(cpu, id, 0);
                regs[0] = reset::reset(&mut self.enter(), cpu);
            }
        }
    }
}

/// `x0` goes out without its upper half, which the filter did not look at.
fn forward<M: Machine>(cpu: &mut Cpu<M>, regs: &mut [u64; 8]) {
    let id = u64::from(function_id(regs[0]));
    let answer = cpu.local.smc([id, regs[1], regs[2], regs[3]]);
    regs[..answer.len()].copy_from_slice(&answer);
}

// Out of line: no SMC is so frequent that six copies would pay.
#[inline(never)]
fn record<M: Machine>(cpu: &mut Cpu<M>, id: u32, result: u64) {
    let event = Event { kind: TraceKind::Smc, vm: NO_VM, a: id.into(), b: result, c: 0 };
    cpu.trace.record(cpu.local.now(), event);
}

/// What a guest gets from a firmware call; the firmware itself never hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestAnswer {
    /// This value in `x0`.
    Value(u64),
    /// The host powers the guest off or resets it.
    Power(u32),
}

/// Returns whether a guest's HVC names a PSCI or architecture function: the conduit does not
/// matter to them.
pub fn is_firmware_call(x0: u64) -> bool {
    // Fast calls (bit 31) of the owners (bits 29:24) Arm architecture and standard service.
    const OWNER: u32 = 0xbf00_0000;
    matches!(function_id(x0) & OWNER, 0x8000_0000 | 0x8400_0000)
}

/// Answers a PSCI or architecture call of a guest.
pub fn guest_call(x0: u64, immediate: u16) -> GuestAnswer {
    let id = function_id(x0);
    match id {
        _ if immediate != 0 => GuestAnswer::Value(u64::MAX),
        function::SMCCC_VERSION => GuestAnswer::Value(SMCCC_1_2),
        psci::SYSTEM_OFF | psci::SYSTEM_RESET => GuestAnswer::Power(id),
        _ if id & !psci::SMC64 == psci::SYSTEM_RESET2 => GuestAnswer::Power(id),
        _ => GuestAnswer::Value(u64::MAX),
    }
}

#[cfg(test)]
mod tests;
