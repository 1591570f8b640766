//! A call, its outcome, and what the specification leaves open.

use std::ops::Range;

use crate::Refused;
use crate::state::{Load, Registers};

/// A call of the host.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// CPU that makes it.
    pub cpu: usize,
    /// `x0..=x7`.
    pub regs: [u64; 8],
    /// This CPU's argument page, as the hypervisor read it, once.
    pub arg_page: Option<&'a [u8; 4096]>,
    /// What happened where the specification allows more than one thing.
    pub seen: &'a Seen,
}

/// What the specification does not determine, as it was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `x0..=x7` of the answer. Three values of it are open: which table page VM_FREE gave back
    /// (x1), what the CPU answered to PFNMAP_PROBE (x1), how many table pages the host's stage 2 has
    /// left (x4 of INFO `Memory`).
    pub answer: [u64; 8],
    /// Reads of reset registers in their order: address and answer, if any (R41, R42).
    pub reads: Vec<(u64, Option<u64>)>,
    /// What the guest did in VCPU_RUN.
    pub guest: Vec<GuestStep>,
    /// First IPA page of each item of MIGRATE_EXPORT: the order of bindings is open.
    pub exported: Vec<u64>,
}

/// An exit of a guest from its world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestStep {
    /// Its registers at the exit. `pc` is past an `HVC`, and at any other instruction that exits.
    pub registers: Registers,
    /// Why it left.
    pub event: GuestEvent,
}

/// Why a guest left its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// A physical interrupt.
    Interrupt,
    /// A physical SError.
    SError,
    /// WFI, WFE or a timed form.
    Wait,
    /// `HVC` with this immediate.
    Hvc(u16),
    /// `SMC` with this immediate.
    Smc(u16),
    /// A load, store or fetch that stage 2 stopped.
    Abort {
        /// Intermediate physical address in bytes; of a table walk only the page is known.
        ipa: u64,
        /// Why.
        cause: AbortCause,
        /// What the syndrome says of the access, if anything.
        access: Option<Access>,
    },
    /// An instruction that is undefined for guests. Their own handler for it is at this address.
    Undefined(u64),
    /// Another exception class.
    Other(u64),
}

/// Why stage 2 stopped an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortCause {
    /// Nothing is mapped there.
    Translation,
    /// What is mapped there does not allow it, or something else is wrong.
    Forbidden,
}

/// An access that an emulator can do for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Load(Load),
    /// A store.
    Store {
        /// Source register; 31 is the zero register.
        register: usize,
        /// Bytes: 1, 2, 4 or 8.
        bytes: u32,
    },
}

/// What a call must have done besides changing the state. Trace records would be part of it; they
/// are not specified yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// `x0..=x7`.
    pub regs: [u64; 8],
    /// Bytes written to the argument page: offset and what. All others are as before.
    pub arg_page: Vec<(usize, Vec<u8>)>,
    /// Pages that read zero afterwards (R40, R44).
    pub zeroed: Vec<Range<u64>>,
    /// How many reads of reset registers there were (R42).
    pub reads: usize,
    /// Registers with which the guest entered its world, each time that it did.
    pub entered: Vec<Registers>,
}

impl Outcome {
    /// Success with `x1..=x4`.
    pub(crate) fn values(values: [u64; 4]) -> Self {
        let [x1, x2, x3, x4] = values;
        Self::plain([0, x1, x2, x3, x4, 0, 0, 0])
    }

    /// Success with `x1`.
    pub(crate) fn value(x1: u64) -> Self {
        Self::values([x1, 0, 0, 0])
    }

    /// Success.
    pub(crate) fn done() -> Self {
        Self::values([0; 4])
    }

    /// An answer whose `x0` is no status.
    pub(crate) fn plain(regs: [u64; 8]) -> Self {
        Self { regs, ..Self::default() }
    }

    pub(crate) fn refused(refused: &Refused) -> Self {
        Self::plain(refused.registers())
    }

    pub(crate) fn writes(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.arg_page.push((offset, bytes.to_vec()));
        self
    }
}
