//! VMs: contracts, table memory, teardown. R20, R21, R40.

use std::collections::BTreeMap;
use std::ops::Range;

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::vm::{ContractFlags, VmState};
use pfnguard_shared::{Rule, Status, Subject};
use rangemap::RangeMap;

use crate::Refused;
use crate::call::{Outcome, Seen};
use crate::machine::{MAX_VMS, Machine, count};
use crate::refusal::{full, no_object, vm_busy, vm_state};
use crate::state::{Binding, Frame, Registers, State, Tables, Vcpu, Vm};

impl State {
    /// A VM of the lowest free number, its tables in pages that the host donates.
    pub(crate) fn vm_create(
        &mut self,
        machine: &Machine,
        contract: ContractFlags,
        vcpus: usize,
        pages: Range<u64>,
    ) -> Result<Outcome, Refused> {
        if contract.contains(ContractFlags::MTE) {
            machine.check_mte()?;
        }
        let free = (0..MAX_VMS).find(|id| !self.vms.contains_key(id));
        let id = free.ok_or(full(u64::from(MAX_VMS)))?;
        self.check_host(&pages)?;

        self.frames.insert(pages.clone(), Frame::Hyp);
        self.vms.insert(id, Vm::new(contract, vcpus, pages));
        Ok(Outcome::value(u64::from(id)))
    }

    /// More table memory.
    pub(crate) fn vm_pool_add(&mut self, id: u16, pages: Range<u64>) -> Result<Outcome, Refused> {
        self.vm_in(id, VmState::Active)?;
        self.check_host(&pages)?;

        self.frames.insert(pages.clone(), Frame::Hyp);
        self.vm_mut(id).tables.add(pages);
        Ok(Outcome::done())
    }

    /// R21: MTE only before the first bind, and before anything ran.
    pub(crate) fn vm_enable_mte(&mut self, machine: &Machine, id: u16) -> Result<Outcome, Refused> {
        let vm = self.vm_in(id, VmState::Active)?;
        machine.check_mte()?;
        if vm.bound_once || vm.has_run() {
            let mte = ContractFlags::MTE.raw();
            return Err(Refused::plain(Status::Denied, Subject::None, mte, 0u8).by(Rule::R21));
        }

        let vm = self.vm_mut(id);
        vm.contract = vm.contract.with(ContractFlags::MTE);
        Ok(Outcome::done())
    }

    /// R40: its translations go, then what it borrowed and bound. What it owns waits for
    /// HOST_RECLAIM_GUEST, its tables for VM_FREE.
    pub(crate) fn vm_teardown(
        &mut self,
        machine: &Machine,
        id: u16,
        seen: &Seen,
    ) -> Result<Outcome, Refused> {
        let running = self.vm_in(id, VmState::Active)?.running();
        if running > 0 {
            return Err(vm_busy(running));
        }

        let vm = self.vm_mut(id);
        vm.state = VmState::Dying;
        vm.tables.destroy();
        let pages = std::mem::take(&mut vm.pages);
        self.return_borrowed(&pages);
        let mut outcome = Outcome::done();
        while let Some((_, binding)) = self.vm_mut(id).bindings.pop_first() {
            self.let_go(machine, (id, &binding), seen, &mut outcome);
        }
        Ok(outcome)
    }

    /// One table page of an empty dying VM is the host's again, zeroed; with the last one the VM's
    /// number is free. Which page it is, is open.
    pub(crate) fn vm_free(&mut self, id: u16, seen: &Seen) -> Result<Outcome, Refused> {
        let vm = self.vm_in(id, VmState::Dying)?;
        let remaining = self.owned_by(id) + count(vm.bindings.len());
        if remaining > 0 {
            return Err(vm_busy(remaining));
        }

        let tables = &mut self.vm_mut(id).tables;
        let page = tables.give_back(seen.answer[1]);
        let left = tables.free;
        self.frames.insert(page..page + 1, Frame::Host);
        if left == 0 {
            self.vms.remove(&id);
        }
        Ok(Outcome::values([page, left, 0, 0]).zeroes(page..page + 1))
    }

    /// A VM that exists.
    pub(crate) fn vm(&self, id: u16) -> Result<&Vm, Refused> {
        self.vms.get(&id).ok_or(no_object(u64::from(id), MAX_VMS))
    }

    /// A VM that exists and is in this state.
    pub(crate) fn vm_in(&self, id: u16, needed: VmState) -> Result<&Vm, Refused> {
        let vm = self.vm(id)?;
        if vm.state == needed { Ok(vm) } else { Err(vm_state(needed, vm.state)) }
    }

    /// A VM that was found to exist.
    pub(crate) fn vm_mut(&mut self, id: u16) -> &mut Vm {
        self.vms.get_mut(&id).expect("it was found before")
    }
}

impl Machine {
    /// R20: only where there are tags.
    fn check_mte(&self) -> Result<(), Refused> {
        let (needed, present) = (Capabilities::MTE, self.capabilities());
        if present.contains(needed) {
            return Ok(());
        }
        let subject = Subject::Capabilities;
        Err(Refused::plain(Status::Denied, subject, needed.raw(), present.raw()).by(Rule::R20))
    }
}

impl Tables {
    /// Takes a free page out of the pool: `wished`, if it is one.
    fn give_back(&mut self, wished: u64) -> u64 {
        let any = self.frames.first().copied().expect("an existing VM has tables");
        let page = if self.frames.contains(&wished) { wished } else { any };
        self.frames.remove(&page);
        self.free -= 1;
        page
    }
}

impl Vm {
    fn new(contract: ContractFlags, vcpus: usize, tables: Range<u64>) -> Self {
        let off = Vcpu::Off(Registers { general: [0; 31], pc: 0 });
        Self {
            contract,
            state: VmState::Active,
            bound_once: false,
            pages: RangeMap::new(),
            bindings: BTreeMap::new(),
            tables: Tables::of(tables),
            vcpus: vec![off; vcpus],
        }
    }

    pub(crate) fn is_protected(&self) -> bool {
        self.contract.contains(ContractFlags::PROTECTED)
    }

    /// Whether any of its vCPUs ever ran.
    pub(crate) fn has_run(&self) -> bool {
        self.vcpus.iter().any(|vcpu| matches!(vcpu, Vcpu::Idle(..) | Vcpu::Running(_)))
    }

    fn running(&self) -> u64 {
        count(self.vcpus.iter().filter(|vcpu| matches!(vcpu, Vcpu::Running(_))).count())
    }

    /// The binding that holds a page, and its own first page.
    pub(crate) fn binding_at(&self, ipa: u64) -> Option<(u64, &Binding)> {
        let (first, binding) = self.bindings.range(..=ipa).next_back()?;
        (ipa - first < binding.pages).then_some((*first, binding))
    }

    /// The bindings that share a page with `ipa`.
    pub(crate) fn bindings_in(&self, ipa: &Range<u64>) -> impl Iterator<Item = (&u64, &Binding)> {
        let start = self.binding_at(ipa.start).map_or(ipa.start, |(first, _)| first);
        self.bindings.range(start..ipa.end)
    }
}
