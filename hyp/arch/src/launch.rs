//! Launch on the boot CPU: from an image with the MMU off to a hypervisor with all its memory.
//!
//! Two steps, because the manifest is judged between them: [`Boot::map`] takes memory behind the
//! image, copies the manifest there and switches the MMU on; [`Mapped::start`] fills the memory and
//! enters the host. What the device tree says is believed: the host is trusted until launch.

use core::mem::ManuallyDrop;
use core::sync::atomic::AtomicU64;

use arrayvec::ArrayVec;
use log::info;
use pfnguard_core::Hypervisor;
use pfnguard_core::addr::{Pfn, PfnRange, PhysAddr};
use pfnguard_core::hypervisor::{Cpu, Launch, MAX_CPUS};
use pfnguard_core::machine::MachineFacts;
use pfnguard_core::psci::{CpuState, CpuTable, HostEntry};
use pfnguard_core::region::RegionTable;
use pfnguard_core::trace::{RING_RECORDS, TraceRing};
use pfnguard_core::vcpu::CpuIndex;
use pfnguard_core::vmemmap::{Frame, Vmemmap};
use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::trace::{RingHeader, TraceRecord};
use spin::Once;

use crate::barrier;
use crate::boot::{SecondaryBoot, enable_mmu};
use crate::cache::{CacheGeometry, DataCache};
use crate::layout::{self, STACK_BLOCK_PAGES, Stacks};
use crate::machine::{Arm64, LocalCpu, Platform};
use crate::percpu::{Door, PerCpu};
pub use crate::plan::LaunchError;
use crate::plan::{Plan, TRACE_BYTES, page_count, to_u64};
use crate::pool::HypPool;
use crate::stage1::{Bti, El2Config, El2Tables, Section, SectionKind};
use crate::stage2::HostTables;
use crate::sysreg::read;
use crate::tlb::HardwareTlb;

/// Most bytes of a device tree (Linux `Documentation/arch/arm64/booting.rst`).
const DTB_MAX: usize = 2 << 20;

/// The boot CPU, alone, with the MMU off.
#[derive(Debug)]
pub struct Boot {
    dtb: PhysAddr,
}

impl Boot {
    /// Starts: from here on there is a log.
    ///
    /// # Safety
    ///
    /// Called once, by the entry.
    pub(crate) unsafe fn new(dtb: PhysAddr) -> Self {
        // SAFETY: no other CPU runs the hypervisor yet.
        unsafe { crate::console::init() };
        Self { dtb }
    }

    /// Returns where the device tree lies: the host gets the same.
    pub fn dtb(&self) -> PhysAddr {
        self.dtb
    }

    /// Returns the device tree.
    ///
    /// # Errors
    ///
    /// `NoDeviceTree` where its magic number or a sane size is missing.
    pub fn device_tree(&self) -> Result<&[u8], LaunchError> {
        const MAGIC: u32 = 0xd00d_feed;
        const SIZE_OFFSET: usize = 4;
        let missing = LaunchError::NoDeviceTree(self.dtb);
        let start = pointer(self.dtb);
        if start.is_null() || !start.cast::<u64>().is_aligned() {
            return Err(missing);
        }
        // The loader may have written it through caches that this CPU's reads go past.
        clean_invalidate(start, DTB_MAX);
        let word = |offset: usize| {
            // SAFETY: the boot protocol's address of the device tree, 8-byte aligned.
            u32::from_be(unsafe { start.wrapping_add(offset).cast::<u32>().read() })
        };
        let size = usize::try_from(word(SIZE_OFFSET)).unwrap_or(usize::MAX);
        if word(0) != MAGIC || size > DTB_MAX {
            return Err(missing);
        }
        // SAFETY: the loader's device tree, which nobody writes before the host runs.
        Ok(unsafe { core::slice::from_raw_parts(start, size) })
    }

    /// Adds the console's PL011 to the log.
    pub fn add_uart(&self, base: PhysAddr) {
        // SAFETY: the device tree names it; it is mapped to the same address later.
        unsafe { crate::console::add_uart(base) };
    }

