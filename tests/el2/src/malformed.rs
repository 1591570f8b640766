//! Every call with every kind of bad argument, and with random ones: nothing may stop the machine,
//! and at the end everything is the host's again.

use core::sync::atomic::{AtomicU64, Ordering};

use pfnguard_host_interface::{Hvc, Hypercall, Pages, Pfn, RegionIndex, VmId};
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::{HostFunction, Status};

use crate::outcome::{Failure, Outcome, ensure, equal};
use crate::suite::Test;
use crate::{Hyp, abort, bars, frames, gic, smp, suite, vm};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("malformed:every-register-of-every-call", sweep),
    ("malformed:random-calls", random),
    ("malformed:random-calls-on-both-cpus", random_on_both),
];

/// Pages that calls may really take: nothing else of the host's is named, for a host that gives its
/// own code away gets what it asked for.
const PREY: u64 = 2048;
/// `wfi`, twice: whatever guest is made of the prey stops at once.
const HARMLESS: u64 = 0xd503_207f_d503_207f;
/// Most milliseconds that a guest of these calls runs.
const SPIN: u64 = 20;
/// What the canary holds.
const CANARY: u64 = 0xca_9a4e;
/// Most VMs there can be.
const MAX_VMS: u16 = 16;
/// Random calls of a run with two CPUs, and of one that counts instructions.
const MANY: u64 = 20_000;
const FEW: u64 = 3_000;

/// A 64-bit linear congruential generator (Knuth's MMIX constants): the same calls in every run.
pub struct Random(u64);

impl Random {
    /// Starts the sequence numbered `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number; its low bits are as good as its high ones.
    pub fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33 ^ self.0 << 17
    }

    /// Returns one of `choices`, 0 of none.
    pub fn pick(&mut self, choices: &[u64]) -> u64 {
        let length = u64::try_from(choices.len().max(1)).unwrap_or(1);
        let index = usize::try_from(self.next() % length).unwrap_or(0);
        choices.get(index).copied().unwrap_or(0)
    }
}

/// What calls are made with, and what must be as before afterwards.
struct Range {
    prey: Pages,
    canary: Pages,
    memory: [u64; 4],
}

impl Range {
    fn set_up() -> Result<Self, Failure> {
        let prey = frames::take_aligned(PREY, 512);
        frames::fill(prey, HARMLESS);
        let canary = frames::take(4);
        frames::fill(canary, CANARY);
        Ok(Self { prey, canary, memory: Hyp::info(InfoSelector::Memory)? })
    }

    /// Returns the values that a register is set to.
    fn values(&self) -> [u64; 20] {
        let prey = self.prey.start.0;
        [
            0,
            1,
            2,
            3,
            8,
            16,
            30,
            64,
            512,
            513,
            4096,
            1 << 28,
            1 << 39,
            (1 << 40) - 1,
            1 << 40,
            1 << 63,
            u64::MAX,
            prey,
            prey + 512,
            prey + PREY,
        ]
    }

    /// Ends whatever VMs the calls have made, takes every page back, and looks.
    fn clean_up(&self) -> Outcome {
        // A call may have named the argument page's frame or dropped it altogether.
        let _ = Hyp::arg_page_clear();
        for id in (0..MAX_VMS).map(VmId) {
            let _ = Hyp::vm_teardown(id);
            for page in self.pages() {
                let _ = Hyp::reclaim_guest(id, page);
            }
            while let Ok((_, left)) = Hyp::vm_free(id) {
                if left == 0 {
                    break;
                }
            }
        }
        for page in self.pages() {
            let _ = Hyp::unshare_hyp(page);
        }
        for index in 0..regions()? {
            let _ = Hyp::pfnmap_reset(RegionIndex(index));
        }
        self.look()
    }

    fn look(&self) -> Outcome {
        ensure(frames::is_filled(self.canary, CANARY), "canary is dead")?;
        for page in self.pages() {
            abort::load(frames::address(page.start))?;
            Hyp::share_hyp(page)?;
            Hyp::unshare_hyp(page)?;
        }
        let [frames, vmemmap, owned, _] = Hyp::info(InfoSelector::Memory)?;
        equal(frames, self.memory[0], "frames of RAM")?;
        equal(vmemmap, self.memory[1], "bytes of vmemmap")?;
        equal(owned, self.memory[2], "pages of the hypervisor")?;
        vm::set_up_arguments()?;
        all_regions_free()
    }

