//! Writes the trace.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use pfnguard_oracle::insn::Insn;
use pfnguard_oracle::record::{Event, Header, Record};

use crate::arguments::Arguments;
use crate::qemu::{Block, Mark, Plugin, Register, Registers};

/// Most CPUs that are watched.
const MAX_CPUS: usize = 64;
/// Bytes that are collected before they are sent.
const BUFFER: usize = 1 << 16;
/// Virtual addresses from here on are windows: what is stored through them is no page table.
const WINDOWS: u64 = 0xff80_0000_0000;
/// Bytes of a vector, and of a table of 16.
const VECTOR_SIZE: u64 = 0x80;
const VECTOR_TABLE: u64 = 0x800;
/// General registers that an instruction can name.
const GENERAL: usize = 31;

/// The plugin's state.
pub struct Recorder {
    arguments: Arguments,
    /// Host address less virtual address of the image's code; 0 until it is first seen.
    offset: AtomicU64,
    cpus: [OnceLock<CpuRegisters>; MAX_CPUS],
    out: Mutex<Out>,
}

struct CpuRegisters {
    general: Vec<Register>,
    esr: Option<Register>,
}

struct Out {
    socket: UnixStream,
    buffer: Vec<u8>,
    records: u64,
    /// Of each CPU, an instruction that may turn out to be one of many alike.
    runs: Vec<Option<Run>>,
    state: State,
}

/// Whether there still is somebody to write to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closed,
}

/// The same instruction with operands at one distance.
#[derive(Clone, Copy)]
struct Run {
    pc: u64,
    insn: u32,
    first: u64,
    count: u64,
    stride: u16,
}

impl Run {
    /// Returns the run with one more operand, if it goes on with it.
    fn extended(self, pc: u64, operand: u64) -> Option<Self> {
        if pc != self.pc {
            return None;
        }
        let distance = operand.checked_sub(self.first)?;
        let stride = match self.count {
            1 => u16::try_from(distance).ok()?,
            _ => self.stride,
        };
        let next = u64::from(stride).checked_mul(self.count)?;
        (distance == next).then_some(Self { count: self.count + 1, stride, ..self })
    }

    fn event(self) -> Event {
        let Self { insn, first, count, stride, .. } = self;
        Event::Executed { insn, operand: first, count, stride }
    }
}

impl Out {
    fn write(&mut self, record: Record) {
        self.records += 1;
        self.buffer.extend(record.to_bytes());
        if self.buffer.len() >= BUFFER {
            self.send();
        }
    }

    fn send(&mut self) {
        // A reader that is gone refuses the trace for lack of its end.
        if self.state == State::Open && self.socket.write_all(&self.buffer).is_err() {
            self.state = State::Closed;
        }
        self.buffer.clear();
    }

    /// Writes the run of `cpu`, which is over.
    fn settle(&mut self, cpu: usize) {
        if let Some(run) = self.runs[cpu].take() {
            self.write(Record { cpu: number(cpu), pc: run.pc, event: run.event() });
        }
    }

    fn event(&mut self, cpu: usize, pc: u64, event: Event) {
        self.settle(cpu);
        self.write(Record { cpu: number(cpu), pc, event });
    }

    /// Takes one more instruction with an operand that may be one of many.
    fn repeated(&mut self, cpu: usize, pc: u64, insn: u32, operand: u64) {
        match self.runs[cpu].and_then(|run| run.extended(pc, operand)) {
            Some(run) => self.runs[cpu] = Some(run),
            None => {
                self.settle(cpu);
                self.runs[cpu] = Some(Run { pc, insn, first: operand, count: 1, stride: 0 });
            }
        }
    }
}

fn number(cpu: usize) -> u8 {
    u8::try_from(cpu).expect("fewer than 64")
}

