//! A call that is about to be made, with all that it needs beside registers.

use arrayvec::ArrayVec;
use pfnguard_host_interface::{Pages, Pfn};
use pfnguard_shared::request::Request;
use pfnguard_shared::{HostFunction, PAGE_SHIFT, PAGE_SIZE};
use zerocopy::IntoBytes;

use crate::frames;

/// Requests that a batch has.
const ITEMS: usize = 4;
/// Pages that guests get, at most at once, and from the first page that calls name on.
const MOST: u64 = 512;
const GIVEN: u64 = 1024;

/// A call that is about to be made.
pub struct Drawn {
    /// `x0..=x7`.
    pub regs: [u64; 8],
    /// Whether an interrupt is pending meanwhile.
    pub interrupt: bool,
    /// Requests that are written to the argument page.
    pub requests: ArrayVec<Request, ITEMS>,
    /// Whether the argument page keeps what is in it.
    pub keep: bool,
    /// A word of the argument page that is changed.
    pub change: Option<(u64, u64)>,
}

impl Drawn {
    /// Without any extras.
    pub fn plain(regs: [u64; 8]) -> Self {
        Self { regs, interrupt: false, requests: ArrayVec::new(), keep: false, change: None }
    }

    /// With an interrupt pending.
    pub fn interrupted(regs: [u64; 8]) -> Self {
        Self { interrupt: true, ..Self::plain(regs) }
    }

    /// Whether it calls `function`.
    pub fn is(&self, function: HostFunction) -> bool {
        self.regs[0] == u64::from(function.raw())
    }

    /// Pages from `prey` on that a guest may get by it.
    pub fn given(&self, prey: u64) -> core::ops::Range<u64> {
        let gives = [HostFunction::HostShareGuest, HostFunction::HostDonateGuest];
        let [_, _, page, _, count, ..] = self.regs;
        let sane = (prey..prey + GIVEN).contains(&page) && count <= MOST;
        match gives.iter().any(|function| self.is(*function)) && sane {
            true => page..page + count,
            false => 0..0,
        }
    }

    /// Pages that came back by it.
    pub fn returned(&self, answer: &[u64; 8]) -> Option<Pages> {
        let [status, page, ..] = *answer;
        if status != 0 {
            None
        } else if self.is(HostFunction::HostReclaimGuest) {
            Some(Pages::new(Pfn(self.regs[2]), self.regs[3]))
        } else if self.is(HostFunction::VmFree) {
            Some(Pages::one(Pfn(page)))
        } else {
            None
        }
    }

    /// Whether the call reads or writes the argument page.
    pub fn uses_arg_page(&self) -> bool {
        [
            HostFunction::RegionInfo,
            HostFunction::PfnmapCheck,
            HostFunction::MigrateExport,
            HostFunction::MigrateCheck,
        ]
        .iter()
        .any(|function| self.is(*function))
    }

    /// Writes the argument page.
    pub fn fill(&self, page: u64) {
        let address = page << PAGE_SHIFT;
        if !self.keep {
            frames::fill(Pages::one(Pfn(page)), 0);
        }
        let words = self.requests.iter().flat_map(|request| request.as_bytes().chunks_exact(8));
        for (index, word) in (0u64..).zip(words) {
            let word = word.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            frames::write(address + index * 8, word);
        }
        if let Some((index, value)) = self.change {
            let index = index % (u64::try_from(PAGE_SIZE).unwrap_or(8) / 8);
            frames::write(address + index * 8, value);
        }
    }
}
