//! One machine from launch on, compared with the specification after every call.

mod compare;
mod consequences;
mod history;

use std::fmt::Write;
use std::mem;

use pfnguard_arch::tlb::Stage2Regs;
use pfnguard_core::addr::PhysAddr;
use pfnguard_core::host::{AbortOutcome, HostAbort};
use pfnguard_model::call::{Call, Seen};
use pfnguard_model::rules::Done;
use pfnguard_model::state::{Frame, State};
use pfnguard_shared::migration::{MAX_ITEMS, MigrationHeader, MigrationItem};
use pfnguard_shared::{HostFunction, PAGE_SIZE, Perms, Status};
use pfnguard_sim::Launched;
use zerocopy::{FromBytes, IntoBytes};

use self::history::Event;
use crate::abstraction::{Changes, Reader};
use crate::board::Board;
use crate::contents::Contents;
use crate::guest::{Access, Act, Extend, Guest, Kind};
use crate::machine::{self, Op};
use crate::memory::Memory;
use crate::rules;
use crate::walker::{Attrs, Stage2};

/// A machine.
pub struct World {
    launched: Launched,
    board: &'static Board,
    memory: Memory,
    reader: Reader,
    specified: State,
    contents: Contents,
    /// Pages that were argument pages.
    written: Vec<u64>,
    ops: Vec<Op>,
    arg_page: Box<[u8; PAGE_SIZE]>,
    history: Vec<Event>,
}

impl World {
    /// Launches a machine.
    ///
    /// # Panics
    /// Where it is not as specified.
    pub fn new(board: &'static Board) -> Self {
        let memory = Memory::take(board.span);
        // SAFETY: the world owns the memory until it is dropped, hypervisor and CPUs with it.
        let launched = unsafe { Launched::new(board, &memory) };
        let mut world = Self {
            launched,
            board,
            memory,
            reader: Reader::new(board, memory),
            specified: board.launched.clone(),
            contents: Contents::new(memory),
            written: Vec::new(),
            ops: Vec::new(),
            arg_page: Box::new([0; PAGE_SIZE]),
            history: Vec::new(),
        };
        machine::take_ops(&mut world.ops);
        // What launch did is no change.
        world.reader.read(&world.launched.hypervisor, &world.launched.cpus);
        world.reader.changes = Changes::default();
        world.read_and_compare();
        world.check_consequences();
        world
    }

    /// Makes a host call and compares everything.
    ///
    /// # Panics
    /// Where anything is not as specified.
    pub fn call(&mut self, cpu: usize, regs: [u64; 8]) -> [u64; 8] {
        self.call_with(cpu, regs, &[], &[])
    }

    /// Makes a host call, during which a guest does `acts` and device registers answer `registers`.
    ///
    /// # Panics
    /// As [`Self::call`].
    pub fn call_with(
        &mut self,
        cpu: usize,
        regs: [u64; 8],
        acts: &[Act],
        registers: &[Option<u64>],
    ) -> [u64; 8] {
        let (acts, registers) = (acts.to_vec(), registers.to_vec());
        self.leave_markers(&regs);
        let local = &mut self.launched.cpus[cpu].local;
        local.begin_call();
        local.guest = Guest::new(&acts);
        local.registers.clear();
        local.registers.extend(registers.iter().copied());
        self.history.push(Event::Call { cpu, regs, x0: 0, acts, registers });
        let arg_page = self.copy_arg_page(cpu);
        let records = self.launched.cpus[cpu].trace.written();

        let mut answer = regs;
        self.launched.call(cpu, &mut answer, &mut self.ops);
        if let Some(Event::Call { x0, .. }) = self.history.last_mut() {
            *x0 = answer[0];
        }

        let seen = self.seen(cpu, regs, answer);
        let page = arg_page.map(|_| &*self.arg_page);
        let call = Call { cpu, regs, arg_page: page, seen: &seen };
        let before = rules::is_counting().then(|| self.specified.clone());
        let outcome = self.specified.host_call(&self.board.machine, &call);
        if let Some(before) = &before {
            let machine = &self.board.machine;
            rules::note(&Done { machine, before, call: &call, outcome: &outcome });
        }
        self.compare_outcome(cpu, &seen, &outcome);
        self.compare_arg_page(arg_page, &outcome);
        self.check_record(cpu, records, &regs, &answer);
        self.read_and_compare();
        self.check_refusal(&regs, &answer);
        self.check_contents(cpu, &outcome);
        answer
    }

