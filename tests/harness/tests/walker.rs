//! The walker against tables that this test writes itself, descriptor by descriptor.

use std::collections::BTreeMap;

use pfnguard_core::addr::{Pfn, PfnRange};

use pfnguard_harness::memory::Memory;
use pfnguard_harness::walker::{Attrs, Encoding, Stage2, Tree, Type, pages_at};
use proptest::prelude::*;

/// Memory for tables.
const MEMORY: (u64, u64) = (0x1000, 64);
const ENCODING: Encoding = Encoding { fwb: true, mte_perm: true };
/// Bits of a leaf that never change: valid, access flag, inner shareable.
const LEAF: u64 = 1 | 1 << 10 | 0b11 << 8;

/// Tables under construction.
struct Tables {
    memory: Memory,
    next: u64,
    stage2: Stage2,
    root_level: u8,
    /// What was mapped, by its first page: pages, first frame, attributes.
    leaves: BTreeMap<u64, (u64, u64, Attrs)>,
}

/// `VTCR_EL2` for some input bits: T0SZ, SL0, PS of 48 bits.
fn vtcr(bits: u64, root_level: u8) -> u64 {
    let sl0 = if root_level == 0 { 0b10 } else { 0b01 };
    (64 - bits) | sl0 << 6 | 0b101 << 16
}

impl Tables {
    fn new(bits: u64, root_level: u8) -> Self {
        let range = PfnRange::new(Pfn(MEMORY.0), MEMORY.1).unwrap();
        let memory = Memory::take(range);
        range.iter().for_each(|pfn| memory.clear(pfn.0));
        let roots = if root_level == 1 && bits > 39 { 1 << (bits - 39) } else { 1 };
        let stage2 =
            Stage2 { vttbr: MEMORY.0 << 12, vtcr: vtcr(bits, root_level), encoding: ENCODING };
        Self { memory, next: MEMORY.0 + roots, stage2, root_level, leaves: BTreeMap::new() }
    }

    /// Maps one leaf of `level` around `page`, unless something is in the way.
    fn map(&mut self, page: u64, level: u8, pfn: u64, (bits, attrs): (u64, Attrs)) {
        let (first, pfn) = (page & !(pages_at(level) - 1), pfn & !(pages_at(level) - 1));
        let index = page / pages_at(self.root_level);
        let (mut table, mut index) = (MEMORY.0 + index / 512, index % 512);
        for above in self.root_level..level {
            let slot = usize::try_from(index).unwrap();
            let found = self.memory.page(table, |page| page[slot]);
            table = match found & 3 {
                3 => found >> 12,
                0 if self.next < MEMORY.0 + MEMORY.1 => {
                    self.next += 1;
                    let made = self.next - 1;
                    self.memory.page_mut(table, |page| page[slot] = made << 12 | 3);
                    made
                }
                _ => return,
            };
            index = page / pages_at(above + 1) % 512;
        }
        let slot = usize::try_from(index).unwrap();
        let kind = if level == 3 { 2 } else { 0 };
        if self.memory.page(table, |page| page[slot]) == 0 {
            let descriptor = pfn << 12 | bits | kind | LEAF;
            self.memory.page_mut(table, |page| page[slot] = descriptor);
            self.leaves.insert(first, (pages_at(level), pfn, attrs));
        }
    }

    fn expected(&self, page: u64) -> Option<(u64, Attrs)> {
        let (first, (pages, pfn, attrs)) = self.leaves.range(..=page).next_back()?;
        (page < first + pages).then_some((pfn + (page - first), *attrs))
    }

    fn tree(&self) -> Tree<Attrs> {
        let mut tree = Tree::default();
        self.stage2.walk(&self.memory, &mut tree).unwrap();
        tree
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        self.memory.give_back();
    }
}

/// Attributes with their bits, from the tables of the Arm ARM (D8.4.2, D8.6.5).
fn attrs() -> impl Strategy<Value = (u64, Attrs)> {
    let types = prop_oneof![
        Just((0b0001, Type::Device, false)),
        Just((0b0101, Type::NormalNc, false)),
        Just((0b0110, Type::WriteBack, false)),
        Just((0b0111, Type::AsStage1, false)),
        Just((0b1110, Type::WriteBack, true)),
        Just((0b1111, Type::AsStage1, true)),
    ];
    (types, any::<bool>(), any::<bool>()).prop_map(|((bits, mem, no_tags), write, exec)| {
        let exec = exec && matches!(mem, Type::WriteBack | Type::AsStage1);
        let s2ap = if write { 0b11 } else { 0b01 };
        let xn: u64 = if exec { 0b00 } else { 0b10 };
        let attrs = Attrs { mem, read: true, write, exec, no_tags };
        (bits << 2 | s2ap << 6 | xn << 53, attrs)
    })
}

/// Input bits and the level of the root.
fn shapes() -> impl Strategy<Value = (u64, u8)> {
    prop_oneof![Just((39, 1)), Just((40, 1)), Just((36, 1)), Just((48, 0)), Just((44, 0))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn both_walks_find_what_was_written_and_nothing_else(
        (bits, root_level) in shapes(),
        leaves in proptest::collection::vec(
            (0..6u64, 0..3u64, 0..5u64, 1..=3u8, 0..1u64 << 36, attrs()),
            1..40,
        ),
    ) {
        let mut tables = Tables::new(bits, root_level);
        let limit = 1u64 << (bits - 12);
        for (gib, piece, page, level, pfn, attrs) in leaves {
            let page = (gib * limit / 6 / pages_at(1) * pages_at(1)) + piece * 512 + page;
            tables.map(page % limit, level, pfn, attrs);
        }
        let tree = tables.tree();
        let pages: u64 = tree.runs.iter().map(|run| run.pages).sum();
        prop_assert_eq!(pages, tables.leaves.values().map(|leaf| leaf.0).sum::<u64>());
        let edges = tables.leaves.iter().flat_map(|(first, (pages, ..))| {
            [first.saturating_sub(1), *first, first + pages - 1, first + pages]
        });
        for page in edges.chain([0, limit - 1, limit]) {
            let expected = tables.expected(page).filter(|_| page < limit);
            prop_assert_eq!(tables.stage2.translate(&tables.memory, page), Ok(expected));
            let run = tree.runs.iter().find(|run| run.range().contains(&page));
            let found = run.map(|run| (run.pfn + (page - run.first), run.attrs));
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_descriptor_that_no_table_holds_is_an_error(
        bit in prop_oneof![Just(8u64), Just(10), Just(48), Just(51), Just(52), Just(53), Just(63)],
        page in 0..512u64,
    ) {
        let mut tables = Tables::new(39, 1);
        let attrs = Attrs {
            mem: Type::WriteBack, read: true, write: true, exec: true, no_tags: false,
        };
        tables.map(page, 3, 7, (0b0110 << 2 | 0b11 << 6, attrs));
        let table = tables.next - 1;
        let slot = usize::try_from(page).unwrap();
        tables.memory.page_mut(table, |table| table[slot] ^= 1 << bit);
        let malformed = tables.stage2.walk(&tables.memory, &mut Tree::default()).unwrap_err();
        prop_assert_eq!((malformed.level, malformed.first), (3, page));
        prop_assert!(tables.stage2.translate(&tables.memory, page).is_err());
    }
}
