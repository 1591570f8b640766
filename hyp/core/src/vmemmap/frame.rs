//! What a record says of one frame.

use pfnguard_shared::vm::PageState;

use crate::vm::VmId;

/// State of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameState {
    /// Not RAM, or RAM that was never the host's.
    NoPage,
    /// The host's alone.
    HostOwned,
    /// The host's, lent to the hypervisor.
    HostSharedHyp {
        /// CPUs that use it as their argument page.
        pins: u8,
    },
    /// The host's, lent to guests.
    HostSharedGuest {
        /// How many guest pages lead to it; never 0.
        count: u8,
    },
    /// The hypervisor's.
    HypOwned,
    /// The hypervisor's, readable by the host.
    HypReadable,
    /// A guest's alone.
    GuestOwned {
        /// The guest.
        vm: VmId,
    },
    /// A guest's, lent to the host.
    GuestSharedHost {
        /// The guest.
        vm: VmId,
    },
}

/// What the host may do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAccess {
    /// Read, write, execute.
    Full,
    /// Read.
    ReadOnly,
    /// Nothing.
    None,
}

impl FrameState {
    /// Returns the state as refusals and trace records show it.
    #[inline]
    pub fn page_state(self) -> PageState {
        match self {
            Self::NoPage => PageState::NoPage,
            Self::HostOwned => PageState::HostOwned,
            Self::HostSharedHyp { .. } => PageState::HostSharedHyp,
            Self::HostSharedGuest { .. } => PageState::HostSharedGuest,
            Self::HypOwned => PageState::HypOwned,
            Self::HypReadable => PageState::HypReadable,
            Self::GuestOwned { .. } => PageState::GuestOwned,
            Self::GuestSharedHost { .. } => PageState::GuestSharedHost,
        }
    }

    /// Returns what the host may do.
    #[inline]
    pub fn host_access(self) -> HostAccess {
        match self {
            Self::HostOwned
            | Self::HostSharedHyp { .. }
            | Self::HostSharedGuest { .. }
            | Self::GuestSharedHost { .. } => HostAccess::Full,
            Self::HypReadable => HostAccess::ReadOnly,
            Self::NoPage | Self::HypOwned | Self::GuestOwned { .. } => HostAccess::None,
        }
    }

    /// Returns how many CPUs use the frame as their argument page.
    pub fn pins(self) -> u8 {
        match self {
            Self::HostSharedHyp { pins } => pins,
            Self::NoPage
            | Self::HostOwned
            | Self::HostSharedGuest { .. }
            | Self::HypOwned
            | Self::HypReadable
            | Self::GuestOwned { .. }
            | Self::GuestSharedHost { .. } => 0,
        }
    }

    /// Returns the VM that owns the frame.
    pub(crate) fn owner(self) -> Option<VmId> {
        match self {
            Self::GuestOwned { vm } | Self::GuestSharedHost { vm } => Some(vm),
            Self::NoPage
            | Self::HostOwned
            | Self::HostSharedHyp { .. }
            | Self::HostSharedGuest { .. }
            | Self::HypOwned
            | Self::HypReadable => None,
        }
    }

    #[inline]
    pub(super) fn is_hyp(self) -> bool {
        match self {
            Self::HypOwned | Self::HypReadable => true,
            Self::NoPage
            | Self::HostOwned
            | Self::HostSharedHyp { .. }
            | Self::HostSharedGuest { .. }
            | Self::GuestOwned { .. }
            | Self::GuestSharedHost { .. } => false,
        }
    }
}

/// The record of a frame: `PageState` in the high byte, count, pins or VM number in the low one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Frame(u16);

static_assertions::const_assert_eq!(size_of::<Frame>(), 2);

impl Frame {
    /// The record of a frame that is not managed.
    pub const NO_PAGE: Self = Self(0);

    /// Encodes a state.
    #[inline]
    pub fn new(state: FrameState) -> Self {
        let payload = match state {
            FrameState::NoPage
            | FrameState::HostOwned
            | FrameState::HypOwned
            | FrameState::HypReadable => 0,
            FrameState::HostSharedHyp { pins } => pins,
            FrameState::HostSharedGuest { count } => count,
            FrameState::GuestOwned { vm } | FrameState::GuestSharedHost { vm } => vm.byte(),
        };
        Self(u16::from_le_bytes([payload, state.page_state().raw()]))
    }

    /// Decodes the record.
    ///
    /// # Panics
    /// Where its high byte is no state, or names a VM that cannot exist. The low byte of a state
    /// that has no use for it does not count.
    #[inline]
    pub fn state(self) -> FrameState {
        let [payload, kind] = self.0.to_le_bytes();
        match PageState::from_raw(kind).expect("frame record of no state: hypervisor bug") {
            PageState::NoPage => FrameState::NoPage,
            PageState::HostOwned => FrameState::HostOwned,
            PageState::HostSharedHyp => FrameState::HostSharedHyp { pins: payload },
            PageState::HostSharedGuest => FrameState::HostSharedGuest { count: payload },
            PageState::HypOwned => FrameState::HypOwned,
            PageState::HypReadable => FrameState::HypReadable,
            PageState::GuestOwned => FrameState::GuestOwned { vm: owner(payload) },
            PageState::GuestSharedHost => FrameState::GuestSharedHost { vm: owner(payload) },
        }
    }
}

fn owner(payload: u8) -> VmId {
    VmId::from_raw(u64::from(payload)).expect("frame record of no VM: hypervisor bug")
}
