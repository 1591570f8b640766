//! The machine as far as the trace tells: tables, TLB maintenance under way, lines left.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::cache::{LINES, Lines};
use crate::cpu::{Cpu, Reader};
use crate::insn::{DcKind, Insn, Reach, Register, Waits};
use crate::memory::{Memory, PAGE_SHIFT, page_of};
use crate::record::{Event, Record};
use crate::removal::{Removal, Removals, Times, Tlbi, What};
use crate::report::{Call, Counter, Report};
use crate::tables::{self, Change, Kind, Table};
use crate::violation::{Moment, Rule, Translation, Violation};

/// Violations that are kept; later ones are counted.
const MAX_VIOLATIONS: usize = 16;
/// `HCR_EL2.FWB`.
const HCR_FWB: u64 = 1 << 46;
/// `VTTBR_EL2.VMID`, and its root address.
const VMID_SHIFT: u32 = 48;
const VTTBR_ROOT: u64 = 0x0000_ffff_ffff_fffe;
/// Exception class of `HVC` from AArch64.
const CLASS_HVC: u8 = 0x16;

/// What the oracle is told of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// RAM, in byte addresses; everything else is device memory.
    pub ram: Range<u64>,
    /// First virtual address of EL2 that is not identity-mapped: windows.
    pub windows: u64,
    /// How often its CPUs need each TLB invalidation.
    pub tlbi: Times,
}

/// A judge of one trace.
#[derive(Debug)]
pub struct Checker {
    config: Config,
    cpus: BTreeMap<u8, Cpu>,
    memory: Memory,
    tables: HashMap<u64, Table>,
    /// Root pages that a register has pointed at.
    roots: HashMap<u64, Translation>,
    el2_root: Option<u64>,
    removals: Removals,
    lines: Lines,
    fwb: Fwb,
    report: Report,
    violations: Vec<Violation>,
    count: u64,
}

/// Whether FEAT_S2FWB is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fwb {
    Absent,
    Present,
}

/// The instruction that is being judged.
#[derive(Clone, Copy, Debug)]
struct At {
    cpu: u8,
    pc: u64,
}

impl Checker {
    /// Returns a judge of a machine that has not started.
    pub fn new(config: Config) -> Self {
        Self {
            removals: Removals::new(config.tlbi),
            config,
            cpus: BTreeMap::new(),
            memory: Memory::default(),
            tables: HashMap::new(),
            roots: HashMap::new(),
            el2_root: None,
            lines: Lines::default(),
            fwb: Fwb::Absent,
            report: Report::default(),
            violations: Vec::new(),
            count: 0,
        }
    }

    /// Returns the first rules that were broken, and how many there were.
    pub fn violations(&self) -> (&[Violation], u64) {
        (&self.violations, self.count)
    }

    /// Returns what calls cost.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Judges the next record.
    pub fn see(&mut self, record: Record) {
        let at = At { cpu: record.cpu, pc: record.pc };
        self.cpu(at).note(record);
        match record.event {
            Event::Executed { insn, operand, count, stride } => {
                if let Some(insn) = Insn::decode(insn) {
                    self.executed(at, insn, operand, (count, u64::from(stride)));
                }
            }
            Event::Stored { address, value } => self.stored(at, address, value),
            Event::Entered { esr, x0 } => self.entered(at, esr, x0),
            Event::End { .. } => {}
        }
    }

    fn cpu(&mut self, at: At) -> &mut Cpu {
        self.cpus.entry(at.cpu).or_default()
    }

    fn tally(&mut self, at: At, counter: Counter, count: u64) {
        if let Some((_, counts)) = &mut self.cpu(at).call {
            counts.add(counter, count);
        }
    }

    fn entered(&mut self, at: At, esr: u64, x0: u64) {
        let class = u8::try_from(esr >> 26 & 0x3f).unwrap_or(0);
        let function = if class == CLASS_HVC { x0 } else { 0 };
        self.cpu(at).entered(Call { vector: at.pc, class, function, result: 0 });
    }

