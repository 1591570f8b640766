//! How refusals cross the ABI (R34), and those that no rule of memory types makes.

use pfnguard_shared::vm::{PageState, VmState};
use pfnguard_shared::{NO_PFN, Rule, Status, Subject};

use crate::Refused;
use crate::machine::count;
use crate::state::Frame;

impl Refused {
    /// A refusal by no rule that names no page.
    pub(crate) fn plain(
        status: Status,
        subject: Subject,
        requested: impl Into<u64>,
        granted: impl Into<u64>,
    ) -> Self {
        let (requested, granted) = (requested.into(), granted.into());
        Self { status, rule: None, subject, pfn: None, requested, granted }
    }

    pub(crate) fn at(self, page: u64) -> Self {
        Self { pfn: Some(page), ..self }
    }

    pub(crate) fn by(self, rule: Rule) -> Self {
        Self { rule: Some(rule), ..self }
    }

    /// `x0..=x7` for the host.
    pub fn registers(&self) -> [u64; 8] {
        let page = self.pfn.unwrap_or(NO_PFN);
        let status = self.status.to_register();
        [status, self.rule_word(), page, self.requested, self.granted, 0, 0, 0]
    }

    /// `x0..=x4` for a guest: frames and the host's state are not its business.
    pub fn guest_registers(&self) -> [u64; 5] {
        [self.status.to_register(), self.rule_word(), NO_PFN, 0, 0]
    }

    fn rule_word(&self) -> u64 {
        let rule = self.rule.map_or(0, Rule::raw);
        u64::from(rule) | u64::from(self.subject.raw()) << 16
    }
}

/// Register `x<index>` is malformed; `limit` is the greatest value that it accepts, or a mask. Index
/// 0 is the argument page.
pub(crate) fn argument(index: usize, limit: impl Into<u64>) -> Refused {
    let index = count(index);
    Refused::plain(Status::InvalidParameter, Subject::Argument, index, limit)
}

pub(crate) fn no_function(id: u64) -> Refused {
    Refused::plain(Status::NotSupported, Subject::Function, id, 0u8)
}

/// There is no such VM, vCPU, CPU, region or binding.
pub(crate) fn no_object(number: u64, limit: impl Into<u64>) -> Refused {
    Refused::plain(Status::NotFound, Subject::Object, number, limit)
}

/// A table of documented size is full.
pub(crate) fn full(limit: u64) -> Refused {
    Refused::plain(Status::NoMemory, Subject::Object, limit + 1, limit)
}

pub(crate) fn no_tables(needed: u64, left: u64) -> Refused {
    Refused::plain(Status::NoMemory, Subject::Tables, needed, left)
}

pub(crate) fn no_arg_page() -> Refused {
    Refused::plain(Status::WrongState, Subject::None, 0u8, 0u8)
}

/// The contract of the VM forbids it.
pub(crate) fn contract() -> Refused {
    Refused::plain(Status::Denied, Subject::ObjectState, 0u8, 0u8)
}

pub(crate) fn vm_state(needed: VmState, found: VmState) -> Refused {
    Refused::plain(Status::WrongState, Subject::ObjectState, needed.raw(), found.raw())
}

/// The VM has so many pages, bindings or running vCPUs left.
pub(crate) fn vm_busy(remaining: u64) -> Refused {
    Refused::plain(Status::Busy, Subject::Pages, remaining, 0u8)
}

pub(crate) fn vcpu_busy(number: usize) -> Refused {
    Refused::plain(Status::Busy, Subject::Object, count(number), 0u8)
}

pub(crate) fn ipa_range(first: u64, limit: u64) -> Refused {
    Refused::plain(Status::InvalidParameter, Subject::Ipa, first, limit)
}

pub(crate) fn ipa_occupied(page: u64) -> Refused {
    Refused::plain(Status::Busy, Subject::Ipa, page, 0u8)
}

/// The guest does not have `frame` at `ipa`.
pub(crate) fn not_mapped(ipa: u64) -> Refused {
    Refused::plain(Status::WrongState, Subject::Ipa, ipa, 0u8)
}

/// A frame is not in the state that the call needs.
pub(crate) fn page_state(page: u64, needed: PageState, found: Option<Frame>) -> Refused {
    let found = found.map_or(PageState::NoPage, Frame::page_state);
    Refused::plain(Status::WrongState, Subject::PageState, needed.raw(), found.raw()).at(page)
}

/// Only a count keeps a frame from the call: it is an argument page, or lent as often as can be.
pub(crate) fn page_busy(page: u64) -> Refused {
    Refused::plain(Status::Busy, Subject::PageState, 0u8, 0u8).at(page)
}

/// A frame belongs to another VM.
pub(crate) fn not_owner(page: u64, vm: u16, owner: u16) -> Refused {
    Refused::plain(Status::WrongState, Subject::Object, vm, owner).at(page)
}

impl Frame {
    /// The state as refusals show it.
    pub fn page_state(self) -> PageState {
        match self {
            Self::Host => PageState::HostOwned,
            Self::HostLentHyp(_) => PageState::HostSharedHyp,
            Self::HostLentGuests(_) => PageState::HostSharedGuest,
            Self::Hyp => PageState::HypOwned,
            Self::HypReadable => PageState::HypReadable,
            Self::Guest(_) => PageState::GuestOwned,
            Self::GuestLentHost(_) => PageState::GuestSharedHost,
        }
    }
}
