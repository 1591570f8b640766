//! Page frame numbers and runs of them, as a kernel engineer writes them.

use std::fmt;

use pfnguard_shared::PAGE_SHIFT;

/// Number of a page frame, or of a page of a VM's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u64);

impl Pfn {
    /// Returns the address of the page's first byte; wide enough for every number.
    pub fn address(self) -> u128 {
        u128::from(self.0) << PAGE_SHIFT
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// One page or more in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pages {
    first: Pfn,
    last: Pfn,
}

impl Pages {
    /// Returns `count` pages from `first` on, or `None` where that is none or too many.
    pub fn new(first: Pfn, count: u64) -> Option<Self> {
        let last = first.0.checked_add(count.checked_sub(1)?)?;
        // The page behind them has a number too.
        (last < u64::MAX).then_some(Self { first, last: Pfn(last) })
    }

    /// Returns the pages from `first` to the one before `end`, or `None` where there is none.
    pub fn between(first: Pfn, end: Pfn) -> Option<Self> {
        Self::new(first, end.0.checked_sub(first.0)?)
    }

    /// Returns the first page.
    pub fn first(self) -> Pfn {
        self.first
    }

    /// Returns the last page.
    pub fn last(self) -> Pfn {
        self.last
    }

    /// Returns the page behind the last.
    pub fn end(self) -> Pfn {
        Pfn(self.last.0.saturating_add(1))
    }

    /// Returns the number of pages.
    pub fn count(self) -> u64 {
        self.end().0.saturating_sub(self.first.0)
    }

    /// Returns whether `pfn` is among them.
    pub fn contains(self, pfn: Pfn) -> bool {
        self.first <= pfn && pfn <= self.last
    }

    /// Returns whether both have a page in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_pages_is_written_with_its_first_and_its_last() {
        let pages = Pages::new(Pfn(0x10100), 0x100).unwrap();
        assert_eq!(pages.to_string(), "0x10100-0x101ff");
        assert_eq!(Pages::new(Pfn(7), 1).unwrap().to_string(), "0x7");
        assert!(pages.contains(Pfn(0x101ff)) && !pages.contains(Pfn(0x10200)));
        assert_eq!((pages.end(), pages.count()), (Pfn(0x10200), 0x100));
    }

    #[test]
    fn no_run_is_empty_or_ends_past_the_last_number() {
        assert_eq!(Pages::new(Pfn(1), 0), None);
        assert_eq!(Pages::new(Pfn(2), u64::MAX), None);
        assert_eq!(Pages::new(Pfn(0), u64::MAX).map(Pages::count), Some(u64::MAX));
        assert_eq!(Pages::between(Pfn(2), Pfn(2)), None);
    }
}
