//! Why a call was refused. Variants carry facts; ABI numbers appear only in [`HcallError::refusal`].

use pfnguard_shared::vm::{PageState, VmState};
use pfnguard_shared::{NO_PFN, Rule, Status, Subject};

use crate::addr::{IpaPfn, Pfn};
use crate::vm::VmId;

/// Refusal of a call. Whatever the variant, the call has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HcallError {
    /// No function has this id.
    UnknownFunction(u64),
    /// Argument register `index` is malformed; `limit` is the greatest value it accepts.
    Argument {
        /// Number of the register, 1 for `x1`.
        index: u64,
        /// Greatest accepted value, or a mask of accepted bits.
        limit: u64,
    },
    /// The frame is not in the state that the call needs.
    PageState {
        /// The frame.
        pfn: Pfn,
        /// State that the call needs.
        needed: PageState,
        /// State that the frame is in.
        found: PageState,
    },
    /// The frame is in use by the hypervisor (an argument page), or lent too often.
    Pinned {
        /// The frame.
        pfn: Pfn,
    },
    /// The frame is owned by, or mapped in, another VM or at another address.
    NotMapped {
        /// The frame that the caller named.
        pfn: Pfn,
        /// Where the caller said it is.
        ipa: IpaPfn,
    },
    /// The frame belongs to another VM.
    NotOwner {
        /// The frame that the caller named.
        pfn: Pfn,
        /// The VM that the caller named.
        vm: VmId,
        /// The VM that owns it.
        owner: VmId,
    },
    /// The intermediate physical page is occupied.
    IpaOccupied {
        /// First occupied page.
        ipa: IpaPfn,
    },
    /// The intermediate physical range ends past the guest's address space.
    IpaRange {
        /// First page of the range.
        ipa: IpaPfn,
        /// First page number that does not exist.
        limit: u64,
    },
    /// No VM, vCPU, region or binding of this number.
    NoObject {
        /// The number.
        number: u64,
        /// How many there may be.
        limit: u64,
    },
    /// The VM is in the wrong state.
    VmState {
        /// State that the call needs.
        needed: VmState,
        /// State that the VM is in.
        found: VmState,
    },
    /// The VM still holds pages, bindings or a running vCPU.
    VmBusy {
        /// How many of them.
        remaining: u64,
    },
    /// The vCPU runs on another CPU, or was not initialised.
    VcpuBusy {
        /// The vCPU.
        number: u64,
    },
    /// The table pool is too small for the worst case of this operation.
    NoTables {
        /// Table pages needed.
        needed: u64,
        /// Table pages in the pool.
        left: u64,
    },
    /// A table of documented size is full.
    Full {
        /// Its size.
        limit: u64,
    },
    /// The contract of the VM forbids this (registers of a protected VM).
    Contract,
    /// This CPU has no argument page.
    NoArgPage,
    /// A rule of the PFNMAP specification refuses.
    Rule(RuleRefusal),
}

/// A refusal by a rule of the specification (R34).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleRefusal {
    /// What the caller gets.
    pub status: Status,
    /// The rule.
    pub rule: Rule,
    /// What the two values are.
    pub subject: Subject,
    /// Offending page, if one can be named.
    pub pfn: Option<Pfn>,
    /// Requested value.
    pub requested: u64,
    /// Granted value.
    pub granted: u64,
}

impl From<RuleRefusal> for HcallError {
    fn from(refusal: RuleRefusal) -> Self {
        Self::Rule(refusal)
    }
}

/// A refusal as it crosses the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `x0`.
    pub status: Status,
    /// `x1`, bits 15:0.
    pub rule: Option<Rule>,
    /// `x1`, bits 31:16.
    pub subject: Subject,
    /// `x2`.
    pub pfn: u64,
    /// `x3`.
    pub requested: u64,
    /// `x4`.
    pub granted: u64,
}

