//! Physical addresses and ranges, and how a person writes them.

use std::fmt;

use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::manifest::Entry;

/// Bits of a physical address on the largest Arm machine.
pub const ADDRESS_BITS: u32 = 52;
/// Bytes in a page.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;

/// A physical address in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// Returns whether the address is the first byte of a page.
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_BYTES)
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A range of physical addresses; may be empty, may be misaligned, may end past 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysRange {
    /// First byte.
    pub base: PhysAddr,
    /// Length in bytes.
    pub bytes: u64,
}

impl PhysRange {
    /// Returns the range of `bytes` bytes from `base` on.
    pub const fn new(base: u64, bytes: u64) -> Self {
        Self { base: PhysAddr(base), bytes }
    }

    /// Returns the range of a manifest entry.
    pub const fn of(entry: &Entry) -> Self {
        Self::new(entry.base, entry.size)
    }

    /// Returns the address after the last byte; wide enough for every base and length.
    pub fn end(self) -> u128 {
        u128::from(self.base.0) + u128::from(self.bytes)
    }

    /// Returns whether both ranges have a byte in common.
    pub fn overlaps(self, other: Self) -> bool {
        let start = u128::from(self.base.max(other.base).0);
        start < self.end().min(other.end())
    }

    /// Returns whether every byte of `other` lies in this range.
    pub fn contains(self, other: Self) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }

    /// Returns whether the range ends within the physical address space.
    pub fn fits(self) -> bool {
        self.end() <= 1 << ADDRESS_BITS
    }

    /// Returns the smallest range of whole pages around this one, or `None` past 2^64.
    pub fn rounded_to_pages(self) -> Option<Self> {
        let end = u64::try_from(self.end()).ok()?.checked_next_multiple_of(PAGE_BYTES)?;
        let base = self.base.0.checked_sub(self.base.0.checked_rem(PAGE_BYTES)?)?;
        Some(Self::new(base, end.checked_sub(base)?))
    }

    /// Returns what is left of this range without `hole`: at most two ranges.
    pub fn without(self, hole: Self) -> Vec<Self> {
        if !self.overlaps(hole) {
            return vec![self];
        }
        let before = hole.base.0.checked_sub(self.base.0).map(|bytes| Self { bytes, ..self });
        let after = self.end().checked_sub(hole.end()).and_then(|bytes| {
            Some(Self::new(u64::try_from(hole.end()).ok()?, u64::try_from(bytes).ok()?))
        });
        [before, after].into_iter().flatten().filter(|part| part.bytes != 0).collect()
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {:#x})", self.base, self.end())
    }
}

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Writes a number of bytes the short way: `16M`, `4K`, `512`.
pub fn format_bytes(bytes: u64) -> String {
    UNITS
        .iter()
        .map(|&(unit, shift)| (unit, 1u64 << shift))
        .find(|&(_, factor)| bytes != 0 && bytes.is_multiple_of(factor))
        .map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// Reads a number as a person writes it: `4096`, `0x1000`, `4K`, `16M`, `1G`; `_` may separate digits.
pub fn parse_number(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find_map(|&(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let (digits, radix) = match digits.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None => (digits, 10),
    };
    if digits.starts_with(['+', '_']) || digits.ends_with('_') {
        return None;
    }
    u64::from_str_radix(&digits.replace('_', ""), radix).ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (text, value) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("0x80_0000_0000", 0x80_0000_0000),
            ("4K", 4096),
            ("16M", 16 << 20),
            ("1G", 1 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_number(text), Some(value), "{text}");
        }
        for text in ["", "K", "0x", "-1", "+1", "1k", "1.5M", "_1", "1_", "99999999999T", "1 K"] {
            assert_eq!(parse_number(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_survive_their_short_form() {
        for bytes in [0, 1, 512, 4096, 0x3000, 16 << 20, 1 << 30, 3 << 40, u64::MAX] {
            assert_eq!(parse_number(&format_bytes(bytes)), Some(bytes));
        }
    }

    #[test]
    fn a_hole_leaves_the_parts_around_it() {
        let whole = PhysRange::new(0x1000, 0x4000);
        assert_eq!(whole.without(PhysRange::new(0x8000, 0x1000)), [whole]);
        assert_eq!(whole.without(whole), []);
        assert_eq!(
            whole.without(PhysRange::new(0x2000, 0x1000)),
            [PhysRange::new(0x1000, 0x1000), PhysRange::new(0x3000, 0x2000)]
        );
        assert_eq!(whole.without(PhysRange::new(0, 0x2000)), [PhysRange::new(0x2000, 0x3000)]);
    }

    #[test]
    fn the_end_of_the_address_space_does_not_wrap() {
        let last = PhysRange::new(u64::MAX, u64::MAX);
        assert!(!last.fits());
        assert!(!last.overlaps(PhysRange::new(0, 0x1000)));
        assert_eq!(last.rounded_to_pages(), None);
    }
}
