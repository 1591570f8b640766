//! The roles of the core's machine: hyp/arch's page tables over simulated memory, and CPUs whose
//! loads and stores go through the tables' bytes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::ptr::NonNull;

use pfnguard_arch::attrs::{Encoding, Fwb, MtePerm};
use pfnguard_arch::cache::CacheGeometry;
use pfnguard_arch::fixmap::{Window, WindowType};
use pfnguard_arch::frames::FrameAccess;
use pfnguard_arch::pool::PhysMap;
use pfnguard_arch::stage1::El2Tables;
use pfnguard_arch::stage2::{GuestTables, HostTables, Stage2Config};
use pfnguard_arch::tlb::{El2Tlb, Stage2Regs, Stage2Scope, Stage2Tlb};
use pfnguard_core::addr::{IpaPfn, Pfn, PfnRange, PhysAddr};
use pfnguard_core::machine::{
    ArgWindow, Clock, Firmware, Frames, GuestExit, Machine, RegisterWidth, Vmid, World,
};
use pfnguard_core::vcpu::VcpuContext;
use pfnguard_shared::PAGE_SIZE;

use crate::guest::{Act, Guest};
use crate::memory::Memory;
use crate::walker;

/// Something that the hypervisor did to the machine, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the role's method; fields are its arguments")]
pub enum Op {
    Invalidate { vttbr: u64, scope: Stage2Scope },
    InvalidateEl2 { range: PfnRange },
    Zero { range: PfnRange },
    ZeroDevice { range: PfnRange },
    CleanInvalidate { range: PfnRange },
    ForgetInstructions,
    ReadRegister { addr: PhysAddr, value: Option<u64> },
    Exit(GuestExit),
    Probe { par: u64 },
    Smc { regs: [u64; 4] },
}

thread_local! {
    static DONE: RefCell<Vec<Op>> = const { RefCell::new(Vec::new()) };
    static TABLES: Cell<Option<Stage2Config>> = const { Cell::new(None) };
}

fn log(op: Op) {
    DONE.with_borrow_mut(|done| done.push(op));
}

/// Moves what was done since the last call into `ops`.
pub fn take_ops(ops: &mut Vec<Op>) {
    ops.clear();
    DONE.with_borrow_mut(|done| mem::swap(done, ops));
}

/// Sets what the tables of new guests on this thread have in common.
pub fn select_tables(config: Stage2Config) {
    TABLES.set(Some(config));
}

/// The simulated machine.
#[derive(Debug)]
pub struct Sim;

impl Machine for Sim {
    type HostStage2 = HostTables<SimTlb>;
    type GuestStage2 = GuestTables<SimTlb>;
    type El2Stage1 = El2Tables<SimTlb>;
    type Cpu = SimCpu;

    fn new_guest_stage2(vmid: Vmid, tables: PfnRange) -> Self::GuestStage2 {
        let config = TABLES.get().expect("a world selects its tables before each call");
        // SAFETY: the contract of `Machine`: the pages are the hypervisor's and zero. All of the
        // machine's memory is mapped through `config.map`.
        unsafe { GuestTables::new(config, vmid, tables, SimTlb) }
    }
}

/// TLBs: what is asked of them is logged.
#[derive(Clone, Copy, Debug)]
pub struct SimTlb;

impl Stage2Tlb for SimTlb {
    fn publish(&mut self) {}

    fn invalidate(&mut self, regs: Stage2Regs, scope: Stage2Scope) {
        log(Op::Invalidate { vttbr: regs.vttbr, scope });
    }
}

impl El2Tlb for SimTlb {
    fn publish(&mut self) {}

    fn invalidate(&mut self, range: PfnRange) {
        log(Op::InvalidateEl2 { range });
    }
}

/// Returns the meaning of `MemAttr` as hyp/arch names it.
pub fn arch_encoding(encoding: walker::Encoding) -> Encoding {
    Encoding {
        fwb: if encoding.fwb { Fwb::Present } else { Fwb::Absent },
        mte_perm: if encoding.mte_perm { MtePerm::Present } else { MtePerm::Absent },
    }
}

/// A window that is always open: the hypervisor sees all of memory.
#[derive(Clone, Copy, Debug)]
pub struct Open(PhysMap);

impl Open {
    fn pointer(self, pfn: Pfn) -> NonNull<u8> {
        self.0.pointer(pfn.base().expect("a frame has an address"))
    }
}

impl Window for Open {
    fn with_page<R>(
        &mut self,
        pfn: Pfn,
        _: WindowType,
        access: impl FnOnce(NonNull<u8>) -> R,
    ) -> R {
        access(self.pointer(pfn))
    }

    fn with_range(
        &mut self,
        range: PfnRange,
        _: WindowType,
        mut access: impl FnMut(NonNull<u8>, usize),
    ) {
        let pages = crate::memory::to_usize(range.pages());
        access(self.pointer(range.start()), pages * PAGE_SIZE);
    }
}

/// One CPU.
#[derive(Debug)]
pub struct SimCpu {
    frames: FrameAccess<Open, CacheGeometry>,
    memory: Memory,
    vtcr: u64,
    encoding: walker::Encoding,
    /// The argument page in the window.
    shown: Option<Pfn>,
    /// Words of the argument page that this call has read. None is read twice: a host that writes
    /// meanwhile is then no more than a host that wrote before.
    fetched: RefCell<Vec<Range<usize>>>,
    /// The guest that VCPU_RUN enters.
    pub guest: Guest,
    /// What device registers answer, read by read; afterwards 0.
    pub registers: VecDeque<Option<u64>>,
}

