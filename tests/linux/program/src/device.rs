//! `/dev/pfnguard`, call by call.

use std::error::Error;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use pfnguard_lines::Verdict;
use pfnguard_shared::device::{
    BindArgs, CheckArgs, GuestArgs, InfoArgs, RamArgs, RegionArgs, TablesArgs, VmArgs,
};
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::request::Decision;
use pfnguard_shared::trace::RingHeader;
use pfnguard_shared::vm::ContractFlags;

/// The calls as the kernel's own macros number them; the ABI's crate says the same numbers.
mod raw {
    use super::*;

    nix::ioctl_readwrite!(info, 0xb9, 0x00, InfoArgs);
    nix::ioctl_readwrite!(region, 0xb9, 0x01, RegionArgs);
    nix::ioctl_readwrite!(region_reset, 0xb9, 0x02, RegionArgs);
    nix::ioctl_readwrite!(create_vm, 0xb9, 0x03, VmArgs);
    nix::ioctl_readwrite!(add_tables, 0xb9, 0x10, TablesArgs);
    nix::ioctl_readwrite!(enable_mte, 0xb9, 0x11, TablesArgs);
    nix::ioctl_readwrite!(share_ram, 0xb9, 0x12, RamArgs);
    nix::ioctl_readwrite!(unshare_ram, 0xb9, 0x13, RamArgs);
    nix::ioctl_readwrite!(donate_ram, 0xb9, 0x14, RamArgs);
    nix::ioctl_readwrite!(check, 0xb9, 0x20, CheckArgs);
    nix::ioctl_readwrite!(bind, 0xb9, 0x21, BindArgs);
    nix::ioctl_readwrite!(map, 0xb9, 0x22, GuestArgs);
    nix::ioctl_readwrite!(unbind, 0xb9, 0x23, GuestArgs);
    nix::ioctl_readwrite!(probe, 0xb9, 0x24, GuestArgs);
}

/// A call that failed.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    /// `errno`.
    pub errno: nix::Error,
    /// Why, where the hypervisor or the kernel says it.
    pub decision: Decision,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decision.status {
            0 => write!(f, "{}", self.errno),
            _ => write!(f, "{}, {}", self.errno, Verdict::from(self.decision)),
        }
    }
}

impl Error for Failed {}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        Self::other(failed)
    }
}

/// Makes a call that fills in its argument.
macro_rules! call {
    ($call:ident, $file:expr, $args:expr) => {{
        let mut args = $args;
        // SAFETY: the file is open, and the argument has the layout that the call's number names.
        match unsafe { raw::$call($file.as_raw_fd(), &mut args) } {
            Ok(value) => Ok((value, args)),
            Err(errno) => Err(Failed { errno, decision: args.decision }),
        }
    }};
}

/// The device.
#[derive(Debug)]
pub struct Device(File);

/// A VM.
#[derive(Debug)]
pub struct Vm(OwnedFd);

