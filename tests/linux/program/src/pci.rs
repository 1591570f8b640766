//! PCI functions as the kernel has enumerated them, in sysfs.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use pfnguard_shared::PAGE_SIZE;

/// Where the kernel lists them.
const DEVICES: &str = "/sys/bus/pci/devices";

/// `IORESOURCE_*` of a BAR (Linux `include/linux/ioport.h`).
mod flags {
    pub const MEMORY: u64 = 0x200;
    pub const PREFETCH: u64 = 0x2000;
    pub const SIXTY_FOUR: u64 = 0x10_0000;
}

/// A memory BAR.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Index.
    pub index: u8,
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    flags: u64,
}

/// A function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Domain, bus, device and function: `0000:00:01.0`.
    pub slot: String,
    vendor: u16,
    device: u16,
    /// Its memory BARs.
    pub bars: Vec<Bar>,
}

/// Returns the functions that vfio-pci drives, in the order of their slots.
pub fn functions() -> io::Result<Vec<Function>> {
    let mut functions = Vec::new();
    for entry in fs::read_dir(DEVICES)? {
        let path = entry?.path();
        let driver = fs::read_link(path.join("driver"));
        if driver.is_ok_and(|driver| driver.ends_with("vfio-pci")) {
            functions.extend(Function::read(&path)?);
        }
    }
    functions.sort_by(|a, b| a.slot.cmp(&b.slot));
    Ok(functions)
}

/// Reads a number in hexadecimal.
fn number(text: &str) -> io::Result<u64> {
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).map_err(io::Error::other)
}

impl Function {
    /// Reads one, or returns `None` where it has no memory BAR.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let id = |file: &str| -> io::Result<u16> {
            u16::try_from(number(&fs::read_to_string(path.join(file))?)?).map_err(io::Error::other)
        };
        let slot = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let resources = fs::read_to_string(path.join("resource"))?;
        let bars: io::Result<Vec<_>> = resources
            .lines()
            .take(6)
            .zip(0..)
            .map(|(line, index)| Bar::read(line, index))
            .collect();
        let bars: Vec<Bar> = bars?.into_iter().flatten().collect();
        let found = Self { slot, vendor: id("vendor")?, device: id("device")?, bars };
        Ok(Some(found).filter(|function| !function.bars.is_empty()))
    }

    /// Returns bus, device and function: `00:01.0`.
    pub fn bdf(&self) -> &str {
        self.slot.split_once(':').map_or(&self.slot, |(_, bdf)| bdf)
    }

    /// Returns the BAR with the common configuration of a virtio device of QEMU.
    pub fn virtio_bar(&self) -> Option<u8> {
        (self.name() == "virtio").then_some(4)
    }

    fn name(&self) -> &'static str {
        match (self.vendor, self.device) {
            (0x1234, 0x11e8) => "edu",
            (0x1234, 0x1111) => "bochs-display",
            (0x1af4, 0x1110) => "ivshmem",
            (0x1af4, 0x1000..=0x107f) => "virtio",
            _ => "unknown",
        }
    }
}

impl Bar {
    fn read(line: &str, index: u8) -> io::Result<Option<Self>> {
        let mut words = line.split(' ');
        let mut next = || number(words.next().unwrap_or_default());
        let (base, last, flags) = (next()?, next()?, next()?);
        let bar = Self { index, base, size: last.wrapping_sub(base).wrapping_add(1), flags };
        Ok(Some(bar).filter(|bar| bar.flags & flags::MEMORY != 0))
    }

    /// Returns its bytes in whole pages.
    pub fn whole_pages(&self) -> u64 {
        self.size.next_multiple_of(u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bdf, vendor, device, name) = (self.bdf(), self.vendor, self.device, self.name());
        write!(f, "@device bdf={bdf} vendor={vendor:04x} device={device:04x} name={name}")?;
        for Bar { index, base, size, flags } in &self.bars {
            let kind = if flags & flags::SIXTY_FOUR == 0 { "mem32" } else { "mem64" };
            let prefetch = u8::from(flags & flags::PREFETCH != 0);
            write!(f, "\n@bar bdf={bdf} bar={index} base={base:#x} size={size:#x} ")?;
            write!(f, "kind={kind} prefetch={prefetch}")?;
        }
        Ok(())
    }
}
