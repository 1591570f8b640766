//! VMs and vCPUs: contracts, states, exits, promises.

bits! {
    /// What a VM declares at creation and cannot change afterwards (MTE: until the first bind).
    pub struct ContractFlags: u32 {
        /// RAM is donated, registers are hidden from the host.
        PROTECTED = 0,
        /// The guest uses memory tagging.
        MTE = 1,
        /// The guest runs programs from every PFNMAP region it binds (R22).
        GENERAL_PURPOSE = 2,
    }
}

numbers! {
    /// Life of a VM.
    pub enum VmState: u8 {
        /// Runs and binds.
        Active = 1,
        /// Torn down; waits for its pages to be reclaimed.
        Dying = 2,
    }
}

numbers! {
    /// Why VCPU_RUN returned, in x1.
    pub enum ExitReason: u64 {
        /// A physical interrupt is pending for the host.
        Interrupt = 0,
        /// The guest waits for an interrupt (WFI).
        Wait = 1,
        /// Access of a VM that is not protected to an address nothing maps. x2 IPA, x3 `MmioAccess` bits with the access size in
        /// bytes in bits 15:8, x4 the value of a store. Run again with x3 the value of a load.
        Mmio = 2,
        /// An access that cannot be emulated: no syndrome, an instruction fetch, a forbidden one, or any
        /// of a protected VM to an address nothing maps. x2 IPA.
        Fault = 3,
        /// Guest call `Yield`. x2..x4 its arguments.
        Yield = 4,
        /// The guest asked PSCI to power off or reset. x2 the function id.
        Power = 5,
        /// The guest did what this hypervisor does not offer. x2 the exception class.
        Unsupported = 6,
    }
}

bits! {
    /// Low bits of x3 of an `Mmio` exit.
    pub struct MmioAccess: u64 {
        /// A store; otherwise a load.
        WRITE = 0,
        /// The loaded value is sign-extended.
        SIGNED = 1,
    }
}

numbers! {
    /// State of a RAM frame, as facts of a refusal show it.
    pub enum PageState: u8 {
        /// Not RAM, or RAM that was never the host's.
        NoPage = 0,
        /// The host's alone.
        HostOwned = 1,
        /// The host's, lent to the hypervisor.
        HostSharedHyp = 2,
        /// The host's, lent to one or more guests.
        HostSharedGuest = 3,
        /// The hypervisor's.
        HypOwned = 4,
        /// A guest's alone.
        GuestOwned = 5,
        /// A guest's, lent to the host.
        GuestSharedHost = 6,
        /// The hypervisor's, readable by the host (trace rings).
        HypReadable = 7,
    }
}

bits! {
    /// What a guest was promised about a page (R23), in bits 31:16 of x1 of QUERY; bits 7:0 hold
    /// the `Perms`, bits 15:8 the `MemType`.
    pub struct Promise: u16 {
        /// Something is mapped or bound here.
        PRESENT = 0,
        /// It is a PFNMAP region, not RAM.
        PFNMAP = 1,
        /// The host has access too.
        SHARED = 2,
        /// Tags work.
        TAGS = 3,
        /// Exclusives work.
        EXCLUSIVES = 4,
        /// Atomics work.
        ATOMICS = 5,
    }
}
