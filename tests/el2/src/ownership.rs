//! Sharing, donating and taking back what is not in the right state.

use pfnguard_host_interface::{IpaPfn, Pages, Pfn, Refused, VmId};
use pfnguard_shared::vm::{ContractFlags, PageState};
use pfnguard_shared::{Perms, Status, Subject};

use crate::abort;
use crate::frames;
use crate::guest_code::Program;
use crate::outcome::{Failure, Outcome, denied, ensure, equal, refused};
use crate::suite::Test;
use crate::vm::{self, DATA, RW, TestVm};
use crate::{Hyp, RAM_BASE};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("ownership:share-and-unshare-with-hyp", share_hyp),
    ("ownership:what-is-not-the-hosts-cannot-be-given", not_the_hosts),
    ("ownership:a-range-with-one-bad-page-is-refused-whole", one_bad_page),
    ("ownership:donated-page-cannot-be-given-again", double_donation),
    ("ownership:shared-page-cannot-be-donated", donate_shared),
    ("ownership:argument-page-is-pinned", argument_page),
    ("ownership:reclaim-from-a-live-vm-is-refused", reclaim_live),
    ("ownership:unshare-needs-the-right-vm-and-place", wrong_place),
    ("ownership:occupied-ipa-is-refused", occupied),
    ("ownership:vm-that-holds-pages-is-not-freed", free_too_early),
    ("ownership:refusals-carry-page-and-states", facts),
    ("ownership:teardown-cleans-what-was-borrowed", borrowed_until_teardown),
];

/// Pages that are not the host's, each for its own reason.
const FOREIGN: [(Pfn, &str); 6] = [
    (Pfn(0x4020_0000 >> 12), "hypervisor image"),
    (Pfn(0x0900_0000 >> 12), "UART"),
    (Pfn(0x1000_0000 >> 12), "BAR window"),
    (Pfn(frames::RAM_END), "past RAM"),
    (Pfn(0), "below RAM"),
    (Pfn(1 << 39), "far past RAM"),
];

/// Every way to give pages away.
fn give(vm: VmId, pages: Pages) -> [Result<(), Refused>; 5] {
    [
        Hyp::share_hyp(pages),
        Hyp::share_guest(vm, pages, DATA, RW),
        Hyp::donate_guest(vm, pages, DATA),
        Hyp::vm_pool_add(vm, pages),
        Hyp::vm_create(ContractFlags::NONE, 1, pages).map(drop),
    ]
}

fn share_hyp() -> Outcome {
    let pages = frames::take(3);
    frames::fill(pages, 3);
    Hyp::share_hyp(pages)?;
    ensure(frames::is_filled(pages, 3), "shared page lost its contents")?;
    refused(Hyp::share_hyp(pages), Status::WrongState, "shared twice")?;
    Hyp::unshare_hyp(pages)?;
    refused(Hyp::unshare_hyp(pages), Status::WrongState, "unshared twice").map(drop)
}

fn not_the_hosts() -> Outcome {
    let vm = TestVm::protected()?;
    for (page, why) in FOREIGN {
        for answer in give(vm.id, Pages::one(page)) {
            denied(answer, why)?;
        }
        denied(Hyp::unshare_hyp(Pages::one(page)), why)?;
        denied(Hyp::unshare_guest(vm.id, Pages::one(page), DATA), why)?;
        denied(Hyp::reclaim_guest(vm.id, Pages::one(page)), why)?;
    }
    let ring = Hyp::trace_info(0)?;
    for answer in give(vm.id, Pages::one(ring.start)) {
        denied(answer, "trace ring was given away")?;
    }
    vm.destroy(&[])
}

