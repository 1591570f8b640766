//! PFNMAP requests: modes, memory types, permissions, and their packing.

numbers! {
    /// Who keeps access while a VM holds the region.
    pub enum Mode: u8 {
        /// The host keeps ownership and access; the guest borrows.
        Share = 1,
        /// Ownership moves to the VM; the host loses access.
        Donate = 2,
    }
}

bits! {
    /// A set of modes, as a manifest entry grants them.
    pub struct Modes: u8 {
        /// The region may be shared.
        SHARE = 0,
        /// The region may be donated.
        DONATE = 1,
    }
}

numbers! {
    /// The memory type that stage 2 forces on a PFNMAP region.
    pub enum MemType: u8 {
        /// Device-nGnRE, whatever the guest's stage 1 says.
        Device = 1,
        /// Normal Non-cacheable: the guest's stage 1 chooses among Normal-NC and Device types.
        AnyUncached = 2,
        /// Normal write-back cacheable.
        Cacheable = 3,
    }
}

bits! {
    /// A set of memory types, as a manifest entry grants them.
    pub struct MemTypes: u8 {
        /// Device-nGnRE.
        DEVICE = 0,
        /// Normal Non-cacheable.
        ANY_UNCACHED = 1,
        /// Normal write-back.
        CACHEABLE = 2,
    }
}

bits! {
    /// Access permissions of a guest.
    pub struct Perms: u8 {
        /// Loads.
        READ = 0,
        /// Stores; only together with `READ`.
        WRITE = 1,
        /// Instruction fetches.
        EXEC = 2,
    }
}

numbers! {
    /// How the host itself maps the pages while it makes the request (from its VMA's pgprot).
    pub enum HostAlias: u8 {
        /// The host has no mapping.
        None = 0,
        /// Device or Normal Non-cacheable.
        Uncached = 1,
        /// Normal write-back.
        Cacheable = 2,
    }
}

bits! {
    /// Properties of the caller's mapping and of the intended use.
    pub struct RequestFlags: u8 {
        /// The VMA is copy-on-write (refused, R12).
        COW = 0,
        /// The memslot wants dirty logging (refused, R13).
        DIRTY_LOG = 1,
        /// The guest will run programs from this memory (R22).
        GENERAL_PURPOSE = 2,
        /// Install the stage-2 entries at once instead of at the first guest access.
        MAP_NOW = 3,
    }
}

wire! {
    /// One PFNMAP request, as an item of a CHECK batch and as the arguments of BIND.
    pub struct Request[32] {
        /// VM number.
        pub vm: u16,
        /// `Mode`.
        pub mode: u8,
        /// `MemType`.
        pub mem_type: u8,
        /// `Perms` bits.
        pub perms: u8,
        /// `RequestFlags` bits.
        pub flags: u8,
        /// `HostAlias`.
        pub alias: u8,
        /// Zero.
        pub reserved: u8,
        /// First page of the range.
        pub pfn: u64,
        /// First intermediate physical page number in the guest.
        pub ipa_pfn: u64,
        /// Length in pages; not zero.
        pub pages: u64,
    }
}

/// `x1` of BIND: the first eight bytes of a [`Request`], packed little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestWord(pub u64);

impl Request {
    /// Returns `x1` of a BIND call for this request.
    pub const fn word(&self) -> RequestWord {
        let vm = self.vm.to_le_bytes();
        RequestWord(u64::from_le_bytes([
            vm[0],
            vm[1],
            self.mode,
            self.mem_type,
            self.perms,
            self.flags,
            self.alias,
            self.reserved,
        ]))
    }

    /// Rebuilds a request from the registers of a BIND call.
    pub const fn from_registers(word: RequestWord, pfn: u64, ipa_pfn: u64, pages: u64) -> Self {
        let [vm0, vm1, mode, mem_type, perms, flags, alias, reserved] = word.0.to_le_bytes();
        let vm = u16::from_le_bytes([vm0, vm1]);
        Self { vm, mode, mem_type, perms, flags, alias, reserved, pfn, ipa_pfn, pages }
    }
}

wire! {
    /// The decision on one item of a CHECK batch.
    pub struct Decision[32] {
        /// `Status`.
        pub status: i32,
        /// `Rule` of a refusal, or 0.
        pub rule: u16,
        /// `Subject` of `requested` and `granted`.
        pub subject: u16,
        /// Offending PFN, or all ones.
        pub pfn: u64,
        /// Requested value.
        pub requested: u64,
        /// Granted value.
        pub granted: u64,
    }
}

/// Most items in one CHECK batch: requests fill the first half of the argument page, decisions
/// the second.
pub const MAX_CHECK_ITEMS: usize = 64;
/// Offset in bytes of the first [`Decision`] in the argument page; requests start at 0.
pub const CHECK_DECISIONS_OFFSET: usize = 2048;

static_assertions::const_assert!(MAX_CHECK_ITEMS * size_of::<Request>() <= CHECK_DECISIONS_OFFSET);
static_assertions::const_assert!(
    CHECK_DECISIONS_OFFSET + MAX_CHECK_ITEMS * size_of::<Decision>() <= crate::PAGE_SIZE
);

impl From<Mode> for Modes {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Share => Self::SHARE,
            Mode::Donate => Self::DONATE,
        }
    }
}

impl From<MemType> for MemTypes {
    fn from(mem_type: MemType) -> Self {
        match mem_type {
            MemType::Device => Self::DEVICE,
            MemType::AnyUncached => Self::ANY_UNCACHED,
            MemType::Cacheable => Self::CACHEABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_registers() {
        let mut request = Request::zeroed();
        request.vm = 0x1234;
        request.mode = Mode::Donate.raw();
        request.mem_type = MemType::Cacheable.raw();
        request.perms = Perms::ALL.raw();
        request.flags = RequestFlags::COW.raw();
        request.alias = HostAlias::Cacheable.raw();
        request.reserved = 0xff;
        request.pfn = 1;
        request.ipa_pfn = 2;
        request.pages = 3;
        assert_eq!(Request::from_registers(request.word(), 1, 2, 3), request);
    }

    #[test]
    fn undefined_bits_are_refused() {
        assert_eq!(Perms::from_raw(0x08), None);
        assert_eq!(MemType::from_raw(0), None);
        assert_eq!(RequestFlags::from_raw(0x10), None);
    }
}
