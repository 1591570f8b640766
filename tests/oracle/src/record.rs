//! The trace as bytes: a header, records of one size, and a record that says that this is the end.
//!
//! All numbers are little-endian. A trace without its last record was cut short.

use std::error::Error;
use std::fmt;
use std::io::{self, Read};

/// First bytes of every trace.
pub const MAGIC: [u8; 8] = *b"PFNTRACE";
/// Version of the format.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_SIZE: usize = 48;
/// Bytes of a record.
pub const RECORD_SIZE: usize = 32;

/// SHA-256 of the image that ran.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BuildId(pub [u8; 32]);

/// What a trace begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The image that ran.
    pub build: BuildId,
}

/// One thing that the machine did at EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Index of the CPU.
    pub cpu: u8,
    /// Address of the instruction.
    pub pc: u64,
    /// What it did.
    pub event: Event,
}

/// What an instruction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A barrier, system instruction, register write or exception return is about to be executed.
    Executed {
        /// The instruction.
        insn: u32,
        /// Value of its operand register; of the first one, where several are in one record.
        operand: u64,
        /// Number of times, each with an operand greater by `stride`; at least 1.
        count: u64,
        /// Bytes between operands.
        stride: u16,
    },
    /// Eight aligned bytes were stored.
    Stored {
        /// Where, a virtual address of EL2.
        address: u64,
        /// What.
        value: u64,
    },
    /// The first instruction of an exception vector is about to be executed.
    Entered {
        /// `ESR_EL2`.
        esr: u64,
        /// `x0`, the function id of a call.
        x0: u64,
    },
    /// The machine has ended properly, after so many records before this one.
    End {
        /// Records before this one.
        records: u64,
    },
}

/// Why bytes are no trace to judge.
#[derive(Debug)]
pub enum TraceError {
    /// It ends before its last record.
    CutShort {
        /// Records that were read.
        records: u64,
    },
    /// It does not begin as a trace does.
    NotATrace,
    /// Its format is another one.
    Version(u32),
    /// Another image ran than the one whose symbols are at hand.
    OtherBuild {
        /// The image that ran.
        found: BuildId,
        /// The image at hand.
        expected: BuildId,
    },
    /// A record that this format does not know, or whose numbers make no sense.
    BadRecord {
        /// Records before it.
        records: u64,
        /// Its first byte.
        kind: u8,
    },
    /// The last record counts others than were read.
    Lost {
        /// Records that were read.
        records: u64,
        /// Records that were written.
        written: u64,
    },
    /// Reading failed.
    Read(io::Error),
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutShort { records } => {
                write!(f, "the trace is cut short after {records} records")
            }
            Self::NotATrace => write!(f, "this is not a trace"),
            Self::Version(found) => {
                write!(f, "the trace has format {found}, this program reads {VERSION}")
            }
            Self::OtherBuild { found, expected } => {
                write!(f, "the trace is of another build: {found}, not {expected}")
            }
            Self::BadRecord { records, kind } => {
                write!(f, "record {records} of the trace has kind {kind:#x} or bad numbers")
            }
            Self::Lost { records, written } => {
                write!(f, "{written} records were written to the trace, {records} arrived")
            }
            Self::Read(cause) => write!(f, "the trace cannot be read: {cause}"),
        }
    }
}

impl Error for TraceError {}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl BuildId {
    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if !text.is_ascii() || text.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

const EXECUTED: u8 = 1;
const STORED: u8 = 2;
const ENTERED: u8 = 3;
const END: u8 = 4;

impl Header {
    /// Returns the header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.build.0);
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Result<Self, TraceError> {
        if get::<8>(bytes, 0) != MAGIC {
            return Err(TraceError::NotATrace);
        }
        match u32::from_le_bytes(get(bytes, 8)) {
            VERSION => Ok(Self { build: BuildId(get(bytes, 16)) }),
            other => Err(TraceError::Version(other)),
        }
    }
}

impl Record {
    /// Returns the record's bytes: kind, CPU, stride, instruction, address, two numbers.
    pub fn to_bytes(self) -> [u8; RECORD_SIZE] {
        let (kind, stride, insn, a, b) = match self.event {
            Event::Executed { insn, operand, count, stride } => {
                (EXECUTED, stride, insn, operand, count)
            }
            Event::Stored { address, value } => (STORED, 0, 0, address, value),
            Event::Entered { esr, x0 } => (ENTERED, 0, 0, esr, x0),
            Event::End { records } => (END, 0, 0, records, 0),
        };
        let mut bytes = [0; RECORD_SIZE];
        put(&mut bytes, 0, &[kind, self.cpu]);
        put(&mut bytes, 2, &stride.to_le_bytes());
        put(&mut bytes, 4, &insn.to_le_bytes());
        put(&mut bytes, 8, &self.pc.to_le_bytes());
        put(&mut bytes, 16, &a.to_le_bytes());
        put(&mut bytes, 24, &b.to_le_bytes());
        bytes
    }

