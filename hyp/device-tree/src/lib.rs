//! What the launch needs from the device tree: pure, so that it can be fuzzed on the developer's
//! machine. The tree comes from the boot loader; what it says is checked, not believed.

#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::use_debug)]

use core::fmt;

use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use pfnguard_core::addr::{Pfn, PfnRange, PhysAddr};
use pfnguard_core::machine::MachineFacts;
use pfnguard_core::vmemmap::MAX_BANKS;
use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// What the hypervisor needs.
    pub facts: MachineFacts,
    /// Where the host's kernel lies: the first byte of its image is its entry.
    pub kernel: PhysAddr,
}

/// Why a device tree cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// No such node.
    Missing(&'static str),
    /// A property that is not there or malformed.
    Property(&'static str),
    /// More of something than fits.
    TooMany(&'static str),
    /// A module that is empty or does not lie in RAM.
    NotInRam(&'static str),
    /// PSCI must be called with SMC: HVC is this hypervisor's own.
    Conduit,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "no {what}"),
            Self::Property(what) => write!(f, "malformed {what}"),
            Self::TooMany(what) => write!(f, "too many {what}"),
            Self::NotInRam(what) => write!(f, "{what} is empty or not in RAM"),
            Self::Conduit => f.write_str("PSCI is not called with SMC"),
        }
    }
}

type Ranges = ArrayVec<PfnRange, MAX_BANKS>;
type Taken = ArrayVec<PfnRange, { 2 * MAX_BANKS }>;

/// Returns the address of the console where `/chosen/stdout-path` names a PL011.
pub fn uart(tree: Fdt<'_>) -> Option<PhysAddr> {
    let chosen = tree.find_node("/chosen")?;
    let path = chosen.property("stdout-path")?.value_as::<&str>().ok()?;
    // Options follow a colon.
    let path = path.split(':').next()?;
    let node = if path.starts_with('/') {
        tree.find_node(path)?
    } else {
        let alias = tree.find_node("/aliases")?.property(path)?;
        tree.find_node(alias.value_as::<&str>().ok()?)?
    };
    if !node.is_compatible("arm,pl011") {
        return None;
    }
    node.reg().ok()??.next()?.address::<u64>().ok().map(PhysAddr)
}

/// Reads everything the launch needs. `dtb` is where the tree itself lies, and its bytes.
///
/// # Errors
///
/// [`Unusable`] names what is missing or malformed.
pub fn find(tree: Fdt<'_>, dtb: (PhysAddr, usize)) -> Result<Found, Unusable> {
    check_conduit(tree)?;
    let manifest = module(tree, "multiboot,ramdisk").ok_or(Unusable::Missing("manifest module"))?;
    let kernel = module(tree, "multiboot,kernel").ok_or(Unusable::Missing("kernel module"))?;
    let mut taken = Taken::new();
    let (mut ram, dtb) = (ram(tree)?, pages_around(dtb.0.0, to_u64(dtb.1)));
    for (module, what) in [(manifest, "manifest module"), (kernel, "kernel module")] {
        push(&mut taken, Some(within_ram(module, &ram, what)?), "modules")?;
    }
    push(&mut taken, dtb, "modules")?;
    reservations(tree, &mut ram, &mut taken)?;
    let facts = MachineFacts { ram, taken, uart: uart(tree), cpus: cpus(tree)?, manifest };
    Ok(Found { facts, kernel: kernel.0 })
}

fn check_conduit(tree: Fdt<'_>) -> Result<(), Unusable> {
    let psci = tree.find_node("/psci").ok_or(Unusable::Missing("/psci"))?;
    let method = psci.property("method").and_then(|method| method.value_as::<&str>().ok());
    if method == Some("smc") { Ok(()) } else { Err(Unusable::Conduit) }
}

/// Returns all RAM, ascending, adjacent banks merged.
fn ram(tree: Fdt<'_>) -> Result<Ranges, Unusable> {
    let mut banks = Ranges::new();
    let memory = |node: &FdtNode<'_>| node.name_without_address() == "memory";
    for node in tree.root().children().filter(memory) {
        let reg = node.reg().ok().flatten().ok_or(Unusable::Property("reg of /memory"))?;
        for bank in reg {
            let (start, size) = (bank.address::<u64>(), bank.size::<u64>());
            let (Ok(start), Ok(size)) = (start, size) else {
                return Err(Unusable::Property("reg of /memory"));
            };
            push(&mut banks, pages_within(start, size), "banks of RAM")?;
        }
    }
    sort(&mut banks);
    // Page 0 stays the host's for good: an address of 0 is none to the hypervisor.
    without(&merge(&banks)?, PfnRange::single(Pfn(0)).ok_or(Unusable::Property("reg of /memory"))?)
}

/// Returns the pages of a module, which will be read before anything could fault.
fn within_ram(
    (start, bytes): (PhysAddr, usize),
    ram: &[PfnRange],
    what: &'static str,
) -> Result<PfnRange, Unusable> {
    let pages = pages_around(start.0, to_u64(bytes));
    let inside = |pages: &PfnRange| ram.iter().any(|bank| bank.contains_range(pages));
    pages.filter(inside).ok_or(Unusable::NotInRam(what))
}

/// Sorts a few ranges, by insertion: the library's sort is 3 KiB of code for many.
fn sort(banks: &mut [PfnRange]) {
    for sorted in 1..banks.len() {
        let place = banks[..sorted].partition_point(|bank| bank.start() < banks[sorted].start());
        banks[place..=sorted].rotate_right(1);
    }
}

