//! A machine made of maps from page to page, for tests: nothing in it looks like VMSA.
//!
//! Every operation on hardware is logged in order ([`take_log`]), per thread, so that a test can
//! say what must come before what. Every contract that [`crate::machine`] states for callers is
//! asserted. [`assert_consistent`] compares all translations with the two tables of truth.

mod audit;
mod setup;

use std::boxed::Box;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::vec::Vec;
use std::{thread_local, vec};

use pfnguard_shared::PAGE_SIZE;
use pfnguard_shared::manifest::BlockSizes;
use zerocopy::IntoBytes;

use crate::addr::{IpaPfn, IpaRange, Pfn, PfnRange, PhysAddr};
use crate::machine::{
    ArgWindow, Clock, El2Stage1, Firmware, Frames, GuestExit, GuestLeaf, GuestStage2, HostStage2,
    Machine, PlannedMap, PlannedUnmap, RegisterWidth, Stage2Attrs, Vmid, World,
};
use crate::vcpu::VcpuContext;

pub use audit::{Snapshot, assert_consistent, snapshot};
pub use setup::{IMAGE, RAM, RAM_PAGES, Setup, abort, call, machine};

/// Something that was done to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the role's method; fields are its arguments")]
pub enum Op {
    HostMap { range: PfnRange, attrs: Stage2Attrs },
    HostUnmap { range: PfnRange },
    GuestMap { vmid: Vmid, ipa: IpaPfn, pfns: PfnRange, attrs: Stage2Attrs },
    GuestUnmap { vmid: Vmid, ipa: IpaRange },
    GuestDestroy { vmid: Vmid },
    El2Map { range: PfnRange },
    El2Unmap { range: PfnRange },
    Zero { range: PfnRange },
    ZeroDevice { range: PfnRange },
    CleanInvalidate { range: PfnRange },
    ForgetInstructions,
    ReadRegister { addr: PhysAddr },
    Smc { regs: [u64; 4] },
    Run,
    Probe { ipa: IpaPfn },
}

thread_local! {
    static LOG: RefCell<Vec<Op>> = const { RefCell::new(Vec::new()) };
}

fn log(op: Op) {
    LOG.with_borrow_mut(|log| log.push(op));
}

/// Returns what this thread did to machines since the last call.
pub fn take_log() -> Vec<Op> {
    LOG.take()
}

/// The fake machine.
#[derive(Debug)]
pub struct FakeMachine;

impl Machine for FakeMachine {
    type HostStage2 = FakeHost;
    type GuestStage2 = FakeGuest;
    type El2Stage1 = FakeEl2;
    type Cpu = FakeCpu;

    fn new_guest_stage2(vmid: Vmid, tables: PfnRange) -> FakeGuest {
        let mut pool: Vec<Pfn> = tables.iter().collect();
        let root = vec![pool.remove(0)];
        FakeGuest {
            vmid,
            leaves: BTreeMap::new(),
            blocks: BTreeSet::new(),
            split: BTreeSet::new(),
            used: root,
            pool,
        }
    }
}

/// Runs of pages that the host may reach. An unmap takes away every run that it touches, as far
/// as the contract allows.
#[derive(Debug, Default)]
pub struct FakeHost {
    runs: BTreeMap<Pfn, (PfnRange, Stage2Attrs)>,
}

impl FakeHost {
    fn first_touching(&self, range: &PfnRange) -> Option<PfnRange> {
        let (_, (run, _)) = self.runs.range(..range.end()).next_back()?;
        run.overlaps(range).then_some(*run)
    }

    /// Returns every run with its attributes.
    pub fn runs(&self) -> impl Iterator<Item = &(PfnRange, Stage2Attrs)> {
        self.runs.values()
    }
}

impl HostStage2 for FakeHost {
    fn map(&mut self, range: PfnRange, attrs: Stage2Attrs) {
        assert_eq!(self.first_touching(&range), None, "host map over a translation");
        self.runs.insert(range.start(), (range, attrs));
        log(Op::HostMap { range, attrs });
    }

    fn unmap(&mut self, range: PfnRange) {
        while let Some(run) = self.first_touching(&range) {
            self.runs.remove(&run.start());
        }
        log(Op::HostUnmap { range });
    }

    fn lookup(&self, pfn: Pfn) -> Option<Stage2Attrs> {
        let (_, (run, attrs)) = self.runs.range(..=pfn).next_back()?;
        run.contains(pfn).then_some(*attrs)
    }

