//! The walker of page tables beside CPUs that walk the same tables.
//!
//! [`Random`] writes tables as a hypervisor would, then spoils some descriptors. Each [`Query`] asks
//! for one address; a CPU answers with `PAR_EL1` after `AT S12E1R`, and [`judge`] holds that against
//! what the walker says. The walker is stricter than a CPU: what it refuses, a CPU may accept, and
//! [`strictness`] is the list of those cases.

#![forbid(unsafe_code)]

mod judge;
pub mod qemu;
mod random;
#[cfg(feature = "unicorn")]
pub mod unicorn;

pub use judge::{Answer, Fault, Verdict, judge, strictness};
pub use random::{Limits, Random};

use std::cell::Cell;

use pfnguard_walker::{Memory, Page, Stage2, WORDS};

/// Frame of the first table.
pub const FIRST: u64 = 0x4_1000;
/// Frames of tables.
pub const FRAMES: usize = 0x1000;

/// The frames that hold tables.
#[derive(Debug)]
pub struct Arena {
    pages: Vec<Page>,
    left: Cell<bool>,
}

/// What a CPU is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// The tables.
    pub stage2: Stage2,
    /// The address.
    pub ipa: u64,
    /// `HCR_EL2.DC`: what stage 1, which is off, makes of it is write-back, not Device.
    pub cacheable: bool,
    /// Whether nothing in these tables is spoilt.
    pub sound: bool,
}

impl Default for Arena {
    fn default() -> Self {
        Self { pages: vec![[0; WORDS]; FRAMES], left: Cell::new(false) }
    }
}

impl Arena {
    /// Returns the frame `pfn`, which is one of the arena's.
    fn page_mut(&mut self, pfn: u64) -> &mut Page {
        let index = usize::try_from(pfn - FIRST).expect("64 bits");
        &mut self.pages[index]
    }

    /// Returns all bytes, as they lie in memory from [`FIRST`] on.
    pub fn bytes(&self) -> Vec<u8> {
        self.pages.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Forgets, and returns, whether a walk has left the arena since the last call.
    fn was_left(&self) -> bool {
        self.left.take()
    }
}

impl Memory for Arena {
    fn page<R>(&self, pfn: u64, look: impl FnOnce(&Page) -> R) -> R {
        let index = pfn.checked_sub(FIRST).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.pages.get(index)) {
            Some(page) => look(page),
            None => {
                self.left.set(true);
                look(&[0; WORDS])
            }
        }
    }
}
