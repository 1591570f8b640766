//! What was done to a world, to be read when something is wrong.

use std::fmt;

use pfnguard_shared::HostFunction;

use crate::guest::{Act, Kind};

/// Something that was done to a world.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Call { cpu: usize, regs: [u64; 8], x0: u64, acts: Vec<Act>, registers: Vec<Option<u64>> },
    Touch { cpu: usize, page: u64, kind: Kind },
    ArgPage { cpu: usize, offset: usize, bytes: Vec<u8> },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call { cpu, regs, x0, acts, registers } => {
                let function = u32::try_from(regs[0]).ok().and_then(HostFunction::from_raw);
                let name = function.map_or("unknown", HostFunction::name);
                write!(f, "CPU {cpu}: {name} {:x?}", &regs[1..])?;
                write!(f, " {acts:x?} {registers:x?} -> {x0:#x}")
            }
            Self::Touch { cpu, page, kind } => write!(f, "CPU {cpu}: host {kind:?} {page:#x}"),
            Self::ArgPage { cpu, offset, bytes } => {
                write!(f, "CPU {cpu}: argument page at {offset} {bytes:x?}")
            }
        }
    }
}