    fn tables_free(&self) -> u64 {
        100
    }
}

/// Pages of a group share one table; a group that is one block takes none until it is split.
const GROUP: u64 = 512;

/// A guest's pages, with table memory accounted in groups of 512.
#[derive(Debug)]
pub struct FakeGuest {
    vmid: Vmid,
    leaves: BTreeMap<IpaPfn, GuestLeaf>,
    blocks: BTreeSet<u64>,
    split: BTreeSet<u64>,
    used: Vec<Pfn>,
    pool: Vec<Pfn>,
}

impl FakeGuest {
    /// Returns every translation.
    pub fn leaves(&self) -> impl Iterator<Item = (&IpaPfn, &GuestLeaf)> {
        self.leaves.iter()
    }

    /// Returns every table page, free or in use.
    pub fn tables(&self) -> impl Iterator<Item = &Pfn> {
        self.used.iter().chain(&self.pool)
    }

    fn take_for(&mut self, group: u64) {
        if self.split.insert(group) {
            let table = self.pool.pop().expect("fake guest tables ran out: worst case not checked");
            self.used.push(table);
        }
    }

    fn covered(group: u64, ipa: &IpaRange) -> bool {
        IpaRange::new(IpaPfn(group * GROUP), GROUP).is_some_and(|whole| ipa.contains_range(&whole))
    }
}

fn groups(ipa: &IpaRange) -> core::ops::RangeInclusive<u64> {
    ipa.start().0 / GROUP..=(ipa.end().0 - 1) / GROUP
}

fn length(count: usize) -> u64 {
    u64::try_from(count).expect("usize is 64 bits at most")
}

/// A checked mapping of the fake.
#[derive(Debug)]
pub struct FakeMap<'a>(&'a mut FakeGuest, IpaPfn, PfnRange, BlockSizes);

impl PlannedMap for FakeMap<'_> {
    fn tables(&self) -> u64 {
        self.0.tables_to_map(self.1, self.2, self.3)
    }

    fn commit(self, attrs: Stage2Attrs) {
        self.0.map(self.1, self.2, attrs, self.3);
    }
}

/// A checked removal of the fake.
#[derive(Debug)]
pub struct FakeUnmap<'a>(&'a mut FakeGuest, IpaRange);

impl PlannedUnmap for FakeUnmap<'_> {
    fn tables(&self) -> u64 {
        self.0.tables_to_unmap(self.1)
    }

    fn commit(self) {
        self.0.unmap(self.1);
    }
}

impl GuestStage2 for FakeGuest {
    type Map<'a> = FakeMap<'a>;
    type Unmap<'a> = FakeUnmap<'a>;