impl Device {
    /// Opens the device.
    pub fn open() -> io::Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open("/dev/pfnguard")?))
    }

    /// Asks what the hypervisor says of itself.
    pub fn info(&self, selector: InfoSelector) -> io::Result<[u64; 4]> {
        self.info_of(selector.raw())
    }

    /// Asks the same by number.
    pub fn info_of(&self, selector: u64) -> io::Result<[u64; 4]> {
        let mut args = InfoArgs { selector, values: [0; 4] };
        // SAFETY: the file is open, and the argument has the layout that the call's number names.
        unsafe { raw::info(self.0.as_raw_fd(), &mut args) }?;
        Ok(args.values)
    }

    /// Asks for a region.
    pub fn region(&self, index: u32) -> Result<RegionArgs, Failed> {
        call!(region, self.0, RegionArgs { index, ..RegionArgs::zeroed() }).map(|(_, args)| args)
    }

    /// Says that a region's device was reset.
    pub fn region_reset(&self, index: u32) -> Result<RegionArgs, Failed> {
        call!(region_reset, self.0, RegionArgs { index, ..RegionArgs::zeroed() })
            .map(|(_, args)| args)
    }

    /// Maps the beginning of a trace ring, as much of it as a header has, and returns the header.
    pub fn ring(&self, offset: u64, protection: ProtFlags) -> nix::Result<RingHeader> {
        let size = NonZeroUsize::new(size_of::<RingHeader>()).ok_or(nix::Error::EINVAL)?;
        let offset = i64::try_from(offset).map_err(|_| nix::Error::EINVAL)?;
        // SAFETY: a new mapping where the kernel has room.
        let start =
            unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, self.0.as_fd(), offset) }?;
        // SAFETY: mapped, and aligned to a page; any bytes are a header.
        let header = unsafe { start.cast::<RingHeader>().read_volatile() };
        // SAFETY: nobody has a reference into it.
        unsafe { munmap(start, size.get()) }?;
        Ok(header)
    }

    /// Makes a VM.
    pub fn create_vm(&self, contract: ContractFlags, tables: u32) -> Result<Vm, Failed> {
        let args = VmArgs { contract: contract.raw(), vcpus: 1, tables, ..VmArgs::zeroed() };
        let (file, _) = call!(create_vm, self.0, args)?;
        // SAFETY: the call has made this file for the caller alone.
        Ok(Vm(unsafe { OwnedFd::from_raw_fd(file) }))
    }
}

impl Vm {
    /// Donates table memory.
    pub fn add_tables(&self, tables: u32) -> Result<(), Failed> {
        call!(add_tables, self.0, TablesArgs { tables, ..TablesArgs::zeroed() }).map(drop)
    }

    /// Lets the guest use memory tagging.
    pub fn enable_mte(&self, tables: u32) -> Result<(), Failed> {
        call!(enable_mte, self.0, TablesArgs { tables, ..TablesArgs::zeroed() }).map(drop)
    }

    /// Lends the caller's pages.
    pub fn share(&self, args: RamArgs) -> Result<(), Failed> {
        call!(share_ram, self.0, args).map(drop)
    }

    /// Takes them back.
    pub fn unshare(&self, guest: u64, size: u64) -> Result<(), Failed> {
        call!(unshare_ram, self.0, RamArgs { guest, size, ..RamArgs::zeroed() }).map(drop)
    }

    /// Gives pages with a copy of the caller's.
    pub fn donate(&self, address: u64, guest: u64, size: u64) -> Result<(), Failed> {
        call!(donate_ram, self.0, RamArgs { address, guest, size, ..RamArgs::zeroed() }).map(drop)
    }

    /// Asks what binding would answer.
    pub fn check(&self, items: &mut [BindArgs]) -> io::Result<()> {
        let address = u64::try_from(items.as_mut_ptr().addr()).expect("64-bit addresses");
        let count = u32::try_from(items.len()).expect("few items");
        let mut args = CheckArgs { items: address, count, reserved: 0 };
        // SAFETY: the file is open, and the argument names `items`, which are borrowed for the call.
        unsafe { raw::check(self.0.as_raw_fd(), &mut args) }?;
        Ok(())
    }

    /// Binds what the caller has mapped.
    pub fn bind(&self, args: BindArgs) -> Result<(), Failed> {
        call!(bind, self.0, args).map(drop)
    }

    /// Installs a binding.
    pub fn map(&self, guest: u64) -> Result<(), Failed> {
        call!(map, self.0, GuestArgs { guest, ..GuestArgs::zeroed() }).map(drop)
    }

    /// Ends a binding; returns the region's state.
    pub fn unbind(&self, guest: u64) -> Result<u64, Failed> {
        call!(unbind, self.0, GuestArgs { guest, ..GuestArgs::zeroed() })
            .map(|(_, args)| args.value)
    }

    /// Returns what the CPU reports of a page of the guest.
    pub fn probe(&self, guest: u64) -> Result<u64, Failed> {
        call!(probe, self.0, GuestArgs { guest, ..GuestArgs::zeroed() }).map(|(_, args)| args.value)
    }
}