    /// Takes the hypervisor's memory, copies the manifest there, switches the MMU on.
    ///
    /// # Errors
    ///
    /// Any but `NoDeviceTree`; nothing has happened then.
    pub fn map(self, mut facts: MachineFacts) -> Result<Mapped, LaunchError> {
        boot_cpu_first(&mut facts.cpus)?;
        let platform = Platform::detect();
        let plan = Plan::new(&facts, platform.features.pa_bits)?;
        info!("CPU {:#x}, {} CPUs", platform.id.midr.bits(), facts.cpus.len());
        let mut pool = HypPool::new(plan.carved);
        clean_invalidate(page_pointer(plan.carved), byte_count(plan.carved));
        let (source, bytes) = facts.manifest;
        let manifest = copy_manifest(&mut pool, source, bytes);
        let blocks = (1..facts.cpus.len())
            .map(|_| Stacks::in_block(take(&mut pool, to_u64(STACK_BLOCK_PAGES))))
            .collect::<ArrayVec<_, MAX_CPUS>>();
        let rest = pool.left();
        let data = take(&mut pool, rest);
        let mut pool = HypPool::new(data);
        let table_pages = take(&mut pool, plan.el2_tables);
        zero(table_pages);
        let sections = sections(&facts, manifest_pages(&plan, bytes), &blocks, data);
        let bti = if platform.id.has_bti() { Bti::Present } else { Bti::Absent };
        let cpus = to_u64(facts.cpus.len());
        let config = El2Config { map: platform.stage2.map, sections: &sections, cpus, bti };
        // SAFETY: pages behind the image, just taken and zeroed, identity-mapped as data.
        let tables = unsafe { El2Tables::new(config, table_pages, platform.tlb) };
        barrier::dsb_sy();
        // Other CPUs may have fetched lines of it, speculatively, since it was cleaned.
        clean_invalidate(page_pointer(plan.all()), byte_count(plan.all()));
        // SAFETY: the tables map the image and all memory taken to their own addresses.
        unsafe { enable_mmu(platform.mmu(&tables)) };
        crate::console::start_locking();
        Ok(Mapped {
            platform: platform.seal(),
            facts: FACTS.call_once(|| facts),
            plan,
            manifest,
            tables: ManuallyDrop::new(tables),
            pool,
            blocks,
        })
    }
}

static FACTS: Once<MachineFacts> = Once::new();

/// Returns how many CPUs there are.
pub(crate) fn cpu_count() -> usize {
    FACTS.get().expect("found at launch: hypervisor bug").cpus.len()
}

/// The boot CPU with the MMU on and the manifest out of everybody's reach.
pub struct Mapped {
    platform: &'static Platform,
    facts: &'static MachineFacts,
    plan: Plan,
    manifest: &'static [u8],
    /// In force: they stay, also where a launch is given up and EL2 is left by way of them.
    tables: ManuallyDrop<El2Tables<HardwareTlb>>,
    pool: HypPool,
    blocks: ArrayVec<Stacks, MAX_CPUS>,
}

