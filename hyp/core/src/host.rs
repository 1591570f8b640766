//! Stage-2 aborts of the host: its translations are built here, lazily, in the largest block.
//!
//! A fault ends in a translation that allows the access, in an abort of the host's own, or in what a
//! device that is not there would have answered; it is never answered by "try again" while nothing has
//! changed, so no access can loop.

use pfnguard_shared::trace::TraceKind;
use pfnguard_shared::{PAGE_SHIFT, Perms};

use crate::addr::{Pfn, PfnRange, PhysAddr};
use crate::hypervisor::{Cpu, Host, Hypervisor};
use crate::machine::{Clock, HostStage2, Machine, Stage2Attrs, Stage2Type, TagAccess};
use crate::region::HostView;
use crate::trace::{Event, NO_VM};
use crate::vcpu::syndrome::{self, Access, Class, FaultKind};
use crate::vmemmap::HostAccess;

/// A stage-2 abort of the host, as the CPU reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAbort {
    /// Intermediate physical address; the host's are physical ones. Only the page need be right.
    pub ipa: PhysAddr,
    /// `FAR_EL2`.
    pub far: u64,
    /// `ESR_EL2`.
    pub esr: u64,
    /// `ELR_EL2`.
    pub elr: u64,
    /// `SPSR_EL2`.
    pub pstate: u64,
}

/// What follows an abort of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum AbortOutcome {
    /// The access is repeated: there is a translation that allows it.
    Resume,
    /// The host takes an abort: the page is not its to touch.
    Inject,
    /// The instruction is over, and nothing was there: a load gets ones, a store is dropped.
    Absent(Access),
}

/// Pages in the blocks that are tried where there is neither RAM nor a region, largest first.
const BLOCKS: [u64; 3] = [512 * 512, 512, 1];

impl<M: Machine> Hypervisor<M> {
    /// Serves a stage-2 abort of the host; writes a record where it ends in an injected abort.
    pub fn host_abort(&self, cpu: &mut Cpu<M>, abort: HostAbort) -> AbortOutcome {
        let outcome = match Needed::new(abort.esr) {
            Some(needed) => self.serve(&abort, needed),
            None => AbortOutcome::Inject,
        };
        match outcome {
            AbortOutcome::Resume => {}
            AbortOutcome::Inject | AbortOutcome::Absent(_) => record(cpu, &abort),
        }
        outcome
    }

    fn serve(&self, abort: &HostAbort, needed: Needed) -> AbortOutcome {
        let pfn = abort.ipa.pfn();
        let mut door = self.enter();
        let pa_bits = self.features.pa_bits;
        let mut host = door.lock_host();
        if let Some(attrs) = host.stage2.lookup(pfn) {
            // Another CPU was faster; or nothing is missing and the access is not allowed.
            return match needed.is_allowed(&attrs) {
                true => AbortOutcome::Resume,
                false => denied(&host, abort),
            };
        }
        match (needed.kind, view(&host, pfn, pa_bits)) {
            (FaultKind::Translation, Some((range, attrs))) if needed.is_allowed(&attrs) => {
                // Smaller translations inside the block may be left from when it was not uniform.
                host.stage2.unmap(range);
                host.stage2.map(range, attrs);
                AbortOutcome::Resume
            }
            // The translation that did not allow it is gone: the next fault decides anew.
            (FaultKind::Permission, Some((_, attrs))) if needed.is_allowed(&attrs) => {
                AbortOutcome::Resume
            }
            (_, Some(_) | None) => denied(&host, abort),
        }
    }
}

/// The kernel's own loads and stores of registers have no fixups: a driver, or vfio for a program,
/// that touches a device whose region is a guest's finds it gone, as after a surprise removal.
fn denied<M: Machine>(host: &Host<M>, abort: &HostAbort) -> AbortOutcome {
    let pfn = abort.ipa.pfn();
    let region = matches!(host.regions.host_view(pfn), Some(HostView::Region { .. }));
    match Access::decode(abort.esr) {
        Some(access) if region && abort.is_of_kernel() => AbortOutcome::Absent(access),
        Some(_) | None => AbortOutcome::Inject,
    }
}

impl HostAbort {
    /// Returns whether EL1 touched an address that is not a program's (`TTBR1_EL1`).
    fn is_of_kernel(&self) -> bool {
        /// Selects `TTBR1_EL1`, with and without tags (Arm ARM, D8.2).
        const UPPER: u64 = 1 << 55;
        /// `PSTATE.M`: EL1t and EL1h, but for the stack.
        const MODE: u64 = 0b1_1110;
        self.far & UPPER != 0 && self.pstate & MODE == 0b0_0100
    }
}