    /// Reads a record; `Err` with its kind where it is none.
    fn from_bytes(bytes: &[u8; RECORD_SIZE]) -> Result<Self, u8> {
        let [kind, cpu] = get(bytes, 0);
        let stride = u16::from_le_bytes(get(bytes, 2));
        let insn = u32::from_le_bytes(get(bytes, 4));
        let pc = u64::from_le_bytes(get(bytes, 8));
        let (a, b) = (u64::from_le_bytes(get(bytes, 16)), u64::from_le_bytes(get(bytes, 24)));
        let event = match kind {
            EXECUTED if b > 0 => Event::Executed { insn, operand: a, count: b, stride },
            STORED if a.is_multiple_of(8) => Event::Stored { address: a, value: b },
            ENTERED => Event::Entered { esr: a, x0: b },
            END => Event::End { records: a },
            _ => return Err(kind),
        };
        Ok(Self { cpu, pc, event })
    }
}

/// Copies `part` to `bytes` from `at` on.
fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

/// Returns `N` bytes from `at` on.
fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// Reads the trace of the image `expected` and hands each record but the last to `see`. Returns
/// how many there were.
///
/// # Errors
/// [`TraceError`]; what was seen until then is not a whole run.
pub fn read(
    mut source: impl Read,
    expected: BuildId,
    mut see: impl FnMut(Record),
) -> Result<u64, TraceError> {
    let header: [u8; HEADER_SIZE] = read_whole(&mut source, 0)?;
    let found = Header::from_bytes(&header)?.build;
    if found != expected {
        return Err(TraceError::OtherBuild { found, expected });
    }
    let mut records = 0;
    loop {
        let bytes: [u8; RECORD_SIZE] = read_whole(&mut source, records)?;
        let record =
            Record::from_bytes(&bytes).map_err(|kind| TraceError::BadRecord { records, kind })?;
        match record.event {
            Event::End { records: written } if written == records => return Ok(records),
            Event::End { records: written } => return Err(TraceError::Lost { records, written }),
            Event::Executed { .. } | Event::Stored { .. } | Event::Entered { .. } => see(record),
        }
        records += 1;
    }
}

fn read_whole<const N: usize>(source: &mut impl Read, records: u64) -> Result<[u8; N], TraceError> {
    let mut bytes = [0; N];
    match source.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            Err(TraceError::CutShort { records })
        }
        Err(cause) => Err(TraceError::Read(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: BuildId = BuildId([7; 32]);

    fn trace(events: &[Event]) -> Vec<u8> {
        let mut bytes = Header { build: BUILD }.to_bytes().to_vec();
        for event in events {
            bytes.extend(Record { cpu: 1, pc: 0x4020_0000, event: *event }.to_bytes());
        }
        bytes
    }

    fn refusal(bytes: &[u8], build: BuildId) -> String {
        read(bytes, build, |_| ()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        let events = [
            Event::Executed { insn: 0xd503_3b9f, operand: 5, count: 9, stride: 64 },
            Event::Stored { address: 0x4030_0008, value: u64::MAX },
            Event::Entered { esr: 0x5a00_0000, x0: 0xc600_0110 },
        ];
        let bytes = trace(&[&events[..], &[Event::End { records: 3 }]].concat());
        let mut seen = Vec::new();
        assert_eq!(read(&bytes[..], BUILD, |record| seen.push(record.event)).unwrap(), 3);
        assert_eq!(seen, events);
    }

    #[test]
    fn a_trace_that_is_cut_short_is_refused_wherever_it_is_cut() {
        let whole = trace(&[Event::Stored { address: 8, value: 1 }, Event::End { records: 1 }]);
        for length in 0..whole.len() {
            assert!(refusal(&whole[..length], BUILD).contains("cut short"), "{length}");
        }
    }

    #[test]
    fn a_trace_of_another_build_is_refused() {
        let whole = trace(&[Event::End { records: 0 }]);
        assert!(refusal(&whole, BuildId([8; 32])).contains("another build: 0707"));
    }

    #[test]
    fn a_trace_with_a_gap_is_refused() {
        let gap = trace(&[Event::Stored { address: 8, value: 1 }, Event::End { records: 2 }]);
        assert!(refusal(&gap, BUILD).contains("2 records were written"));
    }

    #[test]
    fn other_bytes_are_refused() {
        assert!(refusal(&[0; 4096], BUILD).contains("not a trace"));
        let mut other = trace(&[Event::End { records: 0 }]);
        other[8] = 9;
        assert!(refusal(&other, BUILD).contains("format 9"));
        let mut unknown = trace(&[Event::End { records: 0 }]);
        unknown[HEADER_SIZE] = 77;
        assert!(refusal(&unknown, BUILD).contains("kind 0x4d"));
    }

    #[test]
    fn build_ids_are_read_as_they_are_shown() {
        let id = BuildId(std::array::from_fn(|index| u8::try_from(index * 7).unwrap()));
        assert_eq!(BuildId::parse(&id.to_string()), Some(id));
        assert_eq!(BuildId::parse("00"), None);
        assert_eq!(BuildId::parse(&"é".repeat(32)), None);
    }
}
