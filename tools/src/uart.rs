//! What a machine says on its serial line: the `@` lines of the bare-metal host, among the log of
//! everybody else.
//!
//! An `@` line is `@word key=value key=value …`, fields separated by single spaces. Lines that do
//! not start with `@` are log. A malformed `@` line is an error of the run, not of the reader: it
//! is kept as a problem, so that the rest can still be shown.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::request::{MemType, Mode, Perms};
use pfnguard_shared::{Rule, Status, Subject};

use crate::fields::{Fields, number};

pub use crate::fields::LineError;

/// A PCI function that the host found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Bus, device and function, `00:01.0`.
    pub bdf: String,
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// What the host calls it.
    pub name: String,
}

/// How a BAR is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// 32-bit memory BAR.
    Mem32,
    /// 64-bit memory BAR.
    Mem64,
}

/// Whether a BAR is declared prefetchable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// Declared prefetchable, which does not make it memory.
    Yes,
    /// Not prefetchable.
    No,
}

/// A BAR that the host assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its function.
    pub bdf: String,
    /// Index, 0..=5.
    pub index: u8,
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// How it is addressed.
    pub kind: BarKind,
    /// Whether it is prefetchable.
    pub prefetch: Prefetch,
}

/// One decision of the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The function.
    pub bdf: String,
    /// The BAR's index.
    pub bar: u8,
    /// First page of the request.
    pub pfn: u64,
    /// Pages of the request.
    pub pages: u64,
    /// Mode asked for.
    pub mode: Mode,
    /// Type asked for.
    pub mem_type: MemType,
    /// Permissions asked for.
    pub perms: Perms,
    /// The answer.
    pub status: Status,
    /// The rule that refused.
    pub rule: Option<Rule>,
    /// What the two values are about.
    pub subject: Subject,
    /// The page that caused the refusal.
    pub bad_pfn: Option<u64>,
    /// Requested value of the refusal.
    pub requested: u64,
    /// Granted value of the refusal.
    pub granted: u64,
    /// `PAR_EL1` of a probe, for grants.
    pub par: Option<u64>,
}

/// How a test of the bare-metal host went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It began, and nothing was heard since.
    Running,
    /// It passed.
    Passed,
    /// It failed, with the reason.
    Failed(String),
    /// It does not apply to this machine, with the reason.
    Skipped(String),
}

/// A test of the bare-metal host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Its name.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
}

/// What a job of a Linux machine took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The job.
    pub job: String,
    /// Who is at EL2: `nobody`, `pfnguard`, `kvm`.
    pub under: String,
    /// Hundredths of a second of the machine's clock.
    pub ticks: u64,
}

/// The host's last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
}

/// One `@` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// `@device`.
    Device(Device),
    /// `@bar`.
    Bar(Bar),
    /// `@decision`.
    Decision(Box<Decision>),
    /// `@caps`.
    Caps(Capabilities),
    /// `@test`.
    Test(Test),
    /// `@cost`.
    Cost(Cost),
    /// `@end`.
    End(End),
    /// `@fuzz`: a step of a random run, for [`crate::fuzz_machine`] to read.
    Fuzz(String),
    /// `@mismatch`, `@demo`, `@unknown`: the host found a contradiction, or could not go on.
    Complaint(String),
}

/// Everything a machine said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// Functions, in the order found.
    pub devices: Vec<Device>,
    /// BARs, in the order assigned.
    pub bars: Vec<Bar>,
    /// Decisions, in the order asked.
    pub decisions: Vec<Decision>,
    /// Abilities of the machine.
    pub capabilities: Option<Capabilities>,
    /// Tests, in the order run.
    pub tests: Vec<Test>,
    /// What jobs took, in the order measured.
    pub costs: Vec<Cost>,
    /// Steps of a random run, in the order made.
    pub fuzz: Vec<String>,
    /// The last line; `None` means that the run broke off.
    pub end: Option<End>,
    /// Panics of the hypervisor, complaints of the host, `@` lines that could not be read.
    pub problems: Vec<String>,
}

impl Transcript {
    /// Reads a whole log.
    pub fn read(log: &[String]) -> Self {
        let mut transcript = Self::default();
        for line in log {
            transcript.take(line);
        }
        transcript
    }

    /// Takes the next line of the log into account.
    pub fn take(&mut self, line: &str) {
        if line.contains("[hyp] PANIC") {
            self.problems.push(format!("the hypervisor panicked: {line}"));
        }
        if !line.starts_with('@') {
            return;
        }
        match parse(line) {
            Ok(parsed) => self.keep(parsed),
            Err(error) => self.problems.push(format!("{error}, in the line `{line}`")),
        }
    }

