//! Draws calls that are meaningful where they are made, mostly.

use arrayvec::ArrayVec;
use pfnguard_shared::request::{Request, RequestFlags};
use pfnguard_shared::{GuestFunction, HostFunction, PAGE_SHIFT};

use super::{Kept, Life, PLACED, Placed, Region, Vm, registers};
use crate::frames;
use crate::fuzz::call::Drawn;
use crate::malformed::Random;

/// Pages of the first block that calls name, and the first page for tables.
const SMALL: u64 = 40;
const BLOCK: u64 = 512;
const TABLES: u64 = 1024;
/// First page of RAM in guests, and of regions; the first is aligned as the frames are.
const RAM_IPA: u64 = 0x20_0000;
const REGION_IPA: u64 = 0x30_0000;
/// VMs that are made without need.
const FEW_VMS: usize = 4;
/// A page of the hypervisor's image.
const IMAGE: u64 = 0x4_0200;
/// Guest code enters here, or it is nothing.
const NOWHERE: u64 = 0x40_0000;

/// Values that mean nothing good.
const WILD: [u64; 16] = [
    0,
    1,
    2,
    7,
    513,
    4096,
    1 << 27,
    1 << 28,
    1 << 36,
    1 << 40,
    1 << 52,
    1 << 63,
    u64::MAX,
    IMAGE,
    frames::RAM_END,
    u64::MAX - 1,
];

/// Functions by how often they are called.
const CALLS: [(HostFunction, u64); 30] = [
    (HostFunction::Uid, 1),
    (HostFunction::Revision, 1),
    (HostFunction::Info, 2),
    (HostFunction::RegionInfo, 2),
    (HostFunction::ArgPageSet, 3),
    (HostFunction::ArgPageClear, 1),
    (HostFunction::TraceInfo, 1),
    (HostFunction::HostShareHyp, 5),
    (HostFunction::HostUnshareHyp, 4),
    (HostFunction::HostShareGuest, 14),
    (HostFunction::HostUnshareGuest, 10),
    (HostFunction::HostDonateGuest, 10),
    (HostFunction::HostReclaimGuest, 12),
    (HostFunction::VmCreate, 8),
    (HostFunction::VmPoolAdd, 4),
    (HostFunction::VmEnableMte, 2),
    (HostFunction::VmTeardown, 2),
    (HostFunction::VmFree, 12),
    (HostFunction::VcpuInit, 6),
    (HostFunction::VcpuRun, 16),
    (HostFunction::VcpuGetReg, 4),
    (HostFunction::VcpuSetReg, 4),
    (HostFunction::PfnmapCheck, 6),
    (HostFunction::PfnmapBind, 20),
    (HostFunction::PfnmapMap, 6),
    (HostFunction::PfnmapUnbind, 8),
    (HostFunction::PfnmapReset, 4),
    (HostFunction::PfnmapProbe, 4),
    (HostFunction::MigrateExport, 4),
    (HostFunction::MigrateCheck, 3),
];

/// Calls that a guest makes.
const GUEST_CALLS: [u64; 12] = [
    0xc600_0003,
    0xc600_0003,
    0xc600_0003,
    0xc600_0004,
    0xc600_0004,
    0xc600_0180,
    0xc600_0180,
    0xc600_0100,
    0x8600_0000,
    0xc600_0002,
    0x8400_0008,
    0x8000_0000,
];

/// How the host accesses a page.
#[derive(Clone, Copy)]
pub enum Touch {
    /// Eight bytes.
    Load,
    /// Eight bytes.
    Store,
    /// An instruction.
    Fetch,
    /// Four bytes of a device.
    Register,
}

impl Kept {
    /// Draws the next call.
    pub fn draw(&mut self, cpu: u64, random: &mut Random) -> Drawn {
        let regs = match self.next.pop() {
            Some(regs) => regs,
            None => {
                let function = self.function(random);
                let regs = self.arguments(function, random);
                self.spoil(function, regs, random)
            }
        };
        self.complete(cpu, Drawn::plain(regs), random)
    }

    /// Draws a PFNMAP_BIND.
    pub fn draw_bind(&mut self, random: &mut Random) -> Drawn {
        Drawn::plain(self.arguments(HostFunction::PfnmapBind, random))
    }

