//! The platform-safety manifest as it lies in memory (R50): a header and an array of entries.
//!
//! Little-endian, 8-byte aligned. The SHA-256 covers every byte of the manifest except the hash
//! itself. Entries are sorted by `base` and do not overlap.

/// First eight bytes: `PFNGMANI`.
pub const MAGIC: [u8; 8] = *b"PFNGMANI";
/// The only version there is.
pub const VERSION: u32 = 1;
/// Most entries in one manifest.
pub const MAX_ENTRIES: usize = 128;
/// Most DMA streams of one entry.
pub const MAX_STREAMS: usize = 4;
/// Greatest bound of a `Poll` reset, in reads of the register.
pub const MAX_POLL_READS: u32 = 1_000_000;
/// Most VMs that one entry may let hold it at once.
pub const MAX_HOLDERS: u8 = 8;

bits! {
    /// Facts about the whole platform.
    pub struct PlatformFlags: u32 {
        /// Normal-NC is forbidden everywhere, whatever an entry grants (R04).
        NORMAL_NC_FORBIDDEN = 0,
    }
}

wire! {
    /// Start of a manifest.
    pub struct Header[64] {
        /// `MAGIC`.
        pub magic: [u8; 8],
        /// `VERSION`.
        pub version: u32,
        /// Length in bytes, header and entries.
        pub length: u32,
        /// SHA-256 of all bytes but these 32.
        pub sha256: [u8; 32],
        /// Number of entries.
        pub entries: u32,
        /// `PlatformFlags` bits.
        pub flags: u32,
        /// Zero.
        pub reserved: u64,
    }
}

/// Offset in bytes of [`Header::sha256`].
pub const SHA256_OFFSET: usize = core::mem::offset_of!(Header, sha256);

numbers! {
    /// What lies behind the pages.
    pub enum RegionClass: u8 {
        /// Registers: reads and writes have side effects.
        Mmio = 1,
        /// Device-attached memory: speculative reads are harmless.
        Memory = 2,
    }
}

bits! {
    /// Stage-2 block sizes that an entry allows.
    pub struct BlockSizes: u8 {
        /// 4 KiB pages; always set.
        PAGE = 0,
        /// 2 MiB blocks.
        BLOCK_2M = 1,
        /// 1 GiB blocks.
        BLOCK_1G = 2,
    }
}

bits! {
    /// Properties of an entry.
    pub struct RegionFlags: u32 {
        /// Cache maintenance by address reaches the memory (R08).
        CMO_BY_ADDRESS = 0,
        /// The memory has MTE tag storage (R20).
        TAGS = 1,
        /// Exclusives work (R22).
        EXCLUSIVES = 2,
        /// LSE atomics work (R22).
        ATOMICS = 3,
        /// Zero the memory when a VM lets go (R40).
        ZERO_ON_RETURN = 4,
        /// Blocked from assignment; `quirk` says why (R43).
        QUIRKED = 5,
        /// No action through a Normal-NC mapping can cause an uncontained failure (R04).
        NC_SAFE = 6,
        /// The host has no access either: registers through which it could make a device write
        /// anywhere, and no SMMU would see it (a GIC ITS). Nothing can be granted.
        HOST_CLOSED = 7,
    }
}

numbers! {
    /// What must happen before another owner gets the region (R41).
    pub enum ResetKind: u8 {
        /// Nothing.
        None = 0,
        /// A read of `reset_addr` orders earlier writes.
        Readback = 1,
        /// Reads of `reset_addr`, masked, must equal `reset_value` within `reset_bound` reads.
        Poll = 2,
        /// The host's driver reports that it reset the device.
        External = 3,
    }
}

wire! {
    /// One region of the manifest.
    pub struct Entry[144] {
        /// Name, UTF-8, zero padded, unique.
        pub name: [u8; 32],
        /// First byte; page aligned.
        pub base: u64,
        /// Bytes; page aligned, not zero.
        pub size: u64,
        /// `RegionFlags` bits.
        pub flags: u32,
        /// `RegionClass`.
        pub class: u8,
        /// `Modes` bits.
        pub modes: u8,
        /// `MemTypes` bits; `DEVICE` is always set where `modes` is not empty.
        pub types: u8,
        /// `Perms` bits.
        pub perms: u8,
        /// VMs that may hold it at once; 0 only where `modes` is empty.
        pub max_vms: u8,
        /// `BlockSizes` bits.
        pub blocks: u8,
        /// `ResetKind`.
        pub reset: u8,
        /// Width in bytes of the reset register: 4 or 8; 0 where `reset` reads none.
        pub reset_width: u8,
        /// Number of valid `streams`.
        pub stream_count: u8,
        /// Zero.
        pub reserved: [u8; 3],
        /// Physical address of the reset register, inside an MMIO entry of this manifest.
        pub reset_addr: u64,
        /// Mask for `Poll`.
        pub reset_mask: u64,
        /// Value for `Poll`.
        pub reset_value: u64,
        /// Most reads for `Poll`.
        pub reset_bound: u32,
        /// Zero.
        pub reserved2: u32,
        /// SMMU stream IDs of the device.
        pub streams: [u32; 4],
        /// Why a quirked entry is blocked, UTF-8, zero padded.
        pub quirk: [u8; 32],
    }
}