impl Mapped {
    /// Returns the hypervisor's copy of the manifest.
    pub fn manifest(&self) -> &'static [u8] {
        self.manifest
    }

    /// Returns all RAM.
    pub fn ram(&self) -> &'static [PfnRange] {
        &self.facts.ram
    }

    /// Returns the hypervisor's own memory.
    pub fn hypervisor_memory(&self) -> PfnRange {
        self.plan.all()
    }

    /// Returns what the CPUs can do.
    pub fn platform(&self) -> &'static Platform {
        self.platform
    }

    /// Makes the hypervisor in `place` and enters the host. The other CPUs are off.
    ///
    /// # Panics
    ///
    /// Where memory was planned wrong, or `place` is taken.
    pub fn start(
        self,
        place: &'static Once<Hypervisor<Arm64>>,
        regions: RegionTable,
        entry: HostEntry,
    ) -> ! {
        self.prepare(place, regions, CpuState::Off);
        // SAFETY: prepared, and the stack is done with.
        unsafe { crate::secondary::start_host(entry) }
    }

    /// Makes the hypervisor in `place`: all that is left to do is each CPU's own. All of them but
    /// this one are `others`.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn prepare(
        mut self,
        place: &'static Once<Hypervisor<Arm64>>,
        regions: RegionTable,
        others: CpuState,
    ) {
        let trace = self.trace_ranges();
        let vmemmap = self.vmemmap(&trace);
        let host_stage2 = self.host_stage2();
        crate::secondary::prepare(host_stage2.regs());
        let doors = self.cpus(&trace);
        let features = self.features(&regions);
        let Self { facts, tables, platform, .. } = self;
        assert!(place.get().is_none(), "the hypervisor is made once");
        let mmu = platform.mmu(&tables);
        let hypervisor = place.call_once(|| {
            let trace_pages = core::array::from_fn(|cpu| trace.get(cpu).copied());
            let cpus = CpuTable::new(&facts.cpus, others);
            Hypervisor::new(Launch {
                vmemmap,
                regions,
                host_stage2,
                el2_stage1: ManuallyDrop::into_inner(tables),
                features,
                trace_pages,
                cpus,
            })
        });
        for (percpu, cpu) in doors {
            let index = percpu.index().0;
            // SAFETY: no other CPU runs the hypervisor; this one has not used its door.
            unsafe { percpu.open(Door { hypervisor, cpu }) };
            // SAFETY: slot, stack and tables stay for good.
            unsafe { SecondaryBoot::new(percpu, mmu).publish(index) };
        }
    }

    /// Takes the trace rings, zeroed: at the end of the hypervisor's memory.
    fn trace_ranges(&mut self) -> ArrayVec<PfnRange, MAX_CPUS> {
        let pages = page_count(TRACE_BYTES);
        let first = self.plan.carved.end().0 - self.plan.cpus * pages;
        (0..self.plan.cpus)
            .map(|cpu| {
                let start = Pfn(first + cpu * pages);
                let range = PfnRange::new(start, pages).expect("planned");
                zero(range);
                range
            })
            .collect()
    }

    fn vmemmap(&mut self, trace: &[PfnRange]) -> Vmemmap {
        let storage = Vmemmap::storage_needed(&self.facts.ram);
        let range = take(&mut self.pool, self.plan.records);
        zero(range);
        let start = page_pointer(range);
        let chunks = start.wrapping_add(storage.frames * size_of::<Frame>());
        // SAFETY: pages just taken, zeroed; 0 is `Frame::NO_PAGE`.
        let frames = unsafe { core::slice::from_raw_parts_mut(start.cast(), storage.frames) };
        // SAFETY: behind the frames, in the same pages.
        let closed = unsafe { core::slice::from_raw_parts_mut(chunks.cast(), storage.chunks) };
        let mut map = Vmemmap::new(&self.facts.ram, frames, closed);
        let all = self.plan.all();
        let readable: u64 = trace.iter().map(PfnRange::pages).sum();
        let private = PfnRange::new(all.start(), all.pages() - readable).expect("planned");
        map.mark_hyp(private).expect("RAM: checked by the plan");
        for range in trace {
            map.mark_hyp_readable(*range).expect("RAM: checked by the plan");
        }
        map
    }

    fn host_stage2(&mut self) -> HostTables<HardwareTlb> {
        let range = take(&mut self.pool, self.plan.host_tables);
        zero(range);
        let Self { platform, facts, .. } = self;
        // SAFETY: pages just taken, zeroed, mapped to their own addresses.
        unsafe { HostTables::new(platform.stage2, &facts.ram, range, platform.tlb) }
    }

    /// Makes every CPU's slot and part of the core.
    fn cpus(&mut self, trace: &[PfnRange]) -> ArrayVec<(&'static PerCpu, Cpu<Arm64>), MAX_CPUS> {
        let others = self.blocks.drain(..).map(Some);
        let stacks = core::iter::once(None).chain(others);
        let described = self.facts.cpus.iter().zip(stacks).zip(trace).enumerate();
        let (tables, cache) = (&self.tables, self.platform.cache);
        described
            .map(|(number, ((&mpidr, stacks), &trace))| {
                let index = CpuIndex(number);
                let percpu = match stacks {
                    None => PerCpu::current(),
                    // SAFETY: no other CPU runs the hypervisor; each slot and stack is used once.
                    Some(stacks) => unsafe { PerCpu::init(index, mpidr, stacks) },
                };
                // SAFETY: once for each CPU.
                let windows = unsafe { tables.windows(to_u64(number)) };
                let local = LocalCpu::new(windows, cache);
                (percpu, Cpu { index, local, trace: ring(trace, number), arg_page: None })
            })
            .collect()
    }

    /// What the CPUs can do and the manifest allows.
    fn features(&self, regions: &RegionTable) -> pfnguard_core::machine::Features {
        let mut features = self.platform.features;
        features.capabilities = regions.capabilities();
        features
    }
}

