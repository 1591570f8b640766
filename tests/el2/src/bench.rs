//! The benchmark: what each call costs in instructions, and what the hypervisor takes of RAM.
//!
//! Every row is many calls, each measured as [`bench_call`] says; the least and the most are
//! printed. What a call finds is made honest beforehand: pages that the host gives away were
//! touched by it just before, so that there is a translation to remove.

use pfnguard_host_interface::{Host, Hvc, IpaPfn, Pages};
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::request::{MAX_CHECK_ITEMS, MemType, Mode, Request, RequestWord};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{HostFunction, MAX_RANGE_PAGES, Status};

use crate::bars;
use crate::bench_call::{self, Registers, Site};
use crate::frames;
use crate::outcome::{Dashed, Failure, Outcome, ensure, equal};
use crate::pci::{Bar, Functions};
use crate::vm::{self, DATA, RW, TestVm};

/// Calls of a row about one page.
const CALLS: u64 = 512;
/// Calls of a row about a range, a region or a batch: their work grows with it.
const RANGE_CALLS: u64 = 16;
/// A function id that nothing defines.
const UNKNOWN: u64 = 0xc600_01ff;
/// Size in bytes of the BAR that is bound as one block.
const GIBIBYTE: u64 = 1 << 30;
/// Where regions are bound: 2 GiB, aligned for any block.
const REGION_IPA: IpaPfn = IpaPfn(0x8_0000);
/// Where 512 pages are one aligned block, 16 MiB.
const ALIGNED_IPA: IpaPfn = IpaPfn(0x1000);
/// Half a block: ranges that start there need two tables and 512 descriptors.
const HALF: u64 = MAX_RANGE_PAGES / 2;
/// Most table pages that a VM may take before its first mapping.
const MOST_TABLES: u64 = 16;

type Hyp = Host<Hvc>;

/// A benchmark: what may be printed and profiled.
#[derive(Clone, Copy)]
struct Bench<'a> {
    /// The row whose calls are made from the marked site.
    profiled: Option<&'a str>,
}

/// A row of the table.
struct Row {
    name: &'static str,
    site: Site,
    /// What one call handles: pages, items.
    items: u64,
    calls: u64,
    least: u64,
    most: u64,
}

impl Bench<'_> {
    fn row(self, name: &'static str, items: u64) -> Row {
        let site = if self.profiled == Some(name) { Site::Marked } else { Site::Plain };
        Row { name, site, items, calls: 0, least: u64::MAX, most: 0 }
    }
}

impl Row {
    fn take(&mut self, ticks: u64) {
        self.calls += 1;
        self.least = self.least.min(ticks);
        self.most = self.most.max(ticks);
    }

    /// Makes a call that must be granted.
    fn call(&mut self, function: HostFunction, args: [u64; 5]) -> Outcome {
        let [a, b, c, d, e] = args;
        let ticks =
            bench_call::granted(self.site, [u64::from(function.raw()), a, b, c, d, e, 0, 0])?;
        self.take(ticks);
        Ok(())
    }

    fn print(&self) {
        let Self { name, items, calls, least, most, .. } = self;
        say!("@bench name={name} calls={calls} items={items} least={least} most={most}");
    }
}

/// Rows that are measured together.
struct Group {
    rows: &'static [&'static str],
    measure: fn(Bench<'_>, &Functions) -> Outcome,
}

const GROUPS: &[Group] = &[
    Group { rows: &["empty", "unknown-call"], measure: clock },
    Group { rows: &["share-hyp", "unshare-hyp"], measure: share_hyp },
    Group { rows: &["share-guest", "unshare-guest"], measure: share_guest },
    Group { rows: &["donate-guest", "reclaim-guest"], measure: donate_open },
    Group { rows: &["donate-protected", "reclaim-protected"], measure: donate_protected },
    Group { rows: &["share-hyp-512", "unshare-hyp-512"], measure: share_hyp_range },
    Group { rows: &["donate-guest-512", "reclaim-guest-512"], measure: donate_range_open },
    Group { rows: &["donate-guest-2m", "reclaim-guest-2m"], measure: donate_block },
    Group {
        rows: &["donate-protected-512", "reclaim-protected-512"],
        measure: donate_range_protected,
    },
    Group { rows: &["bind-share-1g", "unbind-share-1g"], measure: bind_shared },
    Group { rows: &["bind-donate-1g", "unbind-donate-1g"], measure: bind_donated },
    Group { rows: &["bind-1g-tables"], measure: bind_tables },
    Group { rows: &["check-64", "check-64-refused"], measure: check },
    Group { rows: &["vmemmap"], measure: overhead },
];

