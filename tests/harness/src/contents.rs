//! What pages hold: markers that the host and guests leave, so that leaks, missing zeroes and lost
//! contents are seen.

use std::collections::BTreeMap;

use crate::memory::Memory;

/// Markers by page.
#[derive(Debug)]
pub struct Contents {
    memory: Memory,
    markers: BTreeMap<u64, u64>,
    next: u64,
}

/// What every marker begins with: no descriptor, no list of pages looks like this.
const PATTERN: u64 = 0x5eed << 48;

impl Contents {
    /// Returns memory without a marker.
    pub fn new(memory: Memory) -> Self {
        Self { memory, markers: BTreeMap::new(), next: PATTERN }
    }

    /// Marks a page anew.
    pub fn mark(&mut self, pfn: u64) {
        self.next += 1;
        self.memory.mark(pfn, self.next);
        self.markers.insert(pfn, self.next);
    }

    /// Notes that somebody has marked a page.
    pub fn marked(&mut self, pfn: u64, marker: u64) {
        self.markers.insert(pfn, marker);
    }

    /// Forgets a page that was given other contents.
    pub fn forget(&mut self, pfn: u64) {
        self.markers.remove(&pfn);
    }

    /// Returns whether the page holds what was left there, as far as anything was.
    pub fn is_kept(&self, pfn: u64) -> bool {
        self.markers.get(&pfn).is_none_or(|marker| self.memory.is_marked(pfn, *marker))
    }

    /// Returns the first page that does not.
    pub fn first_lost(&self) -> Option<u64> {
        self.markers.keys().copied().find(|&pfn| !self.is_kept(pfn))
    }

    /// Zeroes what was marked.
    pub fn clear(&self) {
        self.markers.keys().for_each(|&pfn| self.memory.mark(pfn, 0));
    }
}
