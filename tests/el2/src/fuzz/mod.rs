//! Random calls and accesses from all CPUs, each written down with what came of it: a checker
//! outside holds the log against the executable specification.
//!
//! One lock is held around a call and its lines, so the log is in the order of the calls. Between
//! its calls, a CPU accesses pages that it never gives away, right beside those that it does.
//!
//! | line | what |
//! |---|---|
//! | `@fuzz arg <offset> <words>` | bytes of the argument page that are not zero, before the next call |
//! | `@fuzz call <cpu> <how> <x0..x7>` | a call begins; `how` is `i` with an interrupt pending, else `-` |
//! | `@fuzz back <offset> <words>` | bytes of the argument page that are not zero, after it |
//! | `@fuzz zero <0/1>` | whether all pages that came back read zero |
//! | `@fuzz done <x0..x7>` | the answer |
//! | `@fuzz touch <cpu> <page> <l/s/x> <0/1>` | a load, store or fetch, and whether it went through |

mod call;
mod kept;

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use pfnguard_host_interface::{Hvc, Hypercall};
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::{HostFunction, PAGE_SHIFT, PAGE_SIZE};
use spin::Mutex;

use crate::abort::{self, Fault};
use crate::dtb::Machine;
use crate::guest_code::Program;
use crate::malformed::Random;
use crate::{frames, gic, smp};

use call::Drawn;
use kept::{Kept, Region, Touch};

/// Pages that calls may take, in whole 2 MiB blocks.
const PREY: u64 = 3 * 512;
/// Pages of each CPU that no call names, and the first of them, in the first of those blocks.
const OWN: u64 = 8;
const OWN_FIRST: u64 = 48;
/// Bindings that are tried at the end.
const LAST_BINDS: u64 = 16;
/// Most CPUs that take part.
const CPUS: u64 = 2;
/// Most milliseconds that a guest runs.
const PATIENCE: u64 = 5_000;
/// Bytes of a program that are written to pages before they are given away.
const PROGRAM: u64 = 0x38;
/// Offset of a `ret`, behind the program.
const RET_AT: u64 = 0x78;
/// `ret`, twice.
const RET: u64 = 0xd65f_03c0_d65f_03c0;
/// Where the host stores: in RAM, and in the memory of a device.
const STORE_AT: u64 = 0x100;
/// Words of a line that shows the argument page.
const CHUNK: u64 = 4;

/// What the CPUs share.
struct Fuzz {
    kept: Kept,
    left: u64,
}

static FUZZ: Mutex<Option<Fuzz>> = Mutex::new(None);
static SEED: AtomicU64 = AtomicU64::new(0);

/// Runs `order`: a seed and a number of calls, with a comma between.
pub fn run(machine: &Machine, order: &str) {
    let mut numbers = order.split(',').map(|word| word.parse::<u64>().ok());
    let (Some(Some(seed)), Some(Some(calls))) = (numbers.next(), numbers.next()) else {
        return say!("@unknown order={order}");
    };
    let started = machine.second_cpu().map_or(Ok(()), smp::start);
    if started.and(gic::enable_timer_interrupt()).is_err() {
        return say!("@mismatch set-up failed");
    }
    let prey = frames::take_aligned(PREY, 512);
    for index in 0..PREY {
        Program::Anything.copy_to(frames::nth(prey, index));
    }
    SEED.store(seed, Ordering::Release);
    let mut fuzz = Fuzz { kept: Kept::new(prey.start.0), left: calls };
    let set_up = fuzz.begin();
    *FUZZ.lock() = Some(fuzz);
    let begun = smp::begin(|| work(1));
    work(0);
    let joined = begun.map_or(Ok(()), |()| smp::join());
    if let Some(fuzz) = FUZZ.lock().as_mut() {
        fuzz.end(&mut Random::new(seed));
    }
    let failed = u64::from(joined.is_err());
    say!("@end passed={} failed={failed}", calls + set_up);
}

/// What one CPU does.
fn work(cpu: u64) {
    let mut random = Random::new(SEED.load(Ordering::Acquire).wrapping_mul(CPUS) + cpu);
    // Neighbouring seeds begin alike.
    (0..8).for_each(|_| {
        random.next();
    });
    loop {
        touch_own(cpu, &mut random);
        let mut fuzz = FUZZ.lock();
        match fuzz.as_mut() {
            Some(fuzz) if fuzz.left > 0 => fuzz.step(cpu, &mut random),
            Some(_) | None => return,
        }
    }
}

/// Writes and reads pages that are this CPU's for good, while the others make calls.
fn touch_own(cpu: u64, random: &mut Random) {
    let Some(prey) = FUZZ.lock().as_ref().map(|fuzz| fuzz.kept.prey) else { return };
    let first = prey + OWN_FIRST + cpu * OWN;
    for _ in 0..random.next() % 16 {
        let address = (first + random.next() % OWN) << PAGE_SHIFT;
        let value = random.next();
        let found = abort::store(address, value).and_then(|()| abort::load(address));
        if found != Ok(value) {
            say!("@mismatch cpu {cpu} lost {address:#x}: {found:x?} {value:#x}");
        }
    }
}

