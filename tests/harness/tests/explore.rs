//! Every state of a small world that few calls reach, breadth first: 3 pages of RAM, 2 VMs, 2 CPUs
//! and 2 regions. Each call is made on the implementation and on the specification, which the world
//! compares; the invariants hold in every state.
//!
//! One page, one place and one type a call; guests that share and unshare. It begins where two VMs
//! exist, one of them protected, and goes so many calls deep, or on until nothing new is reached.
//! Registers of guests are no part of a state here: no decision about memory depends on them.
//!
//! Pages are alike: what two of them do when they trade places is the same but for their names. So are
//! the VMs and the CPUs. Of the states that differ in names alone one is looked at, and all are
//! counted; that the count is the one of an exploration that tells names apart is tested. VM_CREATE
//! takes the lowest free number, which only says which of two names a new VM gets.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use pfnguard_harness::guest::Act;
use pfnguard_harness::{World, boards};
use pfnguard_model::state::{Frame, Registers, State, Vcpu, Vm};
use pfnguard_shared::request::{Request, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{GuestFunction, HostFunction as F, MemType, Mode, Perms};

/// First of the pages.
const FIRST_PAGE: u64 = 0x4_0000;
/// First of the pages for tables, and how many a VM gets.
const TABLES: (u64, u64) = (0x4_0010, 4);
/// Where a VM has regions.
const REGIONS_AT: u64 = 0x10;
/// Numbers of VMs.
const VMS: u64 = 2;

/// How much of the small world calls name.
#[derive(Clone, Copy, Debug)]
struct Scope {
    pages: u64,
    regions: u64,
    /// Whether one state stands for all that differ in the names of pages, VMs and CPUs.
    alike: bool,
}

/// All of it.
const ALL: Scope = Scope { pages: 3, regions: 2, alike: true };

/// One call.
#[derive(Clone, Debug)]
struct Step {
    cpu: usize,
    regs: [u64; 8],
    acts: Vec<Act>,
    registers: Vec<Option<u64>>,
}

impl Step {
    fn new(function: F, args: &[u64]) -> Self {
        let mut regs = [0; 8];
        regs[0] = function.raw().into();
        regs[1..=args.len()].copy_from_slice(args);
        Self { cpu: 0, regs, acts: Vec::new(), registers: Vec::new() }
    }

    fn on(self, cpu: usize) -> Self {
        Self { cpu, ..self }
    }

    fn make(&self, world: &mut World) {
        world.call_with(self.cpu, self.regs, &self.acts, &self.registers);
    }
}

/// The way to a state, newest step first.
struct Path(Option<(Rc<Path>, Step)>);

impl Path {
    fn world(&self) -> World {
        let mut steps = Vec::new();
        let mut at = self;
        while let Self(Some((before, step))) = at {
            steps.push(step);
            at = before;
        }
        let mut world = start();
        steps.iter().rev().for_each(|step| step.make(&mut world));
        world
    }
}

fn start() -> World {
    let mut world = World::new(boards::small());
    let protected = u64::from(ContractFlags::PROTECTED.raw());
    for step in [create(0, 0), create(protected, 1), init(0), init(1)] {
        step.make(&mut world);
    }
    assert_eq!(world.state().vms.len(), 2);
    world
}

fn create(contract: u64, vm: u64) -> Step {
    Step::new(F::VmCreate, &[contract, 1, TABLES.0 + vm * TABLES.1, TABLES.1])
}

fn init(vm: u64) -> Step {
    Step::new(F::VcpuInit, &[vm, 0, 0, 0])
}

/// Every call that is made in a state.
fn steps(state: &State, scope: Scope) -> Vec<Step> {
    let mut steps = vec![Step::new(F::ArgPageClear, &[]), Step::new(F::ArgPageClear, &[]).on(1)];
    steps.extend((0..scope.regions).map(|region| Step::new(F::PfnmapReset, &[region])));
    // The lowest free number is the next VM's: its tables lie where that VM's always lie.
    let numbers = 0..u16::try_from(VMS).unwrap();
    if let Some(vm) = numbers.into_iter().find(|vm| !state.vms.contains_key(vm)) {
        let contracts = [0, u64::from(ContractFlags::PROTECTED.raw())];
        steps.extend(contracts.map(|contract| create(contract, vm.into())));
    }
    (0..scope.pages).for_each(|page| of_page(page, &mut steps));
    (0..VMS).for_each(|vm| of_vm(vm, scope.regions, &mut steps));
    steps
}

fn of_page(number: u64, steps: &mut Vec<Step>) {
    let page = FIRST_PAGE + number;
    let rw = u64::from(Perms::READ.with(Perms::WRITE).raw());
    steps.extend([
        Step::new(F::HostShareHyp, &[page, 1]),
        Step::new(F::HostUnshareHyp, &[page, 1]),
        Step::new(F::ArgPageSet, &[page]),
        Step::new(F::ArgPageSet, &[page]).on(1),
    ]);
    for vm in 0..VMS {
        steps.extend([
            Step::new(F::HostShareGuest, &[vm, page, number, 1, rw]),
            Step::new(F::HostUnshareGuest, &[vm, page, number, 1]),
            Step::new(F::HostDonateGuest, &[vm, page, number, 1]),
            Step::new(F::HostReclaimGuest, &[vm, page, 1]),
        ]);
        let calls = [GuestFunction::MemShare, GuestFunction::MemUnshare];
        steps.extend(calls.map(|function| Step {
            acts: vec![Act::Hvc {
                regs: [function.raw().into(), number << 12, 0, 0],
                immediate: 0,
            }],
            ..Step::new(F::VcpuRun, &[vm, 0])
        }));
    }
}

fn of_vm(vm: u64, regions: u64, steps: &mut Vec<Step>) {
    steps.extend([init(vm), Step::new(F::VmFree, &[vm])]);
    for register in [Some(0), None] {
        let registers = vec![register];
        steps.push(Step { registers, ..Step::new(F::VmTeardown, &[vm]) }.on(1));
    }
    for region in 0..regions {
        let ipa = REGIONS_AT + region;
        steps.extend([bind(vm, region, Mode::Share), bind(vm, region, Mode::Donate)]);
        steps.push(Step::new(F::PfnmapMap, &[vm, ipa]));
        for register in [Some(0), None] {
            let registers = vec![register];
            steps.push(Step { registers, ..Step::new(F::PfnmapUnbind, &[vm, ipa]) });
        }
    }
}

/// The first page of a region; what is donated is mapped at once.
fn bind(vm: u64, region: u64, mode: Mode) -> Step {
    let index = usize::try_from(region).unwrap();
    let flags = match mode {
        Mode::Share => RequestFlags::NONE,
        Mode::Donate => RequestFlags::MAP_NOW,
    };
    let request = Request {
        vm: u16::try_from(vm).unwrap(),
        mode: mode.raw(),
        mem_type: MemType::Device.raw(),
        perms: Perms::READ.raw(),
        flags: flags.raw(),
        pfn: boards::small().machine.region_pages(index).start,
        ipa_pfn: REGIONS_AT + region,
        pages: 1,
        ..Request::zeroed()
    };
    Step::new(F::PfnmapBind, &[request.word().0, request.pfn, request.ipa_pfn, request.pages])
}

/// A state without what its guests compute.
fn key(state: &State) -> State {
    let mut key = state.clone();
    for vcpu in key.vms.values_mut().flat_map(|vm| &mut vm.vcpus) {
        if let Vcpu::Off(registers) | Vcpu::Fresh(registers) | Vcpu::Idle(registers, _) = vcpu {
            *registers = Registers { general: [0; 31], pc: 0 };
        }
    }
    key
}

/// What stands for a state among millions: 128 bits of hash, of which two would have to collide.
type Fingerprint = (u64, u64);

fn fingerprint(state: &impl Hash) -> Fingerprint {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        state.hash(&mut hasher);
        hasher.finish()
    };
    (half(0), half(1))
}