    /// Replaces a register now and then.
    fn spoil(&self, function: HostFunction, mut regs: [u64; 8], random: &mut Random) -> [u64; 8] {
        // Where a guest begins decides whether anybody can foresee what it does.
        let last = if function == HostFunction::VcpuInit { 3 } else { 8 };
        let at = usize::try_from(random.next() % 24).unwrap_or(0);
        if at < last && (at > 0 || random.next().is_multiple_of(2)) {
            let id = u64::from(HostFunction::HostShareHyp.raw());
            regs[at] = match (at, random.next() % 4) {
                (0, 0) => id + random.next() % 0x80,
                (_, 0) => random.next() << (random.next() % 32),
                _ => random.pick(&WILD),
            };
        }
        regs
    }

    /// Adds what a call needs beside registers.
    fn complete(&mut self, cpu: u64, mut drawn: Drawn, random: &mut Random) -> Drawn {
        if drawn.is(HostFunction::PfnmapCheck) {
            let items = 1 + random.next() % 4;
            (0..items).for_each(|_| drawn.requests.push(self.request(random)));
            drawn.regs[1] = if random.next().is_multiple_of(8) { drawn.regs[1] } else { items };
        }
        if drawn.is(HostFunction::MigrateCheck) {
            drawn.keep = !random.next().is_multiple_of(8);
        }
        if drawn.uses_arg_page() && random.next().is_multiple_of(4) {
            drawn.change = Some((random.next() % 32, random.pick(&WILD)));
        }
        drawn.interrupt = drawn.is(HostFunction::VcpuRun) && random.next().is_multiple_of(4);
        if drawn.uses_arg_page() && self.arg_page(cpu).is_none() {
            let page = self.prey + cpu;
            self.push(HostFunction::ArgPageSet, [page, 0, 0, 0, 0]);
            self.push(HostFunction::HostShareHyp, [page, 1, 0, 0, 0]);
        }
        drawn
    }

    fn arguments(&mut self, function: HostFunction, random: &mut Random) -> [u64; 8] {
        use HostFunction as F;
        let vm = self.vm(random);
        let (page, count) = self.ram(random);
        let ipa = self.ipa(page, random);
        let args = match function {
            F::Uid | F::Revision | F::ArgPageClear | F::PfnmapCheck | F::MigrateCheck => [0; 5],
            F::Info => [random.next() % 6, 0, 0, 0, 0],
            F::RegionInfo | F::PfnmapReset => [self.region(random).index, 0, 0, 0, 0],
            F::ArgPageSet => [self.prey + random.next() % 4, 0, 0, 0, 0],
            F::TraceInfo => [random.next() % 4, 0, 0, 0, 0],
            F::HostShareHyp | F::HostUnshareHyp => {
                [self.prey + random.next() % SMALL, 1 + random.next() % 3, 0, 0, 0]
            }
            F::HostShareGuest => {
                let vm = self.vm_that(|vm| !vm.protected, random);
                [vm, page, ipa, count, random.pick(&[1, 3, 5, 7, 7, 7, 7])]
            }
            F::HostDonateGuest => [vm, page, ipa, count, 0],
            F::HostUnshareGuest => self.lent(random),
            F::HostReclaimGuest => self.donated(random),
            F::VmCreate => self.creation(random),
            F::VmPoolAdd => [vm, self.table(random), 1 + random.next() % 4, 0, 0],
            F::VmEnableMte | F::MigrateExport => [vm, 0, 0, 0, 0],
            F::VmTeardown => [self.any(random), 0, 0, 0, 0],
            F::VmFree => [self.dying(random), 0, 0, 0, 0],
            F::VcpuInit => {
                let vm = self.vm_that(|vm| !vm.ran, random);
                [vm, random.next() % 2, self.entry(vm, random), random.next(), 0]
            }
            F::VcpuRun => self.errand(random),
            F::VcpuGetReg => {
                let vm = self.vm_that(|vm| !vm.protected, random);
                [vm, random.next() % 8 / 7, random.next() % 32, 0, 0]
            }
            F::VcpuSetReg => [vm, random.next() % 2, random.next() % 32, random.next(), 0],
            F::PfnmapBind => {
                let request = self.request(random);
                [request.word().0, request.pfn, request.ipa_pfn, request.pages, 0]
            }
            F::PfnmapMap | F::PfnmapUnbind | F::PfnmapProbe => {
                let (vm, ipa) = self.binding(vm, ipa, random);
                [vm, ipa, 0, 0, 0]
            }
        };
        registers(function, args)
    }

