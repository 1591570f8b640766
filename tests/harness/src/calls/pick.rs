//! Arguments: chosen among what a world has.

use std::ops::Range;

use arbitrary::{Result, Unstructured};
use pfnguard_model::state::{Frame, Leaf, Region, State, Vcpu, Vm};
use pfnguard_shared::info::RegionState;
use pfnguard_shared::request::{HostAlias, Request, RequestFlags};
use pfnguard_shared::vm::{ContractFlags, VmState};
use pfnguard_shared::{HostFunction, MemType, Mode, Perms};

use crate::world::World;

/// Chooses among what a world has.
pub(super) struct Pick<'a> {
    world: &'a World,
}

impl<'a> Pick<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        Self { world }
    }
}

impl Pick<'_> {
    fn state(&self) -> &State {
        self.world.state()
    }

    pub(super) fn args(
        &self,
        function: HostFunction,
        bytes: &mut Unstructured<'_>,
    ) -> Result<[u64; 5]> {
        use HostFunction as F;
        let few = |bytes: &mut Unstructured<'_>, most: u64| bytes.int_in_range(0..=most);
        Ok(match function {
            F::Uid | F::Revision | F::ArgPageClear | F::MigrateCheck => [0; 5],
            F::Info => [few(bytes, 5)?, 0, 0, 0, 0],
            F::RegionInfo => [self.region(bytes)?, 0, 0, 0, 0],
            F::PfnmapReset => [self.quarantined(bytes)?, 0, 0, 0, 0],
            F::ArgPageSet => [self.page(bytes, lent_hyp)?, 0, 0, 0, 0],
            F::TraceInfo => [few(bytes, 16)?, 0, 0, 0, 0],
            F::HostShareHyp => [self.host_page(bytes)?, self.length(bytes)?, 0, 0, 0],
            F::HostUnshareHyp => [self.page(bytes, lent_hyp)?, self.length(bytes)?, 0, 0, 0],
            F::HostShareGuest | F::HostDonateGuest => self.placed(bytes)?,
            F::HostUnshareGuest => self.mapped(bytes)?,
            F::HostReclaimGuest => self.owned(bytes)?,
            F::VmCreate => self.creation(bytes)?,
            F::VmPoolAdd => {
                let vm = self.vm(bytes, VmState::Active)?;
                [vm, self.host_page(bytes)?, self.length(bytes)?, 0, 0]
            }
            F::VmEnableMte | F::VmTeardown | F::MigrateExport => {
                [self.vm(bytes, VmState::Active)?, 0, 0, 0, 0]
            }
            F::VmFree => [self.vm(bytes, VmState::Dying)?, 0, 0, 0, 0],
            F::VcpuInit => {
                let vm = self.vm(bytes, VmState::Active)?;
                [vm, self.vcpu(bytes)?, bytes.arbitrary()?, few(bytes, 9)?, 0]
            }
            F::VcpuRun => {
                let [vm, vcpu] = self.ready(bytes)?;
                [vm, vcpu, bytes.arbitrary()?, 0, 0]
            }
            F::VcpuGetReg | F::VcpuSetReg => {
                let vm = self.vm(bytes, VmState::Active)?;
                [vm, self.vcpu(bytes)?, few(bytes, 31)?, bytes.arbitrary()?, 0]
            }
            F::PfnmapCheck => [few(bytes, 5)?, 0, 0, 0, 0],
            F::PfnmapBind => {
                let request = self.request(bytes)?;
                [request.word().0, request.pfn, request.ipa_pfn, request.pages, 0]
            }
            F::PfnmapMap | F::PfnmapUnbind | F::PfnmapProbe => {
                let vm = self.vm(bytes, VmState::Active)?;
                let vm = if bytes.ratio(7, 8)? { self.holder().unwrap_or(vm) } else { vm };
                [vm, self.bound_page(vm, bytes)?, 0, 0, 0]
            }
        })
    }

    /// A region that waits for its reset, mostly.
    fn quarantined(&self, bytes: &mut Unstructured<'_>) -> Result<u64> {
        let region = self.region(bytes)?;
        let waits = |region: &Region| region.state == RegionState::Quarantined;
        let waiting = (0..).zip(&self.state().regions).find(|(_, region)| waits(region));
        let waiting = waiting.filter(|_| region % 4 != 0).map(|(index, _)| index);
        Ok(waiting.unwrap_or(region))
    }

    /// VM, page, count: what a VM owns, mostly.
    fn owned(&self, bytes: &mut Unstructured<'_>) -> Result<[u64; 5]> {
        let vm = self.vm(bytes, VmState::Dying)?;
        let own = |frame: &Frame| match *frame {
            Frame::Guest(owner) | Frame::GuestLentHost(owner) => u64::from(owner) == vm,
            _ => false,
        };
        let (first, left) = self.run(bytes, own)?;
        let length = if bytes.arbitrary()? { left } else { self.length(bytes)? };
        Ok([vm, first, length, 0, 0])
    }

    /// Contract, vCPUs, pages for tables and how many.
    fn creation(&self, bytes: &mut Unstructured<'_>) -> Result<[u64; 5]> {
        let contract = match bytes.arbitrary()? {
            true => 0,
            false => bytes.int_in_range(0..=u64::from(ContractFlags::ALL.raw()))?,
        };
        let pages = *bytes.choose(&[1, 2, 3, 5, 8, 8, 12, 20])?;
        Ok([contract, bytes.int_in_range(1..=3)?, self.host_page(bytes)?, pages, 0])
    }

    /// A VM that exists, mostly, in this state, mostly.
    fn vm(&self, bytes: &mut Unstructured<'_>, state: VmState) -> Result<u64> {
        if bytes.ratio(1, 24)? {
            return bytes.int_in_range(0..=17);
        }
        let any = bytes.ratio(1, 8)?;
        let vms = self.state().vms.iter();
        let fitting: Vec<u16> =
            vms.filter(|(_, vm)| any || vm.state == state).map(|(number, _)| *number).collect();
        match fitting.is_empty() {
            true => bytes.int_in_range(0..=3),
            false => bytes.choose(&fitting).copied().map(u64::from),
        }
    }

    fn known_vm(&self, vm: u64) -> Option<&Vm> {
        self.state().vms.get(&u16::try_from(vm).ok()?)
    }

    /// A vCPU that can run, mostly, and its VM.
    fn ready(&self, bytes: &mut Unstructured<'_>) -> Result<[u64; 2]> {
        let vms = self.state().vms.iter().filter(|(_, vm)| vm.state == VmState::Active);
        let ready = vms.flat_map(|(number, vm)| {
            let ready = |vcpu: &Vcpu| matches!(vcpu, Vcpu::Fresh(_) | Vcpu::Idle(..));
            let vcpus = (0u64..).zip(&vm.vcpus).filter(move |(_, vcpu)| ready(vcpu));
            vcpus.map(|(vcpu, _)| [u64::from(*number), vcpu])
        });
        let ready: Vec<[u64; 2]> = ready.collect();
        if ready.is_empty() || bytes.ratio(1, 16)? {
            return Ok([self.vm(bytes, VmState::Active)?, self.vcpu(bytes)?]);
        }
        bytes.choose(&ready).copied()
    }

    fn vcpu(&self, bytes: &mut Unstructured<'_>) -> Result<u64> {
        let few = bytes.ratio(7, 8)?;
        bytes.int_in_range(0..=if few { 1 } else { 8 })
    }

    fn region(&self, bytes: &mut Unstructured<'_>) -> Result<u64> {
        bytes.int_in_range(0..=u64::try_from(self.state().regions.len()).unwrap_or(0))
    }

    /// How many pages: few, or as many as a block, or what no call takes.
    fn length(&self, bytes: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match bytes.int_in_range(0..=15u8)? {
            0..=7 => 1,
            8..=12 => bytes.int_in_range(2..=5)?,
            13 => bytes.int_in_range(1..=40)?,
            14 => 512,
            _ => bytes.int_in_range(0..=514)?,
        })
    }

    fn host_page(&self, bytes: &mut Unstructured<'_>) -> Result<u64> {
        self.page(bytes, |frame| *frame == Frame::Host)
    }

    /// A page whose frame is `wanted`, mostly.
    fn page(&self, bytes: &mut Unstructured<'_>, wanted: impl Fn(&Frame) -> bool) -> Result<u64> {
        self.run(bytes, wanted).map(|(page, _)| page)
    }

    /// The same, with the length of the rest of its run.
    fn run(
        &self,
        bytes: &mut Unstructured<'_>,
        wanted: impl Fn(&Frame) -> bool,
    ) -> Result<(u64, u64)> {
        if bytes.ratio(1, 24)? {
            return Ok((self.any_page(bytes)?, 1));
        }
        let runs = self.state().frames.iter().filter(|(_, frame)| wanted(frame));
        let runs: Vec<Range<u64>> = runs.map(|(range, _)| range.clone()).collect();
        if runs.is_empty() {
            return Ok((self.any_page(bytes)?, 1));
        }
        let run = bytes.choose(&runs)?;
        let page = within(run, bytes)?;
        Ok((page, run.end - page))
    }

    /// A page that the host may want to touch: one that guests have something to do with, mostly.
    pub(super) fn touched_page(&self, bytes: &mut Unstructured<'_>) -> Result<u64> {
        if bytes.arbitrary()? {
            return self.any_page(bytes);
        }
        let lent = |frame: &Frame| matches!(frame, Frame::GuestLentHost(_));
        let guests = |frame: &Frame| matches!(frame, Frame::Guest(_) | Frame::HostLentGuests(_));
        match self.state().frames.iter().any(|(_, frame)| lent(frame)) {
            true => self.page(bytes, lent),
            false => self.page(bytes, guests),
        }
    }

    /// An intermediate page whose frame `vm` lends to the host.
    pub(super) fn lent_page(&self, vm: u64) -> Option<u64> {
        let lent = |frame: &Frame| match *frame {
            Frame::GuestLentHost(owner) => u64::from(owner) == vm,
            _ => false,
        };
        let (frames, _) = self.state().frames.iter().find(|(_, frame)| lent(frame))?;
        let found = |(ipa, leaf): (&Range<u64>, &Leaf)| {
            let page = frames.start.wrapping_sub(leaf.offset);
            ipa.contains(&page).then_some(page)
        };
        self.known_vm(vm)?.pages.iter().find_map(found)
    }

    /// Any page: RAM, a region, an edge of either, or a gap.
    pub(super) fn any_page(&self, bytes: &mut Unstructured<'_>) -> Result<u64> {
        let board = self.world.board();
        match bytes.int_in_range(0..=7u8)? {
            0 => bytes.arbitrary(),
            1 => bytes.choose(&[0, 1 << 18, 1 << 24, 1 << 36, (1 << 40) - 1]).copied(),
            2 => {
                let runs: Vec<_> = self.state().frames.iter().collect();
                within(bytes.choose(&runs)?.0, bytes)
            }
            3..=4 => {
                let region = bytes.choose_index(board.machine.entries.len())?;
                around(&board.machine.region_pages(region), bytes)
            }
            _ => around(bytes.choose(&board.config.ram)?, bytes),
        }
    }

    /// VM, page, IPA page, count, permissions: RAM for a guest.
    fn placed(&self, bytes: &mut Unstructured<'_>) -> Result<[u64; 5]> {
        let vm = self.vm(bytes, VmState::Active)?;
        let lent = bytes.arbitrary::<bool>()?;
        let usable = |frame: &Frame| match frame {
            Frame::Host => true,
            Frame::HostLentGuests(_) => lent,
            _ => false,
        };
        let (mut page, left) = self.run(bytes, usable)?;
        let mut pages = self.length(bytes)?;
        // A whole block, aligned, where there is one.
        let block = page.checked_next_multiple_of(512).unwrap_or(page);
        if pages == 512 && block.saturating_add(512) <= page.saturating_add(left) {
            page = block;
        } else if pages == 512 && bytes.ratio(7, 8)? {
            pages = left.min(512);
        }
        let perms = if bytes.ratio(7, 8)? { bytes.int_in_range(1..=7)? } else { 0 };
        Ok([vm, page, self.ipa(bytes, page)?, pages, perms])
    }

    /// An intermediate page for `page`: near others, often congruent, sometimes impossible.
    pub(super) fn ipa(&self, bytes: &mut Unstructured<'_>, page: u64) -> Result<u64> {
        let limit = self.world.board().machine.ipa_limit();
        let base = *bytes.choose(&[0, 512, 1024, 1 << 18, 1 << 18 | 512, limit - 512])?;
        Ok(match bytes.int_in_range(0..=15u8)? {
            0 => bytes.arbitrary()?,
            1 => limit - bytes.int_in_range(0..=4)?,
            2..=8 => base + page % 512,
            _ => base + bytes.int_in_range(0..=20)?,
        })
    }

    /// VM, page, IPA page, count: a part of what a VM has, mostly.
    fn mapped(&self, bytes: &mut Unstructured<'_>) -> Result<[u64; 5]> {
        let mut vm = self.vm(bytes, VmState::Active)?;
        let mut full = self.state().vms.iter().filter(|(_, vm)| !vm.pages.is_empty());
        if let Some((number, _)) = full.next_back().filter(|_| bytes.ratio(7, 8).unwrap_or(false)) {
            vm = u64::from(*number);
        }
        let Some((ipa, pfn, left)) = self.guest_page(vm, bytes)? else {
            return self.placed(bytes);
        };
        let length = if bytes.arbitrary()? { left.min(512) } else { self.length(bytes)? };
        Ok([vm, pfn, ipa, length, 0])
    }

    /// An intermediate page that leads somewhere, the frame, and the length of the rest of the run.
    pub(super) fn guest_page(
        &self,
        vm: u64,
        bytes: &mut Unstructured<'_>,
    ) -> Result<Option<(u64, u64, u64)>> {
        let Some(vm) = self.known_vm(vm).filter(|vm| !vm.pages.is_empty()) else {
            return Ok(None);
        };
        let runs: Vec<_> = vm.pages.iter().collect();
        let (run, leaf) = bytes.choose(&runs)?;
        let ipa = within(run, bytes)?;
        Ok(Some((ipa, ipa.wrapping_add(leaf.offset), run.end - ipa)))
    }

    /// An intermediate page of a binding, mostly.
    pub(super) fn bound_page(&self, vm: u64, bytes: &mut Unstructured<'_>) -> Result<u64> {
        let bindings = self.known_vm(vm).map(|vm| &vm.bindings);
        let Some(bindings) = bindings.filter(|bindings| !bindings.is_empty()) else {
            return self.ipa(bytes, 0);
        };
        let bindings: Vec<_> = bindings.iter().collect();
        let (first, binding) = bytes.choose(&bindings)?;
        around(&(**first..**first + binding.pages), bytes)
    }

    /// A VM with a binding.
    fn holder(&self) -> Option<u64> {
        let mut vms = self.state().vms.iter();
        vms.find(|(_, vm)| !vm.bindings.is_empty()).map(|(number, _)| u64::from(*number))
    }

    /// A region, often one that VMs hold parts of already: these may overlap.
    fn bindable(&self, bytes: &mut Unstructured<'_>) -> Result<usize> {
        let regions = &self.state().regions;
        let any = bytes.choose_index(regions.len())?;
        let held = |index: &usize| regions[*index].mem_type.is_some();
        let held: Vec<usize> = (0..regions.len()).filter(held).collect();
        match held.is_empty() || bytes.arbitrary()? {
            true => Ok(any),
            false => bytes.choose(&held).copied(),
        }
    }

    /// First page and number of pages: all of a region, or some of it, or more than there is.
    fn part(
        &self,
        pages: &Range<u64>,
        sound: bool,
        bytes: &mut Unstructured<'_>,
    ) -> Result<(u64, u64)> {
        if bytes.ratio(1, 3)? {
            return Ok((pages.start, pages.end - pages.start));
        }
        let pfn = within(pages, bytes)?;
        let length = self.length(bytes)?;
        Ok((pfn, if sound { length.clamp(1, pages.end - pfn) } else { length }))
    }

    /// A request for a part of a region, mostly a sound one.
    pub(super) fn request(&self, bytes: &mut Unstructured<'_>) -> Result<Request> {
        let machine = &self.world.board().machine;
        // Few fields are wrong at once.
        let sound = bytes.ratio(3, 4)?;
        let region = self.bindable(bytes)?;
        let pages = machine.region_pages(region);
        let (pfn, count) = self.part(&pages, sound, bytes)?;
        let entry = &machine.entries[region];
        let state = &self.state().regions[region];
        let like_others = state.mem_type.filter(|_| sound).map(MemType::raw);
        let mode = match state.state {
            RegionState::Donated => Mode::Donate,
            RegionState::Shared => Mode::Share,
            _ => *bytes.choose(Mode::ALL)?,
        };
        let mode = if sound { mode } else { *bytes.choose(Mode::ALL)? }.raw();
        let mem_type = like_others.unwrap_or(bytes.choose(MemType::ALL)?.raw());
        let mut perms = *bytes.choose(&[1, 3, 3, 3, 5, 7])?;
        if sound && mem_type != MemType::Cacheable.raw() {
            perms &= 3 & entry.perms | 1;
        }
        let flags = flags(bytes)?;
        let alias =
            if bytes.ratio(1, 8)? { *bytes.choose(HostAlias::ALL)? } else { HostAlias::None };
        let odd = !sound && bytes.ratio(1, 4)?;
        Ok(Request {
            vm: u16::try_from(self.vm(bytes, VmState::Active)?).unwrap_or(u16::MAX),
            mode: if odd { bytes.arbitrary()? } else { mode },
            mem_type: if odd { bytes.arbitrary()? } else { mem_type },
            perms: if odd { Perms::WRITE.raw() } else { perms },
            flags: flags.raw(),
            alias: alias.raw(),
            reserved: u8::from(odd && bytes.arbitrary()?),
            pfn,
            ipa_pfn: self.ipa(bytes, pfn)?,
            pages: count,
        })
    }
}

