//! Table memory of guests, exactly: which tables exist, which a mapping makes, which go.
//!
//! A table of level 1 is the root, one of level 2 resolves 1 GiB, one of level 3 resolves 2 MiB. So
//! a mapped page whose 2 MiB have no table is part of a block, and where its 1 GiB has none, of a
//! 1 GiB block.

use std::ops::Range;

use pfnguard_shared::manifest::BlockSizes;

use crate::Refused;
use crate::machine::count;
use crate::refusal::no_tables;
use crate::state::{Tables, Vm};

/// Pages that a table of level 3 resolves, or a block of level 2 maps.
pub(crate) const PIECE: u64 = 512;
/// Pages that a table of level 2 resolves, or a block of level 1 maps.
pub(crate) const GIB: u64 = 512 * PIECE;
const ROOT: (u8, u64) = (1, 0);

/// A mapping that is about to be made.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub ipa: Range<u64>,
    /// Frame number minus intermediate page number, wrapping.
    pub offset: u64,
    /// Block sizes that may be used; 1 GiB only together with 2 MiB.
    pub blocks: BlockSizes,
}

impl Mapping {
    /// Parts that lie in one GiB each.
    fn parts(&self) -> impl Iterator<Item = Range<u64>> {
        let Range { start, end } = self.ipa;
        let firsts = (start / GIB..end.div_ceil(GIB)).map(|gib| gib * GIB);
        firsts.map(move |first| first.max(start)..(first + GIB).min(end))
    }

    /// Whether `part` is one block of `size` pages.
    fn is_block(&self, part: &Range<u64>, size: u64) -> bool {
        let whole = part.start.is_multiple_of(size) && part.end - part.start == size;
        whole && self.allows(size)
    }

    /// Whether frames and pages are aligned alike, and the blocks allowed.
    pub(crate) fn allows(&self, size: u64) -> bool {
        let two = BlockSizes::BLOCK_2M;
        let needed = if size == GIB { two.with(BlockSizes::BLOCK_1G) } else { two };
        self.offset.is_multiple_of(size) && self.blocks.contains(needed)
    }

    /// First pages of the 2 MiB of `part` that are mapped page by page.
    fn paged(&self, part: &Range<u64>) -> impl Iterator<Item = u64> {
        let blocks = self.allows(PIECE);
        let Range { start, end } = *part;
        let pieces = (start / PIECE..end.div_ceil(PIECE)).map(|piece| piece * PIECE);
        pieces.filter(move |first| !blocks || *first < start || first + PIECE > end)
    }

    /// How many there are.
    fn count_paged(&self, part: &Range<u64>) -> u64 {
        let touched = part.end.div_ceil(PIECE) - part.start / PIECE;
        let whole = (part.end / PIECE).saturating_sub(part.start.div_ceil(PIECE));
        if self.allows(PIECE) { touched - whole } else { touched }
    }
}

impl Tables {
    /// The root table and a pool of the other pages.
    pub(crate) fn of(frames: Range<u64>) -> Self {
        let free = frames.end - frames.start - 1;
        Self { frames: frames.collect(), live: [ROOT].into(), free }
    }

    pub(crate) fn add(&mut self, frames: Range<u64>) {
        self.free += frames.end - frames.start;
        self.frames.extend(frames);
    }

    /// How many tables `mapping` makes; nothing is mapped in its range.
    pub(crate) fn missing(&self, mapping: &Mapping) -> u64 {
        mapping.parts().map(|part| self.missing_in(mapping, &part)).sum()
    }

    fn missing_in(&self, mapping: &Mapping, part: &Range<u64>) -> u64 {
        if self.live.contains(&gib_table(part)) {
            let absent = mapping.paged(part).filter(|first| !self.live.contains(&(3, *first)));
            return count(absent.count());
        }
        if mapping.is_block(part, GIB) { 0 } else { 1 + mapping.count_paged(part) }
    }

    /// Makes the tables of `mapping`.
    pub(crate) fn make(&mut self, mapping: &Mapping) {
        for part in mapping.parts() {
            let gib = gib_table(&part);
            if !self.live.contains(&gib) && mapping.is_block(&part, GIB) {
                continue;
            }
            self.insert(gib);
            mapping.paged(&part).for_each(|first| self.insert((3, first)));
        }
    }

    /// Frees the tables of pages that `ipa` covers whole; those of 1 GiB stay.
    pub(crate) fn unmap(&mut self, ipa: &Range<u64>) {
        let (first, past) = (ipa.start.next_multiple_of(PIECE), ipa.end / PIECE * PIECE);
        if first < past {
            let covered = self.live.range((3, first)..(3, past));
            let covered: Vec<_> = covered.copied().collect();
            covered.iter().for_each(|table| self.remove(table));
        }
    }

    /// Frees all of them.
    pub(crate) fn destroy(&mut self) {
        self.free += count(self.live.len());
        self.live.clear();
    }

    /// Makes a table, unless it exists.
    pub(crate) fn insert(&mut self, table: (u8, u64)) {
        if self.live.insert(table) {
            self.free = self.free.checked_sub(1).expect("tables were counted");
        }
    }

    fn remove(&mut self, table: &(u8, u64)) {
        self.live.remove(table);
        self.free += 1;
    }
}

fn gib_table(part: &Range<u64>) -> (u8, u64) {
    (2, part.start / GIB * GIB)
}

impl Vm {
    /// The tables that splitting the blocks that reach out of `ipa` takes. Only RAM is unmapped in
    /// part, and its largest block is 2 MiB; but a refusal may count those of a region first.
    pub(crate) fn cut_blocks(&self, ipa: &Range<u64>) -> Vec<(u8, u64)> {
        let mut cut = Vec::new();
        for (edge, page) in [(ipa.start, ipa.start), (ipa.end, ipa.end - 1)] {
            for (level, size) in [(2, GIB), (3, PIECE)] {
                let table = (level, page / size * size);
                let block = self.pages.contains_key(&page) && !self.tables.live.contains(&table);
                if !edge.is_multiple_of(size) && block && !cut.contains(&table) {
                    cut.push(table);
                }
            }
        }
        cut
    }

    /// Announced bindings keep the tables that installing them may take (R30): nothing else takes
    /// them.
    pub(crate) fn check_tables(&self, needed: u64) -> Result<(), Refused> {
        let reserved: u64 = self.bindings.values().filter_map(|binding| binding.reserved).sum();
        let left = self.tables.free - reserved;
        if needed > left { Err(no_tables(needed, left)) } else { Ok(()) }
    }
}
