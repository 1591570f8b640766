//! Copies of table pages as they were seen last: what has not changed need not be read again.

use crate::memory::{Memory, Page};

/// Copies of some pages.
#[derive(Debug, Default)]
pub struct Shadow {
    pages: Vec<(u64, Box<Page>)>,
    spare: Vec<Box<Page>>,
}

impl Shadow {
    /// Returns the first page whose bytes are not those of its copy.
    pub fn first_changed(&self, memory: &Memory) -> Option<u64> {
        let differs = |(pfn, copy): &&(u64, Box<Page>)| memory.page(*pfn, |page| page != &**copy);
        self.pages.iter().find(differs).map(|(pfn, _)| *pfn)
    }

    /// Copies these pages, and forgets all others.
    pub fn copy(&mut self, memory: &Memory, pages: impl IntoIterator<Item = u64>) {
        self.spare.extend(self.pages.drain(..).map(|(_, copy)| copy));
        for pfn in pages {
            let mut copy = self.spare.pop().unwrap_or_else(|| Box::new([0; _]));
            memory.page(pfn, |page| copy.copy_from_slice(page));
            self.pages.push((pfn, copy));
        }
    }
}