/// Runs the benchmark and prints its `@end` line. With a `profiled` row only what belongs to it is
/// run, and its calls are made where a trace finds them.
pub fn run(functions: &Functions, profiled: &str) {
    bench_call::mask_interrupts();
    let bench = Bench { profiled: Some(profiled).filter(|name| !name.is_empty()) };
    let (mut passed, mut failed) = (0, 0);
    let wanted = |group: &&Group| bench.profiled.is_none_or(|row| group.rows.contains(&row));
    for group in GROUPS.iter().filter(wanted) {
        match (group.measure)(bench, functions) {
            Ok(()) => passed += 1,
            Err(failure) => {
                failed += 1;
                say!("@test fail name=bench:{} why={}", group.rows[0], Dashed(failure));
            }
        }
    }
    say!("@end passed={passed} failed={failed}");
}

/// The clock itself, and the cheapest call there is.
fn clock(bench: Bench<'_>, _: &Functions) -> Outcome {
    let mut empty = bench.row("empty", 1);
    let mut unknown = bench.row("unknown-call", 1);
    for _ in 0..CALLS {
        empty.take(bench_call::empty());
        let mut regs: Registers = [UNKNOWN, 0, 0, 0, 0, 0, 0, 0];
        unknown.take(bench_call::raw(unknown.site, &mut regs));
        equal(regs[0], Status::NotSupported.to_register(), "answer to an unknown call")?;
    }
    empty.print();
    unknown.print();
    Ok(())
}

/// Reads every page, so that the host's translations exist.
fn touch(pages: Pages) {
    for index in 0..pages.count {
        frames::read(frames::address(frames::nth(pages, index)));
    }
}

fn share_hyp(bench: Bench<'_>, _: &Functions) -> Outcome {
    let rows = (bench.row("share-hyp", 1), bench.row("unshare-hyp", 1));
    share_hyp_pages(rows, Pages::one(frames::take_one()), CALLS)
}

fn share_hyp_range(bench: Bench<'_>, _: &Functions) -> Outcome {
    let items = MAX_RANGE_PAGES;
    let rows = (bench.row("share-hyp-512", items), bench.row("unshare-hyp-512", items));
    share_hyp_pages(rows, frames::take_aligned(items, items), RANGE_CALLS)
}

fn share_hyp_pages((mut share, mut unshare): (Row, Row), pages: Pages, calls: u64) -> Outcome {
    for _ in 0..calls {
        touch(pages);
        share.call(HostFunction::HostShareHyp, [pages.start.0, pages.count, 0, 0, 0])?;
        unshare.call(HostFunction::HostUnshareHyp, [pages.start.0, pages.count, 0, 0, 0])?;
    }
    share.print();
    unshare.print();
    Ok(())
}

fn share_guest(bench: Bench<'_>, _: &Functions) -> Outcome {
    let (mut share, mut unshare) = (bench.row("share-guest", 1), bench.row("unshare-guest", 1));
    let vm = TestVm::open()?;
    let (id, page) = (u64::from(vm.id.0), frames::take_one());
    for _ in 0..CALLS {
        touch(Pages::one(page));
        let perms = u64::from(RW.raw());
        share.call(HostFunction::HostShareGuest, [id, page.0, DATA.0, 1, perms])?;
        unshare.call(HostFunction::HostUnshareGuest, [id, page.0, DATA.0, 1, 0])?;
    }
    vm.destroy(&[])?;
    share.print();
    unshare.print();
    Ok(())
}