fn one_bad_page() -> Outcome {
    let vm = TestVm::open()?;
    let pages = frames::take(4);
    let bad = Pages::one(frames::nth(pages, 2));
    Hyp::share_hyp(bad)?;
    let answers = give(vm.id, pages);
    Hyp::unshare_hyp(bad)?;
    for answer in answers {
        let facts = refused(answer, Status::WrongState, "range with a bad page was taken")?;
        equal(facts.pfn.unwrap_or(0), bad.start.0, "page that the refusal names")?;
    }
    // Nothing changed: every page can be written, shared and taken back as before.
    frames::fill(pages, 4);
    Hyp::share_hyp(pages)?;
    Hyp::unshare_hyp(pages)?;
    straddling_the_end_of_ram(vm.id)?;
    vm.destroy(&[])
}

fn straddling_the_end_of_ram(vm: VmId) -> Outcome {
    let last = Pages::new(Pfn(frames::RAM_END - 1), 2);
    for answer in give(vm, last) {
        denied(answer, "range past the end of RAM was taken")?;
    }
    frames::write(frames::address(last.start), 1);
    Ok(())
}

fn double_donation() -> Outcome {
    let (vm, other) = (TestVm::protected()?, TestVm::protected()?);
    let page = Pages::one(frames::take_one());
    Hyp::donate_guest(vm.id, page, DATA)?;
    let again = give(vm.id, page).into_iter().chain(give(other.id, page));
    let kept = again.map(|answer| denied(answer, "donated page was given again").map(drop));
    let kept: Outcome = kept.fold(Ok(()), Outcome::and);
    let foreign = denied(Hyp::reclaim_guest(other.id, page), "reclaimed from another VM");
    vm.destroy(&[page])?;
    other.destroy(&[])?;
    kept?;
    foreign.map(drop)
}

fn donate_shared() -> Outcome {
    let (open, protected) = (TestVm::open()?, TestVm::protected()?);
    let page = open.lend(DATA, RW)?;
    let pages = Pages::one(page);
    let donated = denied(Hyp::donate_guest(protected.id, pages, DATA), "shared page was donated");
    let shared = denied(Hyp::share_hyp(pages), "page lent to a guest was shared with hyp");
    let pool = denied(Hyp::vm_pool_add(open.id, pages), "shared page became a table");
    open.unlend(page, DATA)?;
    open.destroy(&[])?;
    protected.destroy(&[])?;
    donated.and(shared).and(pool).map(drop)
}

fn argument_page() -> Outcome {
    let page = Pages::one(vm::arguments_frame()?);
    refused(Hyp::unshare_hyp(page), Status::Busy, "argument page was unshared")?;
    let private = frames::take_one();
    denied(Hyp::arg_page_set(private), "private page became the argument page")?;
    denied(Hyp::arg_page_set(Pfn(RAM_BASE)), "device tree became the argument page")?;
    denied(Hyp::arg_page_set(Pfn(0x4020_0000 >> 12)), "hypervisor page became the argument page")?;
    vm::clear_arguments()?;
    denied(Hyp::arg_page_clear(), "argument page was cleared twice")?;
    let batch = Hyp::invoke(pfnguard_shared::HostFunction::PfnmapCheck, [1, 0, 0, 0, 0, 0, 0]);
    denied(batch, "CHECK without an argument page")?;
    vm::set_up_arguments()
}

fn reclaim_live() -> Outcome {
    let vm = TestVm::protected()?;
    let page = Pages::one(frames::take_one());
    Hyp::donate_guest(vm.id, page, DATA)?;
    let early = denied(Hyp::reclaim_guest(vm.id, page), "reclaimed from a live VM");
    let still = abort::load(frames::address(page.start)).is_err();
    vm.destroy(&[page])?;
    early?;
    ensure(still, "page of a live VM is readable after a refused reclaim")
}