impl SimCpu {
    /// Returns a CPU of a machine with this memory; guests run under `vtcr`.
    pub fn new(memory: Memory, vtcr: u64, encoding: walker::Encoding) -> Self {
        let window = Open(memory.map());
        Self {
            frames: FrameAccess::new(window, CacheGeometry::read(), memory.map()),
            memory,
            vtcr,
            encoding,
            shown: None,
            fetched: RefCell::default(),
            guest: Guest::default(),
            registers: VecDeque::new(),
        }
    }

    /// Forgets what the last call read.
    pub fn begin_call(&mut self) {
        self.fetched.get_mut().clear();
    }

    fn arg_page(&self) -> u64 {
        self.shown.expect("no argument page is shown").0
    }

    /// Makes the guest of the next VCPU_RUN do this.
    pub fn script(&mut self, acts: &[Act]) {
        self.guest = Guest::new(acts);
    }

    fn stage2(&self, vttbr: u64) -> walker::Stage2 {
        walker::Stage2 { vttbr, vtcr: self.vtcr, encoding: self.encoding }
    }

    fn check(&self, range: PfnRange) {
        let last = range.end().0 - 1;
        assert!(self.memory.has(range.start().0) && self.memory.has(last), "{range:?}: no memory");
    }
}

impl Frames for SimCpu {
    fn zero(&mut self, range: PfnRange) {
        self.check(range);
        self.frames.zero(range);
        log(Op::Zero { range });
    }

    fn zero_own(&mut self, range: PfnRange) {
        self.check(range);
        self.frames.zero_own(range);
        log(Op::Zero { range });
    }

    fn zero_device(&mut self, range: PfnRange) {
        self.check(range);
        self.frames.zero_device(range);
        log(Op::ZeroDevice { range });
    }

    /// Off target there is no cache: nothing to do but to remember.
    fn clean_invalidate(&mut self, range: PfnRange) {
        log(Op::CleanInvalidate { range });
    }

    fn forget_instructions(&mut self) {
        log(Op::ForgetInstructions);
    }

    fn read_register(&mut self, addr: PhysAddr, width: RegisterWidth) -> Option<u64> {
        let value = self.registers.pop_front().unwrap_or(Some(0));
        let mask = match width {
            RegisterWidth::Word => u64::from(u32::MAX),
            RegisterWidth::Doubleword => u64::MAX,
        };
        let value = value.map(|value| value & mask);
        log(Op::ReadRegister { addr, value });
        value
    }
}

impl ArgWindow for SimCpu {
    fn show(&mut self, pfn: Pfn) {
        assert!(self.memory.has(pfn.0), "{pfn}: no memory");
        assert_eq!(self.shown.replace(pfn), None, "two argument pages in one window");
    }

    fn hide(&mut self) {
        self.shown.take().expect("nothing to hide");
    }

    fn load(&self, first: usize, words: &mut [u64]) {
        let range = first..first + words.len();
        let mut fetched = self.fetched.borrow_mut();
        let again = fetched.iter().any(|old| old.start < range.end && range.start < old.end);
        assert!(!again, "words {range:?} of the argument page are read twice: they may differ");
        fetched.push(range.clone());
        self.memory.page(self.arg_page(), |page| words.copy_from_slice(&page[range]));
    }

    fn store(&mut self, first: usize, words: &[u64]) {
        let range = first..first + words.len();
        self.memory.page_mut(self.arg_page(), |page| page[range].copy_from_slice(words));
    }
}

impl Firmware for SimCpu {
    fn smc(&mut self, regs: [u64; 4]) -> [u64; 4] {
        log(Op::Smc { regs });
        [0; 4]
    }

    fn cpu_entry(&self) -> PhysAddr {
        PhysAddr(0x4020_0040)
    }
}

impl World for SimCpu {
    fn run(&mut self, context: &mut VcpuContext, vttbr: u64) -> GuestExit {
        let stage2 = self.stage2(vttbr);
        let exit = self.guest.run(context, &self.memory, &stage2);
        log(Op::Exit(exit));
        exit
    }

    fn probe(&mut self, ipa: IpaPfn, vttbr: u64) -> u64 {
        let found = self.stage2(vttbr).translate(&self.memory, ipa.0);
        let par = par(found.expect("the guest's tables are sound"));
        log(Op::Probe { par });
        par
    }
}

/// `PAR_EL1` of a walk with a write-back stage 1 (Arm ARM, D24.2, `PAR_EL1`).
fn par(found: Option<(u64, walker::Attrs)>) -> u64 {
    /// F, a translation fault at level 3 (FST), of stage 2 (S).
    const FAULT: u64 = 1 | 0b00_0111 << 1 | 1 << 9;
    let Some((pfn, attrs)) = found else { return FAULT };
    let attr: u64 = match attrs.mem {
        walker::Type::Device => 0x04,
        walker::Type::NormalNc => 0x44,
        walker::Type::WriteBack | walker::Type::AsStage1 => 0xff,
    };
    attr << 56 | pfn << 12 | 0b11 << 7
}

impl Clock for SimCpu {
    fn now(&self) -> u64 {
        0
    }
}
