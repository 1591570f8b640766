//! This CPU's argument page: the host may rewrite it at any moment, so every item is copied once
//! and the copy is judged.

use pfnguard_shared::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::addr::Pfn;
use crate::error::HcallError;
use crate::hypervisor::Cpu;
use crate::machine::{Frames, Machine};

/// The argument page of one CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArgPage(Pfn);

impl ArgPage {
    /// Returns the argument page of `cpu`. It is pinned: it stays the hypervisor's to access.
    ///
    /// # Errors
    /// `NoArgPage` where the host set none.
    pub fn of<M: Machine>(cpu: &Cpu<M>) -> Result<Self, HcallError> {
        cpu.arg_page.map(Self).ok_or(HcallError::NoArgPage)
    }

    /// Copies item number `index` of an array that starts at byte `base`.
    pub fn read<M: Machine, T: FromBytes + IntoBytes>(
        self,
        cpu: &mut Cpu<M>,
        base: usize,
        index: usize,
    ) -> T {
        let mut item = T::new_zeroed();
        cpu.local.read(self.0, offset::<T>(base, index), item.as_mut_bytes());
        item
    }

    /// Copies `items` from byte `base` on.
    pub fn read_all<M: Machine, T: FromBytes + IntoBytes>(
        self,
        cpu: &mut Cpu<M>,
        base: usize,
        items: &mut [T],
    ) {
        cpu.local.read(self.0, base, items.as_mut_bytes());
    }

    /// Writes `items` from byte `base` on.
    pub fn write_all<M: Machine, T: IntoBytes + Immutable>(
        self,
        cpu: &mut Cpu<M>,
        base: usize,
        items: &[T],
    ) {
        cpu.local.write(self.0, base, items.as_bytes());
    }

    /// Writes item number `index` of an array that starts at byte `base`.
    pub fn write<M: Machine, T: IntoBytes + Immutable>(
        self,
        cpu: &mut Cpu<M>,
        base: usize,
        index: usize,
        item: &T,
    ) {
        cpu.local.write(self.0, offset::<T>(base, index), item.as_bytes());
    }
}

fn offset<T>(base: usize, index: usize) -> usize {
    let start = size_of::<T>().checked_mul(index).and_then(|bytes| bytes.checked_add(base));
    let fits =
        |start: &usize| start.checked_add(size_of::<T>()).is_some_and(|end| end <= PAGE_SIZE);
    start.filter(fits).expect("item past the argument page: hypervisor bug")
}
