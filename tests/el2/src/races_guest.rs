//! A guest that runs on the other CPU while its memory is taken away: what it has cached must not
//! help it.

use core::sync::atomic::{AtomicU64, Ordering};

use pfnguard_host_interface::{Exit, IpaPfn, Pages, Pfn, VmId};
use pfnguard_shared::request::{MemType, Mode};
use spin::Mutex;

use crate::guest_code::Program;
use crate::outcome::{Failure, Outcome, ensure, equal};
use crate::suite::Test;
use crate::vm::{CODE, DATA, RW, RWX, TestVm, ipa_address, unexpected};
use crate::{Hyp, bars, frames, smp, suite, vm};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("races:guest-loses-an-unshared-page-at-once", unshare_under_guest),
    ("races:guest-loses-an-unbound-region-at-once", unbind_under_guest),
    ("races:guest-loses-its-code-at-once", code_under_guest),
];

/// Rounds of each race.
const ROUNDS: u64 = 50;
/// Where the guest counts; the value it read last lies behind the count.
const COUNTER: IpaPfn = IpaPfn(0x30);

/// VM that the second CPU runs.
static VM: AtomicU64 = AtomicU64::new(0);
/// How its run ended.
static EXIT: Mutex<Option<Exit>> = Mutex::new(None);

fn run_there() {
    let id = VmId(u16::try_from(VM.load(Ordering::Acquire)).unwrap_or(u16::MAX));
    let exit = vm::run(id, 0);
    *EXIT.lock() = exit.ok();
}

/// A guest that reads `DATA` for good, and the pages that it was lent.
struct Reader {
    vm: TestVm,
    counter: Pfn,
    code: Pfn,
}

impl Reader {
    fn new() -> Result<Self, Failure> {
        let vm = TestVm::open()?;
        let code = vm.load(Program::Hammer, ipa_address(DATA))?;
        vm.set(1, ipa_address(COUNTER))?;
        let counter = vm.lend(COUNTER, RW)?;
        Ok(Self { vm, counter, code })
    }

    fn count(&self) -> u64 {
        frames::read(frames::address(self.counter))
    }

    /// Runs the guest on the second CPU, from where it stopped, until it has counted.
    fn start(&self) -> Outcome {
        let before = self.count();
        VM.store(u64::from(self.vm.id.0), Ordering::Release);
        *EXIT.lock() = None;
        smp::begin(run_there)?;
        smp::until(|| self.count() > before + 8, "guest does not start")
    }

    /// Waits for the guest to stop and checks that it got no further than one round after `seen`.
    fn stop(&self, seen: u64, place: IpaPfn) -> Outcome {
        smp::join()?;
        ensure(self.count() <= seen + 1, "guest went on reading")?;
        match EXIT.lock().take() {
            Some(Exit::Mmio(mmio)) => equal(mmio.ipa, ipa_address(place), "address of the exit"),
            Some(Exit::Fault { ipa }) => equal(ipa >> 12, place.0, "page of the fault"),
            Some(other) => Err(unexpected(other)),
            None => Err(Failure::Wrong("run was refused")),
        }
    }
}

fn unshare_under_guest() -> Outcome {
    smp::required()?;
    let reader = Reader::new()?;
    let mut raced = Ok(());
    let mut rounds = 0..ROUNDS;
    while raced.is_ok() && rounds.next().is_some() {
        let page = reader.vm.lend(DATA, RW)?;
        reader.start()?;
        reader.vm.unlend(page, DATA)?;
        let seen = reader.count();
        // What the host writes now is none of the guest's business.
        frames::write(frames::address(page), 0x5ec2e7);
        raced = reader.stop(seen, DATA);
        let last = frames::read(frames::address(reader.counter) + 8);
        raced = raced.and(equal(last, 0, "value that the guest read last"));
    }
    reader.vm.destroy(&[])?;
    raced
}

fn unbind_under_guest() -> Outcome {
    smp::required()?;
    let functions = &suite::context()?.functions;
    let granted =
        bars::find(functions, |_, info| bars::allows(info, Mode::Share, MemType::Device))?;
    let reader = Reader::new()?;
    let mut raced = Ok(());
    let mut rounds = 0..ROUNDS;
    while raced.is_ok() && rounds.next().is_some() {
        let (vm, bar) = (reader.vm.id.0, &granted.bar);
        let mut request = bars::request(vm, bar, DATA.0, Mode::Share, MemType::Device);
        request.pages = 1;
        Hyp::pfnmap_bind(&request)?;
        reader.start()?;
        let state = Hyp::pfnmap_unbind(reader.vm.id, DATA)?;
        let seen = reader.count();
        raced = reader.stop(seen, DATA);
        bars::settle(granted.region, state);
    }
    reader.vm.destroy(&[])?;
    raced
}

fn code_under_guest() -> Outcome {
    smp::required()?;
    let reader = Reader::new()?;
    let page = reader.vm.lend(DATA, RW)?;
    let mut raced = Ok(());
    let mut rounds = 0..ROUNDS;
    while raced.is_ok() && rounds.next().is_some() {
        reader.start()?;
        reader.vm.unlend(reader.code, CODE)?;
        let seen = reader.count();
        raced = reader.stop(seen, CODE);
        Hyp::share_guest(reader.vm.id, Pages::one(reader.code), CODE, RWX)?;
    }
    reader.vm.unlend(page, DATA)?;
    reader.vm.destroy(&[])?;
    raced
}