    fn keep(&mut self, line: Line) {
        match line {
            Line::Device(device) => self.devices.push(device),
            Line::Bar(bar) => self.bars.push(bar),
            Line::Decision(decision) => self.decisions.push(*decision),
            Line::Caps(capabilities) => self.capabilities = Some(capabilities),
            Line::Test(test) => self.keep_test(test),
            Line::Cost(cost) => self.costs.push(cost),
            Line::Fuzz(step) => self.fuzz.push(step),
            Line::End(end) => self.end = Some(end),
            Line::Complaint(what) => self.problems.push(format!("the host complains: {what}")),
        }
    }

    fn keep_test(&mut self, test: Test) {
        match self.tests.iter_mut().find(|known| known.name == test.name) {
            Some(known) => known.outcome = test.outcome,
            None => self.tests.push(test),
        }
    }
}

/// Reads one `@` line.
///
/// # Errors
/// Every [`LineError`]: the line is not of this protocol.
pub fn parse(line: &str) -> Result<Line, LineError> {
    let mut words = line.trim_end().split(' ');
    let word = words.next().unwrap_or_default().trim_start_matches('@');
    match word {
        "device" => Fields::read(words)?.device().map(Line::Device),
        "bar" => Fields::read(words)?.bar().map(Line::Bar),
        "decision" => Fields::read(words)?.decision().map(|d| Line::Decision(Box::new(d))),
        "caps" => Fields::read(words)?.caps().map(Line::Caps),
        "test" => {
            let verb = words.next().unwrap_or_default();
            Fields::read(words)?.test(verb).map(Line::Test)
        }
        "cost" => Fields::read(words)?.cost().map(Line::Cost),
        "end" => Fields::read(words)?.end().map(Line::End),
        "fuzz" => Ok(Line::Fuzz(words.collect::<Vec<_>>().join(" "))),
        "mismatch" | "demo" | "unknown" => Ok(Line::Complaint(words.collect::<Vec<_>>().join(" "))),
        unknown => Err(LineError::UnknownWord(format!("@{unknown}"))),
    }
}

impl Fields<'_> {
    fn device(&self) -> Result<Device, LineError> {
        Ok(Device {
            bdf: self.text("bdf")?.to_owned(),
            vendor: self.with("vendor", hex16)?,
            device: self.with("device", hex16)?,
            name: self.text("name")?.to_owned(),
        })
    }

    fn bar(&self) -> Result<Bar, LineError> {
        Ok(Bar {
            bdf: self.text("bdf")?.to_owned(),
            index: self.number("bar")?,
            base: self.number("base")?,
            size: self.number("size")?,
            kind: self.with("kind", |value| match value {
                "mem32" => Some(BarKind::Mem32),
                "mem64" => Some(BarKind::Mem64),
                _ => None,
            })?,
            prefetch: self.with("prefetch", |value| match value {
                "0" => Some(Prefetch::No),
                "1" => Some(Prefetch::Yes),
                _ => None,
            })?,
        })
    }

    fn decision(&self) -> Result<Decision, LineError> {
        Ok(Decision {
            bdf: self.text("bdf")?.to_owned(),
            bar: self.number("bar")?,
            pfn: self.number("pfn")?,
            pages: self.number("pages")?,
            mode: self.with("mode", |v| Mode::ALL.iter().copied().find(|m| m.name() == v))?,
            mem_type: self
                .with("type", |v| MemType::ALL.iter().copied().find(|t| t.name() == v))?,
            perms: self.with("perms", perms)?,
            status: self.with("status", |v| Status::ALL.iter().copied().find(|s| s.name() == v))?,
            rule: self.with("rule", rule)?,
            subject: self.with("subject", subject)?,
            bad_pfn: self.option("badpfn")?,
            requested: self.number("requested")?,
            granted: self.number("granted")?,
            par: self.option("par")?,
        })
    }

    fn caps(&self) -> Result<Capabilities, LineError> {
        self.with("value", |value| Capabilities::from_raw(number(value)?))
    }

    fn test(&self, verb: &str) -> Result<Test, LineError> {
        let outcome = match verb {
            "begin" => Outcome::Running,
            "ok" => Outcome::Passed,
            "fail" => Outcome::Failed(self.text("why")?.to_owned()),
            "skip" => Outcome::Skipped(self.text("why")?.to_owned()),
            unknown => return Err(LineError::UnknownWord(format!("@test {unknown}"))),
        };
        Ok(Test { name: self.text("name")?.to_owned(), outcome })
    }

    fn cost(&self) -> Result<Cost, LineError> {
        let (job, under) = (self.text("job")?.to_owned(), self.text("under")?.to_owned());
        Ok(Cost { job, under, ticks: self.number("ticks")? })
    }

    fn end(&self) -> Result<End, LineError> {
        Ok(End { passed: self.number("passed")?, failed: self.number("failed")? })
    }
}

