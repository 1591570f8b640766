//! Progress of anything that takes more than a few seconds, on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a plain step repeats that it is still going on.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// How steps are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A spinner that is replaced by the result.
    Spinner,
    /// A line at the start, one now and then, and one at the end: logs, pipes, tests.
    Plain,
}

impl Progress {
    /// Returns the spinner where standard error is a terminal, plain lines otherwise.
    pub fn detect() -> Self {
        if io::stderr().is_terminal() { Self::Spinner } else { Self::Plain }
    }

    /// Starts a step called `title`.
    pub fn step(self, title: &str) -> Step {
        let started = Instant::now();
        let bar = match self {
            Self::Spinner => Some(spinner(title)),
            Self::Plain => {
                say(&format!("...   {title}"));
                None
            }
        };
        Step { title: title.to_owned(), bar, started, shown: started, over: false }
    }
}

/// A step that is going on. Dropped before [`Step::done`], it is shown as failed.
#[derive(Debug)]
pub struct Step {
    title: String,
    bar: Option<ProgressBar>,
    started: Instant,
    shown: Instant,
    over: bool,
}

impl Step {
    /// Shows what the step is busy with now.
    pub fn note(&mut self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {what}", self.title));
        } else if self.shown.elapsed() >= HEARTBEAT {
            self.shown = Instant::now();
            say(&format!("...   {} ({} s): {what}", self.title, self.started.elapsed().as_secs()));
        }
    }

    /// Ends the step, with what came of it.
    pub fn done(mut self, result: &str) {
        self.finish("ok", result);
    }

    fn finish(&mut self, mark: &str, result: &str) {
        self.over = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let colon = if result.is_empty() { "" } else { ": " };
        let seconds = self.started.elapsed().as_secs_f32();
        say(&format!("{mark:<5} {}{colon}{result} ({seconds:.1} s)", self.title));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.over {
            self.finish("FAIL", "");
        }
    }
}

fn spinner(title: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(title.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

/// Writes one line to standard error, past the capture of `cargo test`: a matrix of machines
/// must be seen to move. Progress that cannot be shown is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
