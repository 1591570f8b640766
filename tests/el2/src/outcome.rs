//! How a test ends.

use core::fmt::{self, Write};

use pfnguard_host_interface::Refused;
use pfnguard_lines::Maybe;
use pfnguard_shared::{Rule, Status};

use crate::abort::Fault;

/// Why a test did not pass.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The machine cannot run it; shown, not counted.
    Skip(&'static str),
    /// The claim is wrong.
    Wrong(&'static str),
    /// The claim is wrong: what was expected and what was found.
    Values(&'static str, u64, u64),
    /// A call that had to succeed was refused.
    Refused(Refused),
    /// An access that had to succeed faulted.
    Faulted(Fault),
}

/// What a test returns.
pub type Outcome = Result<(), Failure>;

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Faulted(fault)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip(why) | Self::Wrong(why) => f.write_str(why),
            Self::Values(why, expected, found) => {
                write!(f, "{why}: expected {expected:#x} found {found:#x}")
            }
            Self::Refused(Refused { status, rule, subject, requested, granted, pfn, .. }) => {
                let (rule, pfn) = (rule.map_or("-", Rule::name), Maybe(*pfn));
                let (status, subject) = (status.name(), subject.name());
                write!(f, "refused: {status} {rule} {subject} {requested:#x} {granted:#x} {pfn}")
            }
            Self::Faulted(fault) => {
                write!(f, "faulted: esr {:#x} far {:#x}", fault.esr, fault.far)
            }
        }
    }
}

/// Prints with dashes for spaces, as a field of an `@` line.
pub struct Dashed<T>(pub T);

impl<T: fmt::Display> fmt::Display for Dashed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Dashes(f), "{}", self.0)
    }
}

struct Dashes<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Dashes<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.0.write_char(if c.is_whitespace() { '-' } else { c }))
    }
}

/// Fails with `why` unless `holds`.
pub fn ensure(holds: bool, why: &'static str) -> Outcome {
    if holds { Ok(()) } else { Err(Failure::Wrong(why)) }
}

/// Fails with both values unless they are equal.
pub fn equal(found: u64, expected: u64, why: &'static str) -> Outcome {
    if found == expected { Ok(()) } else { Err(Failure::Values(why, expected, found)) }
}

/// Passes where the call was refused with `status`; returns the facts.
pub fn refused<T>(
    answer: Result<T, Refused>,
    status: Status,
    why: &'static str,
) -> Result<Refused, Failure> {
    match answer {
        Err(refused) if refused.status == status => Ok(refused),
        Err(refused) => Err(Failure::Values(why, status.to_register(), refused.code)),
        Ok(_) => Err(Failure::Values(why, status.to_register(), 0)),
    }
}

/// Passes where the call was refused, whatever the status; returns the facts.
pub fn denied<T>(answer: Result<T, Refused>, why: &'static str) -> Result<Refused, Failure> {
    answer.err().ok_or(Failure::Wrong(why))
}

/// Passes where the access met a data abort.
pub fn aborted<T>(access: Result<T, Fault>, why: &'static str) -> Result<Fault, Failure> {
    match access {
        Err(fault) if fault.is_data() => Ok(fault),
        Err(fault) => Err(Failure::Faulted(fault)),
        Ok(_) => Err(Failure::Wrong(why)),
    }
}

/// Passes where the fetch met an instruction abort.
pub fn fetch_aborted(access: Result<(), Fault>, why: &'static str) -> Result<Fault, Failure> {
    match access {
        Err(fault) if fault.is_fetch() => Ok(fault),
        Err(fault) => Err(Failure::Faulted(fault)),
        Ok(()) => Err(Failure::Wrong(why)),
    }
}
