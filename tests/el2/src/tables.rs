//! Running out of table memory in the middle: a definite refusal, nothing changed, and the same
//! call succeeds once there is memory.

use pfnguard_host_interface::{IpaPfn, Pages, Refused};
use pfnguard_shared::request::{MemType, Mode};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{Status, Subject};

use crate::outcome::{Failure, Outcome, ensure, refused};
use crate::suite::Test;
use crate::vm::{RW, TestVm};
use crate::{Hyp, bars, frames, suite};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("tables:share-without-tables-changes-nothing", share),
    ("tables:donate-without-tables-changes-nothing", donate),
    ("tables:bind-without-tables-changes-nothing", bind),
    ("tables:unshare-that-splits-is-all-or-nothing", unshare),
    ("tables:creation-with-too-few-pages-is-refused", create),
];

/// Straddles a 2 MiB and a 1 GiB boundary: needs tables on both sides.
const ACROSS: IpaPfn = IpaPfn((1 << 18) - 128);
/// Pages of each range.
const PAGES: u64 = 256;

/// Makes a VM with as little table memory as it takes.
fn poor(contract: ContractFlags) -> Result<TestVm, Failure> {
    for tables in 1..16 {
        match TestVm::create(contract, tables) {
            Err(Failure::Refused(facts)) if facts.status == Status::NoMemory => {}
            other => return other,
        }
    }
    Err(Failure::Wrong("VM needs more than 15 pages of tables"))
}

/// Asks until it is granted, with one more page of tables each time. At least one refusal must
/// come first, and every refusal must leave `untouched` true.
fn feed(
    vm: &TestVm,
    mut ask: impl FnMut() -> Result<(), Refused>,
    untouched: impl Fn() -> bool,
) -> Outcome {
    for round in 0..16 {
        match ask() {
            Ok(()) => return ensure(round > 0, "no refusal although there were no tables"),
            Err(facts) if facts.status == Status::NoMemory => {
                ensure(facts.subject == Subject::Tables, "subject is not the tables")?;
                ensure(facts.requested > facts.granted, "refused although there was enough")?;
                ensure(untouched(), "a refused call changed something")?;
            }
            Err(facts) => return Err(Failure::Refused(facts)),
        }
        Hyp::vm_pool_add(vm.id, frames::take(1))?;
    }
    Err(Failure::Wrong("still refused with 16 more pages"))
}

fn share() -> Outcome {
    let vm = poor(ContractFlags::NONE)?;
    let pages = frames::take_aligned(PAGES, 512);
    frames::fill(pages, 5);
    let free = || {
        let shared = Hyp::share_hyp(pages).and_then(|()| Hyp::unshare_hyp(pages));
        frames::is_filled(pages, 5) && shared.is_ok()
    };
    feed(&vm, || Hyp::share_guest(vm.id, pages, ACROSS, RW), free)?;
    Hyp::unshare_guest(vm.id, pages, ACROSS)?;
    vm.destroy(&[])
}

fn donate() -> Outcome {
    let vm = poor(ContractFlags::PROTECTED)?;
    let pages = frames::take_aligned(PAGES, 512);
    frames::fill(pages, 6);
    feed(&vm, || Hyp::donate_guest(vm.id, pages, ACROSS), || frames::is_filled(pages, 6))?;
    vm.destroy(&[pages])?;
    ensure(frames::is_filled(pages, 0), "donated pages did not come back zeroed")
}

fn bind() -> Outcome {
    let functions = &suite::context()?.functions;
    let granted =
        bars::find(functions, |_, info| bars::allows(info, Mode::Share, MemType::Device))?;
    let vm = poor(ContractFlags::NONE)?;
    let request = bars::request(vm.id.0, &granted.bar, ACROSS.0, Mode::Share, MemType::Device);
    let free = || {
        let info = bars::region_of(bars::pages(&granted.bar).start);
        info.is_some_and(|(_, info)| info.state == granted.info.state && info.holders == 0)
    };
    feed(&vm, || Hyp::pfnmap_bind(&request), free)?;
    let state = Hyp::pfnmap_unbind(vm.id, ACROSS)?;
    bars::settle(granted.region, state);
    vm.destroy(&[])
}

fn unshare() -> Outcome {
    let vm = TestVm::create(ContractFlags::NONE, 4)?;
    let block = frames::take_aligned(512, 512);
    let place = IpaPfn(512);
    frames::fill(block, 9);
    Hyp::share_guest(vm.id, block, place, RW)?;
    // One page out of what may be a block: it either works or is refused for want of tables.
    let (page, at) = (Pages::one(frames::nth(block, 300)), IpaPfn(place.0 + 300));
    let mut rest = Hyp::unshare_guest(vm.id, page, at);
    if let Err(facts) = rest {
        refused::<()>(Err(facts), Status::NoMemory, "split was refused for another reason")?;
        Hyp::vm_pool_add(vm.id, frames::take(4))?;
        rest = Hyp::unshare_guest(vm.id, page, at);
    }
    rest?;
    Hyp::unshare_guest(vm.id, Pages::new(block.start, 300), place)?;
    let upper = Pages::new(frames::nth(block, 301), 211);
    Hyp::unshare_guest(vm.id, upper, IpaPfn(place.0 + 301))?;
    ensure(frames::is_filled(block, 9), "a page lost its contents")?;
    vm.destroy(&[])
}

fn create() -> Outcome {
    let vm = poor(ContractFlags::NONE)?;
    vm.destroy(&[])
}
