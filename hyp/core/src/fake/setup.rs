//! Launch of the fake machine, and its doors in one line each.

use core::sync::atomic::AtomicU64;
use std::boxed::Box;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use arrayvec::ArrayVec;
use pfnguard_shared::HostFunction;
use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::PlatformFlags;
use pfnguard_shared::trace::TraceRecord;

use super::{FakeCpu, FakeEl2, FakeHost, FakeMachine, Memory, length, take_log};
use crate::addr::{Pfn, PfnRange, PhysAddr};
use crate::host::{AbortOutcome, HostAbort};
use crate::hypervisor::{Cpu, Hypervisor, Launch, MAX_CPUS};
use crate::machine::Features;
use crate::manifest::{Entry, Manifest};
use crate::psci::{CpuState, CpuTable};
use crate::region::RegionTable;
use crate::trace::{RING_RECORDS, TraceRing};
use crate::vcpu::CpuIndex;
use crate::vmemmap::{Frame, Vmemmap};

/// First frame of the default RAM.
pub const RAM: Pfn = Pfn(0x4_0000);
/// Pages of the default RAM: four chunks of 2 MiB.
pub const RAM_PAGES: u64 = 4 * 512;
/// Frames that are the hypervisor's from the start.
pub const IMAGE: PfnRange = match PfnRange::new(Pfn(0x4_0200), 64) {
    Some(range) => range,
    None => panic!("in range"),
};

/// What a test wants of a machine.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Ranges of RAM; [`IMAGE`] and one trace page a CPU behind it lie in it.
    pub ram: Vec<PfnRange>,
    /// Regions.
    pub entries: Vec<Entry>,
    /// Facts of the manifest.
    pub platform: PlatformFlags,
    /// Abilities of all CPUs.
    pub capabilities: Capabilities,
    /// Number of CPUs.
    pub cpus: usize,
}

impl Default for Setup {
    /// 8 MiB of RAM, no region, two CPUs that can do everything but forbid tags.
    fn default() -> Self {
        Self {
            ram: vec![PfnRange::new(RAM, RAM_PAGES).expect("in range")],
            entries: Vec::new(),
            platform: PlatformFlags::NONE,
            capabilities: Capabilities::ALL
                .without(Capabilities::REPEAT_TLBI)
                .without(Capabilities::MTE_PERM),
            cpus: 2,
        }
    }
}

impl Setup {
    /// Makes the machine.
    pub fn launch(self) -> (Hypervisor<FakeMachine>, Vec<Cpu<FakeMachine>>) {
        let manifest = Manifest {
            entries: self.entries.iter().cloned().collect::<ArrayVec<_, _>>(),
            platform: self.platform,
            sha256: [0x5a; 32],
        };
        let mut trace_pages = [None; MAX_CPUS];
        let mut vmemmap = self.vmemmap();
        let memory = Memory::default();
        let mut cpus = Vec::new();
        for (index, slot) in trace_pages.iter_mut().enumerate().take(self.cpus) {
            let page = PfnRange::single(Pfn(IMAGE.end().0 + length(index))).expect("in range");
            vmemmap.mark_hyp_readable(page).expect("RAM behind the image");
            *slot = Some(page);
            cpus.push(fake_cpu(index, page, &memory));
        }
        let mpidrs: Vec<u64> = (0..length(self.cpus)).collect();
        let hypervisor = Hypervisor::new(Launch {
            vmemmap,
            regions: RegionTable::new(&manifest, &self.ram, self.capabilities),
            host_stage2: FakeHost::default(),
            el2_stage1: FakeEl2::default(),
            features: Features {
                capabilities: self.capabilities,
                pa_bits: 48,
                guest_ipa_bits: 40,
                vmid_bits: 16,
            },
            trace_pages,
            cpus: CpuTable::new(&mpidrs, CpuState::Off),
        });
        take_log();
        (hypervisor, cpus)
    }

    fn vmemmap(&self) -> Vmemmap {
        let needed = Vmemmap::storage_needed(&self.ram);
        let frames = Box::leak(vec![Frame::NO_PAGE; needed.frames].into_boxed_slice());
        let chunks = Box::leak(vec![0; needed.chunks].into_boxed_slice());
        let mut vmemmap = Vmemmap::new(&self.ram, frames, chunks);
        vmemmap.mark_hyp(IMAGE).expect("the image lies in RAM");
        vmemmap
    }
}

fn fake_cpu(index: usize, pages: PfnRange, memory: &Memory) -> Cpu<FakeMachine> {
    let written: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
    let records = Box::leak(Box::new([TraceRecord::zeroed(); RING_RECORDS]));
    Cpu {
        index: CpuIndex(index),
        local: FakeCpu { memory: Arc::clone(memory), ..FakeCpu::default() },
        trace: TraceRing::new(written, records, pages),
        arg_page: None,
    }
}

/// Makes the default machine with these regions.
pub fn machine(entries: Vec<Entry>) -> (Hypervisor<FakeMachine>, Vec<Cpu<FakeMachine>>) {
    Setup { entries, ..Setup::default() }.launch()
}

/// Makes a host call with `x1..` from `args` and returns `x0..=x7`.
pub fn call(
    hypervisor: &Hypervisor<FakeMachine>,
    cpu: &mut Cpu<FakeMachine>,
    function: HostFunction,
    args: &[u64],
) -> [u64; 8] {
    let mut regs = [0; 8];
    regs[0] = u64::from(function.raw());
    regs[1..=args.len()].copy_from_slice(args);
    hypervisor.host_call(cpu, &mut regs);
    regs
}

/// Lets the host touch a page and fault, as `esr` says.
pub fn abort(
    hypervisor: &Hypervisor<FakeMachine>,
    cpu: &mut Cpu<FakeMachine>,
    pfn: Pfn,
    esr: u64,
) -> AbortOutcome {
    let ipa = pfn.base().unwrap_or(PhysAddr(u64::MAX));
    hypervisor.host_abort(cpu, HostAbort { ipa, far: 0, esr, elr: 0, pstate: 0 })
}
