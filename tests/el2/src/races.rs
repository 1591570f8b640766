//! Two CPUs on the same page: stale translations, and states changed from both sides at once.

use core::sync::atomic::{AtomicU64, Ordering};

use pfnguard_host_interface::{IpaPfn, Pages, Pfn, VmId};
use pfnguard_shared::vm::ContractFlags;
use spin::Mutex;

use crate::guest_code::Program;
use crate::malformed::Random;
use crate::outcome::{Failure, Outcome, aborted, ensure, equal};
use crate::suite::Test;
use crate::vm::{DATA, RW, TestVm, ipa_address};
use crate::{Hyp, abort, cpu, frames, smp};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("races:donated-page-is-gone-on-the-other-cpu", donate_under_reader),
    ("races:page-taken-back-by-its-guest-is-gone-on-the-other-cpu", take_back_under_reader),
    ("races:table-page-is-gone-on-the-other-cpu", table_under_reader),
    ("races:same-pages-from-both-cpus", hammer),
    ("races:one-page-is-donated-once", donate_twice),
];

/// Rounds of each race.
const ROUNDS: u64 = 200;

/// Address that the second CPU reads.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// Reads that went through.
static HITS: AtomicU64 = AtomicU64::new(0);
/// Set once the page is given away: from here on a read must fault.
static REVOKED: AtomicU64 = AtomicU64::new(0);
/// Reads that went through although they began after that.
static STALE: AtomicU64 = AtomicU64::new(0);

/// Reads [`TARGET`] until it faults.
fn read_until_gone() {
    let target = TARGET.load(Ordering::Acquire);
    loop {
        let revoked = REVOKED.load(Ordering::Acquire);
        if abort::load(target).is_err() {
            return;
        }
        if revoked != 0 {
            // One is enough to fail; going on would be for ever.
            STALE.fetch_add(1, Ordering::Release);
            return;
        }
        HITS.fetch_add(1, Ordering::Release);
    }
}

/// Lets the second CPU read `page` through a hot translation while `revoke` takes it away here.
fn revoke_under_reader(page: Pfn, revoke: impl FnOnce() -> Outcome) -> Outcome {
    TARGET.store(frames::address(page), Ordering::Release);
    HITS.store(0, Ordering::Release);
    REVOKED.store(0, Ordering::Release);
    smp::begin(read_until_gone)?;
    smp::until(|| HITS.load(Ordering::Acquire) > 16, "reader does not start")?;
    let revoked = revoke();
    REVOKED.store(1, Ordering::Release);
    smp::join()?;
    revoked?;
    equal(STALE.swap(0, Ordering::AcqRel), 0, "reads through a stale translation")
}

fn donate_under_reader() -> Outcome {
    smp::required()?;
    let vm = TestVm::protected()?;
    let pages = frames::take(ROUNDS);
    frames::fill(pages, 1);
    let mut outcome = Ok(());
    let mut donated = 0;
    while outcome.is_ok() && donated < ROUNDS {
        let page = frames::nth(pages, donated);
        let place = IpaPfn(DATA.0 + donated);
        outcome = revoke_under_reader(page, || {
            Hyp::donate_guest(vm.id, Pages::one(page), place).map_err(Failure::from)
        });
        donated += 1;
    }
    vm.destroy(&[Pages::new(pages.start, donated)])?;
    outcome
}

fn take_back_under_reader() -> Outcome {
    smp::required()?;
    let vm = TestVm::protected()?;
    let code = Pages::one(vm.load_owned(Program::Lend, ipa_address(DATA))?);
    let page = Pages::one(frames::take_one());
    Hyp::donate_guest(vm.id, page, DATA)?;
    let mut outcome = Ok(());
    let mut rounds = 0..ROUNDS;
    while outcome.is_ok() && rounds.next().is_some() {
        let lent = vm.run_to_yield()?;
        outcome = outcome
            .and(equal(lent[0], 0, "answer to MEM_SHARE"))
            .and(revoke_under_reader(page.start, || vm.run_to_yield().map(drop)));
    }
    vm.destroy(&[code, page])?;
    outcome
}

fn table_under_reader() -> Outcome {
    smp::required()?;
    for _ in 0..ROUNDS / 4 {
        let tables = frames::take(4);
        let vm = Mutex::new(None);
        revoke_under_reader(tables.start, || {
            *vm.lock() = Some(Hyp::vm_create(ContractFlags::NONE, 1, tables)?);
            Ok(())
        })?;
        let id = vm.lock().take().ok_or(Failure::Wrong("no VM was made"))?;
        TestVm { id }.destroy(&[])?;
    }
    Ok(())
}

/// Pages that both CPUs fight over.
const PREY: u64 = 8;
/// Operations of each CPU.
const OPERATIONS: u64 = 4_000;

/// First page of the prey.
static PREY_START: AtomicU64 = AtomicU64::new(0);
/// The VMs that the prey goes to: open in bits 15:0, protected in bits 31:16.
static VMS: AtomicU64 = AtomicU64::new(0);