    fn pages(&self) -> impl Iterator<Item = Pages> {
        let first = self.prey.start.0;
        (first..first + PREY).map(|page| Pages::one(Pfn(page)))
    }
}

fn regions() -> Result<u16, Failure> {
    let [_, _, regions, _] = Hyp::info(InfoSelector::Limits)?;
    u16::try_from(regions).map_err(|_| Failure::Wrong("too many regions"))
}

/// A region that a call has bound is free again once its VM is gone.
fn all_regions_free() -> Outcome {
    for function in &suite::context()?.functions {
        for bar in &function.bars {
            if let Some((_, info)) = bars::region_of(bars::pages(bar).start) {
                equal(u64::from(info.holders), 0, "VMs that still hold a region")?;
            }
        }
    }
    Ok(())
}

/// Calls `function` with these arguments and checks the form of the answer.
fn call(function: u64, args: [u64; 5]) -> Outcome {
    let [a, b, c, d, e] = args;
    // Whatever a guest made of zeroes and random entry points does, it does not do it for long.
    let answer = gic::bounded(SPIN, || Hvc::call([function, a, b, c, d, e, 0, 0]));
    let no_status = [HostFunction::Uid, HostFunction::Revision];
    if no_status.iter().any(|f| u64::from(f.raw()) == function) {
        return Ok(());
    }
    let known = Status::from_register(answer[0]).is_some();
    if known {
        Ok(())
    } else {
        Err(Failure::Values("status that is not defined", function, answer[0]))
    }
}

fn sweep() -> Outcome {
    let range = Range::set_up()?;
    let values = range.values();
    let good = [0, range.prey.start.0, 0x100, 1, 3];
    for function in HostFunction::ALL {
        let id = u64::from(function.raw());
        for register in 0..good.len() {
            for value in values {
                for base in [good, [0; 5], [u64::MAX; 5]] {
                    let mut args = base;
                    args[register] = value;
                    call(id, args)?;
                }
            }
        }
    }
    range.clean_up()
}

/// Makes `count` random calls: mostly functions that exist, with numbers that may mean something.
fn make_random_calls(seed: u64, count: u64, prey: Pages) -> Outcome {
    let mut random = Random::new(seed);
    for _ in 0..count {
        let function = match random.next() % 16 {
            0 => random.next(),
            1 => 0xc600_0100 + random.next() % 0x100,
            _ => {
                let all = HostFunction::ALL;
                let index = usize::try_from(random.next()).unwrap_or(0) % all.len();
                u64::from(all[index].raw())
            }
        };
        let mut args = [0; 5];
        for arg in &mut args {
            *arg = number(&mut random, prey);
        }
        call(function, args)?;
    }
    Ok(())
}

fn number(random: &mut Random, prey: Pages) -> u64 {
    match random.next() % 8 {
        0 => random.next(),
        1 => random.pick(&[0, 1, u64::MAX, 1 << 63, 1 << 40, 0x4020_0000 >> 12, 0x9000]),
        2 => 1 << (random.next() % 64),
        3 | 4 => prey.start.0 + random.next() % (PREY - 512),
        _ => random.next() % 8,
    }
}

fn random() -> Outcome {
    let range = Range::set_up()?;
    let count = if smp::is_up() { MANY } else { FEW };
    make_random_calls(1, count, range.prey)?;
    range.clean_up()
}

/// First page of the prey that the second CPU calls with.
static SHARED_PREY: AtomicU64 = AtomicU64::new(0);
/// Whether the second CPU met a status that is not defined.
static SECOND_FAILED: AtomicU64 = AtomicU64::new(0);

fn random_there() {
    let prey = Pages::new(Pfn(SHARED_PREY.load(Ordering::Acquire)), PREY);
    if make_random_calls(2, MANY / 2, prey).is_err() {
        SECOND_FAILED.store(1, Ordering::Release);
    }
    // This CPU's argument page pins a page of the prey.
    let _ = Hyp::arg_page_clear();
}

fn random_on_both() -> Outcome {
    smp::required()?;
    let range = Range::set_up()?;
    SHARED_PREY.store(range.prey.start.0, Ordering::Release);
    SECOND_FAILED.store(0, Ordering::Release);
    smp::begin(random_there)?;
    let here = make_random_calls(3, MANY / 2, range.prey);
    smp::join()?;
    here?;
    equal(SECOND_FAILED.load(Ordering::Acquire), 0, "undefined status on the second CPU")?;
    range.clean_up()
}
