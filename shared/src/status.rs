//! Status codes and what the two values of a refusal are about.

numbers! {
    /// What a call answers in `x0`, sign-extended to 64 bits. Each names the errno that a KVM
    /// caller sees.
    pub enum Status: i32 {
        /// Done.
        Success = 0,
        /// No such function (SMCCC `NOT_SUPPORTED`); ENOSYS.
        NotSupported = -1,
        /// An argument is malformed: reserved bits, misalignment, overflow; EINVAL.
        InvalidParameter = -3,
        /// The manifest or the platform does not grant this; EPERM.
        Denied = -4,
        /// No VM, vCPU, region or binding of that name; ENOENT.
        NotFound = -5,
        /// The page or object is not in the state that the call needs; EPERM.
        WrongState = -6,
        /// Too little table memory, or a documented limit is reached; ENOMEM.
        NoMemory = -7,
        /// In use or in quarantine, try again after the other side acted; EBUSY.
        Busy = -8,
        /// Execute permission on memory that must not be executed from; ENOEXEC.
        NoExec = -9,
        /// A combination that no type can satisfy: COW, dirty log, mixed cacheability; EINVAL.
        Unsupported = -10,
    }
}

impl Status {
    /// Returns the value of `x0`: the status sign-extended.
    #[allow(clippy::as_conversions, reason = "sign extension into a register is the ABI")]
    pub const fn to_register(self) -> u64 {
        self.raw() as i64 as u64
    }

    /// Decodes `x0`, or returns `None` where it is not a status of this ABI.
    #[allow(clippy::as_conversions, reason = "inverse of `to_register`, checked below")]
    pub const fn from_register(x0: u64) -> Option<Self> {
        let narrow = x0 as i64 as i32;
        if narrow as i64 as u64 != x0 {
            return None;
        }
        Self::from_raw(narrow)
    }
}

numbers! {
    /// What the requested and granted values of a refusal are.
    pub enum Subject: u16 {
        /// The values carry nothing.
        None = 0,
        /// Function id; nothing granted.
        Function = 1,
        /// Index of the argument register, and the greatest value it accepts.
        Argument = 2,
        /// `Modes` bits: what was asked for and what the entry grants.
        Modes = 3,
        /// `MemTypes` bits.
        Types = 4,
        /// `Perms` bits.
        Permissions = 5,
        /// Number of VMs that would hold the region, and how many may.
        Holders = 6,
        /// Page counts.
        Pages = 7,
        /// `PageState` of the frame: the one needed and the one found.
        PageState = 8,
        /// `RegionState`: the one needed and the one found.
        RegionState = 9,
        /// `Capabilities` bits: needed and present.
        Capabilities = 10,
        /// `RegionFlags` bits: needed and present in the entry.
        RegionFlags = 11,
        /// `RequestFlags` bits: asked for and accepted.
        RequestFlags = 12,
        /// `HostAlias` of the request, and the one that its type accepts.
        HostAlias = 13,
        /// VM or vCPU number, and the number that exist.
        Object = 14,
        /// `VmState` or vCPU state: needed and found.
        ObjectState = 15,
        /// Table pages: needed and left in the pool.
        Tables = 16,
        /// Intermediate physical page number that is occupied or out of range, and the limit.
        Ipa = 17,
        /// Manifest entries: the index the range starts in and the one it ends in.
        Entry = 18,
        /// Number of stream IDs that nothing translates or blocks; none granted.
        Streams = 19,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_survives_the_register() {
        for &status in Status::ALL {
            assert_eq!(Status::from_register(status.to_register()), Some(status));
        }
    }

    #[test]
    fn a_register_with_a_dirty_upper_half_is_no_status() {
        assert_eq!(Status::from_register(0x1_0000_0000), None);
        assert_eq!(Status::from_register(0xffff_ffff), None);
    }
}
