//! Memory of this program, to lend and to give.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use pfnguard_shared::device::RamArgs;
use pfnguard_shared::request::Perms;

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// Anonymous memory.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<std::ffi::c_void>,
    size: usize,
}

impl Memory {
    /// Maps `size` bytes.
    pub fn new(size: u64) -> nix::Result<Self> {
        Self::with(size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps `size` bytes with a protection.
    pub fn with(size: u64, protection: ProtFlags) -> nix::Result<Self> {
        let size = usize::try_from(size).map_err(|_| nix::Error::EINVAL)?;
        let length = NonZeroUsize::new(size).ok_or(nix::Error::EINVAL)?;
        // SAFETY: a new mapping where the kernel has room.
        let start = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { start, size })
    }

    /// Returns where it begins.
    pub fn address(&self) -> u64 {
        u64::try_from(self.start.addr().get()).unwrap_or(u64::MAX)
    }

    /// Returns what lending all of it at `guest` takes.
    pub fn loan(&self, guest: u64) -> RamArgs {
        let size = u64::try_from(self.size).unwrap_or(u64::MAX);
        let perms = Perms::READ.with(Perms::WRITE).raw().into();
        RamArgs { address: self.address(), size, guest, perms, ..RamArgs::zeroed() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}