/// Does something with a page that may or may not be in the state for it.
fn operate(random: &mut Random) {
    let prey = PREY_START.load(Ordering::Acquire);
    let vms = VMS.load(Ordering::Acquire);
    let open = VmId(u16::try_from(vms & 0xffff).unwrap_or(0));
    let protected = VmId(u16::try_from(vms >> 16).unwrap_or(0));
    let index = random.next() % PREY;
    let count = 1 + random.next() % (PREY - index);
    let pages = Pages::new(Pfn(prey + index), count);
    let place = IpaPfn(DATA.0 + index);
    // Refusals are the point: whoever comes second gets one.
    let _ = match random.next() % 8 {
        0 => Hyp::share_hyp(pages),
        1 => Hyp::unshare_hyp(pages),
        2 | 3 => Hyp::share_guest(open, pages, place, RW),
        4 | 5 => Hyp::unshare_guest(open, pages, place),
        6 => Hyp::reclaim_guest(protected, pages),
        _ => {
            if random.next().is_multiple_of(8) {
                let _ = Hyp::donate_guest(protected, Pages::one(pages.start), place);
            }
            Ok(())
        }
    };
    // A read of a page that is gone faults; one that is not must come back.
    let _ = abort::load(frames::address(pages.start));
}

fn operate_there() {
    let mut random = Random::new(77);
    for _ in 0..OPERATIONS {
        operate(&mut random);
    }
}

fn hammer() -> Outcome {
    smp::required()?;
    let prey = frames::take(PREY);
    let (open, mut protected) = (TestVm::open()?, TestVm::protected()?);
    let publish = |open: &TestVm, protected: &TestVm| {
        let vms = u64::from(open.id.0) | u64::from(protected.id.0) << 16;
        VMS.store(vms, Ordering::Release);
    };
    PREY_START.store(prey.start.0, Ordering::Release);
    publish(&open, &protected);
    smp::begin(operate_there)?;
    let mut random = Random::new(99);
    for round in 0..OPERATIONS {
        operate(&mut random);
        if round % 200 == 199 {
            protected = renew(&protected, prey)?;
            publish(&open, &protected);
        }
    }
    smp::join()?;
    end_all(&[open, protected], prey)?;
    for page in (0..PREY).map(|index| Pages::one(frames::nth(prey, index))) {
        // Left over from an operation without its reverse.
        let _ = Hyp::unshare_hyp(page);
        Hyp::share_hyp(page)?;
        Hyp::unshare_hyp(page)?;
        frames::fill(page, 1);
    }
    Ok(())
}

/// Ends a VM that may own some of `prey`, although the other CPU goes on, and makes another.
fn renew(vm: &TestVm, prey: Pages) -> Result<TestVm, Failure> {
    end_all(core::slice::from_ref(vm), prey)?;
    TestVm::protected()
}

fn end_all(vms: &[TestVm], prey: Pages) -> Outcome {
    for vm in vms {
        Hyp::vm_teardown(vm.id)?;
        for page in (0..prey.count).map(|index| Pages::one(frames::nth(prey, index))) {
            // Pages that this VM does not own are refused, and stay where they are.
            let _ = Hyp::reclaim_guest(vm.id, page);
        }
        crate::vm::free(vm.id)?;
    }
    Ok(())
}

/// Successful donations of the second CPU.
static WON: AtomicU64 = AtomicU64::new(0);
/// Round that the second CPU may start.
static ROUND: AtomicU64 = AtomicU64::new(0);

fn donate_there() {
    let prey = PREY_START.load(Ordering::Acquire);
    let vm = VmId(u16::try_from(VMS.load(Ordering::Acquire)).unwrap_or(0));
    for round in 1..=ROUNDS {
        // Both start together; the first CPU's patience bounds this wait.
        cpu::wait_until(20, || ROUND.load(Ordering::Acquire) >= round);
        let place = IpaPfn(0x1000 + round);
        if Hyp::donate_guest(vm, Pages::one(Pfn(prey + round - 1)), place).is_ok() {
            WON.fetch_add(1, Ordering::Release);
        }
    }
}

fn donate_twice() -> Outcome {
    smp::required()?;
    let (one, two) = (TestVm::protected()?, TestVm::protected()?);
    let prey = frames::take(ROUNDS);
    PREY_START.store(prey.start.0, Ordering::Release);
    VMS.store(u64::from(two.id.0), Ordering::Release);
    WON.store(0, Ordering::Release);
    ROUND.store(0, Ordering::Release);
    smp::begin(donate_there)?;
    let mut won = 0;
    for round in 1..=ROUNDS {
        ROUND.store(round, Ordering::Release);
        let place = IpaPfn(0x1000 + round);
        let page = Pages::one(frames::nth(prey, round - 1));
        won += u64::from(Hyp::donate_guest(one.id, page, place).is_ok());
    }
    smp::join()?;
    let gone = (0..ROUNDS).try_for_each(|index| {
        let address = frames::address(frames::nth(prey, index));
        aborted(abort::load(address), "page that was donated is readable").map(drop)
    });
    end_all(&[one, two], prey)?;
    gone?;
    equal(won + WON.load(Ordering::Acquire), ROUNDS, "donations of pages that exist once")?;
    ensure(frames::is_filled(prey, 0), "reclaimed page is not zero")
}
