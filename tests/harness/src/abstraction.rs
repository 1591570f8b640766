//! The abstraction: reads the abstract state off the hypervisor's records and the bytes of its
//! tables.
//!
//! It runs after every call, so it reads again only what changed since: records and table pages
//! are compared with copies.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Range;

use pfnguard_core::Hypervisor;
use pfnguard_core::hypervisor::Cpu;
use pfnguard_core::machine::GuestStage2;
use pfnguard_core::region::{BindingState, Hold, RegionId};
use pfnguard_core::vcpu::{PendingLoad, VcpuState, Widen as CoreWiden};
use pfnguard_core::vm::{BoundOnce, Vm as CoreVm, VmId};
use pfnguard_core::vmemmap::{Frame as Record, FrameState};
use pfnguard_model::state::{
    Binding, Frame, Leaf, Load, Region, Registers, State, Tables, Vcpu, Vm, Widen,
};
use pfnguard_shared::vm::VmState;
use pfnguard_shared::{MemType, Perms};
use rangemap::RangeMap;

use crate::board::Board;
use crate::machine::Sim;
use crate::memory::Memory;
use crate::shadow::Shadow;
use crate::walker::{self, Attrs, El2Attrs, Malformed, Run, Stage2, Tree, Type};

/// A frame whose record changed.
#[derive(Clone, Copy, Debug)]
pub struct Changed {
    /// The frame.
    pub pfn: u64,
    /// Its state before.
    pub old: Frame,
    /// Its state now.
    pub new: Frame,
}

/// What changed between two readings.
#[derive(Debug, Default)]
pub struct Changes {
    /// Frames.
    pub frames: Vec<Changed>,
    /// Whether a byte of the host's tables did.
    pub host_tables: bool,
    /// Whether a byte of EL2's tables did.
    pub el2_tables: bool,
    /// A VM whose tables or pool did.
    pub guest_tables: Vec<u16>,
    /// The host's translations before.
    pub old_host: Tree<Attrs>,
    /// EL2's translations before.
    pub old_el2: Tree<El2Attrs>,
    /// The translations before of VMs whose tables changed.
    pub old_guests: Vec<(u16, Tree<Attrs>)>,
    /// The regions before.
    pub old_regions: Vec<Region>,
    /// The bindings before of VMs whose bindings changed.
    pub old_bindings: Vec<(u16, BTreeMap<u64, Binding>)>,
}

impl Changes {
    /// Returns what must not have changed when a call was refused.
    pub fn first(&self) -> Option<String> {
        if let Some(frame) = self.frames.first() {
            return Some(format!("the record of {:#x}", frame.pfn));
        }
        if self.host_tables {
            return Some("the host's tables".into());
        }
        if self.el2_tables {
            return Some("EL2's tables".into());
        }
        self.guest_tables.first().map(|vm| format!("tables or pool of VM {vm}"))
    }
}

/// What is known of one VM beyond its state.
#[derive(Debug, Default)]
struct VmView {
    shadow: Shadow,
    free: Vec<u64>,
    tree: Tree<Attrs>,
}

/// The hypervisor as it was read last.
#[derive(Debug)]
pub struct Reader {
    /// The abstract state.
    pub state: State,
    /// The host's translations.
    pub host: Tree<Attrs>,
    /// EL2's translations.
    pub el2: Tree<El2Attrs>,
    /// What changed at the last reading.
    pub changes: Changes,
    board: &'static Board,
    memory: Memory,
    records: Vec<Record>,
    host_shadow: Shadow,
    el2_shadow: Shadow,
    vms: BTreeMap<u16, VmView>,
}

impl Reader {
    /// Returns a reader that has read nothing yet.
    pub fn new(board: &'static Board, memory: Memory) -> Self {
        let frames: u64 = board.ram.iter().map(|bank| bank.pages()).sum();
        Self {
            state: State {
                frames: RangeMap::new(),
                vms: BTreeMap::new(),
                regions: Vec::new(),
                arg_pages: Vec::new(),
            },
            host: Tree::default(),
            el2: Tree::default(),
            changes: Changes::default(),
            board,
            memory,
            records: vec![Record::NO_PAGE; crate::memory::to_usize(frames)],
            host_shadow: Shadow::default(),
            el2_shadow: Shadow::default(),
            vms: BTreeMap::new(),
        }
    }

