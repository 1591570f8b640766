//! Boards: what a world is launched on, prepared once and shared by many worlds.

use std::ops::Range;

use pfnguard_arch::pool::PhysMap;
use pfnguard_arch::stage1::el2_tables_needed;
use pfnguard_arch::stage2::{Stage2Config, Vmid16, Vtcr, host_tables_needed};
use pfnguard_core::addr::{Pfn, PfnRange};
use pfnguard_core::machine::Features;
use pfnguard_core::manifest::Manifest;
use pfnguard_model::Platform;
use pfnguard_model::machine::Machine;
use pfnguard_model::state::State;
use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::{Entry, Header, MAGIC, PlatformFlags, SHA256_OFFSET, VERSION};
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

use crate::machine::arch_encoding;
use crate::walker::Encoding;

/// What a board is made of. Page numbers throughout.
#[derive(Clone, Debug)]
pub struct Config {
    /// RAM, ascending; the hypervisor takes the end of the last bank.
    pub ram: Vec<Range<u64>>,
    /// The manifest's entries, sorted.
    pub entries: Vec<Entry>,
    /// Flags of the manifest.
    pub flags: PlatformFlags,
    /// What the CPUs can do.
    pub capabilities: Capabilities,
    /// Physical address bits.
    pub pa_bits: u32,
    /// Number of CPUs.
    pub cpus: usize,
}

/// Pages of one CPU's trace ring.
pub const RING_PAGES: u64 = 5;
/// Table pages of the host's stage 2 beyond what RAM needs.
const SPARE_TABLES: u64 = 8;
/// Bits of a guest's intermediate physical address, where the CPUs have as many.
const GUEST_IPA_BITS: u32 = 39;
/// Bits of a VMID.
const VMID_BITS: u32 = 16;

/// Where the hypervisor's own memory lies: one part behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Carve {
    /// All of it but the trace rings.
    pub own: PfnRange,
    /// Tables of the host's stage 2.
    pub host_tables: PfnRange,
    /// Tables of EL2's stage 1.
    pub el2_tables: PfnRange,
    /// Records of frames and chunks.
    pub records: PfnRange,
    /// Trace rings, [`RING_PAGES`] a CPU.
    pub rings: PfnRange,
}

impl Carve {
    /// Returns a CPU's trace ring.
    ///
    /// # Panics
    /// Where there is no such CPU.
    pub fn ring(&self, cpu: usize) -> PfnRange {
        let first = u64::try_from(cpu).map(|cpu| self.rings.start().0 + cpu * RING_PAGES);
        let ring = PfnRange::new(Pfn(first.expect("few CPUs")), RING_PAGES);
        ring.filter(|ring| self.rings.contains_range(ring)).expect("a CPU of the board")
    }
}

/// A prepared board.
#[derive(Debug)]
pub struct Board {
    /// What it was made of.
    pub config: Config,
    /// The manifest as the hypervisor read it.
    pub manifest: Manifest,
    /// RAM, for good.
    pub ram: &'static [PfnRange],
    /// The hypervisor's memory.
    pub carve: Carve,
    /// Everything that has contents: RAM and the regions near it.
    pub span: PfnRange,
    /// The board, as the specification sees it.
    pub machine: Machine,
    /// The specified state at launch.
    pub launched: State,
    /// The board, as the core sees it.
    pub features: Features,
    /// Meaning of `MemAttr`.
    pub encoding: Encoding,
}

/// Regions farther than this from RAM have no contents.
const SPAN_LIMIT: u64 = 1 << 17;

fn pages_of(range: &PfnRange) -> Range<u64> {
    range.start().0..range.end().0
}

fn range(pages: &Range<u64>) -> PfnRange {
    PfnRange::new(Pfn(pages.start), pages.end - pages.start).expect("a range of pages")
}

