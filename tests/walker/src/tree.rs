//! Tables, read whole.

use std::ops::Range;

use crate::Visitor;

/// A run of pages with equal attributes that lead to adjacent frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<A> {
    /// First input page.
    pub first: u64,
    /// Length.
    pub pages: u64,
    /// First frame.
    pub pfn: u64,
    /// Attributes.
    pub attrs: A,
}

impl<A> Run<A> {
    /// Returns the input pages.
    pub fn range(&self) -> Range<u64> {
        self.first..self.first + self.pages
    }
}

/// Tables, read whole.
#[derive(Clone, Debug)]
pub struct Tree<A> {
    /// Every table: level, first input page, frame.
    pub tables: Vec<(u8, u64, u64)>,
    /// Every translation, ascending and coalesced.
    pub runs: Vec<Run<A>>,
}

impl<A> Default for Tree<A> {
    fn default() -> Self {
        Self { tables: Vec::new(), runs: Vec::new() }
    }
}

impl<A: Copy + PartialEq> Visitor<A> for Tree<A> {
    fn table(&mut self, level: u8, first: u64, pfn: u64) {
        self.tables.push((level, first, pfn));
    }

    fn leaf(&mut self, first: u64, pages: u64, pfn: u64, attrs: A) {
        match self.runs.last_mut() {
            Some(run)
                if run.first + run.pages == first
                    && run.pfn + run.pages == pfn
                    && run.attrs == attrs =>
            {
                run.pages += pages;
            }
            Some(_) | None => self.runs.push(Run { first, pages, pfn, attrs }),
        }
    }
}