fn lent_hyp(frame: &Frame) -> bool {
    matches!(frame, Frame::HostLentHyp(_))
}

fn flags(bytes: &mut Unstructured<'_>) -> Result<RequestFlags> {
    Ok(match bytes.int_in_range(0..=15u8)? {
        0 => RequestFlags::from_raw(bytes.int_in_range(0..=15)?).unwrap_or_default(),
        1 => RequestFlags::GENERAL_PURPOSE,
        2..=8 => RequestFlags::MAP_NOW,
        _ => RequestFlags::NONE,
    })
}

/// A page of the range, mostly near one of its ends or near a block's edge.
fn within(range: &Range<u64>, bytes: &mut Unstructured<'_>) -> Result<u64> {
    let near = bytes.int_in_range(0..=7)?;
    let page = match bytes.int_in_range(0..=7u8)? {
        0..=3 => range.start + near,
        4..=5 => range.end - 1 - near.min(range.end - 1),
        6 => range.start.next_multiple_of(512).saturating_sub(2) + near,
        _ => range.start + bytes.int_in_range(0..=1023)?,
    };
    Ok(page.clamp(range.start, range.end - 1))
}

/// A page of the range or just outside.
fn around(range: &Range<u64>, bytes: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match bytes.int_in_range(0..=15u8)? {
        0 => range.start.wrapping_sub(1),
        1 => range.end,
        _ => within(range, bytes)?,
    })
}