/// Reads a PCI id: four hexadecimal digits, with or without `0x`.
fn hex16(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// Reads `R`, `RW`, `RX` and the like.
fn perms(text: &str) -> Option<Perms> {
    text.chars().try_fold(Perms::NONE, |sum, letter| match letter {
        'R' => Some(sum.with(Perms::READ)),
        'W' => Some(sum.with(Perms::WRITE)),
        'X' => Some(sum.with(Perms::EXEC)),
        _ => None,
    })
}

fn rule(text: &str) -> Option<Option<Rule>> {
    if text == "-" {
        return Some(None);
    }
    Rule::ALL.iter().copied().find(|rule| rule.name() == text).map(Some)
}

fn subject(text: &str) -> Option<Subject> {
    if text == "-" {
        return Some(Subject::None);
    }
    Subject::ALL.iter().copied().find(|subject| subject.name() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSAL: &str = "@decision bdf=00:01.0 bar=2 pfn=0x8000000 pages=4096 mode=Donate \
        type=Cacheable perms=RW status=Denied rule=R06 subject=Types badpfn=0x8000000 \
        requested=0x4 granted=0x1 par=-";

    #[test]
    fn a_refusal_is_read_with_all_its_facts() {
        let Ok(Line::Decision(decision)) = parse(REFUSAL) else { panic!("not a decision") };
        assert_eq!(decision.mode, Mode::Donate);
        assert_eq!(decision.mem_type, MemType::Cacheable);
        assert_eq!(decision.perms, Perms::READ.with(Perms::WRITE));
        assert_eq!(decision.rule, Some(Rule::R06));
        assert_eq!(decision.subject, Subject::Types);
        assert_eq!(decision.bad_pfn, Some(0x800_0000));
        assert_eq!((decision.requested, decision.granted), (4, 1));
        assert_eq!(decision.par, None);
    }

    #[test]
    fn devices_and_bars_are_read() {
        let device = parse("@device bdf=00:02.0 vendor=1234 device=11e8 name=edu\r");
        assert_eq!(
            device,
            Ok(Line::Device(Device {
                bdf: "00:02.0".into(),
                vendor: 0x1234,
                device: 0x11e8,
                name: "edu".into()
            }))
        );
        let bar =
            parse("@bar bdf=00:02.0 bar=0 base=0x10100000 size=0x100000 kind=mem32 prefetch=0");
        let Ok(Line::Bar(bar)) = bar else { panic!("not a BAR") };
        assert_eq!((bar.base, bar.size, bar.kind), (0x1010_0000, 0x10_0000, BarKind::Mem32));
    }

    #[test]
    fn costs_are_read() {
        let line = parse("@cost job=forks under=nobody ticks=0024");
        let cost = Cost { job: "forks".into(), under: "nobody".into(), ticks: 24 };
        assert_eq!(line, Ok(Line::Cost(cost)));
    }

    #[test]
    fn malformed_lines_are_named() {
        assert_eq!(parse("@what a=b"), Err(LineError::UnknownWord("@what".into())));
        assert_eq!(parse("@end passed=1"), Err(LineError::Missing("failed")));
        assert_eq!(parse("@end passed"), Err(LineError::NotAField("passed".into())));
        assert_eq!(parse("@end passed=1 passed=2"), Err(LineError::Twice("passed".into())));
        assert_eq!(
            parse("@caps value=0x8000000000000000"),
            Err(LineError::BadValue { key: "value", value: "0x8000000000000000".into() })
        );
        let unknown_rule = REFUSAL.replace("R06", "R99");
        assert!(matches!(parse(&unknown_rule), Err(LineError::BadValue { key: "rule", .. })));
    }

    #[test]
    fn a_test_that_never_ends_stays_running() {
        let log = ["[hyp] up", "@test begin name=a", "@test ok name=a", "@test begin name=b"];
        let transcript = Transcript::read(&log.map(str::to_owned));
        let outcomes: Vec<_> = transcript.tests.iter().map(|t| t.outcome.clone()).collect();
        assert_eq!(outcomes, [Outcome::Passed, Outcome::Running]);
        assert_eq!(transcript.end, None);
        assert!(transcript.problems.is_empty());
    }

    #[test]
    fn a_panic_and_a_garbled_line_are_problems() {
        let log = ["[hyp] PANIC at x", "@end passed=1[hyp] y failed=0"];
        let transcript = Transcript::read(&log.map(str::to_owned));
        assert_eq!(transcript.problems.len(), 2);
    }

    #[test]
    fn a_complaint_of_the_host_is_a_problem_in_its_own_words() {
        let transcript = Transcript::read(&["@mismatch a=b bind[c d]".to_owned()]);
        assert_eq!(transcript.problems, ["the host complains: a=b bind[c d]"]);
    }

    #[test]
    fn a_failed_test_says_why() {
        let line = parse("@test fail name=x why=host-could-read");
        assert_eq!(
            line,
            Ok(Line::Test(Test {
                name: "x".into(),
                outcome: Outcome::Failed("host-could-read".into())
            }))
        );
    }
}
