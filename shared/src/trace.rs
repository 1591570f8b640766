//! The trace ring: typed records that the host maps read-only.
//!
//! Each CPU has a ring of its own: one [`RingHeader`] and then `capacity` records. The hypervisor
//! writes record `sequence % capacity`, then publishes `sequence + 1` in the header. A reader that
//! finds a record's own sequence different from the one it expects was overtaken.

numbers! {
    /// What a record says.
    pub enum TraceKind: u16 {
        /// A host call ended. `a` function id, `b` x1 and `c` x2 of the call.
        HostCall = 1,
        /// A guest call ended. `a` function id, `b` x1, `c` the VM.
        GuestCall = 2,
        /// A BIND was judged, or is the first item that a CHECK refused. `a` the `RequestWord`, `b` PFN, `c` pages.
        Decision = 3,
        /// Pages changed state. `a` first page, `b` pages, `c` old << 8 | new `PageState`, VM in 31:16.
        /// Not written for HostShareHyp and HostUnshareHyp: their HostCall says all of it.
        Ownership = 4,
        /// A region changed state. `a` region index, `b` old << 8 | new `RegionState`, `c` VM.
        Region = 5,
        /// The host touched what is not its own, and got an abort, or ones of a device. `a` IPA, `b` ESR, `c` ELR.
        HostAbort = 6,
        /// An SMC was answered. `a` function id, `b` result.
        Smc = 7,
        /// A system register access or instruction of EL1 was refused. `a` ESR, `b` ELR.
        Trap = 8,
    }
}

wire! {
    /// Start of a ring.
    pub struct RingHeader[64] {
        /// Records written so far; the newest is number `written - 1`.
        pub written: u64,
        /// Records that fit.
        pub capacity: u32,
        /// Bytes in a record.
        pub record_size: u32,
        /// CPU index.
        pub cpu: u32,
        /// Counter frequency in Hz (`CNTFRQ_EL0`).
        pub frequency: u32,
        /// Zero.
        pub reserved: [u64; 5],
    }
}

wire! {
    /// One record.
    pub struct TraceRecord[64] {
        /// Number of this record, from 0.
        pub sequence: u64,
        /// `CNTVCT_EL0` when it was written.
        pub time: u64,
        /// `TraceKind`.
        pub kind: u16,
        /// `Rule`, or 0.
        pub rule: u16,
        /// `Status`.
        pub status: i32,
        /// `Subject` of a refusal's values, which are `b`, requested, and `c`, granted (R34); or 0.
        pub subject: u16,
        /// VM number, or all ones.
        pub vm: u16,
        /// Zero.
        pub reserved: u32,
        /// Depends on `kind`.
        pub a: u64,
        /// Depends on `kind`; of a refusal the requested value.
        pub b: u64,
        /// Depends on `kind`; of a refusal the granted value.
        pub c: u64,
        /// Offending PFN of a refusal, or all ones.
        pub pfn: u64,
    }
}
