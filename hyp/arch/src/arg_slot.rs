//! The argument page of one CPU: one page of its window, valid for as long as the host has set it.
//!
//! The page is RAM that the host lent and that is pinned, so it changes hands only after
//! [`ArgWindow::hide`]. The tables are those of all CPUs: the page stays shown while the CPU is off.

use core::ptr::NonNull;

use pfnguard_core::addr::Pfn;
use pfnguard_core::machine::ArgWindow;
use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};

use crate::fixmap::{Slots, WindowType};
use crate::stage1::{Access, leaf_bits};
use crate::tlb::El2Tlb;
use crate::walk::PAGE_LEVEL;

/// Words of a page.
const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// The window on the argument page.
#[derive(Debug)]
pub struct ArgSlot<T> {
    tlb: T,
    slot: Slots,
    shown: Option<Pfn>,
}

impl<T: El2Tlb> ArgSlot<T> {
    /// Returns the window that `slot`, which nothing else uses, translates.
    pub(crate) fn new(tlb: T, slot: Slots) -> Self {
        Self { tlb, slot, shown: None }
    }

    /// Returns the address of word number `first` of `count` words.
    #[inline]
    fn words(&self, first: usize, count: usize) -> NonNull<u64> {
        assert!(self.shown.is_some(), "no argument page is shown: hypervisor bug");
        let fits = first <= WORDS && count <= WORDS - first;
        assert!(fits, "words past the argument page: hypervisor bug");
        // SAFETY: inside the page: asserted above.
        unsafe { self.slot.pointer().cast::<u64>().add(first) }
    }
}

fn descriptor(pfn: Pfn) -> u64 {
    pfn.0 << PAGE_SHIFT | leaf_bits(Access::Window(WindowType::Cacheable), PAGE_LEVEL)
}

impl<T: El2Tlb> ArgWindow for ArgSlot<T> {
    fn show(&mut self, pfn: Pfn) {
        self.slot.change(0, 0, descriptor(pfn));
        self.tlb.publish();
        self.shown = Some(pfn);
    }

    fn hide(&mut self) {
        let pfn = self.shown.take().expect("no argument page is shown: hypervisor bug");
        self.slot.change(0, descriptor(pfn), 0);
        self.tlb.invalidate(self.slot.pages(1));
    }

    #[inline]
    fn load(&self, first: usize, words: &mut [u64]) {
        let from = self.words(first, words.len()).as_ptr().cast_const();
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: one of the words of a page that is mapped; others may write it meanwhile.
            *word = unsafe { from.wrapping_add(index).read_volatile() };
        }
    }

    #[inline]
    fn store(&mut self, first: usize, words: &[u64]) {
        let to = self.words(first, words.len()).as_ptr();
        for (index, word) in words.iter().enumerate() {
            // SAFETY: one of the words of a page that is mapped writable; nobody holds a reference.
            unsafe { to.wrapping_add(index).write_volatile(*word) };
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::fixmap::{Window, window_page};
    use crate::stage1::{Bti, El2Config, El2Tables, el2_tables_needed};
    use crate::testing::{Event, Memory, WorstTlb, walk_stage1};

    const CPUS: u64 = 2;
    const FRAME: Pfn = Pfn(0x12_3456);
    const OTHER: Pfn = Pfn(0x65_4321);

    #[test]
    fn a_page_is_seen_from_show_to_hide_and_other_windows_leave_it_alone() {
        let memory = Memory::new(0x4_0000, el2_tables_needed(&[], 0, CPUS));
        let tlb = WorstTlb::new(memory);
        let config = El2Config { map: memory.map(), sections: &[], cpus: CPUS, bti: Bti::Absent };
        // SAFETY: the memory is new, zero, and only these tables'.
        let tables = unsafe { El2Tables::new(config, memory.range(), tlb.clone()) };
        // SAFETY: once.
        let mut windows = unsafe { tables.windows(1) };
        let root = tables.regs(48).ttbr0;
        // The pages stay; dropping the tables would put them on a list.
        std::mem::forget(tables);
        let page = window_page(1) + 511;
        let seen = || walk_stage1(&memory, root, page).map(|found| Pfn(found.pfn));

        windows.arg_page.show(FRAME);
        assert_eq!(seen(), Some(FRAME));
        windows.frames.with_page(OTHER, WindowType::Device, |_| assert_eq!(seen(), Some(FRAME)));
        tlb.events();
        windows.arg_page.hide();
        assert_eq!(seen(), None);
        let gone = pfnguard_core::addr::PfnRange::single(Pfn(page)).unwrap();
        assert_eq!(tlb.events(), [Event::El2(gone)]);
        windows.arg_page.show(OTHER);
        assert_eq!(seen(), Some(OTHER));
    }
}
