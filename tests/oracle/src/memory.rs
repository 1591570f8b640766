//! What is known of the memory that tables lie in.

use std::collections::HashMap;

/// log2 of the bytes of a page.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Descriptors of a table.
pub(crate) const WORDS: u64 = 512;

/// Words that EL2 stored, by page; all others are zero.
#[derive(Debug, Default)]
pub(crate) struct Memory(HashMap<u64, Box<[u64]>>);

/// Returns the page of an address.
pub(crate) const fn page_of(address: u64) -> u64 {
    address >> PAGE_SHIFT
}

/// Returns the index of the word at an address in its page.
fn index(address: u64) -> usize {
    usize::try_from(address >> 3 & (WORDS - 1)).unwrap_or(0)
}

impl Memory {
    /// Returns the word at `address`.
    pub(crate) fn word(&self, address: u64) -> u64 {
        self.0.get(&page_of(address)).map_or(0, |words| words[index(address)])
    }

    /// Stores a word and returns what was there.
    pub(crate) fn store(&mut self, address: u64, value: u64) -> u64 {
        let words = self.0.entry(page_of(address)).or_insert_with(|| vec![0; 512].into());
        std::mem::replace(&mut words[index(address)], value)
    }

    /// Forgets a page: it is somebody else's, or zero.
    pub(crate) fn forget(&mut self, page: u64) {
        self.0.remove(&page);
    }

    /// Returns the words of a page that are not zero, with their addresses.
    pub(crate) fn words(&self, page: u64) -> Vec<(u64, u64)> {
        let Some(words) = self.0.get(&page) else { return Vec::new() };
        let addresses = (page << PAGE_SHIFT..).step_by(8);
        addresses.zip(words.iter().copied()).filter(|(_, word)| *word != 0).collect()
    }
}