fn donate_open(bench: Bench<'_>, _: &Functions) -> Outcome {
    donate_pages((bench.row("donate-guest", 1), bench.row("reclaim-guest", 1)), &TestVm::open()?)
}

fn donate_protected(bench: Bench<'_>, _: &Functions) -> Outcome {
    let rows = (bench.row("donate-protected", 1), bench.row("reclaim-protected", 1));
    donate_pages(rows, &TestVm::protected()?)
}

/// Gives pages one by one to the VM, ends it, and takes them back one by one.
fn donate_pages((mut donate, mut reclaim): (Row, Row), vm: &TestVm) -> Outcome {
    let (id, pages) = (u64::from(vm.id.0), frames::take_aligned(CALLS, CALLS));
    for index in 0..CALLS {
        let page = frames::nth(pages, index);
        touch(Pages::one(page));
        donate.call(HostFunction::HostDonateGuest, [id, page.0, DATA.0 + index, 1, 0])?;
    }
    Hyp::vm_teardown(vm.id)?;
    for index in 0..CALLS {
        let page = frames::nth(pages, index).0;
        reclaim.call(HostFunction::HostReclaimGuest, [id, page, 1, 0, 0])?;
    }
    vm::free(vm.id)?;
    donate.print();
    reclaim.print();
    Ok(())
}

/// 512 pages that start in the middle of a block: two tables, 512 descriptors.
fn donate_range_open(bench: Bench<'_>, _: &Functions) -> Outcome {
    let items = MAX_RANGE_PAGES;
    let rows = (bench.row("donate-guest-512", items), bench.row("reclaim-guest-512", items));
    donate_range(rows, ContractFlags::NONE, HALF)
}

/// As [`donate_range_open`], zeroed when they come back.
fn donate_range_protected(bench: Bench<'_>, _: &Functions) -> Outcome {
    let items = MAX_RANGE_PAGES;
    let rows =
        (bench.row("donate-protected-512", items), bench.row("reclaim-protected-512", items));
    donate_range(rows, ContractFlags::PROTECTED, HALF)
}

/// 512 pages that are one block: one descriptor.
fn donate_block(bench: Bench<'_>, _: &Functions) -> Outcome {
    let items = MAX_RANGE_PAGES;
    let rows = (bench.row("donate-guest-2m", items), bench.row("reclaim-guest-2m", items));
    donate_range(rows, ContractFlags::NONE, 0)
}

/// Donates and reclaims 512 pages that start `offset` pages into a block.
fn donate_range(
    (mut donate, mut reclaim): (Row, Row),
    contract: ContractFlags,
    offset: u64,
) -> Outcome {
    let blocks = frames::take_aligned(2 * MAX_RANGE_PAGES, MAX_RANGE_PAGES);
    let pages = Pages::new(frames::nth(blocks, offset), MAX_RANGE_PAGES);
    let ipa = ALIGNED_IPA.0 + offset;
    for _ in 0..RANGE_CALLS {
        let vm = TestVm::create(contract, vm::TABLES)?;
        let (id, Pages { start, count }) = (u64::from(vm.id.0), pages);
        touch(pages);
        donate.call(HostFunction::HostDonateGuest, [id, start.0, ipa, count, 0])?;
        Hyp::vm_teardown(vm.id)?;
        reclaim.call(HostFunction::HostReclaimGuest, [id, start.0, count, 0, 0])?;
        vm::free(vm.id)?;
    }
    donate.print();
    reclaim.print();
    Ok(())
}

/// Returns the BAR that is one aligned GiB.
fn gibibyte(functions: &Functions) -> Result<Bar, Failure> {
    let bars = functions.iter().flat_map(|function| function.bars.iter());
    let found = bars.copied().find(|bar| bar.size == GIBIBYTE && bar.base.is_multiple_of(GIBIBYTE));
    found.ok_or(Failure::Wrong("no BAR of one aligned GiB"))
}

fn bind_shared(bench: Bench<'_>, functions: &Functions) -> Outcome {
    let rows = (bench.row("bind-share-1g", 1), bench.row("unbind-share-1g", 1));
    bind_region(rows, &gibibyte(functions)?, Mode::Share)
}

