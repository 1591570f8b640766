//! A machine that does what a test says: two CPUs, a host and a guest, EL2 with one window.

use std::ops::Range;

use pfnguard_oracle::record::{Event, Record};
use pfnguard_oracle::{Checker, Config, Moment, Report, Rule, Times, Violation};

/// The frame of RAM that the tests are about, mapped by the host.
pub const FRAME: u64 = 0x5_0123;
/// A frame of device memory.
const DEVICE: u64 = 0x1_0123;
/// A page descriptor, read and write, cacheable, with and without FWB.
pub const PAGE_BITS: u64 = 0b11 << 53 | 1 << 10 | 0b11 << 8 | 0b11 << 6 | 0b1111 << 2 | 0b11;
/// A page descriptor's type: Non-cacheable.
const UNCACHED: u64 = 0b1010 << 2;
const TABLE: u64 = 0b11;
/// Address of the vector of calls.
const VECTOR: u64 = 0x4020_0400;
const WINDOWS: u64 = 0xff80_0000_0000;

/// A stage 2: addresses of its tables, its VMID.
#[derive(Clone, Copy, Debug)]
pub struct Stage2 {
    root: u64,
    middle: u64,
    last: u64,
    vmid: u64,
}

pub const HOST: Stage2 =
    Stage2 { root: 0x4030_0000, middle: 0x4030_1000, last: 0x4030_2000, vmid: 0 };
pub const GUEST: Stage2 =
    Stage2 { root: 0x4031_0000, middle: 0x4031_1000, last: 0x4031_2000, vmid: 1 };
/// EL2's tables, root first.
const EL2: [u64; 4] = [0x4032_0000, 0x4032_1000, 0x4032_2000, 0x4032_3000];

impl Stage2 {
    /// Returns the address of the last-level descriptor of a page.
    fn slot(self, page: u64) -> u64 {
        self.last + page % 512 * 8
    }
}

/// What a CPU can be told to execute.
#[derive(Clone, Copy, Debug)]
pub enum Insn {
    DsbIshst,
    DsbIshld,
    DsbIsh,
    DsbNsh,
    DsbSy,
    Isb,
    Ipas2e1is(u64),
    Ipas2e1(u64),
    Ripas2e1is { page: u64, scale: u64, num: u64 },
    Vmalle1is,
    Vmalle1,
    Vmalls12e1is,
    Vmalls12e1,
    Alle1is,
    Vae2is(u64),
    Vae2(u64),
    SelectHost,
    SelectGuest,
    Vtcr,
    Tcr,
    Ttbr0El2,
    Hcr(u64),
    Eret,
}

impl Insn {
    /// Returns the instruction, with operands in `x1`, and the operand.
    fn encode(self) -> (u32, u64) {
        let vttbr = |stage2: Stage2| stage2.root | stage2.vmid << 48;
        match self {
            Self::DsbIshst => (0xd503_3a9f, 0),
            Self::DsbIshld => (0xd503_399f, 0),
            Self::DsbIsh => (0xd503_3b9f, 0),
            Self::DsbNsh => (0xd503_379f, 0),
            Self::DsbSy => (0xd503_3f9f, 0),
            Self::Isb => (0xd503_3fdf, 0),
            Self::Ipas2e1is(page) => (0xd50c_8021, page),
            Self::Ipas2e1(page) => (0xd50c_8421, page),
            Self::Ripas2e1is { page, scale, num } => {
                (0xd50c_8041, 1 << 46 | scale << 44 | num << 39 | page)
            }
            Self::Vmalle1is => (0xd508_831f, 0),
            Self::Vmalle1 => (0xd508_871f, 0),
            Self::Vmalls12e1is => (0xd50c_83df, 0),
            Self::Vmalls12e1 => (0xd50c_87df, 0),
            Self::Alle1is => (0xd50c_839f, 0),
            Self::Vae2is(page) => (0xd50c_8321, page),
            Self::Vae2(page) => (0xd50c_8721, page),
            Self::SelectHost => (0xd51c_2101, vttbr(HOST)),
            Self::SelectGuest => (0xd51c_2101, vttbr(GUEST)),
            // 39 bits from level 1.
            Self::Vtcr => (0xd51c_2141, 1 << 6 | 25),
            Self::Tcr => (0xd51c_2041, 16),
            Self::Ttbr0El2 => (0xd51c_2001, EL2[0]),
            Self::Hcr(value) => (0xd51c_1101, value),
            Self::Eret => (0xd69f_03e0, 0),
        }
    }
}

