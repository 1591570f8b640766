//! This CPU's argument page: the host may rewrite it at any moment, so every item is copied once
//! and the copy is judged.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::HcallError;
use crate::hypervisor::Cpu;
use crate::machine::{ArgWindow, Machine};

/// Proof that a CPU has an argument page: from ARG_PAGE_SET to ARG_PAGE_CLEAR it is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArgPage(());

impl ArgPage {
    /// Returns the argument page of `cpu`. It is pinned: it stays the hypervisor's to access.
    ///
    /// # Errors
    /// `NoArgPage` where the host set none.
    pub fn of<M: Machine>(cpu: &Cpu<M>) -> Result<Self, HcallError> {
        cpu.arg_page.map(|_| Self(())).ok_or(HcallError::NoArgPage)
    }

    /// Copies item number `index` of an array that starts at byte `base`.
    #[inline]
    pub fn read<M: Machine, T: FromBytes + IntoBytes>(
        self,
        cpu: &Cpu<M>,
        base: usize,
        index: usize,
    ) -> T {
        let mut item = T::new_zeroed();
        let words = <[u64]>::mut_from_bytes(item.as_mut_bytes()).expect(WHOLE_WORDS);
        cpu.local.load(first_word::<T>(base, index), words);
        item
    }

    /// Writes item number `index` of an array that starts at byte `base`.
    #[inline]
    pub fn write<M: Machine, T: IntoBytes + Immutable>(
        self,
        cpu: &mut Cpu<M>,
        base: usize,
        index: usize,
        item: &T,
    ) {
        let words = <[u64]>::ref_from_bytes(item.as_bytes()).expect(WHOLE_WORDS);
        cpu.local.store(first_word::<T>(base, index), words);
    }
}

/// All structures in the page are made of words, and start at one.
const WHOLE_WORDS: &str = "an item that is not made of words: hypervisor bug";

fn first_word<T>(base: usize, index: usize) -> usize {
    let start = size_of::<T>().wrapping_mul(index).wrapping_add(base);
    start / size_of::<u64>()
}