impl Recorder {
    /// Connects to whoever takes the trace, and sends its header.
    ///
    /// # Errors
    /// Nobody does.
    pub fn new(arguments: Arguments) -> Result<Self, String> {
        let failed = |cause| format!("{}: {cause}", arguments.trace);
        let mut socket = UnixStream::connect(&arguments.trace).map_err(failed)?;
        socket.write_all(&Header { build: arguments.build }.to_bytes()).map_err(failed)?;
        let buffer = Vec::with_capacity(BUFFER + 64);
        let runs = vec![None; MAX_CPUS];
        let out = Mutex::new(Out { socket, buffer, records: 0, runs, state: State::Open });
        let cpus = [const { OnceLock::new() }; MAX_CPUS];
        Ok(Self { arguments, offset: AtomicU64::new(0), cpus, out })
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the instruction seen at `host` and `address` is the image's.
    fn is_ours(&self, address: u64, host: u64) -> bool {
        if address.wrapping_sub(self.arguments.base) >= self.arguments.text || host == 0 {
            return false;
        }
        let offset = host.wrapping_sub(address);
        // The first code that runs at these addresses is the image, entered by the loader.
        match self.offset.compare_exchange(0, offset, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(known) => known == offset,
        }
    }

    fn is_vector(&self, offset: u64) -> bool {
        let inside = offset.wrapping_sub(self.arguments.vectors);
        inside < self.arguments.tables * VECTOR_TABLE && inside.is_multiple_of(VECTOR_SIZE)
    }

    fn registers(&self, cpu: u32) -> Option<(usize, &CpuRegisters)> {
        let cpu = usize::try_from(cpu).ok()?;
        Some((cpu, self.cpus.get(cpu)?.get()?))
    }
}

impl Plugin for Recorder {
    fn cpu_made(&self, cpu: u32, registers: &Registers) {
        let general = (0..GENERAL).filter_map(|number| registers.named(&format!("x{number}")));
        let found = CpuRegisters { general: general.collect(), esr: registers.named("ESR_EL2") };
        let place = usize::try_from(cpu).ok().and_then(|cpu| self.cpus.get(cpu));
        // A CPU that is made again after a reset has the same registers.
        let _ = place.map(|place| place.set(found));
    }

    fn translate(&self, block: &Block<'_>) {
        for insn in block.insns() {
            let address = insn.address();
            if !self.is_ours(address, insn.host_address()) {
                continue;
            }
            let (bits, offset) = (insn.bits(), address - self.arguments.base);
            let mark = Mark { insn: bits, offset: u32::try_from(offset).expect("a small image") };
            if Insn::decode(bits).is_some() || self.is_vector(offset) {
                insn.watch_execution(mark);
            }
            if Insn::may_store(bits) {
                insn.watch_stores();
            }
        }
    }

    fn executed(&self, cpu: u32, mark: Mark) {
        let Some((cpu, registers)) = self.registers(cpu) else { return };
        let pc = self.arguments.base + u64::from(mark.offset);
        let general = |number: usize| registers.general.get(number).map_or(0, |x| x.read());
        if self.is_vector(u64::from(mark.offset)) {
            let esr = registers.esr.map_or(0, Register::read);
            self.out().event(cpu, pc, Event::Entered { esr, x0: general(0) });
        }
        let insn = mark.insn;
        match (Insn::decode(insn), Insn::operand(insn).map(general)) {
            (Some(Insn::Dc(_)), Some(operand)) => self.out().repeated(cpu, pc, insn, operand),
            // What waits for a lock executes these until it has it.
            (Some(Insn::Isb), _) => self.out().repeated(cpu, pc, insn, 0),
            (Some(insn_kind), operand) => {
                // Of a return: what the caller gets.
                let result = || if insn_kind == Insn::Eret { general(0) } else { 0 };
                let operand = operand.unwrap_or_else(result);
                let event = Event::Executed { insn, operand, count: 1, stride: 0 };
                self.out().event(cpu, pc, event);
            }
            (None, _) => {}
        }
    }

    fn stored(&self, cpu: u32, pc: u64, address: u64, value: &[u64]) {
        let inside = address.wrapping_sub(self.arguments.base) < self.arguments.image;
        if inside || address >= WINDOWS || !address.is_multiple_of(8) {
            return;
        }
        let Some((cpu, _)) = self.registers(cpu) else { return };
        let mut out = self.out();
        for (address, value) in (address..).step_by(8).zip(value) {
            out.event(cpu, pc, Event::Stored { address, value: *value });
        }
    }

    fn ended(&self) {
        let mut out = self.out();
        (0..MAX_CPUS).for_each(|cpu| out.settle(cpu));
        let records = out.records;
        out.write(Record { cpu: 0, pc: 0, event: Event::End { records } });
        out.send();
        // What a CPU still does now is past the end.
        out.state = State::Closed;
    }
}