    fn executed(&mut self, at: At, insn: Insn, operand: u64, (count, stride): (u64, u64)) {
        if let Some(counter) = Counter::of(insn) {
            self.tally(at, counter, count);
        }
        match insn {
            Insn::Tlbi(kind, reach) => {
                let vmid = self.cpu(at).vmid_in_force();
                self.removals.invalidate(&Tlbi { cpu: at.cpu, kind, reach, operand, vmid });
            }
            Insn::Dc(kind) => self.maintained(at, kind, operand, (count, stride)),
            Insn::Dsb(reach, waits) => self.waited(at, reach, waits),
            Insn::Isb => self.cpu(at).synchronised(),
            Insn::Msr(register) => self.written(at, register, operand),
            Insn::Eret => self.returned(at, operand),
            Insn::Ic | Insn::At => {}
        }
    }

    fn written(&mut self, at: At, register: Register, value: u64) {
        match register {
            Register::VtcrEl2 => self.cpu(at).vtcr = value,
            Register::TcrEl2 => self.cpu(at).tcr = value,
            Register::VttbrEl2 => {
                let cpu = self.cpu(at);
                cpu.vttbr = value;
                let shape = tables::stage2_root(cpu.vtcr);
                let vmid = u16::try_from(value >> VMID_SHIFT).unwrap_or(0);
                let registers = (value, self.cpu(at).vtcr);
                self.report.translations.stage2.insert(vmid, registers);
                self.root(at, page_of(value & VTTBR_ROOT), Translation::Stage2 { vmid }, shape);
            }
            Register::Ttbr0El2 => {
                let shape = tables::stage1_root(self.cpu(at).tcr);
                let root = page_of(value & VTTBR_ROOT);
                self.report.translations.el2 = Some(value);
                self.el2_root = Some(root << PAGE_SHIFT);
                self.root(at, root, Translation::El2, shape);
            }
            Register::HcrEl2 => {
                self.fwb = if value & HCR_FWB == 0 { Fwb::Absent } else { Fwb::Present };
                self.report.translations.fwb = self.fwb == Fwb::Present;
            }
            Register::SctlrEl2 => {}
        }
    }

    /// Learns of a root: from now on walkers use it.
    fn root(&mut self, at: At, root: u64, translation: Translation, shape: (u32, u64)) {
        if self.roots.insert(root, translation) == Some(translation) {
            return;
        }
        let (level, pages) = shape;
        let size = tables::pages_at(level) << 9;
        for index in 0..pages {
            let table = Table { translation, root, level, first: index * size };
            self.adopt(at, root + index, table);
        }
        self.cpu(at).forget_given();
    }

    fn adopt(&mut self, at: At, page: u64, table: Table) {
        self.tables.insert(page, table);
        for (slot, bits) in self.memory.words(page) {
            self.made(at, &table, slot, bits);
        }
    }

    fn stored(&mut self, at: At, address: u64, new: u64) {
        let old = self.memory.store(address, new);
        self.lines.stored(address);
        let page = page_of(address);
        match self.tables.get(&page).copied() {
            Some(table) => self.changed(at, &table, address, (old, new)),
            None if new & 1 != 0 && !self.removals.is_empty() => self.reused(at, page),
            None => {}
        }
    }

    /// A page that may hold a removed table is used for something else.
    fn reused(&mut self, at: At, page: u64) {
        if let Some((slot, removal)) = self.removals.of_table(page) {
            let removal = removal.clone();
            self.removals.take(slot);
            self.incomplete(at, Moment::TableReused, slot, &removal);
        }
    }

    fn changed(&mut self, at: At, table: &Table, slot: u64, (old, new): (u64, u64)) {
        let (was, is) = (tables::kind(table.level, old), tables::kind(table.level, new));
        match (was, is) {
            (Kind::Invalid, Kind::Invalid) => {}
            (Kind::Invalid, Kind::Leaf(_) | Kind::Table(_)) => {
                if let Some(removal) = self.removals.take(slot) {
                    self.incomplete(at, Moment::Changed, slot, &removal);
                }
                self.made(at, table, slot, new);
                self.stored_valid(at, table, slot, new);
            }
            (was @ (Kind::Leaf(_) | Kind::Table(_)), Kind::Invalid) => {
                self.removed(at, table, slot, old, was);
            }
            (was @ (Kind::Leaf(_) | Kind::Table(_)), Kind::Leaf(_) | Kind::Table(_)) => {
                self.replaced(at, table, slot, (old, new), was);
            }
        }
    }

