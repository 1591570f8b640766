//! One request and what was decided, as a host under test prints them: the bare-metal one and the
//! program under Linux say the same, so that one reader judges both.
#![no_std]
#![forbid(unsafe_code)]

use core::fmt;

use pfnguard_host_interface::Refused;
use pfnguard_shared::request::{Decision, MemType, Mode, Perms, Request};
use pfnguard_shared::{NO_PFN, Rule, Status, Subject};

/// A request on a BAR.
#[derive(Clone, Copy, Debug)]
pub struct Ask<B> {
    /// The function.
    pub bdf: B,
    /// Index of the BAR.
    pub bar: u16,
    /// What is asked.
    pub request: Request,
}

/// A decision with its facts, whichever way it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Success or the kind of refusal.
    pub status: Option<Status>,
    /// The rule that refused.
    pub rule: Option<Rule>,
    /// What the values are.
    pub subject: Subject,
    /// Offending page.
    pub pfn: Option<u64>,
    /// Requested value.
    pub requested: u64,
    /// Granted value.
    pub granted: u64,
}

impl From<Result<(), Refused>> for Verdict {
    fn from(answer: Result<(), Refused>) -> Self {
        match answer {
            Ok(()) => Self::granted(),
            Err(Refused { status, rule, subject, pfn, requested, granted, .. }) => {
                Self { status: Some(status), rule, subject, pfn, requested, granted }
            }
        }
    }
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        let status = Status::from_raw(decision.status);
        if status == Some(Status::Success) {
            return Self::granted();
        }
        Self {
            status,
            rule: Rule::from_raw(decision.rule),
            subject: Subject::from_raw(decision.subject).unwrap_or(Subject::None),
            pfn: Some(decision.pfn).filter(|&pfn| pfn != NO_PFN),
            requested: decision.requested,
            granted: decision.granted,
        }
    }
}

impl Verdict {
    fn granted() -> Self {
        let (status, subject) = (Some(Status::Success), Subject::None);
        Self { status, rule: None, subject, pfn: None, requested: 0, granted: 0 }
    }

    /// Returns whether the request was granted.
    pub fn is_granted(&self) -> bool {
        self.status == Some(Status::Success)
    }
}

/// A number, or `-`.
#[derive(Clone, Copy, Debug)]
pub struct Maybe(pub Option<u64>);

impl fmt::Display for Maybe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value:#x}"),
            None => f.write_str("-"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status.map_or("Undefined", Status::name);
        let rule = self.rule.map_or("-", Rule::name);
        let (subject, badpfn) = (self.subject.name(), Maybe(self.pfn));
        let (requested, granted) = (self.requested, self.granted);
        write!(
            f,
            "status={status} rule={rule} subject={subject} badpfn={badpfn} \
             requested={requested:#x} granted={granted:#x}"
        )
    }
}

impl<B: fmt::Display> fmt::Display for Ask<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bdf, bar, request } = self;
        let (pfn, pages) = (request.pfn, request.pages);
        let mode = Mode::from_raw(request.mode).map_or("-", Mode::name);
        let mem_type = MemType::from_raw(request.mem_type).map_or("-", MemType::name);
        let perms = Letters(Perms::from_raw(request.perms).unwrap_or(Perms::NONE));
        write!(
            f,
            "bdf={bdf} bar={bar} pfn={pfn:#x} pages={pages} mode={mode} type={mem_type} \
             perms={perms}"
        )
    }
}

struct Letters(Perms);

impl fmt::Display for Letters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(Perms::READ, "R"), (Perms::WRITE, "W"), (Perms::EXEC, "X")];
        letters
            .iter()
            .filter(|(bit, _)| self.0.contains(*bit))
            .try_for_each(|(_, letter)| f.write_str(letter))
    }
}