    fn plan_map(
        &mut self,
        ipa: IpaPfn,
        pfns: PfnRange,
        blocks: BlockSizes,
    ) -> Result<FakeMap<'_>, IpaPfn> {
        let range = IpaRange::new(ipa, pfns.pages()).expect("guest map past the address space");
        match self.first_mapped(range) {
            Some(mapped) => Err(mapped),
            None => Ok(FakeMap(self, ipa, pfns, blocks)),
        }
    }

    fn plan_unmap(&mut self, ipa: IpaPfn, pfns: PfnRange) -> Result<FakeUnmap<'_>, IpaPfn> {
        let range = IpaRange::new(ipa, pfns.pages()).expect("guest unmap past the address space");
        let leads = |(ipa, pfn): &(IpaPfn, Pfn)| self.lookup(*ipa).is_some_and(|l| l.pfn == *pfn);
        match range.iter().zip(pfns.iter()).find(|page| !leads(page)) {
            Some((elsewhere, _)) => Err(elsewhere),
            None => Ok(FakeUnmap(self, range)),
        }
    }

    fn add_tables(&mut self, range: PfnRange) {
        self.pool.extend(range.iter());
    }

    fn take_table(&mut self) -> Option<Pfn> {
        self.pool.pop()
    }

    fn tables_free(&self) -> u64 {
        length(self.pool.len())
    }

    fn tables_to_map(&self, ipa: IpaPfn, pfns: PfnRange, blocks: BlockSizes) -> u64 {
        let range = IpaRange::new(ipa, pfns.pages()).expect("guest map past the address space");
        let large =
            blocks.contains(BlockSizes::BLOCK_2M) && ipa.0 % GROUP == pfns.start().0 % GROUP;
        let free =
            |group: &u64| self.split.contains(group) || large && Self::covered(*group, &range);
        length(groups(&range).filter(|group| !free(group)).count())
    }

    fn tables_if_vacant(&self, ipa: IpaPfn, pfns: PfnRange, blocks: BlockSizes) -> Option<u64> {
        let vacant = self.split.is_empty() && self.blocks.is_empty();
        vacant.then(|| self.tables_to_map(ipa, pfns, blocks))
    }

    fn tables_to_unmap(&self, ipa: IpaRange) -> u64 {
        let splits = |group: &u64| self.blocks.contains(group) && !Self::covered(*group, &ipa);
        length(groups(&ipa).filter(splits).count())
    }

    fn lookup(&self, ipa: IpaPfn) -> Option<GuestLeaf> {
        assert!(!self.used.is_empty(), "lookup in a destroyed stage 2");
        self.leaves.get(&ipa).copied()
    }

    fn first_mapped(&self, ipa: IpaRange) -> Option<IpaPfn> {
        assert!(!self.used.is_empty(), "lookup in a destroyed stage 2");
        self.leaves.range(ipa.start()..ipa.end()).next().map(|(ipa, _)| *ipa)
    }

    fn map(&mut self, ipa: IpaPfn, pfns: PfnRange, attrs: Stage2Attrs, blocks: BlockSizes) {
        let range = IpaRange::new(ipa, pfns.pages()).expect("guest map past the address space");
        assert_eq!(self.first_mapped(range), None, "guest map over a translation");
        let needed = self.tables_to_map(ipa, pfns, blocks);
        assert!(needed <= self.tables_free(), "worst case not checked");
        let aligned = ipa.0 % GROUP == pfns.start().0 % GROUP;
        for group in groups(&range) {
            let large = blocks.contains(BlockSizes::BLOCK_2M) && aligned;
            if large && Self::covered(group, &range) && !self.split.contains(&group) {
                self.blocks.insert(group);
            } else {
                self.take_for(group);
            }
        }
        for (ipa, pfn) in range.iter().zip(pfns.iter()) {
            self.leaves.insert(ipa, GuestLeaf { pfn, attrs });
        }
        log(Op::GuestMap { vmid: self.vmid, ipa, pfns, attrs });
    }

    fn unmap(&mut self, ipa: IpaRange) {
        assert!(self.tables_to_unmap(ipa) <= self.tables_free(), "worst case not checked");
        for group in groups(&ipa) {
            if self.blocks.remove(&group) && !Self::covered(group, &ipa) {
                self.take_for(group);
            }
        }
        self.leaves.retain(|page, _| !ipa.contains(*page));
        log(Op::GuestUnmap { vmid: self.vmid, ipa });
    }

    fn destroy(&mut self) {
        self.leaves.clear();
        self.blocks.clear();
        self.split.clear();
        self.pool.append(&mut self.used);
        log(Op::GuestDestroy { vmid: self.vmid });
    }

    fn vttbr(&self) -> u64 {
        u64::from(self.vmid.0) << 48
    }
}

/// The set of pages mapped at EL2.
#[derive(Debug, Default)]
pub struct FakeEl2 {
    pages: BTreeSet<Pfn>,
}

impl El2Stage1 for FakeEl2 {
    fn map(&mut self, range: PfnRange) {
        for page in range.iter() {
            assert!(self.pages.insert(page), "{page} mapped at EL2 twice");
        }
        log(Op::El2Map { range });
    }

    fn unmap(&mut self, range: PfnRange) {
        for page in range.iter() {
            assert!(self.pages.remove(&page), "{page} was not mapped at EL2");
        }
        log(Op::El2Unmap { range });
    }

    fn pages(&self) -> u64 {
        length(self.pages.len())
    }
}

/// What a guest does until it stops.
pub type Scene = Box<dyn FnMut(&mut VcpuContext) -> GuestExit + Send>;

/// Contents of frames; a page that was never written is zero.
pub type Memory = Arc<Mutex<BTreeMap<Pfn, [u8; PAGE_SIZE]>>>;

/// One CPU.
#[derive(Default)]
pub struct FakeCpu {
    /// Memory, shared by all CPUs.
    pub memory: Memory,
    /// What guests do, run by run; an interrupt comes after the last scene.
    pub scenes: VecDeque<Scene>,
    /// Values that device registers return, one a read; the last one stays.
    pub registers: BTreeMap<PhysAddr, VecDeque<u64>>,
    /// Device registers that nothing answers for.
    pub absent: BTreeSet<PhysAddr>,
    /// Answers of the firmware; zeroes after the last one.
    pub answers: VecDeque<[u64; 4]>,
    /// What a probe returns.
    pub par: u64,
    /// The argument page that is shown.
    pub shown: Option<Pfn>,
}

