//! Random tables, half of them spoilt, and addresses in and around what they map.

use fastrand::Rng;
use pfnguard_walker::{Encoding, Stage2, pages_at};

use crate::{Arena, FIRST, FRAMES, Query};

/// Frames of one set of tables. The first 16 are its root, concatenated where it has to be.
const SET: u64 = 64;
const ROOTS: u64 = 16;
/// Leaves of a set, spoilt descriptors, and addresses that are asked for beside the leaves' own.
const LEAVES: usize = 24;
const SPOILT: usize = 8;
const OTHERS: usize = 24;
/// Bits of a leaf that never change: valid, access flag, inner shareable.
const LEAF: u64 = 1 | ACCESSED | 0b11 << 8;
/// The access flag.
const ACCESSED: u64 = 1 << 10;
/// `S2AP[0]`.
const READABLE: u64 = 1 << 6;
/// `VTCR_EL2`: RES1, and walks through write-back, inner-shareable memory.
const VTCR: u64 = 1 << 31 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8;

/// Tables and questions.
#[derive(Debug)]
pub struct Random {
    /// The tables.
    pub arena: Arena,
    /// The questions.
    pub queries: Vec<Query>,
    rng: Rng,
}

/// What tables can be on a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `HCR_EL2.FWB`.
    pub fwb: bool,
    /// Bits of a physical address, 42 at least.
    pub pa_bits: u64,
}

/// One set under construction.
struct Set {
    stage2: Stage2,
    root: u64,
    root_level: u8,
    bits: u64,
    next: u64,
    /// Descriptors that were written: where, at which level, from which page on.
    written: Vec<(u64, usize, u8, u64)>,
}

impl Random {
    /// Fills the arena.
    pub fn new(seed: u64, limits: Limits) -> Self {
        let mut random =
            Self { arena: Arena::default(), queries: Vec::new(), rng: Rng::with_seed(seed) };
        let sets = u64::try_from(FRAMES).expect("64 bits") / SET;
        (0..sets).for_each(|set| random.set(FIRST + set * SET, limits));
        random
    }

    fn set(&mut self, root: u64, limits: Limits) {
        // As the hypervisor has them for 36 to 48 bits of address: bits, level of the root.
        let shapes = [(36, 1), (39, 1), (40, 1), (42, 1), (44, 0), (48, 0)];
        let count = shapes.iter().filter(|(bits, _)| *bits <= limits.pa_bits).count();
        let (bits, root_level) = shapes[self.rng.usize(..count)];
        let sl0 = if root_level == 0 { 0b10 } else { 0b01 };
        // PS of 40, 42, 44 and 48 bits: a greater one than the CPU's means the CPU's.
        let sizes = [40, 42, 44, 48].iter().filter(|size| **size <= limits.pa_bits).count();
        let ps = 2 + self.rng.u64(..u64::try_from(sizes).expect("four"));
        let vtcr = VTCR | (64 - bits) | sl0 << 6 | ps << 16;
        let encoding = Encoding { fwb: limits.fwb, mte_perm: false };
        let stage2 = Stage2 { vttbr: root << 12, vtcr, encoding };
        let next = root + ROOTS;
        let mut set = Set { stage2, root, root_level, bits, next, written: Vec::new() };
        (0..LEAVES).for_each(|_| self.leaf(&mut set));
        let sound = (root / SET).is_multiple_of(2) || set.written.is_empty();
        if !sound {
            (0..SPOILT).for_each(|_| self.spoil(&set));
        }
        self.ask(&set, sound);
    }

