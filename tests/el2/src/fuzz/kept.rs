//! What the host keeps in mind of its random calls, in order to draw well. Nothing is lost where it
//! is wrong.

mod draw;

use arrayvec::ArrayVec;
use pfnguard_shared::HostFunction;
use pfnguard_shared::manifest::RegionClass;

use super::call::Drawn;

pub use draw::Touch;

/// Most VMs there can be.
const MAX_VMS: usize = 16;
/// Ranges of RAM in guests that are kept in mind.
const PLACED: usize = 64;
/// Calls that are to follow.
const NEXT: usize = 8;
/// Addresses of devices that the host's stage 1 maps: below 1 GiB and in 512..516 GiB, in pages.
const LOW: u64 = 0x4_0000;
const HIGH: core::ops::Range<u64> = 0x800_0000..0x810_0000;

/// A region, as REGION_INFO describes it.
#[derive(Clone, Copy)]
pub struct Region {
    index: u64,
    first: u64,
    pages: u64,
    grants: [u8; 4],
}

impl Region {
    /// Reads it through `read`, which gets the offset of a word.
    pub fn read(index: u64, read: impl Fn(u64) -> u64) -> Self {
        let [_, _, _, _, class, modes, types, perms] = read(48).to_le_bytes();
        Self { index, first: read(32), pages: read(40), grants: [class, modes, types, perms] }
    }

    fn is_granted(&self) -> bool {
        self.grants[1] != 0
    }

    fn is_memory(&self) -> bool {
        self.grants[0] == RegionClass::Memory.raw()
    }

    /// Whether the host's stage 1 has it.
    fn is_mapped(&self) -> bool {
        self.first < LOW || HIGH.contains(&self.first)
    }
}

/// Where a VM is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Active,
    Dying,
}

/// A VM that the host knows.
#[derive(Clone, Copy)]
struct Vm {
    life: Life,
    /// It owns its RAM and hides its registers.
    protected: bool,
    /// One of its vCPUs has run.
    ran: bool,
}

/// RAM that a guest has.
#[derive(Clone, Copy)]
struct Placed {
    function: HostFunction,
    vm: u64,
    page: u64,
    ipa: u64,
    count: u64,
}

/// What the host keeps in mind.
pub struct Kept {
    /// First page that calls name.
    pub prey: u64,
    regions: ArrayVec<Region, 64>,
    args: [Option<u64>; 2],
    vms: [Option<Vm>; MAX_VMS],
    placed: ArrayVec<Placed, PLACED>,
    bound: ArrayVec<(u64, u64), 24>,
    next: ArrayVec<[u64; 8], NEXT>,
}

impl Kept {
    /// Knows nothing yet.
    pub fn new(prey: u64) -> Self {
        Self {
            prey,
            regions: ArrayVec::new(),
            args: [None; 2],
            vms: [None; MAX_VMS],
            placed: ArrayVec::new(),
            bound: ArrayVec::new(),
            next: ArrayVec::new(),
        }
    }

    /// Learns of a region.
    pub fn add_region(&mut self, region: Region) {
        // More than it holds are not drawn.
        let _ = self.regions.try_push(region);
    }

    /// The first page of every region that the host's stage 1 has.
    pub fn region_pages(&self) -> impl Iterator<Item = u64> {
        self.regions.iter().filter(|region| region.is_mapped()).map(|region| region.first)
    }

    /// The argument page of a CPU.
    pub fn arg_page(&self, cpu: u64) -> Option<u64> {
        self.args.get(usize::try_from(cpu).unwrap_or(0)).copied().flatten()
    }

    /// The VMs that run.
    pub fn active(&self) -> ArrayVec<u64, MAX_VMS> {
        self.vms_that(|vm| vm.life == Life::Active)
    }

    fn vms_that(&self, are: impl Fn(&Vm) -> bool) -> ArrayVec<u64, MAX_VMS> {
        let numbers = (0u64..).zip(self.vms.iter());
        numbers.filter(|(_, vm)| vm.as_ref().is_some_and(&are)).map(|(number, _)| number).collect()
    }

    fn known(&self, vm: u64) -> Option<Vm> {
        self.vms.get(usize::try_from(vm).unwrap_or(MAX_VMS)).copied().flatten()
    }

