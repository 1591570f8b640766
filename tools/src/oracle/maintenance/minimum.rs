//! The least that each kind of call needs, on a CPU with FEAT_S2FWB, pointer authentication and the
//! erratum that wants every TLB invalidation twice.

use pfnguard_oracle::{Call, Counter};
use pfnguard_shared::call::{GuestFunction, HostFunction};

/// The columns of the table.
pub(super) const COLUMNS: [Counter; 8] = [
    Counter::Stage2Tlbi,
    Counter::Stage1Tlbi,
    Counter::VmidTlbi,
    Counter::El2Tlbi,
    Counter::Dsb,
    Counter::Isb,
    Counter::Lines,
    Counter::Zeroed,
];

/// Who was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Host,
    Guest,
}

/// The least that a kind of call needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Minimum {
    pub(super) name: &'static str,
    pub(super) who: Who,
    /// Exception class.
    class: u8,
    /// Function id; 0 for other classes.
    pub(super) function: u32,
    pub(super) least: [u64; COLUMNS.len()],
    /// What else it does, and for what.
    pub(super) why: &'static str,
}

impl Minimum {
    pub(super) fn is_of(&self, who: Who, call: &Call) -> bool {
        let function = u64::from(self.function);
        (self.who, self.class, function) == (who, call.class, call.function)
    }
}

const HVC: u8 = 0x16;
const SMC: u8 = 0x17;
const DATA_ABORT: u8 = 0x24;
/// Only the entry.
const NOTHING: [u64; 8] = [0, 0, 0, 0, 0, 1, 0, 0];
/// A page became valid in a stage 2.
const MADE: [u64; 8] = [0, 0, 0, 0, 1, 1, 0, 0];
/// A page became valid at EL2.
const SHOWN: [u64; 8] = [0, 0, 0, 0, 1, 2, 0, 0];
/// A page left EL2's stage 1.
const HIDDEN: [u64; 8] = [0, 0, 0, 2, 3, 2, 0, 0];
/// A page left a guest's stage 2.
const FOREIGN: [u64; 8] = [2, 2, 0, 0, 5, 3, 0, 0];
/// A page is zeroed through a window.
const ZEROED: [u64; 8] = [0, 0, 0, 2, 5, 3, 64, 64];
const DRAIN: &str = "before another VMID is selected, one `DSB NSH` waits for what the host's \
    profiling buffer and trace still hold; CPUs without FEAT_SPE and trace buffers need none.";
const NEVER_MAPPED: &str = "the least is of a page that the host had not touched, so that there \
    was no translation to remove.";

macro_rules! minima {
    ($($who:ident $class:ident $function:expr, $name:literal, $least:expr, $why:expr;)*) => {
        &[$(Minimum {
            name: $name,
            who: Who::$who,
            class: $class,
            function: $function,
            least: $least,
            why: $why,
        }),*]
    };
}

