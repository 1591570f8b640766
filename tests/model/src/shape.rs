//! Is it a request at all? Step 0: the numbers are known, the ranges exist.

use std::ops::Range;

use pfnguard_shared::request::{HostAlias, Request, RequestFlags};
use pfnguard_shared::{MemType, Mode, Perms, Status, Subject};

use crate::Refused;

/// First page number that no Arm CPU can address (52 bits).
pub const PAGE_LIMIT: u64 = 1 << 40;

/// A well-formed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Mode.
    pub mode: Mode,
    /// Memory type.
    pub mem_type: MemType,
    /// Permissions; never without `READ`.
    pub perms: Perms,
    /// Flags.
    pub flags: RequestFlags,
    /// The host's own mapping.
    pub alias: HostAlias,
    /// Page numbers.
    pub pages: Range<u64>,
    /// Intermediate page numbers, as many.
    pub ipa: Range<u64>,
}

impl Wish {
    pub(crate) fn read(request: &Request) -> Result<Self, Refused> {
        let mode = Mode::from_raw(request.mode).ok_or(malformed(1, 2))?;
        let mem_type = MemType::from_raw(request.mem_type).ok_or(malformed(1, 3))?;
        let perms = Perms::from_raw(request.perms).ok_or(malformed(1, 0b111))?;
        let flags = RequestFlags::from_raw(request.flags).ok_or(malformed(1, 0b1111))?;
        let alias = HostAlias::from_raw(request.alias).ok_or(malformed(1, 2))?;
        if request.reserved != 0 {
            return Err(malformed(1, 0));
        }
        // Stores and fetches come with loads, and nothing maps without any.
        if !perms.contains(Perms::READ) {
            return Err(malformed(1, 0b111));
        }
        if request.pages == 0 || request.pages > PAGE_LIMIT {
            return Err(malformed(4, PAGE_LIMIT));
        }
        let last_start = PAGE_LIMIT - request.pages;
        if request.pfn > last_start {
            return Err(malformed(2, last_start));
        }
        if request.ipa_pfn > last_start {
            return Err(malformed(3, last_start));
        }
        let pages = request.pfn..request.pfn + request.pages;
        let ipa = request.ipa_pfn..request.ipa_pfn + request.pages;
        Ok(Self { mode, mem_type, perms, flags, alias, pages, ipa })
    }
}

/// `register` is malformed; `limit` is the greatest value or the mask of what it accepts.
fn malformed(register: u64, limit: u64) -> Refused {
    Refused {
        status: Status::InvalidParameter,
        rule: None,
        subject: Subject::Argument,
        pfn: None,
        requested: register,
        granted: limit,
    }
}
