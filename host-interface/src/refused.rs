//! Answers: success with seven registers, or a refusal with its facts.

use core::fmt;

use pfnguard_shared::{NO_PFN, Rule, Status, Subject};

/// Why the hypervisor refused a call. Whatever it says, the call has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What kind of refusal, and the errno of a KVM caller. A code that this version of the ABI
    /// does not define reads as [`Status::NotSupported`]; `code` tells.
    pub status: Status,
    /// `x0` as it came.
    pub code: u64,
    /// The rule that refused, if it was one.
    pub rule: Option<Rule>,
    /// What `requested` and `granted` are.
    pub subject: Subject,
    /// The page on whose account the call was refused, if a single one was.
    pub pfn: Option<u64>,
    /// What was asked for.
    pub requested: u64,
    /// What would have been granted.
    pub granted: u64,
}

impl Refused {
    /// Reads an answer: `x1..=x7` on success.
    ///
    /// # Errors
    /// The refusal, where `x0` is not zero.
    pub fn from_registers(regs: [u64; 8]) -> Result<[u64; 7], Self> {
        let [code, word, pfn, requested, granted, x5, x6, x7] = regs;
        match Status::from_register(code) {
            Some(Status::Success) => Ok([word, pfn, requested, granted, x5, x6, x7]),
            Some(status) => Err(Self {
                status,
                code,
                rule: Rule::from_raw(half(word, 0)),
                subject: Subject::from_raw(half(word, 16)).unwrap_or(Subject::None),
                pfn: Some(pfn).filter(|&page| page != NO_PFN),
                requested,
                granted,
            }),
            None => Err(Self::undefined(code)),
        }
    }

    /// A code from a newer ABI, or a hypervisor that is not pfnguard: no success, no facts.
    fn undefined(code: u64) -> Self {
        let (status, subject) = (Status::NotSupported, Subject::None);
        Self { status, code, rule: None, subject, pfn: None, requested: 0, granted: 0 }
    }
}

/// Returns the 16 bits of `word` from `shift` on.
fn half(word: u64, shift: u32) -> u16 {
    u16::try_from((word >> shift) & 0xffff).unwrap_or(0)
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.name())?;
        if let Some(rule) = self.rule {
            write!(f, " by {}: {}", rule.name(), rule.summary())?;
        }
        if self.subject != Subject::None {
            let (asked, granted) = (self.requested, self.granted);
            write!(f, " ({} {asked:#x}, granted {granted:#x})", self.subject.name())?;
        }
        match self.pfn {
            Some(pfn) => write!(f, " at page {pfn:#x}"),
            None => Ok(()),
        }
    }
}

impl core::error::Error for Refused {}
