//! Walking tables and storing leaves.
//!
//! aarch64-paging makes, links and frees the tables. Leaves are stored here: its interface walks
//! from the root for every change, which is several hundred instructions where a fault or a
//! donation has one page to change, and it cannot stop at, skip or count what is absent.

use core::fmt;
use core::ptr::NonNull;

use aarch64_paging::descriptor::Stage2Attributes;
use pfnguard_core::addr::{Pfn, PhysAddr};
use pfnguard_shared::PAGE_SHIFT;

use crate::pool::{PhysMap, to_usize};

/// Level of page descriptors.
pub(crate) const PAGE_LEVEL: u32 = 3;
/// Level of 2 MiB descriptors.
pub(crate) const MID_LEVEL: u32 = 2;
/// Level of 1 GiB descriptors.
pub(crate) const BIG_LEVEL: u32 = 1;
/// Address bits that one level resolves with a 4 KiB granule.
const BITS_PER_LEVEL: u32 = 9;
/// Mask of an index in a table.
const INDEX: u64 = (1 << BITS_PER_LEVEL) - 1;
/// Descriptor is valid (Arm ARM, D8.3).
const VALID: u64 = 1 << 0;
/// Descriptor is a table (levels 0 to 2) or a page (level 3).
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Size of a descriptor.
const DESCRIPTOR_BYTES: u64 = 8;
/// Output address, 48 bits.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Returns the number of pages that one descriptor at `level` (0 to 3) covers.
#[inline]
pub(crate) const fn pages_at(level: u32) -> u64 {
    1u64.wrapping_shl(shift_at(level))
}

/// Returns log2 of [`pages_at`]. Wrapping: this is on the way of every walk, and levels are small.
#[inline]
pub(crate) const fn shift_at(level: u32) -> u32 {
    PAGE_LEVEL.wrapping_sub(level).wrapping_mul(BITS_PER_LEVEL)
}

/// A descriptor and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Level of its table.
    pub(crate) level: u32,
    /// The descriptor.
    pub(crate) bits: u64,
    /// First page it covers.
    pub(crate) first: u64,
    /// Where it lies.
    pub(crate) slot: PhysAddr,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptor {:#x} of page {:#x} at level {}", self.bits, self.first, self.level)
    }
}

impl Entry {
    /// Returns the number of pages it covers.
    pub(crate) const fn pages(&self) -> u64 {
        pages_at(self.level)
    }

    /// Returns the first page past it.
    pub(crate) const fn end(&self) -> u64 {
        self.first + self.pages()
    }

    /// Returns whether it translates: a page or a block.
    pub(crate) const fn is_leaf(&self) -> bool {
        self.is_valid() && !self.is_table()
    }

    /// Returns whether it leads to another table.
    pub(crate) const fn is_table(&self) -> bool {
        self.level < PAGE_LEVEL && self.bits & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE
    }

    /// Returns whether a table walker uses it.
    pub(crate) const fn is_valid(&self) -> bool {
        self.bits & VALID != 0
    }

    /// Returns its output address.
    pub(crate) const fn output(&self) -> PhysAddr {
        PhysAddr(self.bits & ADDRESS)
    }

    /// Returns it as a run of one leaf.
    pub(crate) const fn run(&self) -> Run {
        Run { first: self.first, past: self.end(), stride: self.pages() }
    }

    /// Returns the attribute bits of a stage-2 leaf, without the one that tells pages from blocks.
    pub(crate) fn stage2_attributes(&self) -> Stage2Attributes {
        let bits = self.bits & !ADDRESS & !TABLE_OR_PAGE;
        Stage2Attributes::from_bits_retain(to_usize(bits))
    }
}

/// A walker of one set of tables: finds descriptors, and stores leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    map: PhysMap,
    root: PhysAddr,
    level: u32,
    /// [`shift_at`] of `level`: every walk begins with it.
    shift: u32,
}