    /// Reads what changed.
    ///
    /// # Panics
    /// Where tables hold what they never may.
    pub fn read(&mut self, hv: &Hypervisor<Sim>, cpus: &[Cpu<Sim>]) {
        self.changes.frames.clear();
        self.changes.guest_tables.clear();
        self.changes.old_guests.clear();
        self.changes.old_bindings.clear();
        hv.inspect_host(|host| {
            self.read_frames(host.vmemmap.records());
            self.read_regions(&host.regions);
            let regs = host.stage2.regs();
            self.read_host_tables(regs.vttbr, regs.vtcr);
        });
        let ttbr0 = hv.inspect_hyp(|hyp| hyp.stage1.regs(self.board.config.pa_bits).ttbr0);
        self.read_el2_tables(ttbr0);
        for id in VmId::all() {
            if hv.inspect_vm(id, |vm| self.read_vm(id, vm)).is_none() {
                self.state.vms.remove(&id.raw());
                self.vms.remove(&id.raw());
            }
        }
        hv.inspect_host(|host| self.read_bindings(&host.regions));
        self.state.arg_pages.clear();
        self.state.arg_pages.extend(cpus.iter().map(|cpu| cpu.arg_page.map(|page| page.0)));
    }

    fn read_frames(&mut self, records: &[Record]) {
        if self.records == records {
            return;
        }
        let mut index = 0;
        for bank in self.board.ram {
            let mut run: Option<(Range<u64>, Frame)> = None;
            for pfn in bank.iter() {
                let (old, new) = (self.records[index], records[index]);
                index += 1;
                if old == new {
                    continue;
                }
                let frame = frame(new.state());
                self.changes.frames.push(Changed { pfn: pfn.0, old: frame_of(old), new: frame });
                match &mut run {
                    Some((range, same)) if range.end == pfn.0 && *same == frame => range.end += 1,
                    _ => {
                        let done = run.replace((pfn.0..pfn.0 + 1, frame));
                        done.into_iter().for_each(|(r, f)| self.state.frames.insert(r, f));
                    }
                }
            }
            run.into_iter().for_each(|(r, f)| self.state.frames.insert(r, f));
        }
        self.records.copy_from_slice(records);
    }

    fn read_regions(&mut self, table: &pfnguard_core::region::RegionTable) {
        mem::swap(&mut self.state.regions, &mut self.changes.old_regions);
        self.state.regions.clear();
        for index in 0..table.count() {
            let id = RegionId::from_raw(index).expect("an index below the count");
            let hold = table.get(id).expect("an index below the count").hold;
            let (mem_type, owner) = match hold {
                Hold::Free | Hold::Quarantined | Hold::Lost => (None, None),
                Hold::Shared(mem_type) => (Some(mem_type), None),
                Hold::Donated(vm, mem_type) => (Some(mem_type), Some(vm.raw())),
            };
            self.state.regions.push(Region { state: hold.state(), mem_type, owner });
        }
    }

    fn read_host_tables(&mut self, vttbr: u64, vtcr: u64) {
        let known = !self.host.tables.is_empty();
        self.changes.host_tables = self.host_shadow.first_changed(&self.memory).is_some() || !known;
        if self.changes.host_tables {
            let stage2 = Stage2 { vttbr, vtcr, encoding: self.board.encoding };
            let new = read_tree(|tree| stage2.walk(&self.memory, tree), "the host");
            self.changes.old_host = mem::replace(&mut self.host, new);
            let pages = self.host.tables.iter().map(|table| table.2);
            self.host_shadow.copy(&self.memory, pages);
        }
    }