    fn replaced(&mut self, at: At, table: &Table, slot: u64, (old, new): (u64, u64), was: Kind) {
        match (table.change(old, new), was) {
            (Change::Harmless, _) | (Change::Weakened, Kind::Invalid | Kind::Table(_)) => {}
            (Change::Weakened, Kind::Leaf(frames)) => {
                let (what, input) = (What::Rights(frames), table.input(slot));
                let removal = Removal::new(*table, what, input, old, at.cpu, at.pc);
                self.removals.insert(slot, removal);
            }
            (Change::NeedsBreak, was) => {
                self.removed(at, table, slot, old, was);
                if let Some(removal) = self.removals.take(slot) {
                    self.broken(at, Rule::MissingBreak, Moment::Changed, Some(slot), &removal);
                }
                self.made(at, table, slot, new);
            }
        }
    }

    /// A descriptor that walkers can reach is valid from now on.
    fn made(&mut self, at: At, table: &Table, slot: u64, bits: u64) {
        match tables::kind(table.level, bits) {
            Kind::Invalid => {}
            Kind::Leaf(frames) => {
                self.tally(at, Counter::Made, 1);
                self.given(at, table, slot, &frames);
            }
            Kind::Table(page) => {
                self.tally(at, Counter::Made, 1);
                self.reused(at, page);
                let (level, first) = (table.level + 1, table.input(slot).start);
                self.adopt(at, page, Table { level, first, ..*table });
            }
        }
    }

    /// Walkers need not see a descriptor before a `DSB`, nor this CPU before an `ISB`.
    fn stored_valid(&mut self, at: At, table: &Table, slot: u64, bits: u64) {
        let Some(what) = tables::kind(table.level, bits).what() else { return };
        let reader = if self.is_window(table, slot) { Reader::Window } else { Reader::All };
        let made = Removal::new(*table, what, table.input(slot), bits, at.cpu, at.pc);
        self.cpu(at).made(slot, made, reader);
    }

    /// Frames have an owner more.
    fn given(&mut self, at: At, table: &Table, slot: u64, frames: &Range<u64>) {
        if self.is_window(table, slot) {
            // The way in which the maintenance itself is done.
            return;
        }
        if let Some((slot, removal)) = self.removals.reaching(frames) {
            let removal = removal.clone();
            self.removals.take(slot);
            self.incomplete(at, Moment::NextOwner, slot, &removal);
        }
        self.cpu(at).gave(table.translation, frames);
        match table.translation {
            Translation::El2 => self.lines.taken_by_el2(frames),
            next @ Translation::Stage2 { .. } => {
                let Some(left) = self.lines.given(frames, next) else { return };
                let rule = Rule::LinesLeft { maintained: left.maintained, lines: LINES };
                let input = left.frame..left.frame + 1;
                let what = What::Leaf(input.clone());
                let table = Table { translation: left.owner, ..*table };
                let removal = Removal::new(table, what, input, 0, at.cpu, at.pc);
                self.broken(at, rule, Moment::NextOwner, None, &removal);
            }
        }
    }

    fn is_window(&self, table: &Table, slot: u64) -> bool {
        table.translation == Translation::El2
            && table.input(slot).start >= page_of(self.config.windows)
    }

    /// A descriptor that walkers can reach is invalid from now on, and all that it led to.
    fn removed(&mut self, at: At, table: &Table, slot: u64, bits: u64, was: Kind) {
        let input = table.input(slot);
        let Some(what) = was.what() else { return };
        self.tally(at, Counter::Removed, 1);
        self.cpu(at).removed(slot);
        if let What::Table(page) = what
            && let Some(child) = self.tables.remove(&page)
        {
            for (slot, bits) in self.memory.words(page) {
                self.removed(at, &child, slot, bits, tables::kind(child.level, bits));
            }
        }
        let removal = Removal::new(*table, what, input, bits, at.cpu, at.pc);
        self.taken(at, slot, &removal);
        self.removals.insert(slot, removal);
    }

    /// Frames have an owner less: before the next one, not after.
    fn taken(&mut self, at: At, slot: u64, removal: &Removal) {
        let What::Leaf(frames) = &removal.what else { return };
        let (table, owner) = (&removal.table, removal.table.translation);
        if !self.is_window(table, slot) && self.cpu(at).gave_before(owner, frames) {
            self.broken(at, Rule::TwoOwners, Moment::Removed, Some(slot), removal);
        }
    }

