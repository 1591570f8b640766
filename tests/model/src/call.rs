//! A call, its outcome, and what the specification leaves open.

use std::ops::Range;

use pfnguard_shared::call::HOST_UID;
use pfnguard_shared::vm::PageState;
use pfnguard_shared::{ABI_MAJOR, ABI_MINOR, HostFunction};

use crate::args::Args;
use crate::machine::Machine;
use crate::refusal::{argument, no_arg_page, no_function, page_busy};
use crate::state::{Frame, Load, Registers, State};
use crate::{PAGE_LIMIT, Refused};

/// A call of the host.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// CPU that makes it.
    pub cpu: usize,
    /// `x0..=x7`.
    pub regs: [u64; 8],
    /// This CPU's argument page, as the hypervisor read it, once.
    pub arg_page: Option<&'a [u8; 4096]>,
    /// What happened where the specification allows more than one thing.
    pub seen: &'a Seen,
}

/// What the specification does not determine, as it was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `x0..=x7` of the answer. Three values of it are open: which table page VM_FREE gave back
    /// (x1), what the CPU answered to PFNMAP_PROBE (x1), how many table pages the host's stage 2 has
    /// left (x4 of INFO `Memory`).
    pub answer: [u64; 8],
    /// Reads of reset registers in their order: address and answer, if any (R41, R42).
    pub reads: Vec<(u64, Option<u64>)>,
    /// What the guest did in VCPU_RUN.
    pub guest: Vec<GuestStep>,
    /// First IPA page of each item of MIGRATE_EXPORT: the order of bindings is open.
    pub exported: Vec<u64>,
}

/// An exit of a guest from its world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestStep {
    /// Its registers at the exit. `pc` is past an `HVC`, and at any other instruction that exits.
    pub registers: Registers,
    /// Why it left.
    pub event: GuestEvent,
}

/// Why a guest left its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// A physical interrupt.
    Interrupt,
    /// A physical SError.
    SError,
    /// WFI, WFE or a timed form.
    Wait,
    /// `HVC` with this immediate.
    Hvc(u16),
    /// `SMC` with this immediate.
    Smc(u16),
    /// A load, store or fetch that stage 2 stopped.
    Abort {
        /// Intermediate physical address in bytes; of a table walk only the page is known.
        ipa: u64,
        /// Why.
        cause: AbortCause,
        /// What the syndrome says of the access, if anything.
        access: Option<Access>,
    },
    /// An instruction that is undefined for guests. Their own handler for it is at this address.
    Undefined(u64),
    /// Another exception class.
    Other(u64),
}

/// Why stage 2 stopped an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortCause {
    /// Nothing is mapped there.
    Translation,
    /// What is mapped there does not allow it, or something else is wrong.
    Forbidden,
}

/// An access that an emulator can do for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Load(Load),
    /// A store.
    Store {
        /// Source register; 31 is the zero register.
        register: usize,
        /// Bytes: 1, 2, 4 or 8.
        bytes: u32,
    },
}

/// What a call must have done besides changing the state. Trace records would be part of it; they
/// are not specified yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// `x0..=x7`.
    pub regs: [u64; 8],
    /// Bytes written to the argument page: offset and what. All others are as before.
    pub arg_page: Vec<(usize, Vec<u8>)>,
    /// Pages that read zero afterwards (R40, R44).
    pub zeroed: Vec<Range<u64>>,
    /// How many reads of reset registers there were (R42).
    pub reads: usize,
    /// Registers with which the guest entered its world, each time that it did.
    pub entered: Vec<Registers>,
}

impl Outcome {
    /// Success with `x1..=x4`.
    pub(crate) fn values(values: [u64; 4]) -> Self {
        let [x1, x2, x3, x4] = values;
        Self::plain([0, x1, x2, x3, x4, 0, 0, 0])
    }

    /// Success with `x1`.
    pub(crate) fn value(x1: u64) -> Self {
        Self::values([x1, 0, 0, 0])
    }

    /// Success.
    pub(crate) fn done() -> Self {
        Self::values([0; 4])
    }

    /// An answer whose `x0` is no status.
    pub(crate) fn plain(regs: [u64; 8]) -> Self {
        Self { regs, ..Self::default() }
    }

    pub(crate) fn refused(refused: &Refused) -> Self {
        Self::plain(refused.registers())
    }

    pub(crate) fn writes(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.arg_page.push((offset, bytes.to_vec()));
        self
    }

    pub(crate) fn zeroes(mut self, pages: Range<u64>) -> Self {
        self.zeroed.push(pages);
        self
    }
}

impl State {
    /// A call of the host: refuses and leaves everything as it was, or changes what the call's
    /// documentation says and nothing else (R35).
    ///
    /// # Panics
    /// Where the guest's script and the specification disagree on when VCPU_RUN returns.
    pub fn host_call(&mut self, machine: &Machine, call: &Call<'_>) -> Outcome {
        let id = call.regs[0];
        let function = u32::try_from(id).ok().and_then(HostFunction::from_raw);
        let outcome = function
            .ok_or(no_function(id))
            .and_then(|function| self.execute(machine, call, function));
        outcome.unwrap_or_else(|refused| Outcome::refused(&refused))
    }