/// All kinds that are reported, in the order of the table.
pub(super) const MINIMA: &[Minimum] = minima! {
    Host HVC HostFunction::Uid.raw(), "UID", NOTHING, "";
    Host HVC HostFunction::Revision.raw(), "REVISION", NOTHING, "";
    Host HVC HostFunction::Info.raw(), "INFO", NOTHING, "";
    Host HVC HostFunction::RegionInfo.raw(), "REGION_INFO", NOTHING, "";
    Host HVC HostFunction::ArgPageSet.raw(), "ARG_PAGE_SET", SHOWN, "";
    Host HVC HostFunction::ArgPageClear.raw(), "ARG_PAGE_CLEAR", HIDDEN, "";
    Host HVC HostFunction::TraceInfo.raw(), "TRACE_INFO", NOTHING, "";
    Host HVC HostFunction::HostShareHyp.raw(), "HOST_SHARE_HYP", NOTHING, "";
    Host HVC HostFunction::HostUnshareHyp.raw(), "HOST_UNSHARE_HYP", NOTHING, "";
    Host HVC HostFunction::HostShareGuest.raw(), "HOST_SHARE_GUEST", MADE, "";
    Host HVC HostFunction::HostUnshareGuest.raw(), "HOST_UNSHARE_GUEST", FOREIGN, DRAIN;
    Host HVC HostFunction::HostDonateGuest.raw(), "HOST_DONATE_GUEST", MADE, NEVER_MAPPED;
    Host HVC HostFunction::HostReclaimGuest.raw(), "HOST_RECLAIM_GUEST", ZEROED,
        "only pages of protected VMs are zeroed; others cost nothing with FEAT_S2FWB.";
    Host HVC HostFunction::VmCreate.raw(), "VM_CREATE", [0, 0, 0, 0, 2, 2, 64, 64], "";
    Host HVC HostFunction::VmPoolAdd.raw(), "VM_POOL_ADD", [0, 0, 0, 0, 2, 2, 64, 64], "";
    Host HVC HostFunction::VmEnableMte.raw(), "VM_ENABLE_MTE", NOTHING, "";
    Host HVC HostFunction::VmTeardown.raw(), "VM_TEARDOWN", [0, 0, 2, 0, 3, 3, 0, 0],
        DRAIN;
    Host HVC HostFunction::VmFree.raw(), "VM_FREE", [0, 0, 0, 2, 4, 2, 64, 64], "";
    Host HVC HostFunction::VcpuInit.raw(), "VCPU_INIT", NOTHING, "";
    Host HVC HostFunction::VcpuRun.raw(), "VCPU_RUN, to the guest", [0, 0, 0, 0, 0, 3, 0, 0],
        "stage 1 of the VMID goes from this CPU at every entry (one invalidation, one `DSB`, one \
         `ISB`): another vCPU of the VM may have run here with the same ASIDs. Needed only when \
         that is so. The other `ISB` keep speculative walks from combining two worlds while \
         `TCR_EL1`, stage 2 and `SCTLR_EL1` change one after the other (Arm errata 1165522, \
         1319367, 1319537, 1530923); a CPU without them needs one.";
    Host HVC HostFunction::VcpuGetReg.raw(), "VCPU_GET_REG", NOTHING, "";
    Host HVC HostFunction::VcpuSetReg.raw(), "VCPU_SET_REG", NOTHING, "";
    Host HVC HostFunction::PfnmapCheck.raw(), "PFNMAP_CHECK", NOTHING, "";
    Host HVC HostFunction::PfnmapBind.raw(), "PFNMAP_BIND", NOTHING,
        "a region that the host had mapped is removed from its stage 2.";
    Host HVC HostFunction::PfnmapMap.raw(), "PFNMAP_MAP", MADE, "";
    Host HVC HostFunction::PfnmapUnbind.raw(), "PFNMAP_UNBIND", FOREIGN,
        DRAIN;
    Host HVC HostFunction::PfnmapReset.raw(), "PFNMAP_RESET", NOTHING, "";
    Host HVC HostFunction::PfnmapProbe.raw(), "PFNMAP_PROBE", [0, 0, 1, 0, 1, 5, 0, 0],
        "barriers as in VCPU_RUN, there and back, and the wait for the profiling buffer.";
    Host HVC HostFunction::MigrateExport.raw(), "MIGRATE_EXPORT", NOTHING, "";
    Host HVC HostFunction::MigrateCheck.raw(), "MIGRATE_CHECK", NOTHING, "";
    Host SMC 0, "SMC of the host", NOTHING, "";
    Host DATA_ABORT 0, "stage-2 fault of the host", NOTHING, "";
    Guest HVC GuestFunction::MemShare.raw(), "MEM_SHARE, back to the guest",
        [0, 0, 0, 0, 0, 5, 0, 0], "world switch to the host and back: see VCPU_RUN.";
    Guest HVC GuestFunction::MemUnshare.raw(), "MEM_UNSHARE, back to the guest",
        [2, 2, 0, 0, 5, 6, 0, 0], "as MEM_SHARE.";
    Guest HVC GuestFunction::Query.raw(), "QUERY, back to the guest",
        [0, 0, 0, 0, 0, 5, 0, 0], "as MEM_SHARE.";
    Guest HVC GuestFunction::Yield.raw(), "YIELD, to the host", [0, 0, 0, 0, 0, 3, 0, 0],
        "`ISB` as in VCPU_RUN.";
};