impl core::fmt::Debug for FakeCpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FakeCpu").finish_non_exhaustive()
    }
}

impl FakeCpu {
    /// Adds what the guest does next.
    pub fn scene(
        &mut self,
        scene: impl FnMut(&mut VcpuContext) -> GuestExit + Send + 'static,
    ) -> &mut Self {
        self.scenes.push_back(Box::new(scene));
        self
    }

    /// Sets the values that a device register returns, in order.
    pub fn register(&mut self, addr: PhysAddr, values: &[u64]) {
        self.registers.insert(addr, values.iter().copied().collect());
    }

    /// Copies bytes of a frame.
    pub fn read(&self, pfn: Pfn, offset: usize, buf: &mut [u8]) {
        self.with_page(pfn, |page| buf.copy_from_slice(&page[offset..offset + buf.len()]));
    }

    /// Writes bytes of a frame.
    pub fn write(&self, pfn: Pfn, offset: usize, bytes: &[u8]) {
        self.with_page(pfn, |page| page[offset..offset + bytes.len()].copy_from_slice(bytes));
    }

    fn arg_page(&self) -> Pfn {
        self.shown.expect("no argument page is shown: hypervisor bug")
    }

    fn with_page<R>(&self, pfn: Pfn, use_page: impl FnOnce(&mut [u8; PAGE_SIZE]) -> R) -> R {
        let mut memory = self.memory.lock().expect("a test thread panicked");
        use_page(memory.entry(pfn).or_insert([0; PAGE_SIZE]))
    }

    fn forget(&self, range: PfnRange) {
        let mut memory = self.memory.lock().expect("a test thread panicked");
        memory.retain(|pfn, _| !range.contains(*pfn));
    }
}

impl Frames for FakeCpu {
    fn zero(&mut self, range: PfnRange) {
        self.forget(range);
        log(Op::Zero { range });
    }

    fn zero_own(&mut self, range: PfnRange) {
        self.zero(range);
    }

    fn zero_device(&mut self, range: PfnRange) {
        self.forget(range);
        log(Op::ZeroDevice { range });
    }

    fn clean_invalidate(&mut self, range: PfnRange) {
        log(Op::CleanInvalidate { range });
    }

    fn forget_instructions(&mut self) {
        log(Op::ForgetInstructions);
    }

    fn read_register(&mut self, addr: PhysAddr, _width: RegisterWidth) -> Option<u64> {
        log(Op::ReadRegister { addr });
        if self.absent.contains(&addr) {
            return None;
        }
        match self.registers.get_mut(&addr) {
            Some(values) if values.len() > 1 => values.pop_front(),
            Some(values) => values.front().copied(),
            None => Some(0),
        }
    }
}

impl ArgWindow for FakeCpu {
    fn show(&mut self, pfn: Pfn) {
        assert_eq!(self.shown.replace(pfn), None, "two argument pages in one window");
    }

    fn hide(&mut self) {
        self.shown.take().expect("nothing to hide");
    }

    fn load(&self, first: usize, words: &mut [u64]) {
        self.read(self.arg_page(), first * size_of::<u64>(), words.as_mut_bytes());
    }

    fn store(&mut self, first: usize, words: &[u64]) {
        self.write(self.arg_page(), first * size_of::<u64>(), words.as_bytes());
    }
}

impl Firmware for FakeCpu {
    fn smc(&mut self, regs: [u64; 4]) -> [u64; 4] {
        log(Op::Smc { regs });
        self.answers.pop_front().unwrap_or_default()
    }

    fn cpu_entry(&self) -> PhysAddr {
        PhysAddr(0x4020_0040)
    }
}

impl World for FakeCpu {
    fn run(&mut self, context: &mut VcpuContext, _vttbr: u64) -> GuestExit {
        log(Op::Run);
        self.scenes.pop_front().map_or(GuestExit::Interrupt, |mut scene| scene(context))
    }

    fn probe(&mut self, ipa: IpaPfn, _vttbr: u64) -> u64 {
        log(Op::Probe { ipa });
        self.par
    }
}

impl Clock for FakeCpu {
    fn now(&self) -> u64 {
        0
    }
}
