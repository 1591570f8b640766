//! What the service says of itself: versions, limits, abilities, regions (R31).

numbers! {
    /// `x1` of INFO: what to return in x1..x4.
    pub enum InfoSelector: u64 {
        /// x1 major << 32 | minor, x2 number of host functions, x3 number of rules, x4 zero.
        Abi = 0,
        /// x1..x4 the manifest's SHA-256, first byte in bits 7:0 of x1 (R51).
        ManifestHash = 1,
        /// x1 most VMs, x2 most vCPUs a VM, x3 regions, x4 most pages a RAM call.
        Limits = 2,
        /// x1 RAM frames, x2 vmemmap bytes, x3 pages owned by the hypervisor, x4 free host table pages.
        Memory = 3,
        /// x1 `Capabilities`, x2 physical address bits, x3 guest IPA bits, x4 VMID bits.
        Platform = 4,
    }
}

bits! {
    /// What the CPUs and the platform can do; all CPUs agree.
    pub struct Capabilities: u64 {
        /// FEAT_S2FWB: stage 2 can force write-back.
        FWB = 0,
        /// `CTR_EL0.DIC`: instruction fetches need no invalidation.
        DIC = 1,
        /// `CTR_EL0.IDC`: instruction fetches need no data clean.
        IDC = 2,
        /// FEAT_MTE2: allocation tags in boot RAM.
        MTE = 3,
        /// FEAT_MTE_PERM: stage 2 can forbid tag access.
        MTE_PERM = 4,
        /// FEAT_LSE: atomic instructions.
        LSE = 5,
        /// FEAT_TLBIRANGE: range invalidation.
        TLBI_RANGE = 6,
        /// The CPU needs every TLB invalidation twice (repeat-TLBI erratum).
        REPEAT_TLBI = 7,
        /// The manifest allows Normal-NC on this platform at all (R04).
        NORMAL_NC = 8,
        /// FEAT_BTI.
        BTI = 9,
        /// FEAT_PAuth.
        PAC = 10,
    }
}

numbers! {
    /// Where a region is in its life.
    pub enum RegionState: u8 {
        /// The host's; nobody has bound it.
        Free = 0,
        /// Bound by one or more VMs, and by the host.
        Shared = 1,
        /// Owned by one VM.
        Donated = 2,
        /// Waiting for its reset contract (R41); bound by nobody, the host included.
        Quarantined = 3,
        /// The reset failed (R42): nobody gets it until the machine restarts.
        Lost = 4,
    }
}

wire! {
    /// One region, as REGION_INFO writes it to the argument page.
    pub struct RegionInfo[96] {
        /// Name from the manifest, UTF-8, zero padded.
        pub name: [u8; 32],
        /// First page.
        pub pfn: u64,
        /// Length in pages.
        pub pages: u64,
        /// `RegionFlags` bits.
        pub flags: u32,
        /// `RegionClass`.
        pub class: u8,
        /// `Modes` bits.
        pub modes: u8,
        /// `MemTypes` bits.
        pub types: u8,
        /// `Perms` bits.
        pub perms: u8,
        /// VMs that may hold it at once.
        pub max_vms: u8,
        /// `BlockSizes` bits.
        pub blocks: u8,
        /// `ResetKind`.
        pub reset: u8,
        /// `RegionState`.
        pub state: u8,
        /// VMs that hold it now.
        pub holders: u8,
        /// Number of DMA stream IDs.
        pub streams: u8,
        /// Zero.
        pub reserved: [u8; 2],
        /// Reason why a quirked entry is blocked, UTF-8, zero padded.
        pub quirk: [u8; 32],
    }
}