/// Takes a page out of a state, and returns all that was said of it but its name.
fn take_page(state: &mut State, number: u64) -> Fingerprint {
    let (page, ipa) = (FIRST_PAGE + number, number);
    let frame = state.frames.get(&page).copied();
    state.frames.remove(page..page + 1);
    let of_vm = |vm: &mut Vm| {
        let leaf = vm.pages.get(&ipa).copied();
        vm.pages.remove(ipa..ipa + 1);
        leaf
    };
    let leaves: Vec<_> = state.vms.values_mut().map(of_vm).collect();
    let argument_page_of: Vec<_> =
        state.arg_pages.iter_mut().map(|at| at.take_if(|at| *at == page).is_some()).collect();
    fingerprint(&(frame, leaves, argument_page_of))
}

/// What stands for a state and all that differ from it in the names of pages, and how many they are.
fn of_any_pages(state: &State, pages: u64) -> (Fingerprint, usize) {
    let mut rest = state.clone();
    let mut pages: Vec<_> = (0..pages).map(|page| take_page(&mut rest, page)).collect();
    pages.sort_unstable();
    let factorial = |n: usize| (1..=n).product::<usize>();
    let same = pages.chunk_by(|a, b| a == b).map(|alike| factorial(alike.len()));
    let count = factorial(pages.len()) / same.product::<usize>();
    (fingerprint(&(rest, pages)), count)
}