    fn waited(&mut self, at: At, reach: Reach, waits: Waits) {
        self.cpu(at).waited(reach, waits);
        for (_, removal) in self.removals.wait(at.cpu, reach, waits) {
            self.completed(&removal);
        }
        if reach != Reach::Local && waits == Waits::All {
            self.lines.waited(at.cpu);
        }
    }

    /// Nobody reaches anything through `removal` any more.
    fn completed(&mut self, removal: &Removal) {
        let What::Leaf(frames) = &removal.what else { return };
        match removal.table.translation {
            Translation::El2 if removal.input.start == frames.start => self.forget(frames),
            Translation::El2 => {}
            owner @ Translation::Stage2 { .. } => {
                let ram = page_of(self.config.ram.start)..page_of(self.config.ram.end);
                let is_ram = ram.contains(&frames.start);
                let coherent = is_ram && self.fwb == Fwb::Present;
                if tables::is_cacheable(removal.bits) && !coherent {
                    self.lines.lost(frames.clone(), owner);
                }
            }
        }
    }

    /// EL2 has given these pages back: they hold no tables any more.
    fn forget(&mut self, pages: &Range<u64>) {
        for page in pages.clone() {
            self.memory.forget(page);
            self.tables.remove(&page);
            if self.roots.remove(&page).is_some() {
                self.tables.retain(|_, table| table.root != page);
            }
        }
    }

    fn maintained(&mut self, at: At, kind: DcKind, first: u64, (count, stride): (u64, u64)) {
        if first >= self.config.windows
            && let Some(fresh) = self.cpu(at).unusable()
        {
            self.broken(at, Rule::NotSynchronised, Moment::Used, Some(fresh.slot), &fresh.made);
        }
        let mut known: Option<(u64, Option<u64>)> = None;
        for index in 0..count {
            let address = first.wrapping_add(index.wrapping_mul(stride));
            let page = page_of(address);
            let frame = match known {
                Some((known, frame)) if known == page => frame,
                Some(_) | None => self.frame(address),
            };
            known = Some((page, frame));
            let Some(frame) = frame else { continue };
            let offset = address & ((1 << PAGE_SHIFT) - 1);
            self.lines.maintained(at.cpu, kind, frame << PAGE_SHIFT | offset);
        }
    }

    /// Returns the frame that EL2 sees at a virtual address.
    fn frame(&self, address: u64) -> Option<u64> {
        if address < self.config.windows {
            return Some(page_of(address));
        }
        let (page, mut table) = (page_of(address), self.el2_root?);
        let mut level = 0;
        loop {
            let size = tables::pages_at(level);
            let bits = self.memory.word(table + (page / size % 512) * 8);
            match tables::kind(level, bits) {
                Kind::Invalid => return None,
                Kind::Leaf(frames) => return Some(frames.start + page % size),
                Kind::Table(next) => (table, level) = (next << PAGE_SHIFT, level + 1),
            }
        }
    }

    fn returned(&mut self, at: At, x0: u64) {
        for (slot, removal) in self.removals.left_by(at.cpu) {
            self.incomplete(at, Moment::Returned, slot, &removal);
        }
        let (call, unseen) = self.cpu(at).returned();
        if let Some(fresh) = unseen {
            self.broken(at, Rule::NotPublished, Moment::Returned, Some(fresh.slot), &fresh.made);
        }
        if let Some((mut call, counts)) = call {
            call.result = if call.class == CLASS_HVC { x0 } else { 0 };
            self.report.add(call, &counts);
        }
    }

    fn incomplete(&mut self, at: At, moment: Moment, slot: u64, removal: &Removal) {
        self.broken(at, removal.missing(), moment, Some(slot), removal);
    }

    fn broken(&mut self, at: At, rule: Rule, moment: Moment, slot: Option<u64>, of: &Removal) {
        self.count += 1;
        if self.violations.len() >= MAX_VIOLATIONS {
            return;
        }
        let history = self.cpu(at).history();
        self.violations.push(Violation {
            rule,
            moment,
            translation: of.table.translation,
            input: of.input.clone(),
            frame: of.frames().start,
            descriptor: slot,
            cpu: at.cpu,
            pc: at.pc,
            stored_at: slot.map(|_| of.pc),
            history,
        });
    }
}
