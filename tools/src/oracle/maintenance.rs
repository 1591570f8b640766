//! What calls cost in TLB, barrier and cache operations, beside the least that they need.

mod minimum;

use std::fmt::Write;

use pfnguard_oracle::{Call, Counter, Report, Tally};

use self::minimum::{COLUMNS, MINIMA, Minimum, Who};
use super::Symbols;

/// The beginning of the document.
const HEAD: &str = include_str!("maintenance/head.md");

/// What a run's calls cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    minimum: &'static Minimum,
    calls: u64,
    least: [u64; COLUMNS.len()],
    most: [u64; COLUMNS.len()],
}

impl Maintenance {
    /// Reads a report; calls that failed are left out.
    pub fn new(report: &Report, symbols: &Symbols) -> Self {
        let who = |call: &Call| match symbols.is_guest_vector(call.vector) {
            true => Who::Guest,
            false => Who::Host,
        };
        let calls = report.calls.iter().filter(|(call, _)| call.result == 0);
        let calls: Vec<(Who, &Call, &Tally)> =
            calls.map(|(call, tally)| (who(call), call, tally)).collect();
        let rows = MINIMA.iter().filter_map(|minimum| Row::new(minimum, &calls)).collect();
        Self { rows }
    }

    /// Returns the document; `machine` is what ran.
    pub fn document(&self, machine: &str) -> String {
        let mut text = HEAD.replace("{machine}", machine);
        text += "| call | calls |";
        COLUMNS.iter().for_each(|counter| text += &format!(" {} |", counter.heading()));
        text += "\n|---|---|";
        COLUMNS.iter().for_each(|_| text += "---|");
        text += "\n";
        for row in &self.rows {
            // Writing to a string does not fail.
            let _ = write!(text, "| {} | {} |", row.minimum.name, row.calls);
            (0..COLUMNS.len()).for_each(|column| text += &format!(" {} |", row.cell(column)));
            text += "\n";
        }
        text + "\n" + &self.differences()
    }

    /// Explains every call that does more than the least.
    fn differences(&self) -> String {
        let more = self.rows.iter().filter(|row| row.least != row.minimum.least);
        let lines = more.map(|row| format!("- **{}**: {}\n", row.minimum.name, row.minimum.why));
        let lines: String = lines.collect();
        match lines.as_str() {
            "" => "No call does more than the least.\n".to_owned(),
            lines => format!("Where the least measured is not the least possible:\n\n{lines}"),
        }
    }
}

impl Row {
    fn new(minimum: &'static Minimum, calls: &[(Who, &Call, &Tally)]) -> Option<Self> {
        let ours = calls.iter().filter(|(who, call, _)| minimum.is_of(*who, call));
        let tallies: Vec<&Tally> = ours.map(|(_, _, tally)| *tally).collect();
        let of = |read: fn(&Tally, Counter) -> u64, fold: fn(u64, u64) -> u64| {
            COLUMNS.map(|counter| {
                tallies.iter().map(|tally| read(tally, counter)).reduce(fold).unwrap_or(0)
            })
        };
        let calls = tallies.iter().map(|tally| tally.calls).sum();
        let (least, most) = (of(Tally::least, u64::min), of(Tally::most, u64::max));
        (calls > 0).then_some(Self { minimum, calls, least, most })
    }

    /// Returns least measured, in brackets the least possible where it differs, and the most.
    fn cell(&self, column: usize) -> String {
        let (least, most) = (self.least[column], self.most[column]);
        let possible = self.minimum.least[column];
        let difference = if least == possible { String::new() } else { format!(" ({possible})") };
        // Waiting for a lock executes barriers without end: the most says nothing there.
        match COLUMNS[column] == Counter::Isb || most == least {
            true => format!("{least}{difference}"),
            false => format!("{least}{difference} … {most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_more_than_the_least_is_explained() {
        let minimum = &MINIMA[0];
        let mut row = Row { minimum, calls: 3, least: minimum.least, most: minimum.least };
        let same = Maintenance { rows: vec![row.clone()] };
        assert!(same.document("m").contains("No call does more"));
        row.least[4] = minimum.least[4] + 2;
        row.most[4] = 9;
        let more = Maintenance { rows: vec![row] }.document("m");
        assert!(more.contains(minimum.why));
        assert!(more.contains(&format!("| 2 ({}) … 9 |", minimum.least[4])), "{more}");
    }

    #[test]
    fn every_host_function_has_a_minimum() {
        for function in pfnguard_shared::call::HostFunction::ALL {
            let number = function.raw();
            let known = |minimum: &&Minimum| minimum.who == Who::Host && minimum.function == number;
            assert_eq!(MINIMA.iter().filter(known).count(), 1, "{function:?}");
        }
    }
}