/// What stands for a state and all that differ from it in names, and how many they are.
fn orbit(state: &State, pages: u64) -> (Fingerprint, usize) {
    let (vms, mut cpus) = (swap_vms(state), state.clone());
    cpus.arg_pages.swap(0, 1);
    let both = swap_vms(&cpus);
    let named = [state, &vms, &cpus, &both].map(|state| of_any_pages(state, pages));
    let distinct: BTreeSet<_> = named.iter().map(|(fingerprint, _)| *fingerprint).collect();
    let first = distinct.first().copied().unwrap_or_default();
    (first, named[0].1 * distinct.len())
}

/// Returns the state in which the two VMs have each other's number, and its place for tables.
fn swap_vms(state: &State) -> State {
    let other = |vm: u16| 1 - vm;
    let mut swapped = state.clone();
    for vm in 0..VMS {
        let (from, to) = (TABLES.0 + vm * TABLES.1, TABLES.0 + (1 - vm) * TABLES.1);
        swapped.frames.remove(to..to + TABLES.1);
        for (run, frame) in state.frames.overlapping(from..from + TABLES.1) {
            let (start, end) = (run.start.max(from), run.end.min(from + TABLES.1));
            swapped.frames.insert(start - from + to..end - from + to, *frame);
        }
    }
    let frames = swapped.frames.iter().map(|(run, frame)| (run.clone(), renamed(*frame, other)));
    swapped.frames = frames.collect();
    swapped.vms = state.vms.iter().map(|(vm, it)| (other(*vm), moved(it, *vm))).collect();
    for region in &mut swapped.regions {
        region.owner = region.owner.map(other);
    }
    swapped
}

fn renamed(frame: Frame, other: impl Fn(u16) -> u16) -> Frame {
    match frame {
        Frame::Guest(vm) => Frame::Guest(other(vm)),
        Frame::GuestLentHost(vm) => Frame::GuestLentHost(other(vm)),
        Frame::Host
        | Frame::HostLentHyp(_)
        | Frame::HostLentGuests(_)
        | Frame::Hyp
        | Frame::HypReadable => frame,
    }
}

/// Returns the VM with its tables where the other's lie.
fn moved(it: &Vm, number: u16) -> Vm {
    let mut vm = it.clone();
    let place = |frame: &u64| match number {
        0 => frame + TABLES.1,
        _ => frame - TABLES.1,
    };
    vm.tables.frames = it.tables.frames.iter().map(place).collect();
    vm
}

/// States that were found, by what stands for them.
struct Seen {
    scope: Scope,
    fingerprints: HashSet<Fingerprint>,
    states: usize,
}

impl Seen {
    /// Returns whether none that stands for the same was seen.
    fn is_new(&mut self, state: &State) -> bool {
        let (fingerprint, count) =
            if self.scope.alike { orbit(state, self.scope.pages) } else { (fingerprint(state), 1) };
        let new = self.fingerprints.insert(fingerprint);
        self.states += if new { count } else { 0 };
        new
    }
}

/// States that were found up to so many calls from the start, and calls that were made: a change of
/// either number is a change of what can be reached.
fn explore(scope: Scope, depth: usize) -> (usize, usize) {
    explore_with(scope, depth, |_| ())
}

