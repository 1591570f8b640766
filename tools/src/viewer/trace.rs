//! `trace`: what the hypervisor has written down, of all CPUs, in the order of time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;
use miette::{Diagnostic, bail};
use thiserror::Error;

use super::export::{self, Export};
use super::filter::Filter;
use super::line;
use super::ring::{self, Event, Ring, RingError};
use crate::files::{self, FileError, Output};

/// Where the kernel module shows the rings.
const RINGS: &str = "/sys/kernel/debug/pfnguard/trace";

/// What to show of which rings, and how.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Raw rings, one CPU's or several in a row, or directories of files cpu0, cpu1, …; `-` is the
    /// standard input
    #[arg(default_value = RINGS)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    filter: Filter,
    /// Write what other programs read
    #[arg(long, value_enum)]
    export: Option<Export>,
    /// Write to this file [default: the standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with what is new, until a file is gone
    #[arg(long, conflicts_with = "export")]
    follow: bool,
    /// With --follow: milliseconds between two looks
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval: u64,
}

/// Why there is nothing to show.
#[derive(Debug, Error, Diagnostic)]
pub enum TraceError {
    /// A file.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] FileError),
    /// Its contents.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Ring(#[from] RingError),
    /// A directory without rings.
    #[error("{0} has no file cpu0, cpu1, …")]
    NoRings(PathBuf),
}

/// What one look at the rings gives.
#[derive(Debug, Default)]
pub struct Look {
    /// All CPUs that have a ring.
    pub cpus: BTreeSet<u32>,
    /// What is new, in the order of time.
    pub events: Vec<Event>,
}

/// Looks at rings again and again.
#[derive(Debug)]
pub struct Watcher {
    files: Vec<PathBuf>,
    /// The next record of each CPU.
    next: BTreeMap<u32, u64>,
}

impl TraceError {
    fn is_absence(&self) -> bool {
        match self {
            Self::File(error) => error.is_absence(),
            Self::Ring(_) | Self::NoRings(_) => false,
        }
    }
}

impl Watcher {
    /// Returns one that has seen nothing of `files`.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files, next: BTreeMap::new() }
    }

    /// Returns what came since the last look, and what was lost meanwhile.
    ///
    /// # Errors
    /// Every [`TraceError`]; what was seen before stays seen.
    pub fn look(&mut self) -> Result<Look, TraceError> {
        let rings = read_all(&self.files)?;
        let mut look = Look::default();
        for ring in rings {
            let next = self.next.insert(ring.cpu, ring.written()).unwrap_or(0);
            look.events.append(&mut ring.events(next));
            look.cpus.insert(ring.cpu);
        }
        // Stable: records of one CPU with the same time stay in their order.
        look.events.sort_by_key(|event| event.time);
        Ok(look)
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Ring>, TraceError> {
    let (mut all, mut cpus) = (Vec::new(), BTreeSet::new());
    for path in paths {
        for file in images(path)? {
            let name = files::name(&file);
            let mut rings = Ring::read_all(&name, &files::read(&file)?)?;
            ring::distinct(&mut cpus, &name, &rings)?;
            all.append(&mut rings);
        }
    }
    Ok(all)
}

/// Returns the files behind a path: itself, or those of a directory, in the order of CPUs.
fn images(path: &Path) -> Result<Vec<PathBuf>, TraceError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let cpu = |name: &str| name.strip_prefix("cpu").and_then(|digits| digits.parse::<u32>().ok());
    let names = files::names(path)?;
    let found: BTreeMap<u32, &String> =
        names.iter().filter_map(|name| Some((cpu(name)?, name))).collect();
    if found.is_empty() {
        return Err(TraceError::NoRings(path.to_owned()));
    }
    Ok(found.into_values().map(|name| path.join(name)).collect())
}

/// Shows the trace.
///
/// # Errors
/// A file that cannot be read, that holds no rings, or that cannot be written.
pub fn run(args: TraceArgs) -> miette::Result<()> {
    if args.follow && args.files.iter().any(|file| files::is_stdin(file)) {
        bail!("the standard input cannot be read again: --follow needs files");
    }
    let inputs =
        args.files.iter().map(|path| images(path)).collect::<Result<Vec<_>, _>>()?.concat();
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let mut watcher = Watcher::new(args.files);
    let mut look = watcher.look()?;
    look.events.retain(|event| args.filter.admits(event));
    let text = match args.export {
        None => lines(&look.events),
        Some(format) => export::write(format, &look.cpus, &look.events)?,
    };
    if let (Some(path), false) = (&args.output, args.follow) {
        return Ok(files::write(&[(path, text.as_bytes())], &inputs)?);
    }
    let mut output = match &args.output {
        Some(path) => Output::create(path, &inputs)?,
        None => Output::standard(),
    };
    if output.put(&text)?.is_break() || !args.follow {
        return Ok(());
    }
    follow(&mut watcher, &args.filter, Duration::from_millis(args.interval), &mut output)
}

/// Shows what is new until a file is gone or nobody reads.
fn follow(
    watcher: &mut Watcher,
    filter: &Filter,
    interval: Duration,
    output: &mut Output,
) -> miette::Result<()> {
    loop {
        thread::sleep(interval);
        let mut look = match watcher.look() {
            Ok(look) => look,
            Err(error) if error.is_absence() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        look.events.retain(|event| filter.admits(event));
        if let ControlFlow::Break(()) = output.put(&lines(&look.events))? {
            return Ok(());
        }
    }
}

fn lines(events: &[Event]) -> String {
    events.iter().map(|event| line::text(event) + "\n").collect()
}

#[cfg(test)]
mod tests;
