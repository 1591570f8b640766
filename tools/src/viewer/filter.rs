//! Which records are shown.

use clap::Args;
use pfnguard_shared::Rule;
use pfnguard_shared::trace::TraceKind;

use super::pages::Pfn;
use super::record::{self, Description};
use super::ring::{Event, What};
use crate::fields::number;

/// Which records are shown: those that every option admits. What was lost is always shown.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Only what this rule refused; may be given again
    #[arg(long = "rule", value_name = "R07", value_parser = rule)]
    pub rules: Vec<Rule>,
    /// Only what concerns this VM
    #[arg(long, value_name = "N")]
    pub vm: Option<u16>,
    /// Only what concerns this page: it is in the record's range, or at fault
    #[arg(long, value_name = "PFN", value_parser = pfn)]
    pub pfn: Option<Pfn>,
    /// Only this kind; may be given again: host-call, guest-call, decision, ownership, region,
    /// host-abort, smc, trap
    #[arg(long = "kind", value_name = "KIND", value_parser = kind)]
    pub kinds: Vec<TraceKind>,
    /// Only what was refused
    #[arg(long)]
    pub refused: bool,
}

impl Filter {
    /// Returns whether an event is shown.
    pub fn admits(&self, event: &Event) -> bool {
        match &event.what {
            What::Record(record) => {
                let description = record::describe(record);
                self.admits_kind(record.kind)
                    && (self.rules.is_empty() || self.rules.iter().any(|r| r.raw() == record.rule))
                    && self.vm.is_none_or(|vm| description.vm == Some(vm))
                    && self.pfn.is_none_or(|pfn| concerns(&description, pfn))
                    && (!self.refused || description.refusal.is_some())
            }
            What::Overwritten(_) | What::Torn { .. } | What::Restarted => true,
        }
    }

    fn admits_kind(&self, raw: u16) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.raw() == raw)
    }
}

fn concerns(description: &Description, pfn: Pfn) -> bool {
    let at_fault = description.refusal.as_ref().and_then(|refusal| refusal.pfn);
    at_fault == Some(pfn) || description.pages.is_some_and(|pages| pages.contains(pfn))
}

fn rule(text: &str) -> Result<Rule, String> {
    let known = Rule::ALL.iter().copied().find(|rule| rule.name().eq_ignore_ascii_case(text));
    known.ok_or_else(|| "no such rule: docs/decisions.md lists them".to_owned())
}

fn kind(text: &str) -> Result<TraceKind, String> {
    let known = TraceKind::ALL.iter().copied().find(|kind| record::kind_word(*kind) == text);
    let words = || TraceKind::ALL.iter().map(|kind| record::kind_word(*kind)).collect::<Vec<_>>();
    known.ok_or_else(|| format!("kinds are {}", words().join(", ")))
}

fn pfn(text: &str) -> Result<Pfn, String> {
    number(text).map(Pfn).ok_or_else(|| "a page frame number: 0x10100, or decimal".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use pfnguard_shared::trace::TraceRecord;
    use pfnguard_shared::{Status, Subject};

    use super::*;
    use crate::viewer::testing::done;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn admits(options: &[&str], record: TraceRecord) -> bool {
        let line = Line::try_parse_from([&["trace"], options].concat()).unwrap();
        let what = What::Record(record);
        line.filter.admits(&Event { cpu: 0, time: Duration::ZERO, what })
    }

    fn given() -> TraceRecord {
        TraceRecord { vm: 1, ..done(TraceKind::Ownership, 0x10100, 0x100, 0x105) }
    }

    fn refused() -> TraceRecord {
        TraceRecord {
            status: Status::Unsupported.raw(),
            rule: Rule::R06.raw(),
            subject: Subject::Types.raw(),
            pfn: 0x40000,
            vm: 2,
            ..done(TraceKind::Decision, 2, 4, 1)
        }
    }

    #[test]
    fn without_options_everything_is_shown() {
        assert!(admits(&[], given()) && admits(&[], refused()));
    }

    #[test]
    fn each_option_admits_what_it_names() {
        for (options, shows_given, shows_refused) in [
            (&["--rule", "R06"][..], false, true),
            (&["--rule", "r07"], false, false),
            (&["--rule", "R07", "--rule", "R06"], false, true),
            (&["--vm", "1"], true, false),
            (&["--pfn", "0x101ff"], true, false),
            (&["--pfn", "0x10200"], false, false),
            (&["--pfn", "0x40000"], false, true),
            (&["--kind", "ownership"], true, false),
            (&["--kind", "ownership", "--kind", "decision"], true, true),
            (&["--refused"], false, true),
            (&["--refused", "--vm", "1"], false, false),
        ] {
            assert_eq!(admits(options, given()), shows_given, "{options:?}");
            assert_eq!(admits(options, refused()), shows_refused, "{options:?}");
        }
    }

    #[test]
    fn losses_are_always_shown() {
        let filter = Filter { refused: true, ..Filter::default() };
        let what = What::Overwritten(0..3);
        assert!(filter.admits(&Event { cpu: 0, time: Duration::ZERO, what }));
    }

    #[test]
    fn unknown_words_are_refused() {
        for options in [["--rule", "R53"], ["--kind", "hostcall"], ["--pfn", "1G"], ["--vm", "-1"]]
        {
            assert!(
                Line::try_parse_from([&["trace"], &options[..]].concat()).is_err(),
                "{options:?}"
            );
        }
    }
}