/// As [`explore`]; `found` gets each state once.
fn explore_with(scope: Scope, depth: usize, mut found: impl FnMut(&State)) -> (usize, usize) {
    // The start has two VMs with different contracts: states so many calls away are not alike.
    assert!(!scope.alike || depth == usize::MAX, "names only matter not at the end");
    let mut transitions = 0;
    let mut seen = Seen { scope, fingerprints: HashSet::new(), states: 0 };
    seen.is_new(&key(start().state()));
    found(&key(start().state()));
    let mut queue = VecDeque::from([(Rc::new(Path(None)), depth)]);
    while let Some((path, left)) = queue.pop_front() {
        let mut world = path.world();
        let before = key(world.state());
        for step in steps(&before, scope) {
            step.make(&mut world);
            transitions += 1;
            let after = key(world.state());
            if after == before {
                continue;
            }
            if seen.is_new(&after) {
                found(&after);
                world.finish();
                report(&seen, transitions, queue.len());
                if left > 1 {
                    let path = Path(Some((Rc::clone(&path), step)));
                    queue.push_back((Rc::new(path), left - 1));
                }
            }
            world = path.world();
        }
    }
    (seen.states, transitions)
}

fn report(seen: &Seen, transitions: usize, left: usize) {
    if seen.fingerprints.len().is_multiple_of(10_000) {
        println!("{} states, {transitions} calls, {left} to look at", seen.states);
    }
}

#[test]
fn every_state_of_a_small_world_is_as_specified() {
    let (mut of_pages, mut all) = (BTreeMap::new(), 0);
    let found = |state: &State| {
        let (fingerprint, count) = of_any_pages(state, ALL.pages);
        all += usize::from(of_pages.insert(fingerprint, count).is_none()) * count;
        names_are_exchanged(state);
    };
    let reached = explore_with(Scope { alike: false, ..ALL }, 3, found);
    assert_eq!(reached, (2126, 23_440));
    // The start tells no page from another, so what is reached does not either.
    assert_eq!(all, reached.0);
}

/// Two exchanges of names are none, and one is the same orbit.
fn names_are_exchanged(state: &State) {
    let vms = swap_vms(state);
    assert_eq!(swap_vms(&vms), *state);
    let mut cpus = state.clone();
    cpus.arg_pages.swap(0, 1);
    let orbit = |state: &State| orbit(state, ALL.pages);
    assert!(orbit(&vms) == orbit(state) && orbit(&cpus) == orbit(state), "{state:?}");
}

#[test]
fn names_do_not_matter_to_the_end() {
    let scope = Scope { pages: 1, regions: 0, alike: false };
    let (states, _) = explore(scope, usize::MAX);
    assert_eq!(states, 7081);
    assert_eq!(explore(Scope { alike: true, ..scope }, usize::MAX).0, states);
}

#[test]
#[ignore = "a minute: cargo test --release -p pfnguard-harness --test explore -- --ignored one_call_deeper"]
fn one_call_deeper_every_state_is_as_specified() {
    assert_eq!(explore(Scope { alike: false, ..ALL }, 4), (10_680, 170_080));
}

/// One page alone, and all pages without regions, to the end: without names, and with them.
const SMALLER: [(Scope, (usize, usize)); 2] = [
    (Scope { pages: 1, ..ALL }, (315_858, 15_171_756)),
    (Scope { regions: 0, ..ALL }, (192_604, 11_185_032)),
];

#[test]
#[ignore = "3 minutes: cargo test --release -p pfnguard-harness --test explore -- --ignored without_names"]
fn every_state_of_two_smaller_worlds_is_reached_without_names() {
    for (scope, (states, _)) in SMALLER {
        assert_eq!(explore(scope, usize::MAX).0, states, "{scope:?}");
    }
}

#[test]
#[ignore = "20 minutes: cargo test --release -p pfnguard-harness --test explore -- --ignored is_as_specified_by_name"]
fn every_state_of_two_smaller_worlds_is_as_specified_by_name() {
    for (scope, found) in SMALLER {
        assert_eq!(explore(Scope { alike: false, ..scope }, usize::MAX), found, "{scope:?}");
    }
}

#[test]
#[ignore = "an hour: cargo test --release -p pfnguard-harness --test explore -- --ignored every_state_that --nocapture"]
fn every_state_that_can_be_reached_is_as_specified() {
    assert_eq!(explore(ALL, usize::MAX), (11_010_888, 82_858_872));
}
