//! Why a virtual CPU stopped.

use pfnguard_shared::vm::{ExitReason, MmioAccess};

/// A value that completes a guest's load from an address that nothing maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestValue(pub u64);

/// A guest's access to an address that nothing maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    /// Address in bytes, as the guest sees it.
    pub ipa: u64,
    /// Direction and extension.
    pub access: MmioAccess,
    /// Size in bytes: 1, 2, 4 or 8.
    pub bytes: u8,
    /// The value of a store.
    pub value: u64,
}

/// Why VCPU_RUN returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A physical interrupt is pending for the host: take it, then run again.
    Interrupt,
    /// The guest waits for an interrupt.
    Wait,
    /// A device access to emulate; run again with the value of a load.
    Mmio(Mmio),
    /// An access that cannot be emulated, at this address in bytes.
    Fault {
        /// Address in bytes, as the guest sees it.
        ipa: u64,
    },
    /// The guest called the host with three values.
    Yield([u64; 3]),
    /// The guest asked PSCI to power off or reset, with this function id.
    Power(u64),
    /// The guest did what this hypervisor does not offer; the exception class.
    Unsupported(u64),
    /// A reason from a newer ABI.
    Undefined(u64),
}

impl Exit {
    /// Reads `x1..=x7` of VCPU_RUN.
    pub fn from_registers(regs: [u64; 7]) -> Self {
        let [reason, a, b, c, ..] = regs;
        match ExitReason::from_raw(reason) {
            Some(ExitReason::Interrupt) => Self::Interrupt,
            Some(ExitReason::Wait) => Self::Wait,
            Some(ExitReason::Mmio) => Self::mmio(a, b, c),
            Some(ExitReason::Fault) => Self::Fault { ipa: a },
            Some(ExitReason::Yield) => Self::Yield([a, b, c]),
            Some(ExitReason::Power) => Self::Power(a),
            Some(ExitReason::Unsupported) => Self::Unsupported(a),
            None => Self::Undefined(reason),
        }
    }

    fn mmio(ipa: u64, facts: u64, value: u64) -> Self {
        let [low, bytes, ..] = facts.to_le_bytes();
        let known = u64::from(low) & MmioAccess::ALL.raw();
        let access = MmioAccess::from_raw(known).unwrap_or(MmioAccess::NONE);
        Self::Mmio(Mmio { ipa, access, bytes, value })
    }
}
