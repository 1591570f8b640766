//! Function ids of the SMCCC vendor-specific hypervisor range, and the service's identity.

/// UID of pfnguard's host interface, as four registers of the SMCCC `UID` call:
/// 6f8d1a3e-94c2-4b57-a0e1-70666e677564 (the last six bytes spell `pfngud`).
pub const HOST_UID: [u32; 4] = [0x3e1a_8d6f, 0x574b_c294, 0x6670_e1a0, 0x6475_676e];
/// UID that a guest reads: the one that stock Linux guests look for (KVM's vendor UID,
/// 28b46fb6-2ec5-11e9-a9ca-4b564d003a74).
pub const GUEST_UID: [u32; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];

numbers! {
    /// Calls of the host kernel. "page" arguments are page frame numbers; every range is at most
    /// `MAX_RANGE_PAGES` long unless the call says otherwise.
    pub enum HostFunction: u32 {
        /// SMCCC: x0..x3 the service's UID.
        Uid = 0x8600_ff01,
        /// SMCCC: x0 the ABI's major version, x1 the minor.
        Revision = 0x8600_ff03,
        /// x1 `InfoSelector`. Returns x1..x4 as the selector documents.
        Info = 0xc600_0100,
        /// x1 region index. Writes a `RegionInfo` to the argument page; returns x1 first page, x2 pages.
        RegionInfo = 0xc600_0101,
        /// x1 page, shared with the hypervisor. Makes it this CPU's argument page and pins it.
        ArgPageSet = 0xc600_0102,
        /// Forgets this CPU's argument page and unpins it.
        ArgPageClear = 0xc600_0103,
        /// x1 CPU index. Returns x1 first page, x2 pages of that CPU's trace ring, readable by the host.
        TraceInfo = 0xc600_0104,
        /// x1 page, x2 count. Lets the hypervisor access host pages.
        HostShareHyp = 0xc600_0110,
        /// x1 page, x2 count. Takes that back; pinned pages are busy.
        HostUnshareHyp = 0xc600_0111,
        /// x1 VM (not a protected one), x2 page, x3 IPA page, x4 count, x5 `Perms`. The guest borrows
        /// host pages.
        HostShareGuest = 0xc600_0112,
        /// x1 VM, x2 page, x3 IPA page, x4 count. The host takes them back.
        HostUnshareGuest = 0xc600_0113,
        /// x1 VM, x2 page, x3 IPA page, x4 count. Ownership moves to the guest.
        HostDonateGuest = 0xc600_0114,
        /// x1 VM (being torn down), x2 page, x3 count. Pages come back, zeroed if protected.
        HostReclaimGuest = 0xc600_0115,
        /// x1 `ContractFlags`, x2 vCPUs, x3 first page and x4 pages of table memory. Returns x1 VM.
        VmCreate = 0xc600_0120,
        /// x1 VM, x2 page, x3 count. Donates more table memory.
        VmPoolAdd = 0xc600_0121,
        /// x1 VM. Switches MTE on; refused after the first bind (R21) or run.
        VmEnableMte = 0xc600_0122,
        /// x1 VM. No vCPU runs from here on; guest translations go; pages wait for reclaim.
        VmTeardown = 0xc600_0123,
        /// x1 VM, torn down and empty. Gives one table page back: x1 page, x2 pages still held.
        /// Repeat until x2 is 0; the VM number is free then.
        VmFree = 0xc600_0124,
        /// x1 VM, x2 vCPU, x3 entry point, x4 value of the guest's x0. Only a vCPU that never ran; of a
        /// protected VM only vCPU 0, before anything ran.
        VcpuInit = 0xc600_0125,
        /// x1 VM, x2 vCPU, x3 value that completes an MMIO read. Returns x1 `ExitReason`, x2..x4 facts.
        VcpuRun = 0xc600_0126,
        /// x1 VM, x2 vCPU, x3 register 0..=30. Returns x1 its value. Not for protected VMs.
        VcpuGetReg = 0xc600_0127,
        /// x1 VM, x2 vCPU, x3 register 0..=30, x4 value. Of a protected VM only vCPU 0, before anything
        /// ran.
        VcpuSetReg = 0xc600_0128,
        /// x1 items (1..=64) in the argument page: requests in, decisions out. Changes nothing else.
        PfnmapCheck = 0xc600_0130,
        /// x1 the first eight bytes of a `Request`, little-endian, x2 page, x3 IPA page, x4 pages (any
        /// length). Announces a region for a VM.
        PfnmapBind = 0xc600_0131,
        /// x1 VM, x2 IPA page of a binding. Installs its stage-2 entries now.
        PfnmapMap = 0xc600_0132,
        /// x1 VM, x2 IPA page of a binding. Returns x1 `RegionState` that the region is in afterwards.
        /// Refused for what was donated to a protected VM: its teardown ends that.
        PfnmapUnbind = 0xc600_0133,
        /// x1 region index, in quarantine. Reports that its device was reset (`External`). Returns x1
        /// `RegionState`.
        PfnmapReset = 0xc600_0134,
        /// x1 VM, x2 IPA page (of a protected VM only in a binding). Returns x1 `PAR_EL1` of `AT S12E1R`
        /// through a write-back stage 1.
        PfnmapProbe = 0xc600_0135,
        /// x1 VM. Writes a migration descriptor to the argument page; returns x1 its bytes.
        MigrateExport = 0xc600_0140,
        /// Judges the descriptor in the argument page; each item's verdict is written in place.
        /// Returns x1 items that fail here, x2 missing `Capabilities`.
        MigrateCheck = 0xc600_0141,
    }
}

numbers! {
    /// Calls of a guest. The first group are the calls that stock Linux guests make under pKVM.
    pub enum GuestFunction: u32 {
        /// SMCCC: x0..x3 the UID that Linux looks for.
        Uid = 0x8600_ff01,
        /// x0..x3 a bitmap of the guest functions of this service that exist.
        Features = 0x8600_0000,
        /// x0 granule in bytes of MEM_SHARE.
        HypMeminfo = 0xc600_0002,
        /// x1 IPA of a page. The guest lends its page to the host.
        MemShare = 0xc600_0003,
        /// x1 IPA of a page. The guest takes it back.
        MemUnshare = 0xc600_0004,
        /// x1 `InfoSelector`: the guest reads the manifest's hash and the platform's abilities.
        Info = 0xc600_0100,
        /// x1 IPA page, x2 pages. Returns x1 `Perms` in bits 7:0, `MemType` in 15:8, `Promise` bits in
        /// 31:16; x2 pages from the first one on that it holds for (R23).
        Query = 0xc600_0180,
        /// x1..x3 values. Exits to the host with `ExitReason::Yield` and these values.
        Yield = 0xc600_0181,
    }
}

impl HostFunction {
    /// Number of functions.
    pub const COUNT: usize = Self::ALL.len();
}
