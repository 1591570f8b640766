//! Descriptors and the tables that hold them (Arm ARM, D8.3; 4 KiB granule).

use std::ops::Range;

use crate::memory::PAGE_SHIFT;
use crate::violation::Translation;

/// Level of tables whose descriptors are pages.
pub(crate) const PAGE_LEVEL: u32 = 3;
const BITS_PER_LEVEL: u32 = 9;
const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Output address, 48 bits.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// `MemAttr` of stage 2: bits 5:2.
const MEMATTR_SHIFT: u32 = 2;
/// `S2AP` of stage 2, set for what is allowed; bit 7 of stage 1, set for read-only.
const AP: u64 = 0b11 << 6;
/// Access flag.
const AF: u64 = 1 << 10;
/// Execute-never, both bits.
const XN: u64 = 0b11 << 53;
/// Software's own.
const SOFTWARE: u64 = 0b1111 << 55;

/// A table that a walker can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// What it translates for.
    pub(crate) translation: Translation,
    /// Page of the root table.
    pub(crate) root: u64,
    /// Level.
    pub(crate) level: u32,
    /// First input page.
    pub(crate) first: u64,
}

/// What a descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Invalid,
    /// A translation to these frames.
    Leaf(Range<u64>),
    /// The page of the next table.
    Table(u64),
}

/// How a valid descriptor differs from the valid one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Not, or it allows more.
    Harmless,
    /// It allows less.
    Weakened,
    /// It needs break-before-make.
    NeedsBreak,
}

/// Returns the pages that a descriptor of `level` covers.
pub(crate) fn pages_at(level: u32) -> u64 {
    1 << (PAGE_LEVEL.saturating_sub(level) * BITS_PER_LEVEL)
}

/// Decodes a descriptor of a table of `level`.
pub(crate) fn kind(level: u32, bits: u64) -> Kind {
    let output = (bits & ADDRESS) >> PAGE_SHIFT;
    match (level, bits & (VALID | TABLE_OR_PAGE)) {
        (0..PAGE_LEVEL, 0b11) => Kind::Table(output),
        (PAGE_LEVEL, 0b11) | (1 | 2, 0b01) => {
            let first = output & !(pages_at(level) - 1);
            Kind::Leaf(first..first + pages_at(level))
        }
        _ => Kind::Invalid,
    }
}

/// Returns whether stage-2 attributes let an owner have lines in the caches. `MemAttr` 0b00xx is
/// Device, 0bxx01 Non-cacheable, with and without FEAT_S2FWB.
pub(crate) fn is_cacheable(bits: u64) -> bool {
    let attr = bits >> MEMATTR_SHIFT & 0b1111;
    attr >> 2 != 0 && attr & 0b11 != 0b01
}

impl Table {
    /// Returns the input pages of the descriptor at address `slot`.
    pub(crate) fn input(&self, slot: u64) -> Range<u64> {
        let pages = pages_at(self.level);
        let first = self.first + (slot >> 3 & 0x1ff) * pages;
        first..first + pages
    }

    /// Compares two valid descriptors of this table.
    pub(crate) fn change(&self, old: u64, new: u64) -> Change {
        let rights = AP | XN;
        if (old ^ new) & !(rights | AF | SOFTWARE) != 0 {
            return Change::NeedsBreak;
        }
        let less_access = match self.translation {
            Translation::El2 => new & !old & AP,
            Translation::Stage2 { .. } => old & !new & AP,
        };
        match less_access | (new & !old & XN) {
            0 => Change::Harmless,
            _ => Change::Weakened,
        }
    }
}

/// Returns the level of the root table of stage 1 and the number of its pages, by `TCR_EL2`.
pub(crate) fn stage1_root(tcr: u64) -> (u32, u64) {
    let bits = 64 - u32::try_from(tcr & 0x3f).unwrap_or(16);
    let levels = bits.saturating_sub(PAGE_SHIFT).div_ceil(BITS_PER_LEVEL);
    ((PAGE_LEVEL + 1).saturating_sub(levels), 1)
}

/// Returns the level of the root tables of stage 2 and how many lie behind each other, by
/// `VTCR_EL2`.
pub(crate) fn stage2_root(vtcr: u64) -> (u32, u64) {
    let bits = 64 - u32::try_from(vtcr & 0x3f).unwrap_or(16);
    let level = match vtcr >> 6 & 0b11 {
        0 => 2,
        1 => 1,
        2 => 0,
        _ => PAGE_LEVEL,
    };
    let pages = 1u64 << bits.saturating_sub(PAGE_SHIFT).min(52);
    (level, pages.div_ceil(pages_at(level) * 512).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_follow_from_the_registers() {
        assert_eq!(stage1_root(16), (0, 1));
        assert_eq!(stage1_root(25), (1, 1));
        // 40 bits from level 1: two tables behind each other. 48 bits from level 0: one.
        assert_eq!(stage2_root(1 << 6 | 24), (1, 2));
        assert_eq!(stage2_root(2 << 6 | 16), (0, 1));
        assert_eq!(stage2_root(1 << 6 | 25), (1, 1));
    }

    #[test]
    fn the_same_bits_are_a_table_above_and_a_page_below() {
        assert_eq!(kind(2, 0x4000_0003), Kind::Table(0x4_0000));
        assert_eq!(kind(3, 0x4000_0003), Kind::Leaf(0x4_0000..0x4_0001));
        assert_eq!(kind(2, 0x4000_0001), Kind::Leaf(0x4_0000..0x4_0200));
        assert_eq!(kind(3, 0x4000_0001), Kind::Invalid);
        assert_eq!(kind(0, 0x4000_0001), Kind::Invalid);
    }

    #[test]
    fn only_rights_may_change_in_place() {
        let table =
            Table { translation: Translation::Stage2 { vmid: 0 }, root: 0, level: 3, first: 0 };
        let rw = 0x4000_07ff;
        assert_eq!(table.change(rw, rw), Change::Harmless);
        assert_eq!(table.change(rw, rw & !(1 << 7)), Change::Weakened);
        assert_eq!(table.change(rw & !(1 << 7), rw), Change::Harmless);
        assert_eq!(table.change(rw, rw | 1 << 54), Change::Weakened);
        assert_eq!(table.change(rw, rw ^ 1 << 5), Change::NeedsBreak);
        assert_eq!(table.change(rw, rw + 0x1000), Change::NeedsBreak);
    }
}