    /// Learns from an answer.
    pub fn note(&mut self, cpu: u64, drawn: &Drawn, answer: &[u64; 8]) {
        use HostFunction as F;
        let function = u32::try_from(drawn.regs[0]).ok().and_then(F::from_raw);
        let (Some(function), 0) = (function, answer[0]) else { return };
        let [_, x1, x2, x3, x4, ..] = drawn.regs;
        let slot = usize::try_from(cpu).unwrap_or(0);
        match function {
            F::ArgPageSet => self.set_arg_page(slot, Some(x1)),
            F::ArgPageClear => self.set_arg_page(slot, None),
            F::HostShareGuest | F::HostDonateGuest => {
                let placed = Placed { function, vm: x1, page: x2, ipa: x3, count: x4 };
                make_room(&mut self.placed, x4).push(placed);
            }
            F::HostUnshareGuest => self.cut(|placed| {
                let lent = placed.vm == x1 && placed.function == F::HostShareGuest;
                (lent, x3.wrapping_sub(placed.ipa), x4)
            }),
            F::HostReclaimGuest => self.cut(|placed| {
                let owned = placed.vm == x1 && placed.function == F::HostDonateGuest;
                (owned, x2.wrapping_sub(placed.page), x3)
            }),
            F::VmCreate => {
                let protected = x1 & 1 != 0;
                self.set_vm(answer[1], Some(Vm { life: Life::Active, protected, ran: false }));
            }
            F::VcpuRun => {
                let vm = self.known(x1).map(|vm| Vm { ran: true, ..vm });
                self.set_vm(x1, vm);
            }
            F::VmTeardown => {
                let vm = self.known(x1).map(|vm| Vm { life: Life::Dying, ..vm });
                self.set_vm(x1, vm);
                self.placed
                    .retain(|placed| placed.vm != x1 || placed.function != F::HostShareGuest);
                self.bound.retain(|(vm, _)| *vm != x1);
            }
            F::VmFree => {
                let left = self.known(x1).filter(|_| answer[2] > 0);
                self.set_vm(x1, left);
            }
            F::PfnmapBind => make_room(&mut self.bound, x3).push((x1 & 0xffff, x3)),
            F::PfnmapUnbind => self.bound.retain(|bound| *bound != (x1, x2)),
            F::MigrateExport => self.push(F::MigrateCheck, [0; 5]),
            F::Uid
            | F::Revision
            | F::Info
            | F::RegionInfo
            | F::TraceInfo
            | F::HostShareHyp
            | F::HostUnshareHyp
            | F::VmPoolAdd
            | F::VmEnableMte
            | F::VcpuInit
            | F::VcpuGetReg
            | F::VcpuSetReg
            | F::PfnmapCheck
            | F::PfnmapMap
            | F::PfnmapReset
            | F::PfnmapProbe
            | F::MigrateCheck => {}
        }
    }

    fn push(&mut self, function: HostFunction, args: [u64; 5]) {
        // A full list makes the sequence shorter.
        let _ = self.next.try_push(registers(function, args));
    }

    fn set_arg_page(&mut self, slot: usize, page: Option<u64>) {
        if let Some(place) = self.args.get_mut(slot) {
            *place = page;
        }
    }

    fn set_vm(&mut self, number: u64, vm: Option<Vm>) {
        if let Some(place) = self.vms.get_mut(usize::try_from(number).unwrap_or(MAX_VMS)) {
            *place = vm;
        }
    }

    /// Forgets parts of what guests have: `part` says whether, from which page on and how many.
    fn cut(&mut self, part: impl Fn(&Placed) -> (bool, u64, u64)) {
        let before = core::mem::take(&mut self.placed);
        for placed in before {
            let (touched, skip, gone) = part(&placed);
            if !touched || skip >= placed.count {
                make_room(&mut self.placed, skip).push(placed);
                continue;
            }
            let past = skip + gone.min(placed.count - skip);
            for (from, to) in [(0, skip), (past, placed.count)] {
                if from < to {
                    let (page, ipa) = (placed.page + from, placed.ipa + from);
                    let rest = Placed { page, ipa, count: to - from, ..placed };
                    make_room(&mut self.placed, to).push(rest);
                }
            }
        }
    }
}

/// Forgets something where a list is full; which, `hint` says.
fn make_room<T, const N: usize>(list: &mut ArrayVec<T, N>, hint: u64) -> &mut ArrayVec<T, N> {
    if list.is_full() {
        list.swap_remove(usize::try_from(hint).unwrap_or(0) % N);
    }
    list
}

fn registers(function: HostFunction, [x1, x2, x3, x4, x5]: [u64; 5]) -> [u64; 8] {
    [u64::from(function.raw()), x1, x2, x3, x4, x5, 0, 0]
}
