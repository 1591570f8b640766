//! What libFuzzer says while it runs and when it ends.

use std::fmt;
use std::path::PathBuf;

/// Numbers of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Inputs that were run.
    pub executions: u64,
    /// The same by the second.
    pub per_second: u64,
    /// Edges of the control flow that were reached.
    pub edges: u64,
    /// Inputs in the corpus.
    pub inputs: u64,
}

impl Stats {
    /// Reads a status line (`#123 REDUCE cov: 4 ft: 5 corp: 6/7b … exec/s: 8 …`) or a line of the
    /// final statistics. Returns whether it was one.
    pub fn read(&mut self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let count = first.strip_prefix('#').and_then(|count| count.parse().ok());
        if let Some(count) = count {
            self.executions = count;
            self.read_pairs(&words.collect::<Vec<_>>());
            return true;
        }
        let value = words.next().and_then(|value| value.parse().ok());
        match (first, value) {
            ("stat::number_of_executed_units:", Some(value)) => self.executions = value,
            ("stat::average_exec_per_sec:", Some(value)) => self.per_second = value,
            _ => return false,
        }
        true
    }

    fn read_pairs(&mut self, words: &[&str]) {
        for pair in words.windows(2) {
            let number = pair[1].split('/').next().and_then(|number| number.parse().ok());
            let Some(number) = number else { continue };
            match pair[0] {
                "cov:" => self.edges = number,
                "corp:" => self.inputs = number,
                "exec/s:" => self.per_second = number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { executions, per_second, edges, inputs } = self;
        write!(f, "{executions} executions, {per_second}/s, {edges} edges, {inputs} inputs")
    }
}

/// Returns the file that the failing input was written to.
pub fn finding(lines: &[String]) -> Option<PathBuf> {
    let written =
        |line: &String| line.split_once("Test unit written to ").map(|(_, path)| path.into());
    lines.iter().rev().find_map(written)
}

/// Returns what the target said: from its panic on, or the sanitizer's summary, or the last lines.
pub fn why(lines: &[String]) -> String {
    let told = |line: &&String| line.contains("panicked at") || line.starts_with("SUMMARY");
    let start = lines.iter().position(|line| told(&line)).unwrap_or(lines.len().saturating_sub(5));
    lines[start..].iter().take(8).cloned().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read() {
        let mut stats = Stats::default();
        let line = "#2048\tREDUCE cov: 313 ft: 517 corp: 57/2Kb lim: 4 exec/s: 1024 rss: 467Mb";
        assert!(stats.read(line));
        let read = Stats { executions: 2048, per_second: 1024, edges: 313, inputs: 57 };
        assert_eq!(stats, read);
        assert!(!stats.read("INFO: Seed: 1"));
        assert_eq!(stats, read);
    }

    #[test]
    fn the_final_numbers_count() {
        let mut stats = Stats::default();
        assert!(stats.read("stat::number_of_executed_units: 71937"));
        assert!(stats.read("stat::average_exec_per_sec:     1179"));
        assert_eq!((stats.executions, stats.per_second), (71937, 1179));
    }

    #[test]
    fn a_finding_has_an_input_and_a_reason() {
        let lines = [
            "#7 NEW cov: 1",
            "thread '<unnamed>' panicked at src/a.rs:1:1:",
            "only the compiler refuses",
            "artifact_prefix='x/'; Test unit written to x/crash-1",
        ]
        .map(str::to_owned);
        assert_eq!(finding(&lines), Some(PathBuf::from("x/crash-1")));
        assert!(why(&lines).starts_with("thread '<unnamed>' panicked"));
    }
}
