//! The main job: asks for every combination on every BAR and prints what is decided.

use arrayvec::ArrayVec;
use pfnguard_host_interface::{IpaPfn, VmId};
use pfnguard_lines::{Ask, Maybe, Verdict};
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::request::{MAX_CHECK_ITEMS, MemType, Mode, Perms, Request};
use pfnguard_shared::vm::ContractFlags;

use crate::Hyp;
use crate::bars;
use crate::outcome::{Dashed, Failure, Outcome};
use crate::pci::{Bar, Bdf, Functions};
use crate::vm::{self, TestVm};

/// Page where every request wants its BAR: 2 GiB, aligned for the largest block.
const IPA: u64 = 0x8_0000;
/// Table memory of the VM in pages.
const TABLES: u64 = 24;
/// The permissions that are asked for.
const PERMS: [Perms; 3] =
    [Perms::READ, Perms::READ.with(Perms::WRITE), Perms::READ.with(Perms::EXEC)];

/// Requests that are checked together and then bound one by one.
type Batch = ArrayVec<Ask<Bdf>, MAX_CHECK_ITEMS>;

/// Requests whose two decisions agreed and did not.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs the main job and prints its `@end` line.
pub fn run(functions: &Functions) {
    match run_all(functions) {
        Ok(Count { passed, failed }) => say!("@end passed={passed} failed={failed}"),
        Err(failure) => say!("@demo why={}", Dashed(failure)),
    }
}

fn run_all(functions: &Functions) -> Result<Count, Failure> {
    let [capabilities, ..] = Hyp::info(InfoSelector::Platform)?;
    say!("@caps value={capabilities:#x}");
    vm::set_up_arguments()?;
    let vm = TestVm::create(ContractFlags::NONE, TABLES)?;
    let mut count = Count::default();
    let mut batch = Batch::new();
    for (function, bar) in functions.iter().flat_map(|f| f.bars.iter().map(move |bar| (f, bar))) {
        for request in combinations(vm.id, bar) {
            batch.push(Ask { bdf: function.bdf, bar: bar.index, request });
            if batch.is_full() {
                judge(&mut batch, &mut count)?;
            }
        }
    }
    judge(&mut batch, &mut count)?;
    vm.destroy(&[])?;
    vm::clear_arguments()?;
    Ok(count)
}

/// Returns every combination of mode, type and permissions on a BAR.
fn combinations(vm: VmId, bar: &Bar) -> impl Iterator<Item = Request> {
    let modes = Mode::ALL.iter();
    let pairs = modes.flat_map(|&mode| MemType::ALL.iter().map(move |&mem_type| (mode, mem_type)));
    pairs.flat_map(move |(mode, mem_type)| {
        PERMS.iter().map(move |perms| {
            let mut request = bars::request(vm.0, bar, IPA, mode, mem_type);
            request.perms = perms.raw();
            request
        })
    })
}

/// Checks the batch, then binds each request and compares.
fn judge(batch: &mut Batch, count: &mut Count) -> Outcome {
    if batch.is_empty() {
        return Ok(());
    }
    let requests: ArrayVec<Request, MAX_CHECK_ITEMS> =
        batch.iter().map(|ask| ask.request).collect();
    let checked = vm::check(&requests)?;
    for (ask, checked) in batch.drain(..).zip(checked) {
        let bound = bind(&ask);
        if bound == checked {
            count.passed += 1;
        } else {
            count.failed += 1;
            say!("@mismatch {ask} bind[{bound}] check[{checked}]");
        }
    }
    Ok(())
}

/// Binds, probes, prints and unbinds.
fn bind(ask: &Ask<Bdf>) -> Verdict {
    let request = &ask.request;
    let verdict = Verdict::from(Hyp::pfnmap_bind(request));
    let (vm, ipa) = (VmId(request.vm), IpaPfn(request.ipa_pfn));
    let mut par = None;
    if verdict.is_granted() {
        par = Hyp::pfnmap_probe(vm, ipa).ok();
    }
    say!("@decision {ask} {verdict} par={}", Maybe(par));
    if verdict.is_granted() {
        release(vm, ipa, request);
    }
    verdict
}

fn release(vm: VmId, ipa: IpaPfn, request: &Request) {
    let region = bars::region_of(pfnguard_host_interface::Pfn(request.pfn));
    match (Hyp::pfnmap_unbind(vm, ipa), region) {
        (Ok(state), Some((index, _))) => bars::settle(index, state),
        (Ok(_), None) => say!("@mismatch region of pfn={:#x} is not listed", request.pfn),
        (Err(refused), _) => say!("@mismatch unbind pfn={:#x} {refused}", request.pfn),
    }
}
