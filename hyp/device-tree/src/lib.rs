//! What the launch needs from the device tree: pure, so that it can be fuzzed on the developer's
//! machine. The boot loader is trusted to describe the machine; a description that contradicts itself
//! is refused.

#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::use_debug)]

use core::fmt;

use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::{NodeStandard, Status};
use dtoolkit::{Node, Property};
use pfnguard_core::addr::{PFN_LIMIT, Pfn, PfnRange, PhysAddr};
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

/// What the manifest is compatible with: the first initial RAM disk.
const MANIFEST: &str = "multiboot,ramdisk";
/// What the host's kernel is compatible with.
const KERNEL: &str = "multiboot,kernel";

type Ranges = ArrayVec<PfnRange, MAX_BANKS>;
type Taken = ArrayVec<PfnRange, { 2 * MAX_BANKS }>;

/// Returns the address of the console where `/chosen/stdout-path` names a PL011 that is no RAM.
/// What lies behind a bus may have another address there: only children of the root count.
pub fn uart(tree: Fdt<'_>) -> Option<PhysAddr> {
    let path = tree.find_node("/chosen")?.property("stdout-path")?.value_as::<&str>().ok()?;
    // Options follow a colon.
    let path = path.split(':').next()?;
    let path = if path.starts_with('/') {
        path
    } else {
        tree.find_node("/aliases")?.property(path)?.value_as::<&str>().ok()?
    };
    let node = tree.find_node(path).filter(|_| path.rfind('/') == Some(0))?;
    let base = node.reg().ok()??.next()?.address::<u64>().ok().map(PhysAddr)?;
    let page = PfnRange::single(base.pfn())?;
    let free = base.offset() == 0 && base.0 != 0 && !is_memory(tree, &page);
    (free && node.is_compatible("arm,pl011")).then_some(base)
}

/// Whether any of `pages` is RAM, or reserved, or the tree does not say what is RAM.
fn is_memory(tree: Fdt<'_>, pages: &PfnRange) -> bool {
    let (Ok(mut ram), mut taken) = (ram(tree), Taken::new()) else { return true };
    let in_ram = ram.iter().any(|bank| bank.overlaps(pages));
    let read = reservations(tree, &mut ram, &mut taken).is_ok();
    in_ram || !read || taken.iter().any(|range| range.overlaps(pages))
}

/// Reads everything the launch needs. `dtb` is where the tree itself lies, and its bytes.
///
/// # Errors
///
/// [`Unusable`] names what is missing or malformed.
pub fn find(tree: Fdt<'_>, dtb: (PhysAddr, usize)) -> Result<Found, Unusable> {
    check_conduit(tree)?;
    let (mut ram, mut taken) = (ram(tree)?, Taken::new());
    push(&mut taken, reserved_pages(dtb.0.0, to_u64(dtb.1), "device tree")?, "reservations")?;
    reservations(tree, &mut ram, &mut taken)?;
    let chosen = tree.find_node("/chosen").ok_or(Unusable::Missing("/chosen"))?;
    initial_ramdisk(&chosen, &mut taken)?;
    for node in chosen.children().filter(is_module) {
        let (start, bytes) = place(&node).ok_or(Unusable::Property("reg of a module"))?;
        let pages = reserved_pages(start.0, to_u64(bytes), "reg of a module")?;
        push(&mut taken, pages, "modules")?;
    }
    let manifest = module(&chosen, MANIFEST, "manifest module", &ram)?;
    let kernel = module(&chosen, KERNEL, "kernel module", &ram)?;
    let facts = MachineFacts { ram, taken, uart: uart(tree), cpus: cpus(tree)?, manifest };
    Ok(Found { facts, kernel: kernel.0 })
}

fn check_conduit(tree: Fdt<'_>) -> Result<(), Unusable> {
    let psci = tree.find_node("/psci").ok_or(Unusable::Missing("/psci"))?;
    let method = psci.property("method").and_then(|method| method.value_as::<&str>().ok());
    if method == Some("smc") { Ok(()) } else { Err(Unusable::Conduit) }
}

