//! Pages that a guest owns, lends to the host and takes back.

use pfnguard_host_interface::{Pages, Promised};
use pfnguard_shared::vm::Promise;
use pfnguard_shared::{GuestFunction, MemType, Status};

use crate::abort;
use crate::guest_code::Program;
use crate::outcome::{Outcome, aborted, ensure, equal};
use crate::suite::Test;
use crate::vm::{CODE, DATA, TestVm, ipa_address};
use crate::{Hyp, frames};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("own:lent-page-is-the-hosts-until-it-is-taken-back", lend_and_take_back),
    ("own:borrowed-page-cannot-be-lent-on", lend_borrowed),
    ("own:unaligned-and-unmapped-pages-cannot-be-lent", lend_wrong),
    ("own:query-says-what-ram-is", query),
    ("own:lent-page-comes-back-zeroed", lent_page_is_reclaimed),
];

/// Gives a page full of `value` to `vm` at the data address.
fn give(vm: &TestVm, value: u64) -> Result<Pages, crate::outcome::Failure> {
    let page = Pages::one(frames::take_one());
    frames::fill(page, value);
    Hyp::donate_guest(vm.id, page, DATA)?;
    Ok(page)
}

fn lend_and_take_back() -> Outcome {
    let vm = TestVm::protected()?;
    let code = Pages::one(vm.load_owned(Program::Lend, ipa_address(DATA))?);
    let page = give(&vm, 0x1e4d)?;
    let address = frames::address(page.start);
    let mut checked = aborted(abort::load(address), "owned page is readable").map(drop);
    for _ in 0..3 {
        checked = checked
            .and(equal(vm.run_to_yield()?[0], 0, "answer to MEM_SHARE"))
            .and(equal(abort::load(address).unwrap_or(0), 0x1e4d, "lent page"))
            .and(equal(vm.run_to_yield()?[0], 0, "answer to MEM_UNSHARE"))
            .and(
                aborted(abort::load(address), "page is readable after it was taken back").map(drop),
            );
    }
    vm.destroy(&[code, page])?;
    checked
}

fn lend_borrowed() -> Outcome {
    let vm = TestVm::open()?;
    vm.load(Program::Lend, ipa_address(CODE))?;
    let answer = vm.run_to_yield();
    vm.destroy(&[])?;
    ensure(answer?[0] != 0, "borrowed page was lent")
}

fn lend_wrong() -> Outcome {
    for address in [ipa_address(DATA) + 1, ipa_address(DATA), u64::MAX, 1 << 52, 1 << 47] {
        let vm = TestVm::protected()?;
        let code = Pages::one(vm.load_owned(Program::Lend, address)?);
        let (share, unshare) = (vm.run_to_yield(), vm.run_to_yield());
        vm.destroy(&[code])?;
        ensure(share?[0] != 0, "page that is not the guest's was lent")?;
        ensure(unshare?[0] != 0, "page that was not lent was taken back")?;
    }
    Ok(())
}

fn query() -> Outcome {
    let vm = TestVm::protected()?;
    let code = Pages::one(vm.load_owned(Program::Hvc, u64::from(GuestFunction::Query.raw()))?);
    let page = give(&vm, 1)?;
    vm.set(1, DATA.0)?;
    vm.set(2, 4)?;
    let answer = vm.run_to_yield();
    vm.destroy(&[code, page])?;
    let [status, word, pages] = answer?;
    equal(status, Status::Success.to_register(), "status of QUERY")?;
    let promised = Promised::from_registers(word, pages);
    ensure(promised.promise.contains(Promise::PRESENT), "owned page is not present")?;
    ensure(!promised.promise.intersects(Promise::PFNMAP.with(Promise::SHARED)), "not plain RAM")?;
    ensure(promised.mem_type == Some(MemType::Cacheable), "RAM is not cacheable")?;
    equal(promised.pages, 1, "pages with the same promise")
}

fn lent_page_is_reclaimed() -> Outcome {
    let vm = TestVm::protected()?;
    let code = Pages::one(vm.load_owned(Program::Lend, ipa_address(DATA))?);
    let page = give(&vm, 0x1e4d)?;
    let lent = vm.run_to_yield();
    vm.destroy(&[page, code])?;
    equal(lent?[0], 0, "answer to MEM_SHARE")?;
    ensure(frames::is_filled(page, 0), "page that was lent at teardown is not zero")?;
    Hyp::share_hyp(page)?;
    Hyp::unshare_hyp(page).map_err(Into::into)
}