impl Walk {
    /// Returns a walker of the tables below `root`, a table of `level`.
    ///
    /// # Safety
    ///
    /// While the walker is used, `root` and every table below it must be mapped through `map` and
    /// written by nobody else.
    pub(crate) const unsafe fn new(map: PhysMap, root: PhysAddr, level: u32) -> Self {
        Self { map, root, level, shift: shift_at(level) }
    }

    /// Returns the last descriptor on the way to `page`: a leaf, or an invalid one.
    #[inline]
    pub(crate) fn find(&self, page: u64) -> Entry {
        self.above(page, PAGE_LEVEL)
    }

    /// Returns the descriptor of the root table for `page`.
    #[inline(always)]
    pub(crate) fn root_entry(&self, page: u64) -> Entry {
        let offset = (page.wrapping_shr(self.shift) & INDEX) * DESCRIPTOR_BYTES;
        let slot = PhysAddr(self.root.0 | offset);
        let first = page & u64::MAX.wrapping_shl(self.shift);
        Entry { level: self.level, bits: self.descriptor(slot).get(0), first, slot }
    }

    /// Returns the descriptor for `page` at `level`, or the last one on the way to it.
    #[inline]
    pub(crate) fn above(&self, page: u64, level: u32) -> Entry {
        let (mut table, mut at, mut shift) = (self.root, self.level, self.shift);
        loop {
            // Tables are page aligned: the index goes into zero bits.
            let offset = (page.wrapping_shr(shift) & INDEX) * DESCRIPTOR_BYTES;
            let slot = PhysAddr(table.0 | offset);
            let bits = self.descriptor(slot).get(0);
            if at >= level || bits & (VALID | TABLE_OR_PAGE) != VALID | TABLE_OR_PAGE {
                let first = page & u64::MAX.wrapping_shl(shift);
                return Entry { level: at, bits, first, slot };
            }
            table = PhysAddr(bits & ADDRESS);
            at += 1;
            shift = shift.wrapping_sub(BITS_PER_LEVEL);
        }
    }

    /// Returns the first page of `first..past` that has a leaf.
    pub(crate) fn first_leaf(&self, first: u64, past: u64) -> Option<u64> {
        let mut page = first;
        while page < past {
            let entry = self.above(page, MID_LEVEL);
            let end = entry.end().min(past);
            let leaf = self.first_leaf_of(&entry, page, end);
            if leaf.is_some() {
                return leaf;
            }
            page = end;
        }
        None
    }

    /// Returns the first page of `first..past`, which `entry` covers down to level 2, that has a
    /// leaf.
    #[inline(always)]
    pub(crate) fn first_leaf_of(&self, entry: &Entry, first: u64, past: u64) -> Option<u64> {
        if entry.is_table() {
            let pages = self.pages_of(entry, first, past);
            let index = pages.position(|descriptor| descriptor & VALID != 0)?;
            return Some(first + index);
        }
        entry.is_valid().then_some(first)
    }

    /// Returns the first page of `first..past`, which `entry` covers down to level 2, that does
    /// not lead to its frame: the first to `frame`, the others to those that follow.
    #[inline(always)]
    pub(crate) fn first_elsewhere(
        &self,
        entry: &Entry,
        (first, past): (u64, u64),
        frame: Pfn,
    ) -> Option<u64> {
        if entry.is_table() {
            let pages = self.pages_of(entry, first, past);
            let mut expected = frame.0 << PAGE_SHIFT | VALID;
            let index = pages.position(|descriptor| {
                let differs = descriptor & (ADDRESS | VALID) != expected;
                expected += 1 << PAGE_SHIFT;
                differs
            })?;
            return Some(first + index);
        }
        let leads = entry.is_valid() && entry.output().pfn().0 + (first - entry.first) == frame.0;
        (!leads).then_some(first)
    }

