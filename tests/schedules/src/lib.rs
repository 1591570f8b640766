//! Two CPUs over the locks of `hyp/core`, with a scheduler in place of luck.
//!
//! The feature `shuttle` of the core makes every lock a point where the other CPU may go first.
//! Small races are enumerated whole; mixtures are drawn at random and with few preemptions (PCT).
//! A deadlock, a broken invariant and a panic all print the schedule that led there; set
//! `SHUTTLE_TRACE_FILE` to keep it for `shuttle::replay_from_file`.
//!
//! Not among the default members: with the feature, locks work inside of a schedule only. Run with
//! `cargo test -p pfnguard-schedules`.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pfnguard_core::Hypervisor;
use pfnguard_core::addr::PfnRange;
use pfnguard_core::fake::{self, FakeMachine, IMAGE, RAM, Setup, assert_consistent, take_log};
use pfnguard_core::hypervisor::Cpu;
use pfnguard_core::machine::GuestExit;
use pfnguard_core::manifest::Entry;
use pfnguard_shared::{HostFunction, Status};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// First of the pages that tests give to VMs as table memory.
pub const TABLES: u64 = RAM.0;
/// First of the pages that tests share and donate.
pub const PAGE: u64 = RAM.0 + 64;
/// Where they appear in guests.
pub const IPA: u64 = 0x1000;

/// Most VMs that tests make.
const VMS: usize = 2;

/// Most schedules of a race that are enumerated: more means that the race is not small.
const ENUMERATED: usize = 200_000;

/// A machine with two CPUs.
pub struct World {
    hypervisor: Arc<Hypervisor<FakeMachine>>,
    cpus: Vec<Cpu<FakeMachine>>,
    running: Arc<[AtomicBool; VMS]>,
}

/// One CPU of it, on its own thread.
pub struct Host {
    hypervisor: Arc<Hypervisor<FakeMachine>>,
    /// The CPU; its scenes are what guests do on it.
    pub cpu: Cpu<FakeMachine>,
    /// Whether the one vCPU of each VM is in its guest.
    running: Arc<[AtomicBool; VMS]>,
}

/// What a call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer(pub [u64; 8]);

impl Answer {
    /// Returns `x1` of a call that was granted.
    ///
    /// # Panics
    /// Where it was refused.
    pub fn granted(self) -> u64 {
        assert!(self.is_granted(), "{:x?}", self.0);
        self.0[1]
    }

    /// Returns whether the call was granted.
    pub fn is_granted(self) -> bool {
        Status::from_register(self.0[0]) == Some(Status::Success)
    }

    /// Returns what the call was refused with.
    pub fn refusal(self) -> Option<Status> {
        Status::from_register(self.0[0]).filter(|status| *status != Status::Success)
    }
}

impl World {
    /// Makes the machine with these regions, in the smallest RAM that holds what tests use.
    pub fn new(entries: &[Entry]) -> Self {
        let pages = IMAGE.end().0 + 2 - RAM.0;
        let ram = vec![PfnRange::new(RAM, pages).expect("RAM of a few pages")];
        let setup = Setup { ram, entries: entries.to_vec(), ..Setup::default() };
        let (hypervisor, cpus) = setup.launch();
        Self { hypervisor: Arc::new(hypervisor), cpus, running: Arc::default() }
    }

    /// Makes a call on the first CPU, before or after the race.
    pub fn call(&mut self, function: HostFunction, args: &[u64]) -> Answer {
        Answer(fake::call(&self.hypervisor, &mut self.cpus[0], function, args))
    }

    /// Makes VM `number` with `contract` and `tables` pages of table memory, its vCPU ready.
    pub fn vm(&mut self, number: u64, contract: u64, tables: u64) {
        let first = TABLES + 16 * number;
        let made = self.call(HostFunction::VmCreate, &[contract, 1, first, tables]);
        assert_eq!(made.granted(), number);
        self.call(HostFunction::VcpuInit, &[number, 0, 0, 0]).granted();
    }

