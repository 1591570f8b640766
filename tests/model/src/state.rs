//! The abstract state: who owns each page, how guests see it, what VMs and regions are.
//!
//! Two sides produce it. The specification steps it ([`State`] before a call to [`State`] after);
//! the abstraction reads it off the implementation: frame records, region table, bytes of the page
//! tables. After every call the two are equal.
//!
//! Runs of equal pages are coalesced, so block mappings and their splits cannot be told from pages:
//! only the tables that hold them can ([`Vm::tables`]).

use std::collections::{BTreeMap, BTreeSet};

use pfnguard_shared::info::RegionState;
use pfnguard_shared::request::RequestFlags;
use pfnguard_shared::vm::{ContractFlags, VmState};
use pfnguard_shared::{MemType, Mode, Perms};
use rangemap::RangeMap;

/// Everything that a call can change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// State of every RAM frame, by page number; what is not in it is not RAM.
    pub frames: RangeMap<u64, Frame>,
    /// VMs by number, from VM_CREATE to the last VM_FREE.
    pub vms: BTreeMap<u16, Vm>,
    /// Regions in the order of the manifest.
    pub regions: Vec<Region>,
    /// Argument page of each CPU.
    pub arg_pages: Vec<Option<u64>>,
}

/// State of a RAM frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    /// The host's alone.
    Host,
    /// The host's, lent to the hypervisor; so many CPUs use it as their argument page.
    HostLentHyp(u8),
    /// The host's, lent to guests; so many guest pages lead to it.
    HostLentGuests(u8),
    /// The hypervisor's.
    Hyp,
    /// The hypervisor's, readable by the host.
    HypReadable,
    /// A guest's alone.
    Guest(u16),
    /// A guest's, lent to the host.
    GuestLentHost(u16),
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vm {
    /// What it declared.
    pub contract: ContractFlags,
    /// Where it is in its life.
    pub state: VmState,
    /// Whether it ever bound a region (R21).
    pub bound_once: bool,
    /// Where its pages lead: intermediate pages to what stage 2 says.
    pub pages: RangeMap<u64, Leaf>,
    /// Its PFNMAP bindings by first intermediate page.
    pub bindings: BTreeMap<u64, Binding>,
    /// Table memory.
    pub tables: Tables,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
}

/// Where a run of guest pages leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaf {
    /// Frame number minus intermediate page number, wrapping: equal along a run.
    pub offset: u64,
    /// Type that stage 2 forces.
    pub mem_type: MemType,
    /// Permissions.
    pub perms: Perms,
    /// Whether stage 2 forbids tag access (R20).
    pub no_tags: bool,
}

/// Table memory of a VM: `live` and `free` add up to what the host donated and did not get back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tables {
    /// Frames that the host donated as table memory.
    pub frames: BTreeSet<u64>,
    /// Tables in use: level and first intermediate page of what each resolves.
    pub live: BTreeSet<(u8, u64)>,
    /// Number of free ones.
    pub free: u64,
}

/// A part of a region in a VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Index of the region.
    pub region: usize,
    /// First page of the part.
    pub pfn: u64,
    /// Length.
    pub pages: u64,
    /// Mode.
    pub mode: Mode,
    /// What stage 2 says of it, once it is installed.
    pub leaf: Leaf,
    /// Flags of the request.
    pub flags: RequestFlags,
    /// Table pages that installing it may take, or `None` where it is installed (R30).
    pub reserved: Option<u64>,
}

/// A region: what the manifest says of it is not state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Where it is in its life.
    pub state: RegionState,
    /// Type that every holder has, while it is shared or donated.
    pub mem_type: Option<MemType>,
    /// The VM that owns it, while it is donated.
    pub owner: Option<u16>,
}

/// A virtual CPU. While it runs, its registers are the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Vcpu {
    /// Not initialised. Its registers can be set, but VCPU_INIT sets them anew.
    Off(Registers),
    /// Initialised, never run.
    Fresh(Registers),
    /// Has run, does not run now; a load may wait for its value.
    Idle(Registers, Option<Load>),
    /// Runs on this CPU.
    Running(usize),
}

/// General registers and program counter; of a VM that is not protected, the host sees and sets them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Registers {
    /// `x0..=x30`.
    pub general: [u64; 31],
    /// Program counter.
    pub pc: u64,
}

/// A load that the host completes before the guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Load {
    /// Destination register; 31 is the zero register.
    pub register: usize,
    /// Bytes: 1, 2, 4 or 8.
    pub bytes: u32,
    /// How the value fills the register.
    pub widen: Widen,
}

/// How a loaded value fills its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Widen {
    /// Zeroes above.
    Zero,
    /// Its sign to 32 bits, zeroes above.
    Sign32,
    /// Its sign to 64 bits.
    Sign64,
}
