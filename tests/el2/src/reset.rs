//! A reset with secrets in RAM; whoever started the machine looks at what is left of them.

use pfnguard_host_interface::Pages;
use smccc::{Call, Smc, psci};

use crate::outcome::{Dashed, Outcome};
use crate::vm::{DATA, TestVm};
use crate::{Hyp, frames};

/// What every doubleword of a protected VM's pages holds.
const OWNED: u64 = 0x0ddc_0ffe_e5ec_2e75;
/// What every doubleword of another VM's page and of the host's holds.
const OTHER: u64 = 0x0ddc_0ffe_e0be_71c5;
/// `reset_type`: a vendor's (Arm DEN0022, 5.1.11).
const VENDOR: u64 = 1 << 31 | 5;

/// Leaves the secrets, prints the `@end` line and asks for a vendor's reset. Returns only where
/// something failed.
pub fn run() {
    if let Err(failure) = leave_secrets() {
        say!("@unknown reset={}", Dashed(failure));
        return;
    }
    say!("@end passed=1 failed=0");
    let mut arguments = [0; 17];
    arguments[0] = VENDOR;
    Smc::call64(psci::PSCI_SYSTEM_RESET2_64, arguments);
    say!("@unknown reset=came-back");
}

/// Fills pages and gives them to VMs: many pages, a page of a VM in teardown, and pages that
/// are no secret.
fn leave_secrets() -> Outcome {
    let [owned, dying] = [frames::take(300), frames::take(1)];
    let [other, own] = [frames::take(1), frames::take(1)];
    for (pages, value) in [(owned, OWNED), (dying, OWNED), (other, OTHER), (own, OTHER)] {
        frames::fill(pages, value);
    }
    give(&TestVm::protected()?, owned)?;
    give(&TestVm::open()?, other)?;
    let vm = TestVm::protected()?;
    give(&vm, dying)?;
    Ok(Hyp::vm_teardown(vm.id)?)
}

fn give(vm: &TestVm, pages: Pages) -> Outcome {
    Ok(Hyp::donate_guest(vm.id, pages, DATA)?)
}
