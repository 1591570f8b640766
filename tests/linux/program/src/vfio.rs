//! A PCI function through vfio: `Documentation/driver-api/vfio.rst`, with one container a group.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::libc::c_ulong;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1V2: c_ulong = 3;

/// `struct vfio_region_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

/// `VFIO_REGION_INFO_FLAG_MMAP`.
const FLAG_MMAP: u32 = 1 << 2;

mod raw {
    use nix::libc::{c_char, c_int};

    use super::RegionInfo;

    nix::ioctl_write_int_bad!(set_iommu, nix::request_code_none!(b';', 102));
    nix::ioctl_write_ptr_bad!(set_container, nix::request_code_none!(b';', 104), c_int);
    nix::ioctl_write_ptr_bad!(get_device, nix::request_code_none!(b';', 106), c_char);
    nix::ioctl_readwrite_bad!(region_info, nix::request_code_none!(b';', 108), RegionInfo);
    nix::ioctl_none_bad!(reset, nix::request_code_none!(b';', 111));
}

/// A function that vfio drives.
#[derive(Debug)]
pub struct Function {
    device: File,
    // Both keep the device's memory enabled.
    _group: File,
    _container: File,
}

/// A mapping of a BAR, or of part of one.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<std::ffi::c_void>,
    /// Bytes.
    pub size: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

impl Function {
    /// Opens the function in `slot`, `0000:00:01.0`, which vfio-pci drives.
    pub fn open(slot: &str) -> io::Result<Self> {
        let link = fs::read_link(format!("/sys/bus/pci/devices/{slot}/iommu_group"))?;
        let number = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let container = open("/dev/vfio/vfio")?;
        let group = open(&format!("/dev/vfio/{number}"))?;
        // SAFETY: both files are open, and the call reads one number.
        unsafe { raw::set_container(group.as_raw_fd(), &container.as_raw_fd()) }?;
        let kind = i32::try_from(TYPE1V2).expect("a small number");
        // SAFETY: the file is open, and the call takes a number.
        unsafe { raw::set_iommu(container.as_raw_fd(), kind) }?;
        let name = std::ffi::CString::new(slot)?;
        // SAFETY: the file is open, and the call reads a string that ends.
        let device = unsafe { raw::get_device(group.as_raw_fd(), name.as_ptr()) }?;
        // SAFETY: the call has made this file for the caller alone.
        let device = File::from(unsafe { OwnedFd::from_raw_fd(device) });
        Ok(Self { device, _group: group, _container: container })
    }

    fn region(&self, bar: u8) -> io::Result<RegionInfo> {
        let argsz = u32::try_from(size_of::<RegionInfo>()).expect("a small structure");
        let mut info = RegionInfo { argsz, index: bar.into(), ..RegionInfo::default() };
        // SAFETY: the file is open, and the structure says how long it is.
        unsafe { raw::region_info(self.device.as_raw_fd(), &mut info) }?;
        Ok(info)
    }

    /// Maps a BAR, to load from and to store to.
    pub fn map(&self, bar: u8, size: u64) -> io::Result<Mapping> {
        self.map_at(bar, size, None, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps a BAR at an address whose mapping it replaces, or where there is room.
    pub fn map_at(
        &self,
        bar: u8,
        size: u64,
        address: Option<NonZeroUsize>,
        protection: ProtFlags,
    ) -> io::Result<Mapping> {
        let info = self.region(bar)?;
        if info.flags & FLAG_MMAP == 0 {
            return Err(io::Error::other(format!("BAR{bar} cannot be mapped: {info:?}")));
        }
        let length = usize::try_from(size).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or_else(|| io::Error::other("an empty BAR"))?;
        let offset = i64::try_from(info.offset).map_err(io::Error::other)?;
        let fixed = if address.is_some() { MapFlags::MAP_FIXED } else { MapFlags::empty() };
        let flags = MapFlags::MAP_SHARED | fixed;
        // SAFETY: a new mapping; what it replaces is the caller's, who has no reference into it.
        let start =
            unsafe { mmap(address, length, protection, flags, self.device.as_fd(), offset) }?;
        Ok(Mapping { start, size: length.get() })
    }

    /// Has vfio load the first word of a BAR.
    pub fn load(&self, bar: u8) -> io::Result<u32> {
        let mut word = [0; 4];
        self.device.read_exact_at(&mut word, self.region(bar)?.offset)?;
        Ok(u32::from_le_bytes(word))
    }

    /// Has vfio store the first word of a BAR.
    pub fn store(&self, bar: u8, word: u32) -> io::Result<()> {
        self.device.write_all_at(&word.to_le_bytes(), self.region(bar)?.offset)
    }

    /// Resets the function.
    pub fn reset(&self) -> nix::Result<()> {
        // SAFETY: the file is open, and the call takes nothing.
        unsafe { raw::reset(self.device.as_raw_fd()) }.map(drop)
    }
}

impl Mapping {
    /// Returns where it begins.
    pub fn address(&self) -> u64 {
        u64::try_from(self.start.addr().get()).expect("64-bit addresses")
    }

    /// Loads the first word.
    pub fn load(&self) -> u32 {
        // SAFETY: the mapping is there, and aligned; a device may answer anything.
        unsafe { self.start.cast::<u32>().read_volatile() }
    }
}

/// `device_status` of virtio's common configuration (Virtio 1.2, 4.1.4.3).
const DEVICE_STATUS: usize = 0x14;

impl Mapping {
    /// Has the kernel read the first word, and write it to a file.
    pub fn write_to(&self, path: &str) -> nix::Result<()> {
        let file = File::create(path).map_err(|_| nix::Error::EIO)?;
        // SAFETY: the mapping is there; what it holds is the kernel's to read, this program has no reference to it.
        let written = unsafe { nix::libc::write(file.as_raw_fd(), self.start.as_ptr(), 4) };
        nix::Error::result(written).map(drop)
    }

    /// Resets the virtio device whose common configuration this is (Virtio 1.2, 2.4).
    pub fn reset_virtio(&self) {
        assert!(DEVICE_STATUS < self.size);
        // SAFETY: the byte is in the mapping.
        let status = unsafe { self.start.cast::<u8>().add(DEVICE_STATUS) };
        // SAFETY: the mapping is there; a device may do with the store what it likes.
        unsafe { status.write_volatile(0) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into a device's memory.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}