impl Fuzz {
    /// Asks for what the checker needs, and sets up. Returns the number of calls.
    fn begin(&mut self) -> u64 {
        let calls = self.left;
        for selector in InfoSelector::ALL {
            self.plain(0, HostFunction::Info, &[selector.raw()]);
        }
        for cpu in 0..=CPUS {
            self.plain(0, HostFunction::TraceInfo, &[cpu]);
        }
        let page = self.kept.prey;
        self.plain(0, HostFunction::HostShareHyp, &[page, 2]);
        self.plain(0, HostFunction::ArgPageSet, &[page]);
        let mut regions = 0;
        while self.plain(0, HostFunction::RegionInfo, &[regions])[0] == 0 {
            let read = |offset| frames::read((page << PAGE_SHIFT) + offset);
            self.kept.add_region(Region::read(regions, read));
            regions += 1;
        }
        let made = calls.wrapping_sub(self.left);
        self.left = calls;
        made
    }

    /// Binds some more, lets the host's tables be filled where they tell most, and lets every VM run
    /// once, so that a register has pointed at the tables of each.
    fn end(&mut self, random: &mut Random) {
        for _ in 0..LAST_BINDS {
            let drawn = self.kept.draw_bind(random);
            self.call(0, &drawn);
        }
        for page in self.kept.region_pages() {
            note(0, page, 'l', abort::load32(page << PAGE_SHIFT).map(drop));
        }
        for vm in self.kept.active() {
            self.plain(0, HostFunction::VcpuInit, &[vm, 0, 0, 0]);
            let run = u64::from(HostFunction::VcpuRun.raw());
            self.call(0, &Drawn::interrupted([run, vm, 0, 0, 0, 0, 0, 0]));
        }
    }

    /// One thing at random.
    fn step(&mut self, cpu: u64, random: &mut Random) {
        if random.next().is_multiple_of(3) {
            self.touch(cpu, random);
        } else {
            let drawn = self.kept.draw(cpu, random);
            self.call(cpu, &drawn);
        }
    }

    fn plain(&mut self, cpu: u64, function: HostFunction, args: &[u64]) -> [u64; 8] {
        let mut regs = [0; 8];
        regs[0] = u64::from(function.raw());
        regs.iter_mut().skip(1).zip(args).for_each(|(register, arg)| *register = *arg);
        self.call(cpu, &Drawn::plain(regs))
    }

    /// Makes a call and writes it down.
    fn call(&mut self, cpu: u64, drawn: &Drawn) -> [u64; 8] {
        self.left = self.left.wrapping_sub(1);
        for page in drawn.given(self.kept.prey) {
            prepare(page);
        }
        let page = self.kept.arg_page(cpu).filter(|_| drawn.uses_arg_page());
        if let Some(page) = page {
            drawn.fill(page);
            show("arg", page);
        }
        let regs = drawn.regs;
        let how = if drawn.interrupt { 'i' } else { '-' };
        say!("@fuzz call {cpu} {how} {}", Words(&regs));
        let answer = match drawn.interrupt {
            true => gic::interrupted(|| Hvc::call(regs)),
            false => gic::bounded(PATIENCE, || Hvc::call(regs)),
        };
        if let Some(page) = page {
            show("back", page);
        }
        if let Some(pages) = drawn.returned(&answer) {
            say!("@fuzz zero {}", u64::from(frames::is_filled(pages, 0)));
        }
        say!("@fuzz done {}", Words(&answer));
        self.kept.note(cpu, drawn, &answer);
        answer
    }

    fn touch(&mut self, cpu: u64, random: &mut Random) {
        let (page, kind) = self.kept.draw_touch(random);
        let address = page << PAGE_SHIFT;
        match kind {
            Touch::Load => note(cpu, page, 'l', abort::load(address).map(drop)),
            Touch::Store => note(cpu, page, 's', abort::store(address + STORE_AT, random.next())),
            Touch::Fetch => {
                note(cpu, page, 's', abort::store(address + RET_AT, RET));
                // What is no instruction was fetched too.
                let fetched = abort::call(address + RET_AT);
                let fetched = fetched.or_else(|f| if f.is_undefined() { Ok(()) } else { Err(f) });
                note(cpu, page, 'x', fetched);
            }
            Touch::Register => note(cpu, page, 'l', abort::load32(address).map(drop)),
        }
    }
}

fn note(cpu: u64, page: u64, kind: char, access: Result<(), Fault>) {
    say!("@fuzz touch {cpu} {page:x} {kind} {}", u64::from(access.is_ok()));
}

/// Writes the program to a page, if it is the host's to write.
fn prepare(page: u64) {
    let address = page << PAGE_SHIFT;
    for offset in (0..PROGRAM).step_by(8) {
        let word = frames::read(Program::Anything.address() + offset);
        if abort::store(address + offset, word).is_err() {
            return;
        }
    }
}

/// Prints what is not zero in the argument page.
fn show(word: &str, page: u64) {
    let step = usize::try_from(CHUNK * 8).unwrap_or(1);
    for offset in (0..u64::try_from(PAGE_SIZE).unwrap_or(0)).step_by(step) {
        let first = (page << PAGE_SHIFT) + offset;
        let words = [0, 8, 16, 24].map(|word| frames::read(first + word));
        if words != [0; 4] {
            say!("@fuzz {word} {offset:x} {}", Words(&words));
        }
    }
}

/// Numbers in hexadecimal, with spaces between.
struct Words<'a>(&'a [u64]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{word:x}")?;
        }
        Ok(())
    }
}