    /// Maps one leaf, unless something is in the way or the set is full.
    fn leaf(&mut self, set: &mut Set) {
        let level = self.rng.u8(1..=3);
        let page = self.page(set) & !(pages_at(level) - 1);
        let (mut table, mut index) = (set.root, page / pages_at(set.root_level));
        (table, index) = (table + index / 512, index % 512);
        for above in set.root_level..level {
            let slot = usize::try_from(index).expect("64 bits");
            let first = page & !(pages_at(above) - 1);
            table = match self.arena.page_mut(table)[slot] {
                0 if set.next < set.root + SET => {
                    self.arena.page_mut(table)[slot] = set.next << 12 | 3;
                    set.written.push((table, slot, above, first));
                    set.next += 1;
                    set.next - 1
                }
                found if found & 3 == 3 => found >> 12,
                _ => return,
            };
            index = page / pages_at(above + 1) % 512;
        }
        let slot = usize::try_from(index).expect("64 bits");
        if self.arena.page_mut(table)[slot] == 0 {
            let descriptor = self.descriptor(level, set.stage2.encoding.fwb);
            self.arena.page_mut(table)[slot] = descriptor;
            set.written.push((table, slot, level, page));
        }
    }

    /// A page, mostly near others.
    fn page(&mut self, set: &Set) -> u64 {
        let pages = 1 << (set.bits - 12);
        match self.rng.u8(..4) {
            0 => self.rng.u64(..pages),
            1 => self.rng.u64(..4) * pages_at(1) % pages,
            _ => {
                (self.rng.u64(..2) * pages_at(1) + self.rng.u64(..3) * 512 + self.rng.u64(..4))
                    % pages
            }
        }
    }

    /// Attributes from the tables of the Arm ARM (D8.4.2, D8.6.5), and a frame within 40 bits.
    fn descriptor(&mut self, level: u8, fwb: bool) -> u64 {
        let types: &[u64] =
            if fwb { &[0b0001, 0b0101, 0b0110, 0b0111] } else { &[1, 0b0101, 0b1111] };
        let memory = types[self.rng.usize(..types.len())];
        let cacheable = memory & 0b0111 > 0b0101;
        let xn = if cacheable && self.rng.bool() { 0 } else { 0b10 };
        let s2ap = if self.rng.bool() { 0b11 } else { 0b01 };
        let pfn = self.rng.u64(..1 << 28) & !(pages_at(level) - 1);
        let kind = if level == 3 { 2 } else { 0 };
        pfn << 12 | memory << 2 | s2ap << 6 | xn << 53 | kind | LEAF
    }

    /// Changes a descriptor: a bit of it, or all of it, or what it is.
    fn spoil(&mut self, set: &Set) {
        let (table, slot, ..) = set.written[self.rng.usize(..set.written.len())];
        let (bit, kind, word) = (self.rng.u32(..64), self.rng.u64(..4), self.rng.u64(..));
        let somewhere = (set.root + self.rng.u64(..SET)) << 12;
        let descriptor = &mut self.arena.page_mut(table)[slot];
        let spoilt = match self.rng.u8(..4) {
            0 | 1 => *descriptor ^ 1 << bit,
            2 => *descriptor & !3 | kind,
            // Within the arena, in case it is a table.
            _ if word & 3 == 3 => somewhere | word & 0xfff0_0000_0000_0fff,
            _ => word,
        };
        // QEMU 10.0 aborts where `AT` meets a leaf without permission to read.
        *descriptor = if spoilt & ACCESSED != 0 { spoilt | READABLE } else { spoilt };
    }

    /// Asks for the ends of what each descriptor covers, for their neighbours, and for others.
    fn ask(&mut self, set: &Set, sound: bool) {
        let limit = 1 << (set.bits - 12);
        let mut pages = vec![0, limit - 1, limit];
        for &(_, _, level, first) in &set.written {
            pages.extend([first.saturating_sub(1), first, first + pages_at(level) - 1]);
        }
        pages.extend((0..OTHERS).map(|_| self.page(set)));
        let stage2 = set.stage2;
        for page in pages {
            let (ipa, cacheable) = (page << 12 | self.rng.u64(..0x1000), self.rng.bool());
            self.queries.push(Query { stage2, ipa, cacheable, sound });
        }
    }
}
