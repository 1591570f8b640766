//! Numbers with a type and a unit.

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl From<$name> for u64 {
            fn from(number: $name) -> Self {
                Self::from(number.0)
            }
        }
    };
}

number!(
    /// A physical page frame number.
    Pfn(u64)
);
number!(
    /// An intermediate physical page number: a page as the guest numbers it.
    IpaPfn(u64)
);
number!(
    /// Number of a VM.
    VmId(u16)
);
number!(
    /// Number of a virtual CPU within its VM, from 0.
    VcpuId(u16)
);
number!(
    /// Index of a region of the manifest, from 0.
    RegionIndex(u16)
);

/// A range of physical pages. Not checked here: the hypervisor judges what it is handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// First page.
    pub start: Pfn,
    /// Length in pages.
    pub count: u64,
}

impl Pages {
    /// Returns the range of `count` pages from `start`.
    pub const fn new(start: Pfn, count: u64) -> Self {
        Self { start, count }
    }

    /// Returns the range of one page.
    pub const fn one(page: Pfn) -> Self {
        Self::new(page, 1)
    }
}
