//! The migration descriptor: what a VM needs of its next host (R33).

/// First eight bytes: `PFNGMIGR`.
pub const MAGIC: [u8; 8] = *b"PFNGMIGR";
/// The only version there is.
pub const VERSION: u32 = 1;
/// Most items that fit into the argument page.
pub const MAX_ITEMS: usize = 50;

wire! {
    /// Start of a descriptor.
    pub struct MigrationHeader[48] {
        /// `MAGIC`.
        pub magic: [u8; 8],
        /// `VERSION`.
        pub version: u32,
        /// Number of items.
        pub items: u32,
        /// `ContractFlags` bits of the VM.
        pub contract: u32,
        /// Zero.
        pub reserved: u32,
        /// `Capabilities` bits that the VM's bindings rest on.
        pub capabilities: u64,
        /// `Status` of the contract, written by MIGRATE_CHECK.
        pub status: i32,
        /// `Rule`, written by MIGRATE_CHECK.
        pub rule: u16,
        /// `Subject`, written by MIGRATE_CHECK.
        pub subject: u16,
        /// Missing `Capabilities` bits, written by MIGRATE_CHECK.
        pub missing: u64,
    }
}

wire! {
    /// One binding of the VM.
    pub struct MigrationItem[80] {
        /// Name of the region.
        pub name: [u8; 32],
        /// First page of the binding, relative to the region.
        pub offset_pages: u64,
        /// Length in pages.
        pub pages: u64,
        /// First intermediate physical page number.
        pub ipa_pfn: u64,
        /// `RegionFlags` bits that the binding rests on.
        pub flags: u32,
        /// `Mode`.
        pub mode: u8,
        /// `MemType`.
        pub mem_type: u8,
        /// `Perms` bits.
        pub perms: u8,
        /// `RequestFlags` bits.
        pub request_flags: u8,
        /// `Status` of the item, written by MIGRATE_CHECK.
        pub status: i32,
        /// `Rule`, written by MIGRATE_CHECK.
        pub rule: u16,
        /// `Subject`, written by MIGRATE_CHECK.
        pub subject: u16,
        /// Zero.
        pub reserved: u64,
    }
}

static_assertions::const_assert!(
    size_of::<MigrationHeader>() + MAX_ITEMS * size_of::<MigrationItem>() <= crate::PAGE_SIZE
);
