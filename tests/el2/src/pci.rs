//! PCI: finds the functions of bus 0 and gives their memory BARs addresses.
//!
//! Addresses follow from the machine alone, so that a manifest can be written beforehand: slots
//! ascending, BARs in index order, 32-bit BARs upward from [`LOW`], 64-bit ones from [`HIGH`], each
//! aligned to its size or 64 KiB, whichever is greater, and taking as much.

use core::fmt;

use arrayvec::ArrayVec;

use crate::abort::load32;
use crate::dtb::Machine;

/// First address of 32-bit BARs.
const LOW: u64 = 0x1000_0000;
/// First address of 64-bit BARs.
const HIGH: u64 = 0x80_0000_0000;
/// Least alignment of a BAR: no two share a page of any granule.
const GRANULE: u64 = 0x1_0000;
/// Most functions that are kept.
const MAX_FUNCTIONS: usize = 16;
/// BARs of a type 0 header.
const BARS: u16 = 6;
/// Offset of the first BAR in configuration space.
const BAR0: u16 = 0x10;
/// Offset of the command register.
const COMMAND: u16 = 0x04;
/// Memory decoding and bus mastering: memory bit only.
const MEMORY_ENABLE: u32 = 1 << 1;

/// All functions of the bus.
pub type Functions = ArrayVec<Function, MAX_FUNCTIONS>;

/// Where a function sits on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bdf {
    slot: u16,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.0", self.slot)
    }
}

/// How a BAR is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 32-bit memory.
    Mem32,
    /// 64-bit memory: takes two registers.
    Mem64,
}

/// A memory BAR with an address.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Index, 0..=5.
    pub index: u16,
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// How it is addressed.
    pub kind: Kind,
    /// The prefetchable bit as the device declares it: 0 or 1.
    pub prefetch: u32,
}

/// A function with its memory BARs.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where it sits.
    pub bdf: Bdf,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Its memory BARs in index order.
    pub bars: ArrayVec<Bar, 6>,
}

/// Next free addresses.
struct Cursor {
    low: u64,
    high: u64,
}

/// Finds, assigns, enables and prints every function of bus 0.
pub fn enumerate(machine: &Machine) -> Functions {
    let mut cursor = Cursor { low: LOW, high: HIGH };
    let mut functions = Functions::new();
    for slot in 0..32 {
        let config = Config { base: machine.ecam + (u64::from(slot) << 15) };
        if let Some(function) = config.probe(Bdf { slot }, &mut cursor) {
            function.print();
            // More functions than are kept is a machine that no test asks for.
            let _ = functions.try_push(function);
        }
    }
    functions
}

/// Configuration space of one function.
struct Config {
    base: u64,
}

impl Config {
    fn read(&self, offset: u16) -> u32 {
        load32(self.base + u64::from(offset)).unwrap_or(u32::MAX)
    }

    fn write(&self, offset: u16, value: u32) {
        let (address, value) = (self.base + u64::from(offset), u64::from(value));
        // A fault means that the hypervisor keeps configuration space; then BARs read as absent.
        let _ = probed!(["str {v:w}, [{a}]"] a = in(reg) address, v = in(reg) value);
    }

    fn probe(&self, bdf: Bdf, cursor: &mut Cursor) -> Option<Function> {
        let id = self.read(0);
        let (vendor, device) = (low_half(id), low_half(id >> 16));
        if vendor == 0xffff {
            return None;
        }
        let mut bars = ArrayVec::new();
        let mut index = 0;
        while index < BARS {
            let bar = self.bar(index, cursor);
            index += bar.map_or(1, |bar| match bar.kind {
                Kind::Mem32 => 1,
                Kind::Mem64 => 2,
            });
            bars.extend(bar);
        }
        self.write(COMMAND, self.read(COMMAND) | MEMORY_ENABLE);
        Some(Function { bdf, vendor, device, bars })
    }

    /// Sizes BAR `index` and gives it an address, if it is a memory BAR.
    fn bar(&self, index: u16, cursor: &mut Cursor) -> Option<Bar> {
        let offset = BAR0 + 4 * index;
        self.write(offset, u32::MAX);
        let mask = self.read(offset);
        // Bit 0 is an I/O BAR; all zeroes no BAR at all.
        if mask == 0 || mask & 1 != 0 {
            return None;
        }
        let prefetch = (mask >> 3) & 1;
        if (mask >> 1) & 3 == 2 {
            self.write(offset + 4, u32::MAX);
            let mask = u64::from(self.read(offset + 4)) << 32 | u64::from(mask & !0xf);
            let size = mask.wrapping_neg();
            let base = claim(&mut cursor.high, size);
            self.write(offset, low_word(base));
            self.write(offset + 4, low_word(base >> 32));
            return Some(Bar { index, base, size, kind: Kind::Mem64, prefetch });
        }
        let size = u64::from((mask & !0xf).wrapping_neg());
        let base = claim(&mut cursor.low, size);
        self.write(offset, low_word(base));
        Some(Bar { index, base, size, kind: Kind::Mem32, prefetch })
    }
}

/// Takes the next place for `size` bytes (a power of two).
fn claim(cursor: &mut u64, size: u64) -> u64 {
    let step = size.max(GRANULE);
    let base = cursor.next_multiple_of(step);
    *cursor = base + step;
    base
}

fn low_half(value: u32) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(0)
}

fn low_word(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

impl Function {
    fn print(&self) {
        let (bdf, vendor, device, name) = (self.bdf, self.vendor, self.device, self.name());
        say!("@device bdf={bdf} vendor={vendor:04x} device={device:04x} name={name}");
        for bar in &self.bars {
            let Bar { index, base, size, prefetch, .. } = bar;
            let kind = match bar.kind {
                Kind::Mem32 => "mem32",
                Kind::Mem64 => "mem64",
            };
            say!(
                "@bar bdf={bdf} bar={index} base={base:#x} size={size:#x} kind={kind} \
                 prefetch={prefetch}"
            );
        }
    }

    /// Returns the name that people know the device by.
    pub fn name(&self) -> &'static str {
        match (self.vendor, self.device) {
            (0x1234, 0x11e8) => "edu",
            (0x1234, 0x1111) => "bochs-display",
            (0x1af4, 0x1110) => "ivshmem",
            (0x1af4, 0x1000..=0x107f) => "virtio",
            (0x1b36, 0x0005) => "pci-testdev",
            (0x1b36, 0x0008) => "host-bridge",
            (0x1b36, 0x0010) => "nvme",
            (0x8086, 0x10c9) => "igb",
            _ => "unknown",
        }
    }
}
