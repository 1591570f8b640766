//! Memory that changes hands while its former owner's translations and cache lines are alive: what
//! the hypervisor must do in between is the oracle's to see, and these give it something to see.

use pfnguard_host_interface::{Exit, IpaPfn, Pages};
use pfnguard_shared::request::{MemType, Mode};

use crate::guest_code::Program;
use crate::outcome::{Outcome, aborted, ensure, equal};
use crate::suite::Test;
use crate::vm::{DATA, RW, TestVm, accessed, faulted_at, ipa_address};
use crate::{Hyp, abort, bars, frames, suite};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("handover:page-in-use-by-the-host-is-donated-to-a-guest-that-has-run", donate_live_page),
    ("handover:block-in-use-by-a-guest-is-split", split_live_block),
    ("handover:host-uses-a-released-cacheable-region", release_cacheable),
];

/// What memory holds when it changes hands.
const MARK: u64 = 0x4a4d_04e5;
/// Register in which [`Program::Load`] keeps the address that it loads from.
const LOAD_ADDRESS: u64 = 19;
/// Where a guest sees a block or a region.
const PLACE: IpaPfn = IpaPfn(0x4_0000);

fn donate_live_page() -> Outcome {
    let vm = TestVm::protected()?;
    let code = Pages::one(vm.load_owned(Program::Load, ipa_address(DATA))?);
    let hole = vm.run();
    let page = Pages::one(frames::take_one());
    frames::fill(page, MARK);
    Hyp::donate_guest(vm.id, page, DATA)?;
    let seen = vm.run_to_yield();
    let hidden = aborted(abort::load(frames::address(page.start)), "donated page is readable");
    vm.destroy(&[code, page])?;
    faulted_at(hole?, ipa_address(DATA))?;
    equal(seen?[0], MARK, "value that the guest reads")?;
    hidden.map(drop)
}

fn split_live_block() -> Outcome {
    let vm = TestVm::open()?;
    let block = frames::take_aligned(512, 512);
    let (kept, taken) = (300, 301);
    frames::write(frames::address(frames::nth(block, kept)), MARK);
    Hyp::share_guest(vm.id, block, PLACE, RW)?;
    vm.load(Program::Load, ipa_address(IpaPfn(PLACE.0 + kept)))?;
    let before = vm.run_to_yield();
    let place = IpaPfn(PLACE.0 + taken);
    Hyp::unshare_guest(vm.id, Pages::one(frames::nth(block, taken)), place)?;
    let after = vm.run_to_yield();
    vm.set(LOAD_ADDRESS, ipa_address(place))?;
    let gone: Result<Exit, _> = vm.run();
    vm.destroy(&[])?;
    equal(before?[0], MARK, "value in the block")?;
    equal(after?[0], MARK, "value in what is left of the block")?;
    accessed(gone?, ipa_address(place))
}

fn release_cacheable() -> Outcome {
    let granted = bars::find(&suite::context()?.functions, |_, info| {
        bars::allows(info, Mode::Donate, MemType::Cacheable)
    })?;
    let address = bars::address(&granted.bar);
    abort::store(address, MARK)?;
    let vm = TestVm::open()?;
    let request = bars::request(vm.id.0, &granted.bar, PLACE.0, Mode::Donate, MemType::Cacheable);
    Hyp::pfnmap_bind(&request)?;
    vm.load(Program::Increment, ipa_address(PLACE))?;
    let counted = vm.run_to_yield();
    let state = Hyp::pfnmap_unbind(vm.id, PLACE)?;
    bars::settle(granted.region, state);
    let after = abort::load(address);
    let stored = abort::store(address, MARK).and_then(|()| abort::load(address));
    abort::store(address, 0)?;
    vm.destroy(&[])?;
    equal(counted?[0], MARK + 1, "value that the guest counts to")?;
    let after = after?;
    ensure(after == MARK + 1 || after == 0, "region holds neither the guest's value nor zero")?;
    equal(stored?, MARK, "value that the host stored")
}