    /// Lets the host touch a page: through its stage 2, with a fault where that says so. Returns
    /// whether it got through.
    ///
    /// # Panics
    /// Where it may do what it must not, or the other way round.
    pub fn host_touch(&mut self, cpu: usize, page: u64, kind: Kind) -> bool {
        self.history.push(Event::Touch { cpu, page, kind });
        let mut found = self.host_translation(page);
        if !found.is_some_and(|attrs| kind.is_allowed(&attrs)) {
            let outcome = self.abort(cpu, page, kind, found.is_some());
            self.read_and_compare();
            if outcome == AbortOutcome::Resume {
                found = self.host_translation(page);
                let allowed = found.is_some_and(|attrs| kind.is_allowed(&attrs));
                self.require(allowed, || "the host was resumed to fault again".into());
            }
        }
        let done = found.is_some_and(|attrs| kind.is_allowed(&attrs));
        let may = self.host_perms(page).contains(needed(kind));
        self.require(done == may, || format!("the host touched {page:#x}: {done}, but may: {may}"));
        if done && kind == Kind::Store && self.memory.has(page) && !self.is_arg_page(page) {
            self.contents.mark(page);
        }
        done
    }

    /// Lets the host write to a CPU's argument page, as far as there is one.
    pub fn write_arg_page(&mut self, cpu: usize, offset: usize, bytes: &[u8]) {
        let Some(page) = self.launched.cpus[cpu].arg_page else { return };
        let bytes = bytes.to_vec();
        self.memory.page_mut(page.0, |page| {
            page.as_mut_bytes()[offset..offset + bytes.len()].copy_from_slice(&bytes);
        });
        self.history.push(Event::ArgPage { cpu, offset, bytes });
    }

    /// Returns what a CPU's argument page holds, as far as there is one.
    pub fn read_arg_page(&self, cpu: usize) -> Option<[u8; PAGE_SIZE]> {
        let page = self.launched.cpus[cpu].arg_page?;
        let mut bytes = [0; PAGE_SIZE];
        self.memory.page(page.0, |page| bytes.copy_from_slice(page.as_bytes()));
        Some(bytes)
    }

    /// Checks what is too much to check after every call.
    ///
    /// # Panics
    /// As [`Self::call`].
    pub fn finish(&mut self) {
        let lost = self.contents.first_lost();
        self.require(lost.is_none(), || format!("contents of {lost:x?} are lost"));
        self.launched.hypervisor.inspect_host(|host| host.vmemmap.assert_summaries());
        self.check_walks();
    }

    /// Returns what was read last.
    pub fn state(&self) -> &State {
        &self.reader.state
    }

    /// Returns the calls so far: function, and status where it has one.
    pub fn answers(&self) -> impl Iterator<Item = (Option<HostFunction>, Option<Status>)> {
        self.history.iter().filter_map(|done| match done {
            Event::Call { regs, x0, .. } => {
                let function = u32::try_from(regs[0]).ok().and_then(HostFunction::from_raw);
                let status = i32::try_from(x0.cast_signed()).ok().and_then(Status::from_raw);
                Some((function, status))
            }
            Event::Touch { .. } | Event::ArgPage { .. } => None,
        })
    }

    /// Returns the board.
    pub fn board(&self) -> &'static Board {
        self.board
    }

    /// Returns the number of CPUs.
    pub fn cpus(&self) -> usize {
        self.launched.cpus.len()
    }
}

/// What the call is made with.
impl World {
    /// The host leaves something in pages that it gives away.
    fn leave_markers(&mut self, regs: &[u64; 8]) {
        let function = u32::try_from(regs[0]).ok().and_then(HostFunction::from_raw);
        let (first, pages) = match function {
            Some(HostFunction::VmCreate) => (regs[3], regs[4]),
            Some(HostFunction::VmPoolAdd) => (regs[2], regs[3]),
            Some(HostFunction::HostDonateGuest | HostFunction::HostShareGuest) => {
                (regs[2], regs[4])
            }
            Some(_) | None => return,
        };
        let ends =
            [first, first.wrapping_add(pages / 2), first.wrapping_add(pages).wrapping_sub(1)];
        for page in ends {
            if self.reader.state.frames.get(&page) == Some(&Frame::Host) {
                self.contents.mark(page);
            }
        }
    }

