//! The machine, as the core sees it.

use pfnguard_core::addr::{IpaPfn, Pfn, PfnRange, PhysAddr};
use pfnguard_core::machine::{
    ArgWindow, Clock, Features, Firmware, Frames, GuestExit, Machine, RegisterWidth, Vmid, World,
};
use pfnguard_core::vcpu::VcpuContext;
use spin::Once;

use crate::arg_slot::ArgSlot;
use crate::attrs::{Encoding, Fwb, MtePerm};
use crate::boot::{Mmu, secondary_entry};
use crate::cache::CacheGeometry;
use crate::features::IdRegisters;
use crate::fixmap::{Fixmap, Windows};
use crate::frames::FrameAccess;
use crate::inject::StateRules;
use crate::pool::PhysMap;
use crate::stage1::El2Tables;
use crate::stage2::{GuestTables, HostTables, Stage2Config, Vmid16, Vtcr};
use crate::sysreg::read;
use crate::tlb::{HardwareTlb, RepeatTlbi, Stage2Regs, TlbiRange};
use crate::vectors::Pauth;
use crate::world::Switch;

/// An Armv8-A or Armv9-A machine without VHE in use.
pub struct Arm64;

impl Machine for Arm64 {
    type HostStage2 = HostTables<HardwareTlb>;
    type GuestStage2 = GuestTables<HardwareTlb>;
    type El2Stage1 = El2Tables<HardwareTlb>;
    type Cpu = LocalCpu;

    fn new_guest_stage2(vmid: Vmid, tables: PfnRange) -> Self::GuestStage2 {
        let platform = Platform::get();
        // SAFETY: the contract of `Machine`: the pages are the hypervisor's, mapped and zero.
        unsafe { GuestTables::new(platform.stage2, vmid, tables, platform.tlb) }
    }
}

/// What all CPUs have in common, found on the boot CPU and sealed at launch.
#[derive(Debug)]
pub struct Platform {
    /// The boot CPU's ID registers; other CPUs must agree in what matters.
    pub id: IdRegisters,
    /// Abilities as the core knows them, without what the manifest adds.
    pub features: Features,
    /// What all stage-2 tables have in common.
    pub stage2: Stage2Config,
    /// TLB maintenance.
    pub tlb: HardwareTlb,
    /// Data cache maintenance.
    pub cache: CacheGeometry,
    /// Exception entry at EL1.
    pub(crate) rules: StateRules,
    /// Pointer authentication.
    pub(crate) pauth: Pauth,
}

static PLATFORM: Once<Platform> = Once::new();
static SECONDARY: Once<Secondary> = Once::new();

/// What a CPU that PSCI starts needs besides its own slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Secondary {
    pub(crate) host_stage2: Stage2Regs,
}

impl Platform {
    /// Returns what this CPU says.
    pub fn detect() -> Self {
        use pfnguard_shared::info::Capabilities;

        let id = IdRegisters::read();
        let features = id.features();
        let has = |bit| features.capabilities.contains(bit);
        let range =
            if has(Capabilities::TLBI_RANGE) { TlbiRange::Present } else { TlbiRange::Absent };
        let repeat = if has(Capabilities::REPEAT_TLBI) { RepeatTlbi::Yes } else { RepeatTlbi::No };
        Self {
            id,
            features,
            stage2: Stage2Config {
                map: PhysMap::IDENTITY,
                pa_bits: features.pa_bits,
                vmid16: if features.vmid_bits == 16 { Vmid16::Present } else { Vmid16::Absent },
                encoding: Encoding {
                    fwb: if has(Capabilities::FWB) { Fwb::Present } else { Fwb::Absent },
                    mte_perm: if has(Capabilities::MTE_PERM) {
                        MtePerm::Present
                    } else {
                        MtePerm::Absent
                    },
                },
            },
            tlb: HardwareTlb::new(range, repeat),
            cache: CacheGeometry::read(),
            rules: StateRules::of(&id),
            pauth: Pauth::of(&id),
        }
    }