impl Refusal {
    fn plain(status: Status, subject: Subject, requested: u64, granted: u64) -> Self {
        Self { status, rule: None, subject, pfn: NO_PFN, requested, granted }
    }

    fn at(self, pfn: Pfn) -> Self {
        Self { pfn: pfn.0, ..self }
    }

    /// Returns `x1`: rule and subject packed.
    pub fn rule_word(&self) -> u64 {
        let rule = self.rule.map_or(0, Rule::raw);
        u64::from(rule) | u64::from(self.subject.raw()) << 16
    }

    /// Returns `x0..=x7`.
    pub fn to_registers(&self) -> [u64; 8] {
        let status = self.status.to_register();
        [status, self.rule_word(), self.pfn, self.requested, self.granted, 0, 0, 0]
    }
}

impl HcallError {
    /// Returns the ABI's view of this refusal.
    // Most callers know the variant, and then its view.
    #[inline]
    pub fn refusal(&self) -> Refusal {
        match *self {
            Self::UnknownFunction(fid) => {
                Refusal::plain(Status::NotSupported, Subject::Function, fid, 0)
            }
            Self::Argument { index, limit } => {
                Refusal::plain(Status::InvalidParameter, Subject::Argument, index, limit)
            }
            Self::PageState { pfn, needed, found } => {
                let (needed, found) = (u64::from(needed.raw()), u64::from(found.raw()));
                Refusal::plain(Status::WrongState, Subject::PageState, needed, found).at(pfn)
            }
            Self::Pinned { pfn } => Refusal::plain(Status::Busy, Subject::PageState, 0, 0).at(pfn),
            Self::NotMapped { pfn, ipa } => {
                Refusal::plain(Status::WrongState, Subject::Ipa, ipa.0, 0).at(pfn)
            }
            Self::NotOwner { pfn, vm, owner } => {
                let (vm, owner) = (u64::from(vm.raw()), u64::from(owner.raw()));
                Refusal::plain(Status::WrongState, Subject::Object, vm, owner).at(pfn)
            }
            Self::IpaOccupied { ipa } => Refusal::plain(Status::Busy, Subject::Ipa, ipa.0, 0),
            Self::IpaRange { ipa, limit } => {
                Refusal::plain(Status::InvalidParameter, Subject::Ipa, ipa.0, limit)
            }
            Self::NoObject { number, limit } => {
                Refusal::plain(Status::NotFound, Subject::Object, number, limit)
            }
            Self::VmState { needed, found } => {
                let (needed, found) = (u64::from(needed.raw()), u64::from(found.raw()));
                Refusal::plain(Status::WrongState, Subject::ObjectState, needed, found)
            }
            Self::VmBusy { remaining } => {
                Refusal::plain(Status::Busy, Subject::Pages, remaining, 0)
            }
            Self::VcpuBusy { number } => Refusal::plain(Status::Busy, Subject::Object, number, 0),
            Self::NoTables { needed, left } => {
                Refusal::plain(Status::NoMemory, Subject::Tables, needed, left)
            }
            Self::Full { limit } => {
                Refusal::plain(Status::NoMemory, Subject::Object, limit + 1, limit)
            }
            Self::Contract => Refusal::plain(Status::Denied, Subject::ObjectState, 0, 0),
            Self::NoArgPage => Refusal::plain(Status::WrongState, Subject::None, 0, 0),
            Self::Rule(refusal) => refusal.to_abi(),
        }
    }
}

impl From<HcallError> for Refusal {
    fn from(error: HcallError) -> Self {
        error.refusal()
    }
}

impl From<RuleRefusal> for Refusal {
    fn from(refusal: RuleRefusal) -> Self {
        refusal.to_abi()
    }
}

impl RuleRefusal {
    fn to_abi(self) -> Refusal {
        Refusal {
            status: self.status,
            rule: Some(self.rule),
            subject: self.subject,
            pfn: self.pfn.map_or(NO_PFN, |pfn| pfn.0),
            requested: self.requested,
            granted: self.granted,
        }
    }
}