/// What an aborted access needs.
#[derive(Clone, Copy, Debug)]
struct Needed {
    kind: FaultKind,
    perms: Perms,
}

impl Needed {
    /// Decodes a syndrome; `None` for what no translation can serve.
    fn new(esr: u64) -> Option<Self> {
        let kind = syndrome::fault_kind(esr);
        let perms = match syndrome::class(esr) {
            Class::InstructionAbort => Perms::EXEC,
            Class::DataAbort => data_perms(esr, kind),
            Class::Wait | Class::Hvc(_) | Class::Smc(_) | Class::Trapped | Class::Other(_) => {
                return None;
            }
        };
        match kind {
            FaultKind::Translation | FaultKind::Permission => Some(Self { kind, perms }),
            FaultKind::Other => None,
        }
    }

    fn is_allowed(&self, attrs: &Stage2Attrs) -> bool {
        attrs.perms.contains(self.perms)
    }
}

/// A store needs `WRITE`. Cache maintenance calls itself a store, but an absent translation may
/// only be one that it can read; a stage-1 walk that wrote nothing needs `READ`.
fn data_perms(esr: u64, kind: FaultKind) -> Perms {
    let maintenance = syndrome::is_cache_maintenance(esr) && kind == FaultKind::Translation;
    if syndrome::is_write(esr) && !maintenance { Perms::WRITE } else { Perms::READ }
}

/// Returns the largest range around `pfn` that the host sees alike, and how; `None` where it sees
/// nothing.
fn view<M: Machine>(host: &Host<M>, pfn: Pfn, pa_bits: u32) -> Option<(PfnRange, Stage2Attrs)> {
    if host.vmemmap.is_ram(pfn) {
        return ram_view(host, pfn);
    }
    let space = PfnRange::new(Pfn(0), 1 << pa_bits.saturating_sub(PAGE_SHIFT))?;
    if !space.contains(pfn) {
        return None;
    }
    match host.regions.host_view(pfn)? {
        HostView::Region { range, attrs } => {
            let existing = range.intersection(&space)?;
            Some((region_part(&existing, pfn)?, attrs.ok()?))
        }
        HostView::Outside { range } => {
            let existing = range.intersection(&space)?;
            Some((outside_block(host, &existing, pfn)?, FULL))
        }
    }
}

fn ram_view<M: Machine>(host: &Host<M>, pfn: Pfn) -> Option<(PfnRange, Stage2Attrs)> {
    match host.vmemmap.state(pfn).host_access() {
        HostAccess::Full => {
            let block = host.vmemmap.open_block(pfn);
            block.or_else(|| host.vmemmap.uniform_run(pfn)).map(|range| (range, FULL))
        }
        HostAccess::ReadOnly => host.vmemmap.uniform_run(pfn).map(|range| (range, READ_ONLY)),
        HostAccess::None => None,
    }
}

/// The host's own: as its stage 1 says.
const FULL: Stage2Attrs =
    Stage2Attrs { mem: Stage2Type::AsStage1, perms: Perms::ALL, tags: TagAccess::Allowed };
/// The hypervisor's trace rings.
const READ_ONLY: Stage2Attrs =
    Stage2Attrs { mem: Stage2Type::AsStage1, perms: Perms::READ, tags: TagAccess::Allowed };

/// A region is mapped whole up to 1 GiB around the page: one access must not take unbounded time.
fn region_part(region: &PfnRange, pfn: Pfn) -> Option<PfnRange> {
    PfnRange::aligned_around(pfn, BLOCKS[0])?.intersection(region)
}

/// Returns the largest aligned block around `pfn` within `gap` that holds no RAM.
fn outside_block<M: Machine>(host: &Host<M>, gap: &PfnRange, pfn: Pfn) -> Option<PfnRange> {
    let fits = |block: &PfnRange| gap.contains_range(block) && !host.vmemmap.touches_ram(block);
    BLOCKS.into_iter().filter_map(|pages| PfnRange::aligned_around(pfn, pages)).find(fits)
}

fn record<M: Machine>(cpu: &mut Cpu<M>, abort: &HostAbort) {
    let event =
        Event { kind: TraceKind::HostAbort, vm: NO_VM, a: abort.ipa.0, b: abort.esr, c: abort.elr };
    cpu.trace.record(cpu.local.now(), event);
}

#[cfg(test)]
mod tests;
