//! VMs for tests, and this CPU's argument page.

use core::ptr::with_exposed_provenance_mut;

use arrayvec::ArrayVec;
use pfnguard_host_interface::{
    ArgumentPage, Exit, GuestValue, IpaPfn, Pages, Pfn, Refused, VcpuId, VmId,
};
use pfnguard_lines::Verdict;
use pfnguard_shared::Perms;
use pfnguard_shared::request::{MAX_CHECK_ITEMS, Request};
use pfnguard_shared::vm::ContractFlags;
use spin::Mutex;

use crate::Hyp;
use crate::frames;
use crate::gic;
use crate::guest_code::Program;
use crate::outcome::{Failure, Outcome, equal};

/// Table memory of a VM that a test does not want to run out of, in pages.
pub const TABLES: u64 = 16;
/// Page where a guest's program lies.
pub const CODE: IpaPfn = IpaPfn(0x10);
/// First page of a guest's data.
pub const DATA: IpaPfn = IpaPfn(0x20);
/// The only vCPU of most VMs.
pub const VCPU: VcpuId = VcpuId(0);
/// Loads, stores and fetches.
pub const RWX: Perms = Perms::ALL;
/// Loads and stores.
pub const RW: Perms = Perms::READ.with(Perms::WRITE);

/// This CPU's argument page, once it is set up.
static ARGUMENTS: Mutex<Option<Pfn>> = Mutex::new(None);

/// Shares a page with the hypervisor and makes it the boot CPU's argument page.
pub fn set_up_arguments() -> Outcome {
    let page = frames::take_one();
    Hyp::share_hyp(Pages::one(page))?;
    Hyp::arg_page_set(page)?;
    *ARGUMENTS.lock() = Some(page);
    Ok(())
}

/// Takes the argument page back.
pub fn clear_arguments() -> Outcome {
    Hyp::arg_page_clear()?;
    let page = ARGUMENTS.lock().take().ok_or(Failure::Wrong("no argument page to clear"))?;
    Hyp::unshare_hyp(Pages::one(page)).map_err(Failure::from)
}

/// Returns the frame of the argument page.
pub fn arguments_frame() -> Result<Pfn, Failure> {
    ARGUMENTS.lock().ok_or(Failure::Wrong("no argument page"))
}

/// Works with the argument page of the boot CPU.
///
/// # Panics
/// Before [`set_up_arguments`].
pub fn args<T>(work: impl FnOnce(&mut ArgumentPage) -> T) -> T {
    let slot = ARGUMENTS.lock();
    let page = slot.expect("argument page is used before it is set up");
    let address = usize::try_from(frames::address(page)).unwrap_or(0);
    // SAFETY: The frame is this program's for good, and the lock makes this the only reference.
    // The hypervisor writes it only during a call, which the compiler must assume writes memory.
    work(unsafe { &mut *with_exposed_provenance_mut::<ArgumentPage>(address) })
}

/// Checks a batch and returns the decisions.
pub fn check(requests: &[Request]) -> Result<ArrayVec<Verdict, MAX_CHECK_ITEMS>, Refused> {
    args(|page| {
        let items = Hyp::check(page, requests)?;
        Ok((0..items).filter_map(|item| page.decision(item)).map(Verdict::from).collect())
    })
}

/// A VM that a test made.
pub struct TestVm {
    /// Its number.
    pub id: VmId,
}

impl TestVm {
    /// Makes a VM with one vCPU and `tables` pages of table memory.
    pub fn create(contract: ContractFlags, tables: u64) -> Result<Self, Failure> {
        let id = Hyp::vm_create(contract, 1, frames::take(tables))?;
        Ok(Self { id })
    }

    /// Makes a VM that borrows its RAM.
    pub fn open() -> Result<Self, Failure> {
        Self::create(ContractFlags::NONE, TABLES)
    }

    /// Makes a VM that owns its RAM.
    pub fn protected() -> Result<Self, Failure> {
        Self::create(ContractFlags::PROTECTED, TABLES)
    }

    /// Lends a page with `program` to the VM and puts its vCPU there. Returns the page.
    pub fn load(&self, program: Program, x0: u64) -> Result<Pfn, Failure> {
        let page = frames::take_one();
        program.copy_to(page);
        Hyp::share_guest(self.id, Pages::one(page), CODE, RWX)?;
        Hyp::vcpu_init(self.id, VCPU, ipa_address(CODE), x0)?;
        Ok(page)
    }