    fn copy_arg_page(&mut self, cpu: usize) -> Option<u64> {
        let page = self.launched.cpus[cpu].arg_page?.0;
        self.memory.page(page, |bytes| self.arg_page.copy_from_slice(bytes.as_bytes()));
        Some(page)
    }

    fn is_arg_page(&self, page: u64) -> bool {
        self.reader.state.arg_pages.contains(&Some(page))
    }

    fn seen(&mut self, cpu: usize, regs: [u64; 8], answer: [u64; 8]) -> Seen {
        let reads = self.ops.iter().filter_map(|op| match *op {
            Op::ReadRegister { addr, value } => Some((addr.0, value)),
            _ => None,
        });
        let exported = match regs[0] == u64::from(HostFunction::MigrateExport.raw()) {
            true => self.exported(cpu),
            false => Vec::new(),
        };
        let guest = mem::take(&mut self.launched.cpus[cpu].local.guest.steps);
        Seen { answer, reads: reads.collect(), guest, exported }
    }

    /// Returns the order in which a descriptor in the argument page lists bindings.
    fn exported(&self, cpu: usize) -> Vec<u64> {
        let Some(page) = self.launched.cpus[cpu].arg_page else { return Vec::new() };
        self.memory.page(page.0, |page| {
            let bytes = page.as_bytes();
            let (header, items) = bytes.split_at(size_of::<MigrationHeader>());
            let header = MigrationHeader::read_from_bytes(header).expect("a header's size");
            let count = usize::try_from(header.items).map_or(0, |items| items.min(MAX_ITEMS));
            let items = items.chunks_exact(size_of::<MigrationItem>()).take(count);
            let items = items.filter_map(|item| MigrationItem::read_from_bytes(item).ok());
            items.map(|item| item.ipa_pfn).collect()
        })
    }
}

/// The host's accesses.
impl World {
    fn host_translation(&self, page: u64) -> Option<Attrs> {
        self.translate(&self.host_regs(), page).map(|(_, attrs)| attrs)
    }

    fn host_regs(&self) -> Stage2Regs {
        self.launched.hypervisor.inspect_host(|host| host.stage2.regs())
    }

    fn translate(&self, regs: &Stage2Regs, page: u64) -> Option<(u64, Attrs)> {
        let encoding = self.board.encoding;
        let stage2 = Stage2 { vttbr: regs.vttbr, vtcr: regs.vtcr, encoding };
        stage2.translate(&self.memory, page).expect("tables are sound")
    }

    fn abort(&mut self, cpu: usize, page: u64, kind: Kind, mapped: bool) -> AbortOutcome {
        let ipa = page << 12;
        let extend = Extend::Zero;
        let access = Access { ipa, kind, register: 0, value: 0, size: 3, extend, described: true };
        let esr = access.esr(mapped);
        let abort = HostAbort { ipa: PhysAddr(ipa), far: ipa, esr, elr: 0, pstate: 0 };
        self.launched.abort(cpu, abort, &mut self.ops)
    }
}

fn needed(kind: Kind) -> Perms {
    match kind {
        Kind::Load => Perms::READ,
        Kind::Store => Perms::WRITE,
        Kind::Fetch => Perms::EXEC,
    }
}

/// What is said on a mismatch.
impl World {
    #[inline]
    fn require(&self, good: bool, what: impl FnOnce() -> String) {
        if !good {
            self.fail(&what());
        }
    }