fn bind_donated(bench: Bench<'_>, functions: &Functions) -> Outcome {
    let rows = (bench.row("bind-donate-1g", 1), bench.row("unbind-donate-1g", 1));
    bind_region(rows, &gibibyte(functions)?, Mode::Donate)
}

fn bind_tables(bench: Bench<'_>, functions: &Functions) -> Outcome {
    let least = spare_tables(&gibibyte(functions)?)?;
    let row = Row { calls: 1, least, most: least, ..bench.row("bind-1g-tables", 1) };
    row.print();
    Ok(())
}

fn bind_region((mut bind, mut unbind): (Row, Row), bar: &Bar, mode: Mode) -> Outcome {
    let vm = TestVm::open()?;
    let request = bars::request(vm.id.0, bar, REGION_IPA.0, mode, MemType::AnyUncached);
    let RequestWord(word) = request.word();
    for _ in 0..RANGE_CALLS {
        touch(Pages::one(bars::pages(bar).start));
        let args = [word, request.pfn, request.ipa_pfn, request.pages, 0];
        bind.call(HostFunction::PfnmapBind, args)?;
        Hyp::pfnmap_probe(vm.id, REGION_IPA)?;
        unbind.call(HostFunction::PfnmapUnbind, [request.vm.into(), REGION_IPA.0, 0, 0, 0])?;
    }
    vm.destroy(&[])?;
    bind.print();
    unbind.print();
    Ok(())
}

/// Returns how many table pages it takes to map the GiB, beyond the fewest that any VM has: none
/// if it is one descriptor of the root table.
fn spare_tables(bar: &Bar) -> Result<u64, Failure> {
    let mut fewest = None;
    for tables in 1..=MOST_TABLES {
        let Ok(vm) = TestVm::create(ContractFlags::NONE, tables) else { continue };
        let fewest = *fewest.get_or_insert(tables);
        let request = bars::request(vm.id.0, bar, REGION_IPA.0, Mode::Share, MemType::AnyUncached);
        let bound = Hyp::pfnmap_bind(&request).is_ok();
        if bound {
            Hyp::pfnmap_probe(vm.id, REGION_IPA)?;
            Hyp::pfnmap_unbind(vm.id, REGION_IPA)?;
        }
        vm.destroy(&[])?;
        if bound {
            return Ok(tables - fewest);
        }
    }
    Err(Failure::Wrong("no table pool is large enough for one block"))
}

/// A full batch: everything granted, and everything refused for its place.
fn check(bench: Bench<'_>, functions: &Functions) -> Outcome {
    let bar = gibibyte(functions)?;
    vm::set_up_arguments()?;
    let vm = TestVm::open()?;
    let granted = bars::request(vm.id.0, &bar, REGION_IPA.0, Mode::Share, MemType::AnyUncached);
    check_batch(bench, "check-64", granted)?;
    check_batch(bench, "check-64-refused", Request { pfn: frames::RAM_END, pages: 1, ..granted })?;
    vm.destroy(&[])?;
    vm::clear_arguments()
}

fn check_batch(bench: Bench<'_>, name: &'static str, request: Request) -> Outcome {
    let items = u64::try_from(MAX_CHECK_ITEMS).unwrap_or(0);
    let mut row = bench.row(name, items);
    let verdict = vm::check(&[request; MAX_CHECK_ITEMS])?;
    let same = verdict.iter().all(|other| *other == verdict[0]);
    ensure(same, "equal requests were judged differently")?;
    ensure(verdict[0].is_granted() == (name == "check-64"), "batch is not judged as its row says")?;
    for _ in 0..RANGE_CALLS {
        row.call(HostFunction::PfnmapCheck, [items, 0, 0, 0, 0])?;
    }
    row.print();
    Ok(())
}

/// RAM that the hypervisor needs for each frame of RAM.
fn overhead(bench: Bench<'_>, _: &Functions) -> Outcome {
    let [frames, bytes, ..] = Hyp::info(InfoSelector::Memory)?;
    let row = Row { calls: 1, least: bytes, most: bytes, ..bench.row("vmemmap", frames) };
    row.print();
    Ok(())
}