/// The machine, and its judge. Every instruction has an address of its own, in order.
pub struct Machine {
    checker: Checker,
    pc: u64,
}

impl Machine {
    /// Returns a machine whose host maps [`FRAME`] and a device, whose guest has tables and nothing
    /// mapped, on which the host runs.
    pub fn new() -> Self {
        Self::with_tlbi(Times::Once)
    }

    /// As [`Self::new`], with CPUs that need each invalidation so often.
    pub fn with_tlbi(tlbi: Times) -> Self {
        let ram = 0x4000_0000..0x8000_0000;
        let checker = Checker::new(Config { ram, windows: WINDOWS, tlbi });
        let mut machine = Self { checker, pc: 0x4020_0000 };
        for stage2 in [HOST, GUEST] {
            // RAM is in the second GiB, the device in the first; both use the same tables below,
            // which no hypervisor would do and no rule forbids.
            machine.store(0, stage2.root + 8, stage2.middle | TABLE);
            machine.store(0, stage2.middle + (FRAME >> 9) % 512 * 8, stage2.last | TABLE);
        }
        machine.store(0, HOST.slot(FRAME), FRAME << 12 | PAGE_BITS);
        for (level, shift) in [(0, 39), (1, 30), (2, 21)] {
            let slot = EL2[level] + (WINDOWS >> shift & 0x1ff) * 8;
            machine.store(0, slot, EL2[level + 1] | TABLE);
        }
        for insn in [Insn::Tcr, Insn::Ttbr0El2, Insn::Vtcr] {
            machine.run(0, insn);
        }
        machine.run(1, Insn::Vtcr);
        for insn in [Insn::SelectGuest, Insn::SelectHost, Insn::Isb] {
            machine.run(0, insn);
            machine.run(1, insn);
        }
        assert_eq!(machine.verdict(), None);
        machine
    }

    fn see(&mut self, cpu: u8, event: Event) {
        self.pc += 4;
        self.checker.see(Record { cpu, pc: self.pc, event });
    }

    /// Executes an instruction.
    pub fn run(&mut self, cpu: u8, insn: Insn) {
        let (insn, operand) = insn.encode();
        self.see(cpu, Event::Executed { insn, operand, count: 1, stride: 0 });
    }

    /// Enters EL2 by a call.
    pub fn enter(&mut self, cpu: u8, function: u64) {
        let event = Event::Entered { esr: 0x16 << 26, x0: function };
        self.checker.see(Record { cpu, pc: VECTOR, event });
    }

    /// Stores eight bytes.
    pub fn store(&mut self, cpu: u8, address: u64, value: u64) {
        self.see(cpu, Event::Stored { address, value });
    }

    /// Stores the descriptor of [`FRAME`]'s page.
    pub fn set(&mut self, cpu: u8, stage2: Stage2, value: u64) {
        if stage2.vmid == GUEST.vmid && value == 0 {
            // There has to be something to remove.
            self.store(cpu, stage2.slot(FRAME), (FRAME + 7) << 12 | PAGE_BITS);
        }
        self.store(cpu, stage2.slot(FRAME), value);
    }

    /// Maps a frame for the guest.
    pub fn give(&mut self, cpu: u8, frame: u64) {
        self.store(cpu, GUEST.slot(frame), frame << 12 | PAGE_BITS);
    }

    /// Makes the descriptor of the host's last-level table invalid and returns the table.
    pub fn unlink_page_table(&mut self, cpu: u8) -> u64 {
        self.store(cpu, HOST.middle + (FRAME >> 9) % 512 * 8, 0);
        HOST.last
    }

    /// Opens the window on a frame and returns its page.
    pub fn open_window(&mut self, cpu: u8, frame: u64) -> u64 {
        self.store(cpu, EL2[3], frame << 12 | 1 << 10 | 0b11);
        WINDOWS >> 12
    }

    /// Closes the window, without maintenance.
    pub fn close_window(&mut self, cpu: u8) {
        self.store(cpu, EL2[3], 0);
    }

    /// Cleans and invalidates a line through the window.
    pub fn clean_through_window(&mut self, cpu: u8) {
        let event = Event::Executed { insn: CIVAC, operand: WINDOWS, count: 1, stride: 0 };
        self.see(cpu, event);
    }