    /// Lets both CPUs go at once, and waits for them. What follows from the truth must follow.
    pub fn race<A, B>(
        &mut self,
        first: impl FnOnce(&mut Host) -> A + Send + 'static,
        second: impl FnOnce(&mut Host) -> B + Send + 'static,
    ) -> (A, B)
    where
        A: Send + 'static,
        B: Send + 'static,
    {
        let mut other = self.host();
        let mut own = self.host();
        let thread = shuttle::thread::spawn(move || (second(&mut other), other.cpu));
        let result = first(&mut own);
        let (other_result, other_cpu) = thread.join().expect("the other CPU panicked");
        self.cpus = vec![own.cpu, other_cpu];
        assert_consistent(&self.hypervisor);
        (result, other_result)
    }
}

impl World {
    fn host(&mut self) -> Host {
        let cpu = self.cpus.pop().expect("two CPUs");
        let (hypervisor, running) = (Arc::clone(&self.hypervisor), Arc::clone(&self.running));
        Host { hypervisor, cpu, running }
    }
}

impl Host {
    /// Makes a call.
    pub fn call(&mut self, function: HostFunction, args: &[u64]) -> Answer {
        Answer(fake::call(&self.hypervisor, &mut self.cpu, function, args))
    }

    /// Runs the vCPU of `vm`, which makes this call and then waits for an interrupt. Returns what
    /// VCPU_RUN returned.
    ///
    /// # Panics
    /// Where the vCPU runs on the other CPU.
    pub fn run_guest_call(&mut self, vm: u64, regs: [u64; 3]) -> Answer {
        /// `HVC #0` from AArch64.
        const ESR: u64 = 0x16 << 26;
        let index = usize::try_from(vm).expect("a VM's number");
        let running = Arc::clone(&self.running);
        self.cpu.local.scenes.clear();
        self.cpu.local.scene(move |context| {
            let twice = running[index].swap(true, Ordering::Relaxed);
            assert!(!twice, "one vCPU on two CPUs");
            // The other CPU may do anything while this one is in the guest.
            shuttle::thread::yield_now();
            running[index].store(false, Ordering::Relaxed);
            context.regs[..3].copy_from_slice(&regs);
            GuestExit::Sync { esr: ESR, far: 0, hpfar: 0 }
        });
        self.call(HostFunction::VcpuRun, &[vm, 0, 0])
    }

    /// Lets the host load from a page and fault.
    pub fn touch(&mut self, pfn: u64) {
        /// Data abort of a lower level, translation fault at level 3, load.
        const ESR: u64 = 0x24 << 26 | 0b00_0111;
        let pfn = pfnguard_core::addr::Pfn(pfn);
        let _either = fake::abort(&self.hypervisor, &mut self.cpu, pfn, ESR);
    }
}

/// Tries every order in which the two CPUs can take locks, and returns how many there are.
///
/// # Panics
/// Where the race panics, deadlocks or has more orders than can be tried.
pub fn enumerate(race: impl Fn() + Send + Sync + 'static) -> usize {
    let all = DfsScheduler::new(Some(ENUMERATED), false);
    let orders = Runner::new(all, config()).run(fresh(race));
    assert!(orders < ENUMERATED, "not all orders were tried");
    orders
}

/// Tries orders drawn at random, half of them with at most three preemptions.
///
/// # Panics
/// Where the race panics or deadlocks.
pub fn draw(orders: usize, race: impl Fn() + Send + Sync + Clone + 'static) {
    let random = RandomScheduler::new(orders / 2);
    Runner::new(random, config()).run(fresh(race.clone()));
    let few_preemptions = PctScheduler::new(3, orders / 2);
    Runner::new(few_preemptions, config()).run(fresh(race));
}

/// Debug builds of the core need more stack than a thread of shuttle has.
fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 21;
    config
}

/// The log of the fake machine would grow from one order to the next.
fn fresh(race: impl Fn() + Send + Sync + 'static) -> impl Fn() + Send + Sync + 'static {
    move || {
        race();
        take_log();
    }
}