    /// A VM that is active, mostly.
    fn vm(&self, random: &mut Random) -> u64 {
        self.vm_that(|_| true, random)
    }

    /// An active VM of a kind, mostly.
    fn vm_that(&self, is: impl Fn(&Vm) -> bool, random: &mut Random) -> u64 {
        let fitting = self.vms_that(|vm| vm.life == Life::Active && is(vm));
        match random.next() % 24 {
            0 => random.next() % 6,
            1 | 2 => random.pick(&self.active()),
            _ if fitting.is_empty() => random.pick(&self.active()),
            _ => random.pick(&fitting),
        }
    }

    fn any(&self, random: &mut Random) -> u64 {
        if self.active().len() < 2 { random.next() % 6 } else { self.vm(random) }
    }

    fn dying(&self, random: &mut Random) -> u64 {
        let dying = self.vms_that(|vm| vm.life == Life::Dying);
        if dying.is_empty() { self.vm(random) } else { random.pick(&dying) }
    }

    /// What to call: first of all there is to be a VM, then some are to end.
    fn function(&self, random: &mut Random) -> HostFunction {
        let function = weighed(random);
        let (active, all) = (self.active().len(), self.vms.iter().flatten().count());
        match (function, random.next() % 8) {
            (_, 0) => function,
            _ if active == 0 => HostFunction::VmCreate,
            (HostFunction::VmCreate, _) if all >= FEW_VMS && active < FEW_VMS => {
                HostFunction::VmFree
            }
            (HostFunction::VmCreate, _) if all >= FEW_VMS => HostFunction::VmTeardown,
            (_, 1..) => function,
        }
    }

    /// A range of RAM: some pages, or a block, or a block's edge.
    fn ram(&self, random: &mut Random) -> (u64, u64) {
        let few = 1 + random.next() % 6;
        let (first, count) = match random.next() % 12 {
            0 => (BLOCK, BLOCK),
            1 => (BLOCK, few),
            2 => (2 * BLOCK - few, few),
            3 => (BLOCK + random.next() % SMALL, few),
            _ => (random.next() % SMALL, few),
        };
        (self.prey + first, count)
    }

    /// Where a guest gets a page: aligned alike, mostly.
    fn ipa(&self, page: u64, random: &mut Random) -> u64 {
        let same = RAM_IPA + (page - self.prey);
        match random.next() % 8 {
            0 => same + random.next() % 64,
            1 => same + (1 << 18),
            _ => same,
        }
    }

    fn table(&self, random: &mut Random) -> u64 {
        self.prey + TABLES + 8 * (random.next() % 48)
    }

    fn creation(&self, random: &mut Random) -> [u64; 5] {
        let contract = random.pick(&[0, 0, 0, 1, 1, 2, 4, 5]);
        [contract, 1 + random.next() % 2, self.table(random), 2 + random.next() % 7, 0]
    }

    /// Where a vCPU begins: a page of RAM that the VM has, or none.
    fn entry(&self, vm: u64, random: &mut Random) -> u64 {
        let page = match (self.page_of(vm, random), random.next() % 16) {
            (Some(page), 1..) => page,
            (Some(_), 0) | (None, _) => NOWHERE + random.next() % 4,
        };
        page << PAGE_SHIFT
    }

    /// A page of RAM in a VM.
    fn page_of(&self, vm: u64, random: &mut Random) -> Option<u64> {
        let mut found: ArrayVec<Placed, PLACED> = ArrayVec::new();
        found.extend(self.placed.iter().copied().filter(|placed| placed.vm == vm));
        let placed = found.get(self.pick_index(found.len(), random))?;
        Some(placed.ipa + random.next() % placed.count)
    }

    fn pick_index(&self, length: usize, random: &mut Random) -> usize {
        usize::try_from(random.next()).unwrap_or(0).checked_rem(length).unwrap_or(0)
    }

