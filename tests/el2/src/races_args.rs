//! The argument page rewritten while it is judged: one copy is judged, whichever it was.

use core::sync::atomic::{AtomicU64, Ordering};

use pfnguard_host_interface::{Hvc, Hypercall};
use pfnguard_lines::Verdict;
use pfnguard_shared::request::{
    CHECK_DECISIONS_OFFSET, Decision, MemType, Mode, Request, RequestWord,
};
use pfnguard_shared::{HostFunction, Status};

use crate::outcome::{Outcome, ensure};
use crate::suite::Test;
use crate::vm::{self, TestVm, check};
use crate::{bars, frames, smp, suite};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("races:rewritten-request-gets-one-of-its-two-decisions", rewritten_request),
    ("races:rewritten-batch-never-stops-the-machine", rewritten_batch),
];

/// Checks of each race.
const ROUNDS: u64 = 2_000;
/// Address of the first word of the first request.
static WORD: AtomicU64 = AtomicU64::new(0);
/// The two values it alternates between.
static FIRST: AtomicU64 = AtomicU64::new(0);
static SECOND: AtomicU64 = AtomicU64::new(0);
/// Set when the race is over.
static OVER: AtomicU64 = AtomicU64::new(0);

/// Alternates the word until the race is over.
fn rewrite() {
    let word = WORD.load(Ordering::Acquire);
    let values = [FIRST.load(Ordering::Acquire), SECOND.load(Ordering::Acquire)];
    while OVER.load(Ordering::Acquire) == 0 {
        for value in values {
            frames::write(word, value);
        }
    }
}

/// Scribbles over the whole page until the race is over.
fn scribble() {
    let page = WORD.load(Ordering::Acquire) & !0xfff;
    let mut random = crate::malformed::Random::new(5);
    while OVER.load(Ordering::Acquire) == 0 {
        frames::write(page + (random.next() & 0xff8), random.next());
    }
}

/// Runs `race` while the second CPU does `job` to the argument page.
fn while_rewriting(job: fn(), words: [u64; 2], race: impl FnOnce() -> Outcome) -> Outcome {
    WORD.store(frames::address(vm::arguments_frame()?), Ordering::Release);
    FIRST.store(words[0], Ordering::Release);
    SECOND.store(words[1], Ordering::Release);
    OVER.store(0, Ordering::Release);
    smp::begin(job)?;
    let raced = race();
    OVER.store(1, Ordering::Release);
    smp::join()?;
    raced
}

fn rewritten_request() -> Outcome {
    smp::required()?;
    let functions = &suite::context()?.functions;
    let granted =
        bars::find(functions, |_, info| bars::allows(info, Mode::Share, MemType::Device))?;
    let vm = TestVm::open()?;
    let good = bars::request(vm.id.0, &granted.bar, 0x4_0000, Mode::Share, MemType::Device);
    let mut bad = good;
    bad.perms = 0xff;
    let verdicts = check(&[good, bad])?;
    let (RequestWord(first), RequestWord(second)) = (good.word(), bad.word());
    let raced = while_rewriting(rewrite, [first, second], || {
        (0..ROUNDS).try_for_each(|_| {
            let found = check_one()?;
            let legal = verdicts.contains(&found);
            ensure(legal, "decision is of neither request")
        })
    });
    vm.destroy(&[])?;
    raced?;
    ensure(verdicts[0] != verdicts[1], "both requests are decided alike")
}

/// Checks the request that lies in the page and reads the decision, through raw accesses: the other
/// CPU writes the page meanwhile, so no reference to it may exist.
fn check_one() -> Result<Verdict, crate::outcome::Failure> {
    let answer = Hvc::call([u64::from(HostFunction::PfnmapCheck.raw()), 1, 0, 0, 0, 0, 0, 0]);
    ensure(answer[0] == Status::Success.to_register(), "CHECK was refused")?;
    let offset = u64::try_from(CHECK_DECISIONS_OFFSET).unwrap_or(0);
    let base = (WORD.load(Ordering::Acquire) & !0xfff) + offset;
    let words = [0, 8, 16, 24].map(|offset| frames::read(base + offset));
    let decision: Decision = zerocopy::transmute!(words);
    Ok(Verdict::from(decision))
}

fn rewritten_batch() -> Outcome {
    smp::required()?;
    let calls = [
        [u64::from(HostFunction::PfnmapCheck.raw()), 64],
        [u64::from(HostFunction::MigrateCheck.raw()), 0],
        [u64::from(HostFunction::RegionInfo.raw()), 0],
    ];
    while_rewriting(scribble, [0, 0], || {
        for _ in 0..ROUNDS / 4 {
            for [function, argument] in calls {
                let answer = Hvc::call([function, argument, 0, 0, 0, 0, 0, 0]);
                let known = Status::from_register(answer[0]).is_some();
                ensure(known, "status that is not defined")?;
            }
        }
        Ok(())
    })?;
    // What was scribbled is no state: an ordinary batch is judged as ever.
    let verdicts = check(&[Request::zeroed()])?;
    ensure(!verdicts[0].is_granted(), "request of zeroes was granted")
}
