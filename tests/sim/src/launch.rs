//! Launch: what the boot code of the payload does, on a board; and the doors of what was launched.

use std::mem::ManuallyDrop;
use std::sync::atomic::AtomicU64;

use pfnguard_arch::pool::PhysMap;
use pfnguard_arch::stage1::{Bti, El2Config, El2Tables, Section, SectionKind};
use pfnguard_arch::stage2::{HostTables, Stage2Config};
use pfnguard_core::Hypervisor;
use pfnguard_core::addr::{Pfn, PfnRange};
use pfnguard_core::host::{AbortOutcome, HostAbort};
use pfnguard_core::hypervisor::{Cpu, Launch, MAX_CPUS};
use pfnguard_core::psci::{CpuState, CpuTable};
use pfnguard_core::region::RegionTable;
use pfnguard_core::trace::{RING_RECORDS, TraceRing};
use pfnguard_core::vcpu::CpuIndex;
use pfnguard_core::vmemmap::{Frame, Vmemmap};
use pfnguard_shared::PAGE_SIZE;
use pfnguard_shared::trace::{RingHeader, TraceRecord};

use crate::board::Board;
use crate::machine::{self, Op, Sim, SimCpu, SimTlb};
use crate::memory::{Memory, to_usize};

/// A hypervisor on a board.
pub struct Launched {
    /// Never dropped: its tables lie in memory that is zeroed whole.
    pub hypervisor: Box<ManuallyDrop<Hypervisor<Sim>>>,
    /// Its CPUs.
    pub cpus: Vec<Cpu<Sim>>,
    config: Stage2Config,
}

impl Launched {
    /// Launches the hypervisor on a board whose memory is `memory`, all zero.
    ///
    /// # Safety
    /// Nothing may use what is returned after the carved pages of `memory` are written by others.
    pub unsafe fn new(board: &'static Board, memory: &Memory) -> Self {
        let config = board.stage2(memory.map());
        machine::select_tables(config);
        // SAFETY: the caller's.
        let (hypervisor, cpus) = unsafe { launch(board, memory) };
        Self { hypervisor: Box::new(ManuallyDrop::new(hypervisor)), cpus, config }
    }

    /// Makes a host call. What was done to the machine meanwhile is moved into `ops`.
    pub fn call(&mut self, cpu: usize, regs: &mut [u64; 8], ops: &mut Vec<Op>) {
        machine::select_tables(self.config);
        self.hypervisor.host_call(&mut self.cpus[cpu], regs);
        machine::take_ops(ops);
    }

    /// Lets the host fault. What was done to the machine meanwhile is moved into `ops`.
    pub fn abort(&mut self, cpu: usize, abort: HostAbort, ops: &mut Vec<Op>) -> AbortOutcome {
        machine::select_tables(self.config);
        let outcome = self.hypervisor.host_abort(&mut self.cpus[cpu], abort);
        machine::take_ops(ops);
        outcome
    }
}

/// # Safety
/// As [`Launched::new`].
unsafe fn launch(board: &'static Board, memory: &Memory) -> (Hypervisor<Sim>, Vec<Cpu<Sim>>) {
    let map = memory.map();
    let carve = &board.carve;
    let stage2 = board.stage2(map);
    // SAFETY: the carved pages are zero, and each part is one object's alone (caller).
    let host_stage2 = unsafe { HostTables::new(stage2, board.ram, carve.host_tables, SimTlb) };
    let count = u64::try_from(board.config.cpus).expect("few CPUs");
    let sections = [carve.own, carve.rings].map(|range| Section { range, kind: SectionKind::Data });
    let el2 = El2Config { map, sections: &sections, cpus: count, bti: Bti::Absent };
    // SAFETY: as above.
    let el2_stage1 = unsafe { El2Tables::new(el2, carve.el2_tables, SimTlb) };
    // SAFETY: as above.
    let mut vmemmap = unsafe { vmemmap(board, map) };
    vmemmap.mark_hyp(carve.own).expect("the carved pages are RAM");
    vmemmap.mark_hyp_readable(carve.rings).expect("the rings are RAM");
    let mut trace_pages = [None; MAX_CPUS];
    let mut cpus = Vec::new();
    for (index, slot) in trace_pages.iter_mut().enumerate().take(board.config.cpus) {
        let pages = carve.ring(index);
        *slot = Some(pages);
        let local = SimCpu::new(*memory, board.guest_vtcr(), board.encoding);
        // SAFETY: as above.
        let trace = unsafe { ring_at(map, pages) };
        cpus.push(Cpu { index: CpuIndex(index), local, trace, arg_page: None });
    }
    let mpidrs: Vec<u64> = (0..count).collect();
    let hypervisor = Hypervisor::new(Launch {
        vmemmap,
        regions: RegionTable::new(&board.manifest, board.ram, board.config.capabilities),
        host_stage2,
        el2_stage1,
        features: board.features,
        trace_pages,
        cpus: CpuTable::new(&mpidrs, CpuState::Off),
    });
    (hypervisor, cpus)
}

fn pointer<T>(map: PhysMap, page: Pfn, offset: usize) -> *mut T {
    let start = map.pointer(page.base().expect("a frame has an address"));
    start.as_ptr().wrapping_add(offset).cast()
}

/// # Safety
/// As [`Launched::new`].
unsafe fn vmemmap(board: &Board, map: PhysMap) -> Vmemmap {
    let needed = Vmemmap::storage_needed(board.ram);
    let start = board.carve.records.start();
    let last = Pfn(board.carve.records.end().0 - 1);
    assert!(needed.frames * 2 <= to_usize(last.0 - start.0) * PAGE_SIZE && needed.chunks <= 2048);
    // SAFETY: inside the carved pages, which are zero: that is a valid record.
    let frames =
        unsafe { core::slice::from_raw_parts_mut(pointer::<Frame>(map, start, 0), needed.frames) };
    // SAFETY: as above, in another page.
    let chunks =
        unsafe { core::slice::from_raw_parts_mut(pointer::<u16>(map, last, 0), needed.chunks) };
    Vmemmap::new(board.ram, frames, chunks)
}

/// # Safety
/// As [`Launched::new`].
unsafe fn ring_at(map: PhysMap, pages: PfnRange) -> TraceRing {
    let first = pages.start();
    // SAFETY: the first word of the ring's pages, aligned; `written` lies there.
    let written: &'static AtomicU64 = unsafe { &*pointer::<AtomicU64>(map, first, 0) };
    let records = pointer::<[TraceRecord; RING_RECORDS]>(map, first, size_of::<RingHeader>());
    // SAFETY: the pages behind the header, which are zero: those are valid records.
    let records: &'static mut [TraceRecord; RING_RECORDS] = unsafe { &mut *records };
    TraceRing::new(written, records, pages)
}

const _: () =
    assert!(size_of::<RingHeader>() + RING_RECORDS * size_of::<TraceRecord>() <= 5 * PAGE_SIZE);