    /// Seals it.
    ///
    /// # Panics
    ///
    /// Where it was sealed before.
    pub fn seal(self) -> &'static Self {
        assert!(PLATFORM.get().is_none(), "the platform is detected once");
        PLATFORM.call_once(|| self)
    }

    /// Returns it.
    ///
    /// # Panics
    ///
    /// Before launch.
    pub fn get() -> &'static Self {
        PLATFORM.get().expect("sealed at launch: hypervisor bug")
    }

    /// Returns the registers that put `tables` in force on any CPU.
    pub fn mmu(&self, tables: &El2Tables<HardwareTlb>) -> Mmu {
        let regs = tables.regs(self.features.pa_bits);
        Mmu {
            mair: regs.mair,
            tcr: regs.tcr,
            ttbr0: regs.ttbr0,
            sctlr: crate::el2::sctlr(&self.id).bits(),
        }
    }

    /// Returns `VTCR_EL2` of all guests.
    pub(crate) fn guest_vtcr(&self) -> u64 {
        Vtcr::guest(self.features.pa_bits, self.stage2.vmid16).value()
    }
}

/// Remembers what the other CPUs need.
pub(crate) fn set_secondary(secondary: Secondary) {
    SECONDARY.call_once(|| secondary);
}

/// Returns what this CPU needs to serve the host.
pub(crate) fn secondary() -> Secondary {
    *SECONDARY.get().expect("set before any other CPU runs: hypervisor bug")
}

/// What one CPU does for the core.
#[derive(Debug)]
pub struct LocalCpu {
    frames: FrameAccess<Fixmap<HardwareTlb>, CacheGeometry>,
    arg_page: ArgSlot<HardwareTlb>,
    pub(crate) switch: Option<Switch>,
}

impl LocalCpu {
    /// Returns the CPU that uses `windows`.
    pub fn new(windows: Windows<HardwareTlb>, cache: CacheGeometry) -> Self {
        let Windows { frames, arg_page } = windows;
        Self { frames: FrameAccess::new(frames, cache, PhysMap::IDENTITY), arg_page, switch: None }
    }

    fn switch(&mut self) -> &mut Switch {
        self.switch.as_mut().expect("made when the CPU came up: hypervisor bug")
    }
}

impl Frames for LocalCpu {
    fn zero(&mut self, range: PfnRange) {
        self.frames.zero(range);
    }

    fn zero_own(&mut self, range: PfnRange) {
        self.frames.zero_own(range);
    }

    fn zero_device(&mut self, range: PfnRange) {
        self.frames.zero_device(range);
    }

    fn clean_invalidate(&mut self, range: PfnRange) {
        self.frames.clean_invalidate(range);
    }

    fn forget_instructions(&mut self) {
        self.frames.forget_instructions();
    }

    fn read_register(&mut self, addr: PhysAddr, width: RegisterWidth) -> Option<u64> {
        self.frames.read_register(addr, width)
    }
}

impl ArgWindow for LocalCpu {
    fn show(&mut self, pfn: Pfn) {
        self.arg_page.show(pfn);
    }

    fn hide(&mut self) {
        self.arg_page.hide();
    }

    #[inline]
    fn load(&self, first: usize, words: &mut [u64]) {
        self.arg_page.load(first, words);
    }

    #[inline]
    fn store(&mut self, first: usize, words: &[u64]) {
        self.arg_page.store(first, words);
    }
}

impl Firmware for LocalCpu {
    fn smc(&mut self, regs: [u64; 4]) -> [u64; 4] {
        crate::firmware::call(regs)
    }

    fn cpu_entry(&self) -> PhysAddr {
        secondary_entry()
    }
}

impl World for LocalCpu {
    fn run(&mut self, context: &mut VcpuContext, vttbr: u64) -> GuestExit {
        self.switch().run(context, vttbr)
    }

    fn probe(&mut self, ipa: IpaPfn, vttbr: u64) -> u64 {
        self.switch().probe(ipa, vttbr)
    }
}

impl Clock for LocalCpu {
    #[inline(always)]
    fn now(&self) -> u64 {
        read!("cntvct_el0")
    }
}