    /// One table, so that the compiler names a function that is not specified.
    fn execute(
        &mut self,
        machine: &Machine,
        call: &Call<'_>,
        function: HostFunction,
    ) -> Result<Outcome, Refused> {
        use HostFunction as F;
        let (args, seen) = (Args(&call.regs), call.seen);
        let [_, _, x2, x3, x4, ..] = call.regs;
        match function {
            F::Uid => {
                let [a, b, c, d] = HOST_UID.map(u64::from);
                Ok(Outcome::plain([a, b, c, d, 0, 0, 0, 0]))
            }
            F::Revision => Ok(Outcome::plain(revision())),
            F::Info => {
                let values = self.info(machine, args.selector()?, seen.answer[4]);
                values.map(Outcome::values)
            }
            F::RegionInfo => self.region_info(machine, call, args.region()?),
            F::ArgPageSet => self.arg_page_set(call.cpu, call.regs[1]),
            F::ArgPageClear => self.arg_page_clear(call.cpu),
            F::TraceInfo => self.trace_info(machine, args.cpu()?),
            F::HostShareHyp => self.host_share_hyp(args.pages(1, 2)?),
            F::HostUnshareHyp => self.host_unshare_hyp(args.pages(1, 2)?),
            F::HostShareGuest => {
                let (vm, placed) = (args.vm()?, args.placed()?);
                self.host_share_guest(machine, vm, &placed, args.perms()?)
            }
            F::HostUnshareGuest => self.host_unshare_guest(machine, args.vm()?, &args.placed()?),
            F::HostDonateGuest => self.host_donate_guest(machine, args.vm()?, &args.placed()?),
            F::HostReclaimGuest => self.host_reclaim_guest(args.vm()?, args.pages(2, 3)?),
            F::VmCreate => {
                let (contract, vcpus) = (args.contract()?, args.vcpus()?);
                self.vm_create(machine, contract, vcpus, args.pages(3, 4)?)
            }
            F::VmPoolAdd => self.vm_pool_add(args.vm()?, args.pages(2, 3)?),
            F::VmEnableMte => self.vm_enable_mte(machine, args.vm()?),
            F::VmTeardown => self.vm_teardown(machine, args.vm()?, seen),
            F::VmFree => self.vm_free(args.vm()?, seen),
            F::VcpuInit => self.vcpu_init((args.vm()?, args.vcpu()?), (x3, x4)),
            F::VcpuRun => self.vcpu_run(machine, call, (args.vm()?, args.vcpu()?)),
            F::VcpuGetReg => self.vcpu_get_reg((args.vm()?, args.vcpu()?), args.register()?),
            F::VcpuSetReg => self.vcpu_set_reg((args.vm()?, args.vcpu()?), (args.register()?, x4)),
            F::PfnmapCheck => self.check(machine, call, args.items()?),
            F::PfnmapBind => self.bind(machine, &args.request()),
            F::PfnmapMap => self.map(machine, args.vm()?, x2),
            F::PfnmapUnbind => self.unbind(machine, args.vm()?, x2, seen),
            F::PfnmapReset => self.reset(args.region()?),
            F::PfnmapProbe => self.probe(machine, args.vm()?, x2, seen.answer[1]),
            F::MigrateExport => self.export(machine, call, args.vm()?),
            F::MigrateCheck => self.migrate_check(machine, call),
        }
    }

    /// A page that is lent to the hypervisor is this CPU's argument page, and pinned, instead of the
    /// one before.
    fn arg_page_set(&mut self, cpu: usize, page: u64) -> Result<Outcome, Refused> {
        if page >= PAGE_LIMIT {
            return Err(argument(1, PAGE_LIMIT - 1));
        }
        let pinned = self.steps(&(page..page + 1), PageState::HostSharedHyp, |page, found| {
            let more = |pins: u8| pins.checked_add(1).ok_or(page_busy(page));
            found.pins().map(|pins| more(pins).map(Frame::HostLentHyp))
        })?;

        self.commit(pinned);
        let before = self.arg_pages[cpu].replace(page);
        before.into_iter().for_each(|page| self.unpin(page));
        Ok(Outcome::done())
    }

    fn arg_page_clear(&mut self, cpu: usize) -> Result<Outcome, Refused> {
        let page = self.arg_pages[cpu].ok_or(no_arg_page())?;

        self.arg_pages[cpu] = None;
        self.unpin(page);
        Ok(Outcome::done())
    }

    fn unpin(&mut self, page: u64) {
        let pins = self.frames.get(&page).and_then(|frame| frame.pins());
        let fewer = pins.and_then(|pins| pins.checked_sub(1)).expect("argument pages are pinned");
        self.frames.insert(page..page + 1, Frame::HostLentHyp(fewer));
    }
}

fn revision() -> [u64; 8] {
    [ABI_MAJOR.into(), ABI_MINOR.into(), 0, 0, 0, 0, 0, 0]
}
