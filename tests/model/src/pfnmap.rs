//! PFNMAP regions in guests: bind, map, let go. R30, R40 to R42, R44.

use std::ops::Range;

use pfnguard_shared::info::RegionState;
use pfnguard_shared::manifest::{BlockSizes, RegionClass, RegionFlags, ResetKind};
use pfnguard_shared::request::{Request, RequestFlags};
use pfnguard_shared::vm::{ContractFlags, VmState};
use pfnguard_shared::{Mode, Rule, Status, Subject};
use rangemap::RangeSet;

use crate::args::vm_number;
use crate::call::{Outcome, Seen};
use crate::machine::{MAX_BINDINGS, MAX_VM_BINDINGS, Machine, count};
use crate::refusal::{contract, full, no_object};
use crate::state::{Binding, Leaf, Region, State, Vm};
use crate::tables::Mapping;
use crate::{Granted, Held, Refused, Wish, judge};

/// A bind that nothing refuses.
#[derive(Debug)]
pub(crate) struct Plan {
    vm: u16,
    binding: Binding,
    ipa: u64,
}

/// Judging (R30, R32).
impl State {
    /// Judges a request whole: its shape, the rules, then what the guest's side needs. Changes
    /// nothing: CHECK answers with it, BIND goes on.
    pub(crate) fn plan(&self, machine: &Machine, request: &Request) -> Result<Plan, Refused> {
        let wish = Wish::read(request)?;
        let id = vm_number(u64::from(request.vm))?;
        let vm = self.vm_in(id, VmState::Active)?;
        let (region, granted) = self.judge(machine, Some(id), vm.contract, &wish)?;
        machine.check_ipa(&wish.ipa)?;
        vm.check_vacant(&wish.ipa)?;
        self.check_room(vm)?;
        let mut binding = Binding::new(region, &wish, granted);
        let tables = vm.tables.missing(&binding.mapping(machine, wish.ipa.start));
        vm.check_tables(tables)?;
        binding.reserved = Some(tables);
        Ok(Plan { vm: id, binding, ipa: wish.ipa.start })
    }

    /// The rules alone. `vm` is `None` for one that holds nothing here yet (R33).
    pub(crate) fn judge(
        &self,
        machine: &Machine,
        vm: Option<u16>,
        contract: ContractFlags,
        wish: &Wish,
    ) -> Result<(usize, Granted), Refused> {
        judge(&machine.platform, &machine.entries, wish, contract, |region| self.held(region, vm))
    }

    fn held(&self, region: usize, vm: Option<u16>) -> Held {
        let Region { state, mem_type, .. } = self.regions[region];
        let holds = |vm: &Vm| vm.bindings.values().any(|binding| binding.region == region);
        let vms = count(self.vms.values().filter(|vm| holds(vm)).count());
        let by_applicant = vm.and_then(|vm| self.vms.get(&vm)).is_some_and(holds);
        Held { state, mem_type, vms, by_applicant }
    }

    /// VMs that hold a region.
    pub(crate) fn holders(&self, region: usize) -> u64 {
        self.held(region, None).vms
    }

    fn check_room(&self, vm: &Vm) -> Result<(), Refused> {
        if vm.bindings.len() >= MAX_VM_BINDINGS {
            return Err(full(count(MAX_VM_BINDINGS)));
        }
        let all: usize = self.vms.values().map(|vm| vm.bindings.len()).sum();
        if all >= MAX_BINDINGS { Err(full(count(MAX_BINDINGS))) } else { Ok(()) }
    }
}

/// Binding and mapping.
impl State {
    /// The region is the VM's, alone or with others; the guest's first access installs the
    /// translations, or MAP_NOW does.
    pub(crate) fn bind(
        &mut self,
        machine: &Machine,
        request: &Request,
    ) -> Result<Outcome, Refused> {
        let Plan { vm: id, binding, ipa } = self.plan(machine, request)?;

        let (state, owner) = match binding.mode {
            Mode::Share => (RegionState::Shared, None),
            Mode::Donate => (RegionState::Donated, Some(id)),
        };
        let mem_type = Some(binding.leaf.mem_type);
        self.regions[binding.region] = Region { state, mem_type, owner };
        let map_now = binding.flags.contains(RequestFlags::MAP_NOW);
        let vm = self.vm_mut(id);
        vm.bound_once = true;
        vm.bindings.insert(ipa, binding);
        if map_now {
            vm.install(machine, ipa);
        }
        Ok(Outcome::done())
    }

    /// R30: what bind granted, map installs, from the tables that it reserved.
    pub(crate) fn map(&mut self, machine: &Machine, id: u16, ipa: u64) -> Result<Outcome, Refused> {
        let vm = self.vm_in(id, VmState::Active)?;
        let (first, _) = vm.binding_at(ipa).ok_or(no_object(ipa, 0u8))?;

        self.vm_mut(id).install(machine, first);
        Ok(Outcome::done())
    }
}