    #[cold]
    fn fail(&self, what: &str) -> ! {
        let mut text = String::new();
        for (number, done) in self.history.iter().enumerate() {
            let _ = writeln!(text, "{number:4}: {done}");
        }
        panic!("not as specified:\n{what}\nafter\n{text}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return self.memory.free();
        }
        let carve = &self.board.carve;
        carve.own.iter().chain(carve.rings.iter()).for_each(|pfn| self.memory.clear(pfn.0));
        let tables = self.reader.state.vms.values().flat_map(|vm| vm.tables.frames.iter());
        tables.chain(&self.written).for_each(|&page| self.memory.clear(page));
        self.contents.clear();
        self.memory.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boards;

    /// A VM with a page of RAM, its frame, and where the guest has it.
    fn world() -> (World, u64, u64) {
        let (page, ipa) = (boards::RAM[0].start, 3);
        let mut world = World::new(boards::all()[0]);
        let create = u64::from(HostFunction::VmCreate.raw());
        assert_eq!(world.call(0, [create, 0, 1, page + 8, 8, 0, 0, 0])[0], 0);
        let donate = u64::from(HostFunction::HostDonateGuest.raw());
        assert_eq!(world.call(0, [donate, 0, page, ipa, 1, 0, 0, 0])[0], 0);
        (world, page, ipa)
    }

    fn uid(world: &mut World) {
        world.call(0, [u64::from(HostFunction::Uid.raw()), 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Changes the descriptor of the guest's page.
    fn corrupt(change: impl FnOnce(u64) -> u64) {
        let (mut world, page, ipa) = world();
        let tables = &world.reader.guest(0).unwrap().tables;
        let table = tables.iter().find(|table| table.0 == 3).unwrap().2;
        let slot = usize::try_from(ipa).unwrap();
        world.memory.page_mut(table, |table| {
            assert_eq!(table[slot] >> 12 & 0xff_ffff, page);
            table[slot] = change(table[slot]);
        });
        uid(&mut world);
    }

    #[test]
    fn memory_is_given_back_zero() {
        let (world, page, _) = world();
        let (memory, span) = (world.memory, world.board.span);
        drop(world);
        assert!(span.iter().all(|pfn| memory.is_zero(pfn.0)), "{page:#x}");
    }

    #[test]
    fn the_host_gets_what_it_may_touch_and_nothing_else() {
        let (mut world, page, _) = world();
        assert!(!world.host_touch(0, page, Kind::Load), "a guest's page");
        assert!(!world.host_touch(0, page + 8, Kind::Load), "a table");
        assert!(world.host_touch(1, page + 1, Kind::Store));
        assert!(!world.host_touch(1, world.board.carve.rings.start().0, Kind::Store));
        assert!(world.host_touch(1, world.board.carve.rings.start().0, Kind::Load));
        world.finish();
    }

    #[test]
    #[should_panic(expected = "VM 0: pages")]
    fn a_permission_too_many_is_noticed() {
        corrupt(|bits| bits ^ 1 << 54 ^ 1 << 7);
    }

    #[test]
    #[should_panic(expected = "VM 0: pages")]
    fn another_frame_is_noticed() {
        corrupt(|bits| bits + (1 << 12));
    }

    #[test]
    #[should_panic(expected = "MemAttr")]
    fn an_unknown_memory_type_is_noticed() {
        corrupt(|bits| bits & !(0xf << 2));
    }

    #[test]
    #[should_panic(expected = "the host has")]
    fn a_translation_that_the_host_keeps_is_noticed() {
        let (mut world, page, _) = world();
        assert!(world.host_touch(0, page + 1, Kind::Load));
        let root = world.reader.host.tables.iter().find(|table| table.0 == 3).unwrap().2;
        world.memory.page_mut(root, |table| {
            let slot = table.iter().position(|bits| bits >> 12 & 0xff_ffff == page + 1).unwrap();
            table[slot - 1] = table[slot] - (1 << 12);
        });
        uid(&mut world);
    }

    #[test]
    #[should_panic(expected = "not zero")]
    fn a_free_table_that_is_not_zero_is_noticed() {
        let (mut world, page, _) = world();
        let free = (page + 8..page + 16).find(|page| {
            let tables = &world.reader.guest(0).unwrap().tables;
            tables.iter().all(|table| table.2 != *page)
        });
        world.memory.mark(free.unwrap(), 2);
        let add = u64::from(HostFunction::VmPoolAdd.raw());
        world.call(0, [add, 0, page + 2, 1, 0, 0, 0, 0]);
    }
}
