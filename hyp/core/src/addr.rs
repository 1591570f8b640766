//! Addresses and ranges: numbers with a type and a unit.

use core::fmt;

use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};

/// First page number past the 52-bit physical address space (Arm ARM, FEAT_LPA).
pub const PFN_LIMIT: u64 = 1 << (52 - PAGE_SHIFT);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

number!(
    /// A physical address in bytes.
    PhysAddr
);
number!(
    /// A physical page frame number.
    Pfn
);
number!(
    /// An intermediate physical page number: a guest's view of a page frame.
    IpaPfn
);

impl PhysAddr {
    /// Returns the frame that holds this byte.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }

    /// Returns the distance in bytes from the start of the frame.
    pub fn offset(self) -> usize {
        usize::try_from(self.0).map_or(0, |addr| addr % PAGE_SIZE)
    }
}

impl Pfn {
    /// Returns the address of the frame's first byte, or `None` past the 64-bit space.
    pub const fn base(self) -> Option<PhysAddr> {
        match self.0.checked_mul(1 << PAGE_SHIFT) {
            Some(addr) => Some(PhysAddr(addr)),
            None => None,
        }
    }
}

macro_rules! range {
    ($(#[$doc:meta])* $name:ident of $number:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            start: $number,
            pages: u64,
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "pages {}..{}", self.start, self.end())
            }
        }

        impl $name {
            /// Returns the range of `pages` pages from `start`, or `None` where it is empty or
            /// ends past the 52-bit address space.
            pub const fn new(start: $number, pages: u64) -> Option<Self> {
                match start.0.checked_add(pages) {
                    Some(end) if pages > 0 && end <= PFN_LIMIT => Some(Self { start, pages }),
                    Some(_) | None => None,
                }
            }

            /// Returns the range of one page, or `None` past the 52-bit address space.
            pub const fn single(page: $number) -> Option<Self> {
                Self::new(page, 1)
            }

            /// Returns the first page.
            pub const fn start(&self) -> $number {
                self.start
            }

            /// Returns the length in pages; never 0.
            pub const fn pages(&self) -> u64 {
                self.pages
            }

            /// Returns the first page past the range.
            pub const fn end(&self) -> $number {
                // Wraps nowhere: `new` refuses what ends past the address space.
                $number(self.start.0.wrapping_add(self.pages))
            }

            /// Returns whether `page` lies in the range.
            pub const fn contains(&self, page: $number) -> bool {
                self.start.0 <= page.0 && page.0 < self.end().0
            }

            /// Returns whether all of `other` lies in the range.
            pub const fn contains_range(&self, other: &Self) -> bool {
                self.offset_of(other).is_some()
            }

            /// Returns how many pages into the range `other` starts, or `None` where not all of
            /// it lies in the range.
            #[inline]
            pub const fn offset_of(&self, other: &Self) -> Option<u64> {
                match other.start.0.checked_sub(self.start.0) {
                    Some(before) => match self.pages.checked_sub(before) {
                        Some(left) if other.pages <= left => Some(before),
                        Some(_) | None => None,
                    },
                    None => None,
                }
            }

            /// Returns whether the two ranges share a page.
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.start.0 < other.end().0 && other.start.0 < self.end().0
            }

            /// Returns the pages that both ranges share, or `None`.
            pub fn intersection(&self, other: &Self) -> Option<Self> {
                let start = self.start.max(other.start);
                let end = self.end().min(other.end());
                end.0.checked_sub(start.0).and_then(|pages| Self::new(start, pages))
            }

            /// Returns every page in ascending order.
            pub fn iter(&self) -> impl DoubleEndedIterator<Item = $number> + use<> {
                (self.start.0..self.end().0).map($number)
            }
        }
    };
}

range!(
    /// A non-empty range of physical page frames within the 52-bit space.
    PfnRange of Pfn
);
range!(
    /// A non-empty range of intermediate physical pages within the 52-bit space.
    IpaRange of IpaPfn
);

impl PfnRange {
    /// Returns the range with `pfn` at its end, or `None` where that is not the next page.
    pub fn extended_by(&self, pfn: Pfn) -> Option<Self> {
        Self::new(self.start, self.pages + 1).filter(|longer| longer.end().0 == pfn.0 + 1)
    }

    /// Returns the naturally aligned block of `pages` pages (a power of two) around `pfn`, or
    /// `None` past the address space.
    pub fn aligned_around(pfn: Pfn, pages: u64) -> Option<Self> {
        Self::new(Pfn(pfn.0 & !(pages - 1)), pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_frame_and_an_offset() {
        for (addr, pfn, offset) in [(0, 0, 0), (0xfff, 0, 0xfff), (0x1_2abc, 0x12, 0xabc)] {
            assert_eq!((PhysAddr(addr).pfn(), PhysAddr(addr).offset()), (Pfn(pfn), offset));
        }
    }

    #[test]
    fn empty_and_wrapping_ranges_do_not_exist() {
        assert_eq!(PfnRange::new(Pfn(1), 0), None);
        assert_eq!(PfnRange::new(Pfn(u64::MAX), 1), None);
        assert_eq!(PfnRange::new(Pfn(PFN_LIMIT - 1), 2), None);
        assert!(PfnRange::new(Pfn(PFN_LIMIT - 1), 1).is_some());
    }

    #[test]
    fn an_intersection_is_what_both_contain() {
        let low = PfnRange::new(Pfn(0), 10).unwrap();
        let high = PfnRange::new(Pfn(8), 10).unwrap();
        assert_eq!(low.intersection(&high), PfnRange::new(Pfn(8), 2));
        assert_eq!(low.intersection(&PfnRange::new(Pfn(10), 1).unwrap()), None);
    }
}