    /// Maintains lines of a frame through the window.
    fn maintain(&mut self, frame: u64, insn: u32, lines: Range<u64>) {
        let page = self.open_window(0, frame);
        self.run(0, Insn::DsbIshst);
        self.run(0, Insn::Isb);
        let (operand, count) = ((page << 12) + lines.start * 64, lines.end - lines.start);
        if count > 0 {
            self.see(0, Event::Executed { insn, operand, count, stride: 64 });
        }
    }

    fn shut(&mut self) {
        self.close_window(0);
        for insn in [Insn::DsbIshst, Insn::Vae2is(WINDOWS >> 12), Insn::DsbIsh] {
            self.run(0, insn);
        }
    }

    /// Returns the first rule that was broken, and when.
    pub fn verdict(&self) -> Option<(Rule, Moment)> {
        self.violations().first().map(|first| (first.rule, first.moment))
    }

    /// Returns what was broken.
    pub fn violations(&self) -> &[Violation] {
        self.checker.violations().0
    }

    /// Returns what calls cost.
    pub fn report(&self) -> &Report {
        self.checker.report()
    }
}

const CIVAC: u32 = 0xd50b_7e21;
const CVAC: u32 = 0xd50b_7a21;
const ZVA: u32 = 0xd50b_7421;

/// A frame that goes from the host to the guest.
#[derive(Clone, Debug)]
pub struct Exchange {
    frame: u64,
    bits: u64,
    hcr: u64,
    early: Vec<(u32, Range<u64>)>,
    late: Vec<(u32, Range<u64>)>,
    barrier: Option<Insn>,
}

impl Exchange {
    /// Of RAM.
    pub fn ram() -> Self {
        let barrier = Some(Insn::DsbSy);
        Self { frame: FRAME, bits: PAGE_BITS, hcr: 0, early: vec![], late: vec![], barrier }
    }

    /// Of device memory.
    pub fn device() -> Self {
        Self { frame: DEVICE, ..Self::ram() }
    }

    pub fn with_fwb(self) -> Self {
        Self { hcr: 1 << 46, ..self }
    }

    pub fn uncached(self) -> Self {
        Self { bits: self.bits ^ UNCACHED, ..self }
    }

    /// Cleans and invalidates lines when the host has lost the frame.
    pub fn maintaining(self, lines: Range<u64>) -> Self {
        Self { late: vec![(CIVAC, lines)], ..self }
    }

    /// Cleans and invalidates lines while the host still has the frame.
    pub fn maintaining_early(self, lines: Range<u64>) -> Self {
        Self { early: vec![(CIVAC, lines)], ..self }
    }

    /// Cleans what was to be cleaned and invalidated.
    pub fn cleaning_only(self) -> Self {
        let late = self.late.into_iter().map(|(_, lines)| (CVAC, lines)).collect();
        Self { late, ..self }
    }

    pub fn zeroing(self) -> Self {
        Self { late: vec![(ZVA, 0..64), (CVAC, 0..64)], ..self }
    }

    pub fn without_barrier(self) -> Self {
        Self { barrier: None, ..self }
    }

    /// Hands the frame over and returns the verdict.
    pub fn verdict(self) -> Option<(Rule, Moment)> {
        let mut machine = Machine::new();
        machine.run(0, Insn::Hcr(self.hcr));
        // The page is named by its last bits only: the tables are the same for all of them.
        machine.set(0, HOST, 0);
        for insn in super::BY_ADDRESS {
            machine.run(0, insn);
        }
        machine.store(0, HOST.slot(FRAME), self.frame << 12 | self.bits);
        for (insn, lines) in &self.early {
            machine.maintain(self.frame, *insn, lines.clone());
        }
        machine.run(0, Insn::DsbSy);
        machine.shut();
        machine.set(0, HOST, 0);
        for insn in super::BY_ADDRESS {
            machine.run(0, insn);
        }
        for (insn, lines) in &self.late {
            machine.maintain(self.frame, *insn, lines.clone());
        }
        self.barrier.iter().for_each(|insn| machine.run(0, *insn));
        if self.barrier.is_some() {
            machine.shut();
        }
        machine.give(0, self.frame);
        machine.verdict()
    }
}