    /// Arguments of HOST_UNSHARE_GUEST: what was lent, or a part of it.
    fn lent(&self, random: &mut Random) -> [u64; 5] {
        let Some(placed) = self.placed_by(HostFunction::HostShareGuest, random) else {
            return [self.vm(random), self.prey, RAM_IPA, 1, 0];
        };
        let Placed { vm, page, ipa, count, .. } = placed;
        let skip = if random.next().is_multiple_of(4) { random.next() % count } else { 0 };
        let part = if random.next().is_multiple_of(3) { 1 } else { count - skip };
        [vm, page + skip, ipa + skip, part, 0]
    }

    /// Arguments of HOST_RECLAIM_GUEST.
    fn donated(&self, random: &mut Random) -> [u64; 5] {
        let Some(placed) = self.placed_by(HostFunction::HostDonateGuest, random) else {
            return [self.dying(random), self.prey, 1, 0, 0];
        };
        let part = if random.next().is_multiple_of(4) { 1 } else { placed.count };
        [placed.vm, placed.page, part, 0, 0]
    }

    fn placed_by(&self, function: HostFunction, random: &mut Random) -> Option<Placed> {
        let mut found: ArrayVec<Placed, PLACED> = ArrayVec::new();
        found.extend(self.placed.iter().copied().filter(|placed| placed.function == function));
        let dying =
            |placed: &Placed| self.known(placed.vm).is_some_and(|vm| vm.life == Life::Dying);
        if function == HostFunction::HostDonateGuest && found.iter().any(dying) {
            found.retain(|placed| dying(placed));
        }
        found.get(self.pick_index(found.len(), random)).copied()
    }

    /// Arguments of VCPU_RUN; mostly after telling the guest what to do.
    fn errand(&mut self, random: &mut Random) -> [u64; 5] {
        let vm = self.vm_that(|vm| !vm.protected || !vm.ran, random);
        let vcpu = random.next() % 16 / 15;
        let run = [vm, vcpu, random.next(), 0, 0];
        let known = self.known(vm).filter(|vm| !vm.protected || !vm.ran);
        let (Some(known), Some(_), 1..) = (known, self.page_of(vm, random), random.next() % 4)
        else {
            return run;
        };
        self.push(HostFunction::VcpuRun, run);
        let call = random.pick(&GUEST_CALLS);
        let place = self.guest_page(vm, random);
        let query = call == u64::from(GuestFunction::Query.raw());
        let x1 = match call {
            0xc600_0100 => random.next() % 6,
            _ if query => place,
            _ => place << PAGE_SHIFT,
        };
        let x2 = if query { 1 + random.next() % 700 } else { random.next() % 8 / 7 };
        let access = random.pick(&[7, 9]);
        let target = self.guest_page(vm, random) << PAGE_SHIFT;
        for (register, value) in [(access, target), (3, 0), (2, x2), (1, x1)] {
            self.push(HostFunction::VcpuSetReg, [vm, vcpu, register, value, 0]);
        }
        if known.ran {
            self.push(HostFunction::VcpuSetReg, [vm, vcpu, 16 - access, 0, 0]);
            self.push(HostFunction::VcpuSetReg, [vm, vcpu, 0, call, 0]);
            return [vm, vcpu, 0, 0, 0];
        }
        let entry = self.entry(vm, random);
        self.push(HostFunction::VcpuSetReg, [vm, vcpu, 0, call, 0]);
        self.push(HostFunction::VcpuInit, [vm, vcpu, entry, call, 0]);
        // Refused where nothing was said before.
        [vm, vcpu, 0, 0, 0]
    }

    /// A page that a guest may have.
    fn guest_page(&self, vm: u64, random: &mut Random) -> u64 {
        let ram = self.page_of(vm, random);
        let bound = self.bound.get(self.pick_index(self.bound.len(), random));
        match (random.next() % 8, ram, bound) {
            (0..4, Some(page), _) => page,
            (4..7, _, Some((_, ipa))) => ipa + random.next() % 2,
            _ => RAM_IPA + random.next() % SMALL,
        }
    }