    /// Gives a page with `program` to the VM and puts its vCPU there. Returns the page.
    pub fn load_owned(&self, program: Program, x0: u64) -> Result<Pfn, Failure> {
        let page = frames::take_one();
        program.copy_to(page);
        Hyp::donate_guest(self.id, Pages::one(page), CODE)?;
        Hyp::vcpu_init(self.id, VCPU, ipa_address(CODE), x0)?;
        Ok(page)
    }

    /// Lends a fresh zeroed page to the VM. Returns the page.
    pub fn lend(&self, ipa: IpaPfn, perms: Perms) -> Result<Pfn, Failure> {
        let page = frames::take_one();
        frames::fill(Pages::one(page), 0);
        Hyp::share_guest(self.id, Pages::one(page), ipa, perms)?;
        Ok(page)
    }

    /// Takes a lent page back.
    pub fn unlend(&self, page: Pfn, ipa: IpaPfn) -> Outcome {
        Hyp::unshare_guest(self.id, Pages::one(page), ipa).map_err(Failure::from)
    }

    /// Sets a register of the vCPU.
    pub fn set(&self, register: u64, value: u64) -> Outcome {
        Hyp::vcpu_set_reg(self.id, VCPU, register, value).map_err(Failure::from)
    }

    /// Runs the vCPU until it needs the host.
    pub fn run(&self) -> Result<Exit, Failure> {
        self.run_with(0)
    }

    /// As [`Self::run`], with the value of a load.
    pub fn run_with(&self, load: u64) -> Result<Exit, Failure> {
        Ok(run(self.id, load)?)
    }

    /// As [`Self::run`], with the refusal.
    pub fn run_raw(&self) -> Result<Exit, Refused> {
        run(self.id, 0)
    }

    /// Runs until the guest yields and returns its values.
    pub fn run_to_yield(&self) -> Result<[u64; 3], Failure> {
        yielded(self.run()?)
    }

    /// Ends the VM and takes everything back: pages that it owned, then its tables.
    pub fn destroy(&self, owned: &[Pages]) -> Outcome {
        Hyp::vm_teardown(self.id)?;
        for pages in owned {
            Hyp::reclaim_guest(self.id, *pages)?;
        }
        free(self.id)
    }
}

/// Most milliseconds that a guest runs.
const PATIENCE: u64 = 5_000;

/// Runs a VM's first vCPU on this CPU; a guest that does not stop ends as interrupted.
pub fn run(vm: VmId, load: u64) -> Result<Exit, Refused> {
    gic::bounded(PATIENCE, || Hyp::vcpu_run(vm, VCPU, GuestValue(load)))
}

/// Takes back the tables of a VM that was torn down and is empty.
pub fn free(vm: VmId) -> Outcome {
    loop {
        match Hyp::vm_free(vm) {
            Ok((_, 0)) => return Ok(()),
            Ok(_) => {}
            Err(refused) => return Err(Failure::Refused(refused)),
        }
    }
}

/// Returns the address of the first byte of a guest's page.
pub fn ipa_address(page: IpaPfn) -> u64 {
    page.0 << pfnguard_shared::PAGE_SHIFT
}

/// Describes an exit that a test did not expect.
pub fn unexpected(exit: Exit) -> Failure {
    match exit {
        Exit::Interrupt => Failure::Wrong("guest stopped for an interrupt"),
        Exit::Wait => Failure::Wrong("guest waits"),
        Exit::Mmio(mmio) => Failure::Values("guest made an unmapped access", 0, mmio.ipa),
        Exit::Fault { ipa } => Failure::Values("guest faulted", 0, ipa),
        Exit::Yield([a, _, _]) => Failure::Values("guest yielded", 0, a),
        Exit::Power(function) => Failure::Values("guest powered off", 0, function),
        Exit::Unsupported(class) => Failure::Values("guest was not supported", 0, class),
        Exit::Undefined(reason) => Failure::Values("exit of no known reason", 0, reason),
    }
}

/// Passes where the guest yielded; returns its values.
pub fn yielded(exit: Exit) -> Result<[u64; 3], Failure> {
    if let Exit::Yield(values) = exit { Ok(values) } else { Err(unexpected(exit)) }
}

/// Passes where the guest faulted at `address`.
pub fn faulted_at(exit: Exit, address: u64) -> Outcome {
    if let Exit::Fault { ipa } = exit {
        return equal(ipa, address, "address of the fault");
    }
    Err(unexpected(exit))
}

/// Passes where the guest accessed `address`, which nothing maps.
pub fn accessed(exit: Exit, address: u64) -> Outcome {
    if let Exit::Mmio(mmio) = exit {
        return equal(mmio.ipa, address, "address of the access");
    }
    Err(unexpected(exit))
}