    /// Makes `entry`, which is invalid, a block with the given descriptor.
    pub(crate) fn set_block(&self, entry: &Entry, bits: u64) {
        self.descriptor(entry.slot).replace(0, |descriptor| {
            assert!(
                descriptor == 0,
                "a block over descriptor {descriptor:#x} in use: hypervisor bug"
            );
            bits
        });
    }

    /// Makes the descriptors for `first..past` in the level-3 table behind `entry`, all of them
    /// invalid, pages: the first with descriptor `bits`, the others with the frames that follow.
    #[inline(always)]
    pub(crate) fn set_pages(&self, entry: &Entry, first: u64, past: u64, bits: u64) {
        let pages = self.pages_of(entry, first, past);
        let mut bits = bits;
        for index in 0..pages.len {
            pages.replace(index, |descriptor| {
                assert!(
                    descriptor == 0,
                    "a page over descriptor {descriptor:#x} in use: hypervisor bug"
                );
                bits
            });
            bits += 1 << PAGE_SHIFT;
        }
    }

    /// Makes a leaf invalid.
    pub(crate) fn clear(&self, entry: &Entry) {
        self.descriptor(entry.slot).replace(0, |_| 0);
    }

    /// Makes the descriptors for `first..past` in the level-3 table behind `entry` invalid, and
    /// returns the first and the past page of those that were valid.
    pub(crate) fn clear_pages(&self, entry: &Entry, first: u64, past: u64) -> Option<(u64, u64)> {
        let pages = self.pages_of(entry, first, past);
        let mut cleared = None;
        for index in 0..pages.len {
            pages.replace(index, |descriptor| {
                if descriptor & VALID != 0 {
                    let page = first + index;
                    cleared = Some((cleared.map_or(page, |(low, _)| low), page + 1));
                }
                0
            });
        }
        cleared
    }

    /// Returns the descriptors for `first..past` in the level-3 table behind `entry`.
    #[inline]
    fn pages_of(&self, entry: &Entry, first: u64, past: u64) -> Descriptors {
        let table = self.map.pointer(entry.output()).cast::<u64>();
        // SAFETY: the index is below 512, so the descriptor is inside the table page.
        let start = unsafe { table.add(to_usize(first & INDEX)) };
        Descriptors { start, len: past - first }
    }

    /// Returns the descriptor at `slot`.
    #[inline]
    fn descriptor(&self, slot: PhysAddr) -> Descriptors {
        Descriptors { start: self.map.pointer(slot).cast(), len: 1 }
    }
}

/// Descriptors of one table.
#[derive(Clone, Copy, Debug)]
struct Descriptors {
    start: NonNull<u64>,
    len: u64,
}

impl Descriptors {
    #[inline]
    fn get(&self, index: u64) -> u64 {
        // SAFETY: below `len`, hence inside the table page.
        let descriptor = unsafe { self.start.add(to_usize(index)) };
        // SAFETY: tables are mapped and aligned (`Walk::new`).
        unsafe { descriptor.read_volatile() }
    }

    /// Stores what `new` makes of a descriptor.
    #[inline]
    fn replace(&self, index: u64, new: impl FnOnce(u64) -> u64) {
        let bits = new(self.get(index));
        // SAFETY: below `len`, hence inside the table page.
        let descriptor = unsafe { self.start.add(to_usize(index)) };
        // SAFETY: tables are mapped, aligned and written by nobody else (`Walk::new`).
        unsafe { descriptor.write_volatile(bits) };
    }

    /// Returns the index of the first descriptor that `wanted` accepts.
    #[inline]
    fn position(&self, mut wanted: impl FnMut(u64) -> bool) -> Option<u64> {
        (0..self.len).find(|index| wanted(self.get(*index)))
    }
}

/// Leaves that went, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First page of the first leaf.
    pub(crate) first: u64,
    /// First page past the last leaf.
    pub(crate) past: u64,
    /// Pages of the smallest leaf.
    pub(crate) stride: u64,
}