    fn read_el2_tables(&mut self, ttbr0: u64) {
        let known = !self.el2.tables.is_empty();
        self.changes.el2_tables = self.el2_shadow.first_changed(&self.memory).is_some() || !known;
        if self.changes.el2_tables {
            let bits = self.board.config.pa_bits;
            let new = read_tree(|tree| walker::walk_el2(&self.memory, ttbr0, bits, tree), "EL2");
            self.changes.old_el2 = mem::replace(&mut self.el2, new);
            let pages = self.el2.tables.iter().map(|table| table.2);
            self.el2_shadow.copy(&self.memory, pages);
        }
    }

    fn read_vm(&mut self, id: VmId, vm: &CoreVm<Sim>) {
        let number = id.raw();
        let state = self.state.vms.entry(number).or_insert_with(empty_vm);
        let view = self.vms.entry(number).or_default();
        state.contract = vm.contract;
        let ended = state.state != vm.state;
        state.state = vm.state;
        state.bound_once = vm.bound_once == BoundOnce::Yes;
        read_vcpus(&mut state.vcpus, vm);
        let same_pool = view.free.iter().copied().eq(vm.stage2.free_pages().map(|page| page.0));
        let same_tables = view.shadow.first_changed(&self.memory).is_none();
        if same_pool && same_tables && !ended && !state.tables.frames.is_empty() {
            return;
        }
        self.changes.guest_tables.push(number);
        view.free.clear();
        view.free.extend(vm.stage2.free_pages().map(|page| page.0));
        assert_eq!(count(view.free.len()), vm.stage2.tables_free(), "the pool's count");
        let tree = match vm.state {
            VmState::Active => {
                let regs = vm.stage2.regs();
                assert_eq!(regs.vttbr >> 48, u64::from(number) + 1, "VMID");
                let encoding = self.board.encoding;
                let stage2 = Stage2 { vttbr: regs.vttbr, vtcr: regs.vtcr, encoding };
                read_tree(|tree| stage2.walk(&self.memory, tree), "a guest")
            }
            VmState::Dying => Tree::default(),
        };
        self.changes.old_guests.push((number, mem::replace(&mut view.tree, tree)));
        view.shadow.copy(&self.memory, view.tree.tables.iter().map(|table| table.2));
        view.fill(state, &self.memory);
    }

    fn read_bindings(&mut self, table: &pfnguard_core::region::RegionTable) {
        for (number, state) in &mut self.state.vms {
            let id = VmId::from_raw(u64::from(*number)).expect("a VM's number");
            let found = || table.vm_bindings(id);
            let same = found().count() == state.bindings.len()
                && found().all(|b| state.bindings.get(&b.ipa.start().0) == Some(&binding(b)));
            if !same {
                let new = found().map(|b| (b.ipa.start().0, binding(b))).collect();
                let old = mem::replace(&mut state.bindings, new);
                self.changes.old_bindings.push((*number, old));
            }
        }
    }

    /// Returns the translations of a VM.
    pub fn guest(&self, vm: u16) -> Option<&Tree<Attrs>> {
        self.vms.get(&vm).map(|view| &view.tree)
    }
}

impl VmView {
    /// Notes pages, live tables and free ones.
    fn fill(&self, vm: &mut Vm, memory: &Memory) {
        vm.pages = self.tree.runs.iter().map(|run| (run.range(), leaf(run))).collect();
        let live = self.tree.tables.iter();
        let frames = live.clone().map(|table| table.2).chain(self.free.iter().copied());
        let total = self.tree.tables.len() + self.free.len();
        vm.tables = Tables {
            frames: frames.collect(),
            live: live.map(|(level, first, _)| (*level, *first)).collect(),
            free: count(self.free.len()),
        };
        assert_eq!(vm.tables.frames.len(), total, "a page is in two tables, or in use and free");
        assert_eq!(vm.tables.live.len(), self.tree.tables.len(), "two tables for the same pages");
        for &page in &self.free {
            let clear = memory.page(page, |page| page[1..].iter().all(|&word| word == 0));
            assert!(clear, "free table page {page:#x} is not zero");
        }
    }
}

fn read_tree<A: Copy + PartialEq>(
    walk: impl FnOnce(&mut Tree<A>) -> Result<(), Malformed>,
    whose: &str,
) -> Tree<A> {
    let mut tree = Tree::default();
    walk(&mut tree).unwrap_or_else(|wrong| panic!("tables of {whose}: {wrong:x?}"));
    tree
}

