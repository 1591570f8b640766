//! An executable specification of pfnguard's decisions and calls: the rules of PFNMAP memory types,
//! and the state that calls change, over plain sets and maps of pages. Written for being read beside
//! the texts that it specifies from.
//!
//! It shares no code with the hypervisor, only the numbers and layouts of the ABI. Two doors:
//!
//! - [`decide`] judges one request on a machine on which every region is free;
//! - [`state::State::host_call`] takes the state from before a call to after it, for every call of
//!   the host, with what a guest does in VCPU_RUN. Every call is "refuse, or change these things";
//!   what it does not mention is as before. A refusal is computed before anything changes (R35).
//!
//! ```
//! use pfnguard_model::{Platform, Verdict, decide};
//! use pfnguard_shared::request::Request;
//! use pfnguard_shared::vm::ContractFlags;
//!
//! let platform = Platform::default();
//! let request = Request { mode: 1, mem_type: 1, perms: 1, pages: 1, ..Request::zeroed() };
//! let verdict = decide(&platform, &[], &request, ContractFlags::NONE);
//! assert!(matches!(verdict, Verdict::Refused(_))); // R01: nothing is granted by default
//! ```

#![forbid(unsafe_code)]

mod args;
pub mod call;
mod contract;
mod grant;
mod guest;
mod held;
pub mod host;
pub mod invariants;
pub mod machine;
mod migrate;
mod ownership;
mod pfnmap;
mod place;
mod query;
mod refusal;
pub mod rules;
mod shape;
pub mod state;
mod tables;
pub mod vcpu;
mod vm;

use std::ops::Range;

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::{Entry, PlatformFlags, RegionClass, RegionFlags};
use pfnguard_shared::request::{HostAlias, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{MemType, Mode, Perms, Rule, Status, Subject};

use held::Held;
pub use shape::{PAGE_LIMIT, Wish};

/// The machine, as far as decisions depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// What the CPUs can do. `NORMAL_NC` is ignored: `flags` says it.
    pub capabilities: Capabilities,
    /// Flags of the manifest's header.
    pub flags: PlatformFlags,
    /// RAM in byte addresses, page aligned.
    pub ram: Vec<Range<u64>>,
}

/// What the hypervisor must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The binding is made.
    Granted(Granted),
    /// Nothing has changed.
    Refused(Refused),
}

/// What the VM gets: never another type than it asked for (R05, R09).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Memory type that stage 2 forces.
    pub mem_type: MemType,
    /// Permissions.
    pub perms: Perms,
    /// Whether stage 2 forbids tag access (R20).
    pub no_tags: bool,
}

/// Why it gets nothing (R34).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `x0`.
    pub status: Status,
    /// The rule; `None` for a malformed request.
    pub rule: Option<Rule>,
    /// What `requested` and `granted` are.
    pub subject: Subject,
    /// Offending page.
    pub pfn: Option<u64>,
    /// Requested value.
    pub requested: u64,
    /// Granted value.
    pub granted: u64,
}

/// Everything that one decision looks at, once the request is well formed and lies in one entry.
pub(crate) struct Case<'a> {
    pub capabilities: Capabilities,
    pub entry: &'a Entry,
    pub held: Held,
    pub wish: &'a Wish,
    pub contract: ContractFlags,
}

/// Decides on `request` of a VM with `contract`, for a manifest of `entries`, while every region
/// is free. The first rule of `docs/decisions.md` that refuses is the answer.
pub fn decide(
    platform: &Platform,
    entries: &[Entry],
    request: &pfnguard_shared::request::Request,
    contract: ContractFlags,
) -> Verdict {
    let verdict = Wish::read(request)
        .and_then(|wish| judge(platform, entries, &wish, contract, |_| Held::FREE));
    match verdict {
        Ok((_, granted)) => Verdict::Granted(granted),
        Err(refused) => Verdict::Refused(refused),
    }
}

/// Decides on a well-formed request, given who holds its region.
pub(crate) fn judge(
    platform: &Platform,
    entries: &[Entry],
    wish: &Wish,
    contract: ContractFlags,
    held: impl FnOnce(usize) -> Held,
) -> Result<(usize, Granted), Refused> {
    let region = place::entry_of(platform, entries, wish)?;
    let capabilities = platform.effective_capabilities();
    let (entry, held) = (&entries[region], held(region));
    let case = Case { capabilities, entry, held, wish, contract };
    case.without_copies()?;
    case.not_quirked()?;
    case.usable()?;
    case.type_is_possible()?;
    case.within_the_grants()?;
    case.same_as_the_host()?;
    case.cacheable_is_coherent()?;
    let no_tags = case.tags()?;
    case.general_purpose()?;
    case.streams()?;
    case.fits_the_holders()?;
    Ok((region, Granted { mem_type: wish.mem_type, perms: wish.perms, no_tags }))
}

impl Platform {
    /// R04: a platform-wide `normal_nc = forbidden` overrides everything.
    pub fn effective_capabilities(&self) -> Capabilities {
        if self.flags.contains(PlatformFlags::NORMAL_NC_FORBIDDEN) {
            self.capabilities.without(Capabilities::NORMAL_NC)
        } else {
            self.capabilities.with(Capabilities::NORMAL_NC)
        }
    }
}

impl Case<'_> {
    pub(crate) fn has(&self, flag: RegionFlags) -> bool {
        self.entry.flags & flag.raw() == flag.raw()
    }

    pub(crate) fn is_memory(&self) -> bool {
        self.entry.class == RegionClass::Memory.raw()
    }

    pub(crate) fn wants(&self, mem_type: MemType) -> bool {
        self.wish.mem_type == mem_type
    }

    pub(crate) fn asks(&self, flag: RequestFlags) -> bool {
        self.wish.flags.contains(flag)
    }

    pub(crate) fn donates(&self) -> bool {
        self.wish.mode == Mode::Donate
    }

    pub(crate) fn host_maps(&self, alias: HostAlias) -> bool {
        self.wish.alias == alias
    }

    /// A refusal of the whole range: it names the first page.
    pub(crate) fn refuse(
        &self,
        status: Status,
        rule: Rule,
        subject: Subject,
        requested: impl Into<u64>,
        granted: impl Into<u64>,
    ) -> Refused {
        Refused {
            status,
            rule: Some(rule),
            subject,
            pfn: Some(self.wish.pages.start),
            requested: requested.into(),
            granted: granted.into(),
        }
    }
}