/// Returns all RAM, ascending, adjacent banks merged: what Linux takes for RAM
/// (`early_init_dt_scan_memory`).
fn ram(tree: Fdt<'_>) -> Result<Ranges, Unusable> {
    const WRONG: Unusable = Unusable::Property("reg of /memory");
    let mut banks = Ranges::new();
    for node in tree.root().children().filter(is_ram) {
        for bank in node.reg().ok().flatten().ok_or(WRONG)? {
            let (start, size) = (bank.address::<u64>(), bank.size::<u64>());
            let (Ok(start), Ok(size)) = (start, size) else { return Err(WRONG) };
            if start.checked_add(size).is_none_or(|end| end > PFN_LIMIT << PAGE_SHIFT) {
                return Err(WRONG);
            }
            push(&mut banks, pages_within(start, size), "banks of RAM")?;
        }
    }
    sort(&mut banks);
    // Page 0 stays the host's for good: an address of 0 is none to the hypervisor.
    without(&merge(&banks)?, PfnRange::single(Pfn(0)).ok_or(WRONG)?)
}

fn is_ram(node: &FdtNode<'_>) -> bool {
    let kind = node.property("device_type").and_then(|kind| kind.value_as::<&str>().ok());
    kind == Some("memory") && node.status() == Ok(Status::Okay)
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
        let range = reserved_pages(reservation.address(), reservation.size(), "/memreserve/")?;
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
            let Some(range) = reserved_pages(start, size, "reserved-memory")? else { continue };
            push(taken, Some(range), "reserved areas")?;
            if node.property("no-map").is_some() {
                *ram = without(ram, range)?;
            }
        }
    }
    Ok(())
}

/// Returns the pages of an area that something else has, `None` of an empty one. One that leaves the address space
/// is refused: to ignore it would be to use what lies at its start.
fn reserved_pages(start: u64, size: u64, what: &'static str) -> Result<Option<PfnRange>, Unusable> {
    match pages_around(start, size) {
        None if size > 0 => Err(Unusable::Property(what)),
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

/// Whether a node below `/chosen` is something that the loader placed.
fn is_module(node: &FdtNode<'_>) -> bool {
    let kinds = ["multiboot,module", MANIFEST, KERNEL];
    kinds.iter().any(|kind| node.is_compatible(kind))
}

/// Returns address and bytes of the module of `kind`, which will be read before anything could
/// fault.
fn module(
    chosen: &FdtNode<'_>,
    kind: &str,
    what: &'static str,
    ram: &[PfnRange],
) -> Result<(PhysAddr, usize), Unusable> {
    let node = chosen.children().find(|node| node.is_compatible(kind));
    let (start, bytes) = place(&node.ok_or(Unusable::Missing(what))?)
        .ok_or(Unusable::Property("reg of a module"))?;
    let pages = pages_around(start.0, to_u64(bytes));
    let inside = |pages: &PfnRange| ram.iter().any(|bank| bank.contains_range(pages));
    pages.filter(inside).map(|_| (start, bytes)).ok_or(Unusable::NotInRam(what))
}

/// Reads `reg` of a module. QEMU's guest-loader writes it with 32-bit or 64-bit cells whatever
/// `#address-cells` says.
fn place(node: &FdtNode<'_>) -> Option<(PhysAddr, usize)> {
    let property = node.property("reg")?;
    let reg = property.value();
    let (address, size) = reg.split_at_checked(reg.len() / 2)?;
    Some((PhysAddr(cells(address)?), usize::try_from(cells(size)?).ok()?))
}

/// Notes the host's initial RAM disk (Linux `Documentation/arch/arm64/booting.rst`).
fn initial_ramdisk(chosen: &FdtNode<'_>, taken: &mut Taken) -> Result<(), Unusable> {
    const WRONG: Unusable = Unusable::Property("linux,initrd-start or -end");
    let end = |name| chosen.property(name).map(|property| cells(property.value()).ok_or(WRONG));
    let (start, end) = match (end("linux,initrd-start"), end("linux,initrd-end")) {
        (None, None) => return Ok(()),
        (Some(start), Some(end)) => (start?, end?),
        (Some(_), None) | (None, Some(_)) => return Err(WRONG),
    };
    let size = end.checked_sub(start).ok_or(WRONG)?;
    push(taken, reserved_pages(start, size, "linux,initrd-start or -end")?, "modules")
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

/// Returns the pages that hold any of `size` bytes from `start`, `None` of no bytes.
fn pages_around(start: u64, size: u64) -> Option<PfnRange> {
    if size == 0 {
        return None;
    }
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
