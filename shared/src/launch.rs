//! Launch under a running kernel: what a kernel module and the payload's image tell each other.
//!
//! The module copies the image to physically contiguous RAM, cleans it to the point of coherency
//! and enters it at EL2 through the kernel's hyp-stub, with the MMU off (`HVC_SOFT_RESTART`, Linux
//! `Documentation/virt/kvm/arm/hyp-abi.rst`). Each entry returns to the instruction behind the
//! module's `HVC`, with `x18` to `x30` as they were:
//!
//! | entry | `x0` in | CPUs | what it does |
//! |---|---|---|---|
//! | [`ImageHeader::prepare`] | address of a [`LaunchInfo`] | one | makes the hypervisor |
//! | [`ImageHeader::enter`] | [`LaunchStep::Check`] | each in turn | compares the CPU with the first |
//! | [`ImageHeader::enter`] | [`LaunchStep::Commit`] | all at once | takes EL2 for good |
//!
//! Out: `x0` a [`LaunchAnswer`], `x1` and `x2` what it documents. Until the commit, the stub's vectors
//! are put back and the MMU is off again: after a refusal the module frees the memory and the kernel
//! runs on. The commit is
//! never refused; it returns once all CPUs are there.

/// First bytes of [`ImageHeader`]: "PFNGUARD", little-endian.
pub const IMAGE_MAGIC: u64 = u64::from_le_bytes(*b"PFNGUARD");
/// Offset of [`ImageHeader`] in the image: behind Linux's own header
/// (`Documentation/arch/arm64/booting.rst`).
pub const IMAGE_HEADER_OFFSET: usize = 64;

numbers! {
    /// What an entry of one CPU is for.
    pub enum LaunchStep: u32 {
        /// Compare this CPU with the one that prepared the launch.
        Check = 1,
        /// Take EL2 for good.
        Commit = 2,
    }
}

numbers! {
    /// What an entry answers in x0.
    pub enum LaunchAnswer: u32 {
        /// Done.
        Done = 0,
        /// The hypervisor needs more memory: x1 pages, the image's included. Nothing has changed.
        MoreMemory = 1,
        /// No launch: x1 the physical address, x2 the bytes of a line of text that says why.
        Refused = 2,
    }
}

wire! {
    /// What the module has to know of the image, at its byte 64.
    pub struct ImageHeader[40] {
        /// "PFNGUARD".
        pub magic: u64,
        /// ABI version, major half.
        pub abi_major: u32,
        /// ABI version, minor half.
        pub abi_minor: u32,
        /// Bytes from the image's start that it needs at least, stacks included.
        pub image_size: u64,
        /// Offset of the entry that prepares a launch.
        pub prepare: u64,
        /// Offset of the entry of each CPU.
        pub enter: u64,
    }
}

wire! {
    /// The machine, as the kernel knows it; 8-byte aligned and cleaned to the point of coherency.
    pub struct LaunchInfo[424] {
        /// Pages from the start of the image on that are the hypervisor's.
        pub pages: u64,
        /// Physical address of the manifest.
        pub manifest: u64,
        /// Bytes of the manifest.
        pub manifest_size: u64,
        /// Physical address of a PL011 that reports what is wrong at EL2, or 0.
        pub uart: u64,
        /// CPUs in `mpidr`: all that there are, and all of them run.
        pub cpus: u32,
        /// Ranges in `ram`.
        pub banks: u32,
        /// `MPIDR_EL1` of each CPU.
        pub mpidr: [u64; 16],
        /// All RAM that the kernel uses: first page and number of pages of each range, ascending and disjoint.
        pub ram: [u64; 32],
    }
}