    /// A region that can be granted, mostly.
    fn region(&self, random: &mut Random) -> Region {
        let granted: ArrayVec<Region, 64> =
            self.regions.iter().copied().filter(Region::is_granted).collect();
        let any = random.next().is_multiple_of(8) || granted.is_empty();
        let from = if any { &self.regions } else { &granted };
        let fallback = Region { index: 0, first: 0, pages: 1, grants: [0; 4] };
        from.get(self.pick_index(from.len(), random)).copied().unwrap_or(fallback)
    }

    fn request(&self, random: &mut Random) -> Request {
        let region = self.region(random);
        let [_, modes, types, perms] = region.grants;
        let bit = |set: u8, random: &mut Random| match random.next() % 8 {
            0 => u8::try_from(1 + random.next() % 3).unwrap_or(1),
            _ => {
                let bits: ArrayVec<u64, 8> =
                    (0..8).filter(|bit| set >> bit & 1 != 0).map(|bit| bit + 1).collect();
                u8::try_from(random.pick(&bits)).unwrap_or(1)
            }
        };
        let (skip, count) = match random.next() % 6 {
            0 => (0, region.pages),
            1 => (0, region.pages.min(BLOCK)),
            2 => (random.next() % region.pages, 1 + random.next() % 3),
            _ => (0, (1 + random.next() % 4).min(region.pages)),
        };
        let offset = random.pick(&[0, 0, 0, 1, 16]);
        let flags = RequestFlags::MAP_NOW.raw();
        let rare = u8::try_from(random.next() % 16).unwrap_or(0);
        let mut request = Request::zeroed();
        request.vm = u16::try_from(self.vm(random)).unwrap_or(0);
        request.mode = bit(modes, random);
        request.mem_type = bit(types, random);
        request.perms = if rare == 3 { 7 } else { perms & [1, 3, 7][usize::from(rare % 3)] };
        request.flags = if rare == 4 { 1 << (random.next() % 3) } else { flags * (rare & 1) };
        request.alias = if rare == 5 { u8::try_from(random.next() % 4).unwrap_or(0) } else { 0 };
        request.pfn = region.first + skip;
        let slot = (region.index % 16) << 13;
        request.ipa_pfn = REGION_IPA + slot + (region.first + skip) % BLOCK + offset;
        request.pages = count;
        request
    }

    /// Something that is bound, mostly.
    fn binding(&self, vm: u64, ipa: u64, random: &mut Random) -> (u64, u64) {
        let bound = self.bound.get(self.pick_index(self.bound.len(), random));
        match (bound, random.next() % 8) {
            (Some(bound), 1..) => *bound,
            (Some(_), 0) | (None, _) => (vm, ipa),
        }
    }

    /// A page that the host accesses, and how.
    pub fn draw_touch(&self, random: &mut Random) -> (u64, Touch) {
        let kind = [Touch::Load, Touch::Load, Touch::Store, Touch::Fetch];
        let kind = kind[self.pick_index(kind.len(), random)];
        let (page, count) = self.ram(random);
        let placed = self.placed.get(self.pick_index(self.placed.len(), random));
        match (random.next() % 12, placed) {
            (0, _) => (self.table(random), kind),
            (1, _) => (IMAGE + random.next() % 64, kind),
            (2..5, _) => self.touch_region(random),
            (5..10, Some(placed)) => (placed.page + random.next() % placed.count, kind),
            _ => (page + random.next() % count, kind),
        }
    }

    fn touch_region(&self, random: &mut Random) -> (u64, Touch) {
        let region = self.region(random);
        match (region.is_mapped(), region.is_granted() && region.is_memory()) {
            (true, true) => {
                let store = random.next().is_multiple_of(2);
                let kind = if store { Touch::Store } else { Touch::Load };
                (region.first + random.next() % region.pages, kind)
            }
            (true, false) => (region.first, Touch::Register),
            (false, _) => (self.prey, Touch::Load),
        }
    }
}

fn weighed(random: &mut Random) -> HostFunction {
    let total: u64 = CALLS.iter().map(|(_, weight)| weight).sum();
    let mut at = random.next() % total;
    for (function, weight) in CALLS {
        match at.checked_sub(weight) {
            Some(left) => at = left,
            None => return function,
        }
    }
    HostFunction::Uid
}