/// Letting go.
impl State {
    /// What was donated to a protected VM ends with that VM alone.
    pub(crate) fn unbind(
        &mut self,
        machine: &Machine,
        id: u16,
        ipa: u64,
        seen: &Seen,
    ) -> Result<Outcome, Refused> {
        let vm = self.vm_in(id, VmState::Active)?;
        let (first, binding) = vm.binding_at(ipa).ok_or(no_object(ipa, 0u8))?;
        if vm.is_protected() && binding.mode == Mode::Donate {
            return Err(contract());
        }

        let vm = self.vm_mut(id);
        let binding = vm.bindings.remove(&first).expect("found before");
        if binding.reserved.is_none() {
            // Blocks lie inside one binding: none is cut, no table is needed.
            vm.unmap(&(first..first + binding.pages));
        }
        let mut outcome = Outcome::done();
        self.let_go(machine, (id, &binding), seen, &mut outcome);
        outcome.regs[1] = u64::from(self.regions[binding.region].state.raw());
        Ok(outcome)
    }

    /// A binding has gone. R40, R44: its pages that nobody else holds read zero, where the entry
    /// says so or a protected VM owned memory. With the last binding, the reset contract (R41).
    pub(crate) fn let_go(
        &mut self,
        machine: &Machine,
        (id, binding): (u16, &Binding),
        seen: &Seen,
        outcome: &mut Outcome,
    ) {
        let region = binding.region;
        let memory = machine.entries[region].class == RegionClass::Memory.raw();
        let protected = self.vms.get(&id).is_some_and(Vm::is_protected);
        let secret = protected && binding.mode == Mode::Donate && memory;
        let others = self.bound_pages(region);
        if secret || machine.region_has(region, RegionFlags::ZERO_ON_RETURN) {
            outcome.zeroed.extend(others.gaps(&(binding.pfn..binding.pfn + binding.pages)));
        }
        if others.is_empty() {
            let state = after_reset(machine, region, seen, &mut outcome.reads);
            self.regions[region] = Region { state, mem_type: None, owner: None };
        }
    }

    fn bound_pages(&self, region: usize) -> RangeSet<u64> {
        let all = self.vms.values().flat_map(|vm| vm.bindings.values());
        let its = all.filter(|binding| binding.region == region);
        its.map(|binding| binding.pfn..binding.pfn + binding.pages).collect()
    }

    /// R41: the host's driver has reset the device. R42: nothing helps a region that is lost.
    pub(crate) fn reset(&mut self, region: usize) -> Result<Outcome, Refused> {
        let known = self.regions.get(region);
        let found = known.ok_or(no_object(count(region), count(self.regions.len())))?.state;
        let refuse = |rule, status| {
            let (needed, found) = (RegionState::Quarantined.raw(), found.raw());
            Err(Refused::plain(status, Subject::RegionState, needed, found).by(rule))
        };
        match found {
            RegionState::Quarantined => {}
            RegionState::Lost => return refuse(Rule::R42, Status::Busy),
            RegionState::Free | RegionState::Shared | RegionState::Donated => {
                return refuse(Rule::R41, Status::WrongState);
            }
        }

        self.regions[region] = Region { state: RegionState::Free, mem_type: None, owner: None };
        Ok(Outcome::value(u64::from(RegionState::Free.raw())))
    }
}

/// R41, R42: what the region is after its reset contract. A register that does not answer, or not
/// with the value within the bound, loses the region for good; nothing is read after the answer.
fn after_reset(machine: &Machine, region: usize, seen: &Seen, reads: &mut usize) -> RegionState {
    let entry = &machine.entries[region];
    let kind = ResetKind::from_raw(entry.reset).expect("the manifest was checked (R50)");
    let bound = match kind {
        ResetKind::None => return RegionState::Free,
        ResetKind::External => return RegionState::Quarantined,
        ResetKind::Readback => 1,
        ResetKind::Poll => entry.reset_bound,
    };
    let mut answers = seen.reads.iter().filter(|(address, _)| *address == entry.reset_addr);
    for _ in 0..bound {
        *reads += 1;
        let Some((_, Some(value))) = answers.next() else { break };
        if kind == ResetKind::Readback || value & entry.reset_mask == entry.reset_value {
            return RegionState::Free;
        }
    }
    RegionState::Lost
}

impl Binding {
    fn new(region: usize, wish: &Wish, granted: Granted) -> Self {
        let Granted { mem_type, perms, no_tags } = granted;
        let offset = wish.pages.start.wrapping_sub(wish.ipa.start);
        Self {
            region,
            pfn: wish.pages.start,
            pages: wish.pages.end - wish.pages.start,
            mode: wish.mode,
            leaf: Leaf { offset, mem_type, perms, no_tags },
            flags: wish.flags,
            reserved: None,
        }
    }

    /// Where it is in the guest, in the blocks that the entry allows (R02).
    pub(crate) fn mapping(&self, machine: &Machine, first: u64) -> Mapping {
        let blocks = BlockSizes::from_raw(machine.entries[self.region].blocks);
        let blocks = blocks.expect("the manifest was checked (R50)");
        let ipa: Range<u64> = first..first + self.pages;
        Mapping { ipa, offset: self.leaf.offset, blocks }
    }
}

impl Vm {
    /// Installs the binding that starts at `first`, unless it is installed.
    pub(crate) fn install(&mut self, machine: &Machine, first: u64) {
        let binding = self.bindings.get_mut(&first).expect("found before");
        if binding.reserved.take().is_none() {
            return;
        }
        let (mapping, leaf) = (binding.mapping(machine, first), binding.leaf);
        self.map(&mapping, leaf);
    }
}