fn empty_vm() -> Vm {
    Vm {
        contract: pfnguard_shared::vm::ContractFlags::NONE,
        state: VmState::Active,
        bound_once: false,
        pages: RangeMap::new(),
        bindings: BTreeMap::new(),
        tables: Tables::default(),
        vcpus: Vec::new(),
    }
}

fn read_vcpus(vcpus: &mut Vec<Vcpu>, vm: &CoreVm<Sim>) {
    vcpus.truncate(vm.vcpu_count);
    for (index, vcpu) in vm.vcpus.iter().take(vm.vcpu_count).enumerate() {
        let registers = || Registers { general: vcpu.context.regs, pc: vcpu.context.pc };
        let state = match vcpu.state {
            VcpuState::Off => Vcpu::Off(registers()),
            VcpuState::Fresh => Vcpu::Fresh(registers()),
            VcpuState::Idle => Vcpu::Idle(registers(), vcpu.pending.map(load)),
            VcpuState::Running(cpu) => Vcpu::Running(cpu.0),
        };
        match vcpus.get_mut(index) {
            Some(known) => *known = state,
            None => vcpus.push(state),
        }
    }
}

fn load(pending: PendingLoad) -> Load {
    let widen = match pending.widen {
        CoreWiden::Zero => Widen::Zero,
        CoreWiden::Sign32 => Widen::Sign32,
        CoreWiden::Sign64 => Widen::Sign64,
    };
    Load { register: pending.register, bytes: pending.bytes, widen }
}

fn leaf(run: &Run<Attrs>) -> Leaf {
    let mem_type = match run.attrs.mem {
        Type::Device => MemType::Device,
        Type::NormalNc => MemType::AnyUncached,
        Type::WriteBack => MemType::Cacheable,
        Type::AsStage1 => panic!("a guest's memory is as its stage 1 says: {run:x?}"),
    };
    let perms = perms(&run.attrs);
    let offset = run.pfn.wrapping_sub(run.first);
    Leaf { offset, mem_type, perms, no_tags: run.attrs.no_tags }
}

/// Returns the permissions that attributes give.
pub fn perms(attrs: &Attrs) -> Perms {
    [(attrs.read, Perms::READ), (attrs.write, Perms::WRITE), (attrs.exec, Perms::EXEC)]
        .into_iter()
        .filter(|(given, _)| *given)
        .fold(Perms::NONE, |all, (_, perm)| all.with(perm))
}

fn binding(binding: &pfnguard_core::region::Binding) -> Binding {
    let no_tags = binding.tags == pfnguard_core::machine::TagAccess::Forbidden;
    let offset = binding.pfns.start().0.wrapping_sub(binding.ipa.start().0);
    Binding {
        region: crate::memory::to_usize(binding.region.raw()),
        pfn: binding.pfns.start().0,
        pages: binding.pfns.pages(),
        mode: binding.mode,
        leaf: Leaf { offset, mem_type: binding.mem_type, perms: binding.perms, no_tags },
        flags: binding.flags,
        reserved: match binding.state {
            BindingState::Announced { reserved } => Some(reserved),
            BindingState::Mapped => None,
        },
    }
}

fn frame_of(record: Record) -> Frame {
    match record.state() {
        // Before the first reading.
        FrameState::NoPage => Frame::Host,
        state => frame(state),
    }
}

fn frame(state: FrameState) -> Frame {
    match state {
        FrameState::NoPage => panic!("a frame of RAM without a record"),
        FrameState::HostOwned => Frame::Host,
        FrameState::HostSharedHyp { pins } => Frame::HostLentHyp(pins),
        FrameState::HostSharedGuest { count } => Frame::HostLentGuests(count),
        FrameState::HypOwned => Frame::Hyp,
        FrameState::HypReadable => Frame::HypReadable,
        FrameState::GuestOwned { vm } => Frame::Guest(vm.raw()),
        FrameState::GuestSharedHost { vm } => Frame::GuestLentHost(vm.raw()),
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
