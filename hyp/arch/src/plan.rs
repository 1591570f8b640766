//! How much memory the hypervisor takes behind its image, and why there may be no launch.

use core::fmt;

use pfnguard_core::addr::{Pfn, PfnRange, PhysAddr};
use pfnguard_core::machine::MachineFacts;
use pfnguard_core::trace::RING_RECORDS;
use pfnguard_core::vmemmap::{Frame, Vmemmap};
use pfnguard_shared::PAGE_SIZE;
use pfnguard_shared::manifest::{Entry, Header, MAX_ENTRIES};
use pfnguard_shared::trace::{RingHeader, TraceRecord};

use crate::fixmap::ram_limit;
use crate::layout::{self, STACK_BLOCK_PAGES};
use crate::stage1::el2_tables_needed;
use crate::stage2::host_tables_needed;

/// Table pages of the host's stage 2 beyond what RAM needs: for memory outside RAM, page by page.
const HOST_DEVICE_TABLES: u64 = 128;
/// Bytes of one CPU's trace ring: a header and the records.
pub(crate) const TRACE_BYTES: usize =
    size_of::<RingHeader>() + RING_RECORDS * size_of::<TraceRecord>();
/// Most bytes of a manifest.
const MANIFEST_MAX: usize = size_of::<Header>() + MAX_ENTRIES * size_of::<Entry>();

/// Why there is no launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchError {
    /// No device tree where `x0` points.
    NoDeviceTree(PhysAddr),
    /// The boot CPU is not among the CPUs.
    UnknownBootCpu(u64),
    /// RAM that the page tables cannot address, and the first page that they cannot.
    RamTooHigh {
        /// The bank.
        bank: PfnRange,
        /// The first page that is too high.
        limit: Pfn,
    },
    /// The console's registers lie where the page tables cannot reach.
    UartTooHigh(PhysAddr),
    /// The manifest is longer than any can be, in bytes.
    ManifestSize(usize),
    /// The pages that the hypervisor needs behind its image are not free RAM.
    NoRoom {
        /// The pages.
        needed: PfnRange,
        /// What lies in the way, or `None` where RAM ends.
        taken: Option<PfnRange>,
    },
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDeviceTree(addr) => write!(f, "no device tree at {addr}"),
            Self::UnknownBootCpu(mpidr) => {
                write!(f, "boot CPU {mpidr:#x} is not among the CPUs")
            }
            Self::RamTooHigh { bank, limit } => write!(
                f,
                "RAM in pages {}..{}: pages from {limit} on are beyond this hypervisor",
                bank.start(),
                bank.end()
            ),
            Self::UartTooHigh(base) => {
                write!(f, "the console at {base} is beyond this hypervisor")
            }
            Self::ManifestSize(bytes) => {
                write!(f, "manifest of {bytes} bytes: at most {MANIFEST_MAX}")
            }
            Self::NoRoom { needed, taken: Some(taken) } => write!(
                f,
                "pages {}..{} behind the image are needed, {}..{} are taken",
                needed.start(),
                needed.end(),
                taken.start(),
                taken.end()
            ),
            Self::NoRoom { needed, taken: None } => {
                write!(f, "pages {}..{} behind the image are not RAM", needed.start(), needed.end())
            }
        }
    }
}

/// The hypervisor's memory behind the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) carved: PfnRange,
    pub(crate) el2_tables: u64,
    pub(crate) host_tables: u64,
    pub(crate) records: u64,
    pub(crate) cpus: u64,
}

impl Plan {
    pub(crate) fn new(facts: &MachineFacts, pa_bits: u32) -> Result<Self, LaunchError> {
        let limit = ram_limit(pa_bits);
        check_ram(&facts.ram, limit)?;
        if let Some(uart) = facts.uart.filter(|uart| uart.pfn() >= limit) {
            return Err(LaunchError::UartTooHigh(uart));
        }
        let (_, manifest) = facts.manifest;
        if manifest > MANIFEST_MAX {
            return Err(LaunchError::ManifestSize(manifest));
        }
        let cpus = to_u64(facts.cpus.len());
        let storage = Vmemmap::storage_needed(&facts.ram);
        let records = storage.frames * size_of::<Frame>() + storage.chunks * size_of::<u16>();
        let mut plan = Self {
            carved: layout::image(),
            el2_tables: el2_tables_needed(&facts.ram, u64::from(facts.uart.is_some()), cpus),
            host_tables: host_tables_needed(&facts.ram, pa_bits) + HOST_DEVICE_TABLES,
            records: page_count(records),
            cpus,
        };
        let pages = plan.pages(manifest);
        plan.carved =
            PfnRange::new(layout::image().end(), pages).expect("an image has memory behind");
        plan.check(facts).map(|()| plan)
    }

    fn pages(&self, manifest: usize) -> u64 {
        let stacks = (self.cpus - 1) * to_u64(STACK_BLOCK_PAGES);
        page_count(manifest)
            + stacks
            + self.el2_tables
            + self.host_tables
            + self.records
            + self.cpus * page_count(TRACE_BYTES)
    }

    /// Checks that image and memory behind it are RAM that nobody else has.
    fn check(&self, facts: &MachineFacts) -> Result<(), LaunchError> {
        let needed = self.all();
        let taken = facts.taken.iter().find(|range| range.overlaps(&needed)).copied();
        let in_ram = facts.ram.iter().any(|bank| bank.contains_range(&needed));
        if taken.is_some() || !in_ram {
            return Err(LaunchError::NoRoom { needed, taken });
        }
        Ok(())
    }

    /// Returns the image and the memory behind it.
    pub(crate) fn all(&self) -> PfnRange {
        let image = layout::image();
        PfnRange::new(image.start(), image.pages() + self.carved.pages()).expect("ends in RAM")
    }
}

/// A page past the limit would lose address bits in a descriptor, and lead to another one.
fn check_ram(ram: &[PfnRange], limit: Pfn) -> Result<(), LaunchError> {
    match ram.iter().find(|bank| bank.end() > limit) {
        Some(&bank) => Err(LaunchError::RamTooHigh { bank, limit }),
        None => Ok(()),
    }
}

pub(crate) fn page_count(bytes: usize) -> u64 {
    to_u64(bytes.div_ceil(PAGE_SIZE))
}

pub(crate) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("64 bits")
}
