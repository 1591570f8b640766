//! The request at the door: numbers are claims until they are decoded (step 0).

use pfnguard_shared::request::{HostAlias, Request, RequestFlags};
use pfnguard_shared::{MemType, Mode, Perms};

use crate::addr::{IpaPfn, IpaRange, PFN_LIMIT, Pfn, PfnRange};
use crate::error::HcallError;
use crate::vm::VmId;

/// A well-formed request; nothing else of it is known to be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindRequest {
    /// The VM; it may not exist.
    pub vm: VmId,
    /// Mode.
    pub mode: Mode,
    /// Memory type.
    pub mem_type: MemType,
    /// Permissions; never without `READ`.
    pub perms: Perms,
    /// Flags.
    pub flags: RequestFlags,
    /// How the host says that it maps the pages.
    pub alias: HostAlias,
    /// Pages.
    pub pfns: PfnRange,
    /// Where in the guest; as long as `pfns`.
    pub ipa: IpaRange,
}

/// Register of a BIND call that holds the packed fields.
const WORD: u64 = 1;

impl BindRequest {
    /// Decodes a request. The fields are judged in the order of the ABI's structure, the VM last.
    ///
    /// # Errors
    /// `Argument` for the first malformed field, by its register in a BIND call; `NoObject` where
    /// no VM can have this number.
    pub fn decode(wire: &Request) -> Result<Self, HcallError> {
        let mode = known(Mode::from_raw(wire.mode), Mode::Donate.raw())?;
        let mem_type = known(MemType::from_raw(wire.mem_type), MemType::Cacheable.raw())?;
        let perms = known(Perms::from_raw(wire.perms), Perms::ALL.raw())?;
        let flags = known(RequestFlags::from_raw(wire.flags), RequestFlags::ALL.raw())?;
        let alias = known(HostAlias::from_raw(wire.alias), HostAlias::Cacheable.raw())?;
        known(Some(()).filter(|()| wire.reserved == 0), 0)?;
        // Stage 2 has no write-only or execute-only translation that pfnguard would promise.
        known(Some(()).filter(|()| perms.contains(Perms::READ)), Perms::ALL.raw())?;
        let (pfns, ipa) = place(wire)?;
        let vm = VmId::from_raw(u64::from(wire.vm))?;
        Ok(Self { vm, mode, mem_type, perms, flags, alias, pfns, ipa })
    }
}

/// Decodes the ranges of a request.
///
/// # Errors
/// `Argument` for the first malformed one, by its register in a BIND call.
#[inline(always)]
pub(crate) fn place(wire: &Request) -> Result<(PfnRange, IpaRange), HcallError> {
    if wire.pages == 0 || wire.pages > PFN_LIMIT {
        return Err(HcallError::Argument { index: 4, limit: PFN_LIMIT });
    }
    let limit = PFN_LIMIT.saturating_sub(wire.pages);
    let pfns = PfnRange::new(Pfn(wire.pfn), wire.pages);
    let pfns = pfns.ok_or(HcallError::Argument { index: 2, limit })?;
    let ipa = IpaRange::new(IpaPfn(wire.ipa_pfn), wire.pages);
    let ipa = ipa.ok_or(HcallError::Argument { index: 3, limit })?;
    Ok((pfns, ipa))
}

fn known<T>(field: Option<T>, limit: u8) -> Result<T, HcallError> {
    field.ok_or(HcallError::Argument { index: WORD, limit: u64::from(limit) })
}