fn merge(sorted: &[PfnRange]) -> Result<Ranges, Unusable> {
    let mut merged = Ranges::new();
    for bank in sorted {
        match merged.last_mut() {
            Some(last) if bank.start() < last.end() => {
                return Err(Unusable::Property("/memory: banks overlap"));
            }
            Some(last) if bank.start() == last.end() => {
                let both = PfnRange::new(last.start(), last.pages() + bank.pages());
                *last = both.ok_or(Unusable::Property("reg of /memory"))?;
            }
            Some(_) | None => push(&mut merged, Some(*bank), "banks of RAM")?,
        }
    }
    if merged.is_empty() { Err(Unusable::Missing("/memory")) } else { Ok(merged) }
}

/// Notes reserved memory. What must not even be mapped (`no-map`) is firmware's: no RAM at all.
fn reservations(tree: Fdt<'_>, ram: &mut Ranges, taken: &mut Taken) -> Result<(), Unusable> {
    for reservation in tree.memory_reservations() {
        let range = reserved_pages(reservation.address(), reservation.size())?;
        push(taken, range, "memory reservations")?;
    }
    let Some(reserved) = tree.find_node("/reserved-memory") else { return Ok(()) };
    for node in reserved.children() {
        // Without `reg` the place is the kernel's choice.
        let Some(reg) = node.reg().map_err(|_| Unusable::Property("reserved-memory"))? else {
            continue;
        };
        for area in reg {
            let (start, size) = (area.address::<u64>(), area.size::<u64>());
            let (Ok(start), Ok(size)) = (start, size) else {
                return Err(Unusable::Property("reserved-memory"));
            };
            let Some(range) = reserved_pages(start, size)? else { continue };
            push(taken, Some(range), "reserved areas")?;
            if node.property("no-map").is_some() {
                *ram = without(ram, range)?;
            }
        }
    }
    Ok(())
}

/// Returns the pages of a reserved area, `None` of an empty one. One that leaves the address space
/// is refused: to ignore it would be to use what lies at its start.
fn reserved_pages(start: u64, size: u64) -> Result<Option<PfnRange>, Unusable> {
    match pages_around(start, size) {
        None if size > 0 => Err(Unusable::Property("reserved-memory")),
        pages => Ok(pages),
    }
}

/// Returns `ram` without the pages of `hole`.
fn without(ram: &[PfnRange], hole: PfnRange) -> Result<Ranges, Unusable> {
    let mut left = Ranges::new();
    for bank in ram {
        let below = between(bank.start(), bank.end().min(hole.start()));
        let above = between(bank.start().max(hole.end()), bank.end());
        for part in [below, above] {
            push(&mut left, part, "banks of RAM")?;
        }
    }
    Ok(left)
}

fn between(start: Pfn, end: Pfn) -> Option<PfnRange> {
    PfnRange::new(start, end.0.checked_sub(start.0)?)
}

fn cpus<const N: usize>(tree: Fdt<'_>) -> Result<ArrayVec<u64, N>, Unusable> {
    let parent = tree.find_node("/cpus").ok_or(Unusable::Missing("/cpus"))?;
    let mut found = ArrayVec::new();
    let is_cpu = |node: &FdtNode<'_>| node.name_without_address() == "cpu";
    for node in parent.children().filter(is_cpu) {
        let reg = node.property("reg").ok_or(Unusable::Property("reg of a CPU"))?;
        let mpidr = cells(reg.value()).ok_or(Unusable::Property("reg of a CPU"))?;
        found.try_push(mpidr).map_err(|_| Unusable::TooMany("CPUs"))?;
    }
    if found.is_empty() { Err(Unusable::Missing("CPUs")) } else { Ok(found) }
}

/// Returns address and bytes of the module of `kind` below `/chosen`. QEMU's guest-loader writes
/// `reg` with 32-bit or 64-bit cells whatever `#address-cells` says.
fn module(tree: Fdt<'_>, kind: &str) -> Option<(PhysAddr, usize)> {
    let chosen = tree.find_node("/chosen")?;
    let node = chosen.children().find(|node| node.is_compatible(kind))?;
    let property = node.property("reg")?;
    let reg = property.value();
    let (address, size) = reg.split_at_checked(reg.len() / 2)?;
    Some((PhysAddr(cells(address)?), usize::try_from(cells(size)?).ok()?))
}

/// Reads one or two big-endian cells.
fn cells(bytes: &[u8]) -> Option<u64> {
    if let Ok(cell) = <[u8; 4]>::try_from(bytes) {
        return Some(u64::from(u32::from_be_bytes(cell)));
    }
    <[u8; 8]>::try_from(bytes).ok().map(u64::from_be_bytes)
}

/// Returns the pages that lie wholly within `size` bytes from `start`.
fn pages_within(start: u64, size: u64) -> Option<PfnRange> {
    let first = start.div_ceil(to_u64(PAGE_SIZE));
    let past = start.checked_add(size)? >> PAGE_SHIFT;
    between(Pfn(first), Pfn(past))
}

/// Returns the pages that hold any of `size` bytes from `start`.
fn pages_around(start: u64, size: u64) -> Option<PfnRange> {
    let past = start.checked_add(size)?.div_ceil(to_u64(PAGE_SIZE));
    between(Pfn(start >> PAGE_SHIFT), Pfn(past))
}

fn push<const N: usize>(
    list: &mut ArrayVec<PfnRange, N>,
    range: Option<PfnRange>,
    what: &'static str,
) -> Result<(), Unusable> {
    let Some(range) = range else { return Ok(()) };
    list.try_push(range).map_err(|_| Unusable::TooMany(what))
}

fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