fn wrong_place() -> Outcome {
    let (vm, other) = (TestVm::open()?, TestVm::open()?);
    let page = vm.lend(DATA, RW)?;
    let wrong = [
        Hyp::unshare_guest(other.id, Pages::one(page), DATA),
        Hyp::unshare_guest(vm.id, Pages::one(page), IpaPfn(DATA.0 + 1)),
        Hyp::unshare_guest(vm.id, Pages::new(page, 2), DATA),
    ];
    vm.unlend(page, DATA)?;
    let twice = denied(vm_unshare(&vm, page), "unshared twice");
    vm.destroy(&[])?;
    other.destroy(&[])?;
    for answer in wrong {
        denied(answer, "unshared from the wrong VM or place")?;
    }
    twice.map(drop)
}

fn vm_unshare(vm: &TestVm, page: Pfn) -> Result<(), Refused> {
    Hyp::unshare_guest(vm.id, Pages::one(page), DATA)
}

fn occupied() -> Outcome {
    let vm = TestVm::open()?;
    let page = vm.lend(DATA, RW)?;
    let second = Pages::one(frames::take_one());
    let again = denied(Hyp::share_guest(vm.id, second, DATA, RW), "occupied page was taken");
    frames::write(frames::address(second.start), 1);
    vm.unlend(page, DATA)?;
    vm.destroy(&[])?;
    again.map(drop)
}

fn free_too_early() -> Outcome {
    let vm = TestVm::protected()?;
    let page = Pages::one(frames::take_one());
    Hyp::donate_guest(vm.id, page, DATA)?;
    let live = denied(Hyp::vm_free(vm.id), "live VM was freed");
    Hyp::vm_teardown(vm.id)?;
    let full = denied(Hyp::vm_free(vm.id), "VM that holds a page was freed");
    let twice = denied(Hyp::vm_teardown(vm.id), "torn down twice");
    let late = denied(
        Hyp::share_guest(vm.id, Pages::one(frames::take_one()), DATA, Perms::READ),
        "page was lent to a dying VM",
    );
    Hyp::reclaim_guest(vm.id, page)?;
    vm::free(vm.id)?;
    denied(Hyp::vm_teardown(vm.id), "freed VM was torn down")?;
    live.and(full).and(twice).and(late).map(drop)
}

fn facts() -> Outcome {
    let page = frames::take_one();
    Hyp::share_hyp(Pages::one(page))?;
    let answer = Hyp::share_hyp(Pages::one(page));
    Hyp::unshare_hyp(Pages::one(page))?;
    let facts = refused(answer, Status::WrongState, "shared twice")?;
    ensure(facts.subject == Subject::PageState, "subject is not the page's state")?;
    equal(facts.pfn.ok_or(Failure::Wrong("no page named"))?, page.0, "page")?;
    equal(facts.requested, u64::from(PageState::HostOwned.raw()), "state that is needed")?;
    equal(facts.granted, u64::from(PageState::HostSharedHyp.raw()), "state that was found")
}

/// What a guest may have in the caches is cleaned once it can cache no more. The oracle judges that
/// where it sees the host get the page: a page that the host has not touched since it came back,
/// between two that never did, so that its translation comes with no neighbour's.
fn borrowed_until_teardown() -> Outcome {
    let (vm, other) = (TestVm::open()?, TestVm::protected()?);
    vm.load(Program::Increment, vm::ipa_address(DATA))?;
    let pages = frames::take(3);
    let [before, page, behind] = [0, 1, 2].map(|index| Pages::one(frames::nth(pages, index)));
    Hyp::donate_guest(other.id, pages, DATA)?;
    Hyp::vm_teardown(other.id)?;
    Hyp::reclaim_guest(other.id, page)?;
    Hyp::share_guest(vm.id, page, DATA, RW)?;
    equal(vm.run_to_yield()?[0], 1, "value that the guest yields")?;
    vm.destroy(&[])?;
    equal(frames::read(frames::address(page.start)), 1, "what the guest stored")?;
    Hyp::reclaim_guest(other.id, before)?;
    Hyp::reclaim_guest(other.id, behind)?;
    vm::free(other.id)
}