impl Board {
    /// Prepares a board for good: boards are few.
    ///
    /// # Panics
    /// Where the manifest is refused or RAM too small.
    pub fn new(config: Config) -> &'static Self {
        let ram: Vec<PfnRange> = config.ram.iter().map(range).collect();
        let ram: &'static [PfnRange] = Vec::leak(ram);
        let carve = carve(&config, ram);
        let bytes = manifest_bytes(&config.entries, config.flags);
        let hypervisor = [carve.own, carve.rings];
        let manifest = Manifest::parse(&bytes, ram, &hypervisor);
        let manifest = manifest.unwrap_or_else(|error| panic!("the manifest is refused: {error}"));
        let capabilities = config.capabilities;
        let encoding = Encoding {
            fwb: capabilities.contains(Capabilities::FWB),
            mte_perm: capabilities.contains(Capabilities::MTE_PERM),
        };
        let machine = machine(&config, &carve, &manifest.sha256);
        let launched = machine.launch(&[pages_of(&carve.own)]);
        let span = span(&config);
        let features = Features {
            capabilities,
            pa_bits: config.pa_bits,
            guest_ipa_bits: Vtcr::guest(config.pa_bits, Vmid16::Present).input_bits(),
            vmid_bits: VMID_BITS,
        };
        let board =
            Self { config, manifest, ram, carve, span, machine, launched, features, encoding };
        Box::leak(Box::new(board))
    }

    /// Returns what all stage-2 tables have in common.
    pub fn stage2(&self, map: PhysMap) -> Stage2Config {
        let encoding = arch_encoding(self.encoding);
        Stage2Config { map, pa_bits: self.config.pa_bits, vmid16: Vmid16::Present, encoding }
    }

    /// Returns `VTCR_EL2` of guests.
    pub fn guest_vtcr(&self) -> u64 {
        Vtcr::guest(self.config.pa_bits, Vmid16::Present).value()
    }
}

fn machine(config: &Config, carve: &Carve, sha256: &[u8; 32]) -> Machine {
    let bytes = |pages: &Range<u64>| pages.start << PAGE_SHIFT..pages.end << PAGE_SHIFT;
    let frames: u64 = config.ram.iter().map(|bank| bank.end - bank.start).sum();
    let chunks = config.ram.iter().map(|bank| ((bank.end - 1) >> 9) - (bank.start >> 9) + 1);
    Machine {
        platform: Platform {
            capabilities: config.capabilities,
            flags: config.flags,
            ram: config.ram.iter().map(bytes).collect(),
        },
        entries: config.entries.clone(),
        sha256: *sha256,
        pa_bits: config.pa_bits,
        guest_ipa_bits: GUEST_IPA_BITS.min(config.pa_bits),
        vmid_bits: VMID_BITS,
        // Two bytes a frame, and two a chunk of 2 MiB.
        vmemmap_bytes: 2 * (frames + chunks.sum::<u64>()),
        trace_pages: (0..config.cpus).map(|cpu| pages_of(&carve.ring(cpu))).collect(),
    }
}

/// The hypervisor's memory ends where the last bank ends.
fn carve(config: &Config, ram: &[PfnRange]) -> Carve {
    let cpus = u64::try_from(config.cpus).unwrap_or(u64::MAX);
    let host = host_tables_needed(ram, config.pa_bits) + SPARE_TABLES;
    let el2 = el2_tables_needed(ram, 0, cpus);
    let frames: u64 = ram.iter().map(PfnRange::pages).sum();
    // Two bytes a frame, and a page for the chunks.
    let records = frames.div_ceil(2048) + 1;
    let end = config.ram.last().map_or(0, |bank| bank.end);
    let rings = end - cpus * RING_PAGES..end;
    let records = rings.start - records..rings.start;
    let el2_tables = records.start - el2..records.start;
    let host_tables = el2_tables.start - host..el2_tables.start;
    Carve {
        own: range(&(host_tables.start..rings.start)),
        host_tables: range(&host_tables),
        el2_tables: range(&el2_tables),
        records: range(&records),
        rings: range(&rings),
    }
}

fn span(config: &Config) -> PfnRange {
    let start = config.ram.first().map_or(0, |bank| bank.start);
    let end = config.ram.last().map_or(0, |bank| bank.end);
    let regions = config.entries.iter().map(pages);
    let near = |region: &Range<u64>| {
        region.start.abs_diff(start) < SPAN_LIMIT && region.end.abs_diff(end) < SPAN_LIMIT
    };
    let near: Vec<_> = regions.filter(near).collect();
    let first = near.iter().map(|region| region.start).fold(start, u64::min);
    let last = near.iter().map(|region| region.end).fold(end, u64::max);
    range(&(first..last))
}

/// Returns the pages of an entry.
pub fn pages(entry: &Entry) -> Range<u64> {
    entry.base >> PAGE_SHIFT..(entry.base + entry.size) >> PAGE_SHIFT
}

/// Writes a manifest as the compiler does.
fn manifest_bytes(entries: &[Entry], flags: PlatformFlags) -> Vec<u8> {
    let length = size_of::<Header>() + size_of_val(entries);
    let small = |number: usize| u32::try_from(number).expect("a small manifest");
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        length: small(length),
        entries: small(entries.len()),
        flags: flags.raw(),
        ..Header::zeroed()
    };
    let mut bytes = [header.as_bytes(), entries.as_bytes()].concat();
    let (before, rest) = bytes.split_at(SHA256_OFFSET);
    let sum = Sha256::new().chain_update(before).chain_update(&rest[32..]).finalize();
    bytes[SHA256_OFFSET..SHA256_OFFSET + 32].copy_from_slice(&sum);
    bytes
}