/// Makes the trace ring of CPU `number` in `range`, which is zero.
fn ring(range: PfnRange, number: usize) -> TraceRing {
    let header = page_pointer(range).cast::<RingHeader>();
    let frequency = u32::try_from(read!("cntfrq_el0")).unwrap_or(0);
    let value = RingHeader {
        written: 0,
        capacity: u32::try_from(RING_RECORDS).expect("a ring of few pages"),
        record_size: u32::try_from(size_of::<TraceRecord>()).expect("64"),
        cpu: u32::try_from(number).expect("few CPUs"),
        frequency,
        reserved: [0; 5],
    };
    // SAFETY: the first bytes of a page that is the hypervisor's and not in use.
    unsafe { header.write(value) };
    // SAFETY: the header's first field, from now on used through this reference only.
    let written = unsafe { &*header.cast::<AtomicU64>() };
    let records = header.wrapping_add(1).cast::<[TraceRecord; RING_RECORDS]>();
    // SAFETY: behind the header, within the pages (`TRACE_BYTES`), zero, used through this
    // reference only.
    let records = unsafe { &mut *records };
    TraceRing::new(written, records, range)
}

/// Moves the boot CPU to the front.
fn boot_cpu_first(cpus: &mut [u64]) -> Result<(), LaunchError> {
    let own = crate::percpu::own_mpidr();
    let place = cpus.iter().position(|mpidr| *mpidr == own);
    cpus.swap(0, place.ok_or(LaunchError::UnknownBootCpu(own))?);
    Ok(())
}

/// What EL2 maps: everything of the hypervisor's but the guard pages, and the console.
fn sections(
    facts: &MachineFacts,
    manifest: Option<PfnRange>,
    blocks: &[Stacks],
    data: PfnRange,
) -> ArrayVec<Section, { 2 * MAX_CPUS + 8 }> {
    let section = |range, kind| Section { range, kind };
    let mut all = ArrayVec::new();
    all.push(section(layout::text(), SectionKind::Text));
    all.push(section(layout::rodata(), SectionKind::Rodata));
    all.push(section(layout::data(), SectionKind::Data));
    for stacks in core::iter::once(&Stacks::boot_cpu()).chain(blocks) {
        for stack in [&stacks.main, &stacks.emergency] {
            all.push(section(layout::pages(stack.clone()), SectionKind::Data));
        }
    }
    all.extend(manifest.map(|range| section(range, SectionKind::Rodata)));
    all.push(section(data, SectionKind::Data));
    let uart = facts.uart.and_then(crate::console::uart_pages);
    all.extend(uart.map(|range| section(range, SectionKind::Device)));
    all
}

/// Copies the manifest to the start of the hypervisor's memory: nobody rewrites it while it is
/// judged.
fn copy_manifest(pool: &mut HypPool, source: PhysAddr, bytes: usize) -> &'static [u8] {
    let pages = page_count(bytes);
    if pages == 0 {
        return &[];
    }
    let target = page_pointer(take(pool, pages));
    clean_invalidate(pointer(source), bytes);
    // SAFETY: the loader's module, and pages behind the image that were checked to be apart.
    unsafe { core::ptr::copy_nonoverlapping(pointer(source), target, bytes) };
    // SAFETY: just written, and read-only from now on.
    unsafe { core::slice::from_raw_parts(target, bytes) }
}

fn manifest_pages(plan: &Plan, bytes: usize) -> Option<PfnRange> {
    PfnRange::new(plan.carved.start(), page_count(bytes))
}

fn take(pool: &mut HypPool, pages: u64) -> PfnRange {
    pool.take(pages, 1).expect("planned: hypervisor bug")
}

fn zero(range: PfnRange) {
    // SAFETY: pages of the hypervisor's memory that are not in use yet.
    unsafe { page_pointer(range).write_bytes(0, byte_count(range)) };
}

fn clean_invalidate(start: *mut u8, bytes: usize) {
    let cache = CacheGeometry::read();
    // SAFETY: maintenance of memory that exists; it changes no contents.
    unsafe { cache.clean_invalidate(start, bytes) };
}

fn pointer(addr: PhysAddr) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(usize::try_from(addr.0).expect("64 bits"))
}

fn page_pointer(range: PfnRange) -> *mut u8 {
    pointer(range.start().base().expect("RAM has addresses"))
}

fn byte_count(range: PfnRange) -> usize {
    usize::try_from(range.pages() << PAGE_SHIFT).expect("64 bits")
}
