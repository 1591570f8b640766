//! Seeded bugs: every patch of `tests/seeds` breaks the project in a way that one layer of its
//! tests must see.
//!
//! The patches are applied one after another to a copy of the tree under the build directory; what
//! is tested is what lies in the working tree, committed or not.

mod copy;
mod layer;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fmt, fs, io};

use miette::Diagnostic;
use thiserror::Error;

use self::copy::Copy;
use crate::progress::{Progress, Step};
use crate::{process, workspace};

pub use layer::{Catcher, Layer};

/// A bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// What its patch is called.
    pub name: String,
    /// What is wrong.
    pub bug: String,
    /// What must see it.
    pub catcher: Catcher,
    file: PathBuf,
}

/// Bugs to be planted, one after another.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Names; empty for all.
    pub names: Vec<String>,
    /// How to show that it goes on.
    pub progress: Progress,
}

/// What came of one bug.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The bug.
    pub seed: Seed,
    /// Whether it was seen.
    pub end: End,
    /// How long that took, builds included.
    pub took: Duration,
}

/// Whether a bug was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its layer failed.
    Caught,
    /// Its layer passed.
    Missed,
    /// The patch does not apply, or the patched tree does not build; and why.
    Stale(String),
}

/// Why there is no campaign, or what is wrong with its bugs.
#[derive(Debug, Error, Diagnostic)]
pub enum SeedError {
    /// No such bug.
    #[error("there is no seed `{0}`")]
    #[diagnostic(help("seeds: {1}"))]
    Unknown(String, String),
    /// A patch begins with something else.
    #[error("{0} does not begin with `bug: …` and `caught-by: …`")]
    #[diagnostic(help("layers: {}", layer::names()))]
    Header(String),
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    File(String, io::Error),
    /// The tests fail without any bug.
    #[error("`{0}` fails without a bug:\n{1}")]
    Unsound(String, String),
    /// Bugs that nobody saw, or that are none any more.
    #[error("not caught: {0}")]
    #[diagnostic(help("plant one alone:  cargo run -- seeds NAME"))]
    Missed(String),
}

/// Every bug of a campaign.
#[derive(Clone, Debug)]
pub struct Outcome(pub Vec<Verdict>);

impl Seed {
    /// Reads a patch: two lines that say what it is, then the diff.
    fn read(file: &Path) -> Result<Self, SeedError> {
        let text = fs::read_to_string(file).map_err(failed(file))?;
        Self::parse(file, &text).ok_or_else(|| SeedError::Header(file.display().to_string()))
    }

    fn parse(file: &Path, text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let bug = lines.next()?.strip_prefix("bug: ")?.to_owned();
        let catcher = Catcher::parse(lines.next()?.strip_prefix("caught-by: ")?)?;
        let name = file.file_stem()?.to_string_lossy().into_owned();
        Some(Self { name, bug, catcher, file: file.to_owned() })
    }

    /// Applies the patch to the tree at `root`, or, with `--check`, finds out whether it would.
    fn apply(&self, root: &Path, options: &[&str]) -> Result<(), String> {
        let mut git = Command::new("git");
        git.arg("apply").args(options).arg(&self.file).current_dir(root);
        // The tree may lie in a repository, of whose paths the patch says nothing.
        git.env("GIT_CEILING_DIRECTORIES", root.parent().unwrap_or(root));
        match process::watch(&mut git, |_| ()) {
            (true, _) => Ok(()),
            (false, lines) => Err(process::tail(&lines, 5)),
        }
    }
}

/// Returns every bug, by name.
///
/// # Errors
/// [`SeedError`] where a patch cannot be read or does not say what it is.
pub fn all() -> Result<Vec<Seed>, SeedError> {
    let folder = workspace::root().join("tests/seeds");
    let mut files = Vec::new();
    for file in fs::read_dir(&folder).map_err(failed(&folder))? {
        files.push(file.map_err(failed(&folder))?.path());
    }
    files.sort();
    files.iter().map(|file| Seed::read(file)).collect()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> SeedError {
    move |cause| SeedError::File(path.display().to_string(), cause)
}

impl Campaign {
    /// Plants each bug in a fresh copy of the tree.
    ///
    /// # Errors
    /// [`SeedError`] where the campaign cannot begin. What became of the bugs is in the outcome.
    pub fn run(&self) -> Result<Outcome, SeedError> {
        let seeds = self.chosen()?;
        let copy = Copy::of_tree()?;
        self.check_sound(&copy, &seeds)?;
        let verdicts = seeds.into_iter().map(|seed| {
            copy.restore()?;
            Ok(self.plant(&copy, seed))
        });
        verdicts.collect::<Result<_, _>>().map(Outcome)
    }

    fn chosen(&self) -> Result<Vec<Seed>, SeedError> {
        let seeds = all()?;
        let known = |name: &String| seeds.iter().any(|seed| seed.name == *name);
        if let Some(unknown) = self.names.iter().find(|name| !known(name)) {
            let names: Vec<_> = seeds.iter().map(|seed| seed.name.as_str()).collect();
            return Err(SeedError::Unknown(unknown.clone(), names.join(", ")));
        }
        let wanted = |seed: &Seed| self.names.is_empty() || self.names.contains(&seed.name);
        Ok(seeds.into_iter().filter(wanted).collect())
    }

    /// A layer that fails anyway catches nothing.
    fn check_sound(&self, copy: &Copy, seeds: &[Seed]) -> Result<(), SeedError> {
        copy.restore()?;
        let mut catchers: Vec<&Catcher> = Vec::new();
        for Seed { catcher, .. } in seeds {
            if !catchers.contains(&catcher) {
                catchers.push(catcher);
            }
        }
        for catcher in catchers {
            let mut step = self.progress.step(&format!("without a bug: {catcher}"));
            for mut command in [catcher.build(), catcher.run()] {
                watch(copy.prepare(&mut command), &mut step)
                    .map_err(|why| SeedError::Unsound(process::show(&command), why))?;
            }
            step.done("");
        }
        Ok(())
    }

    fn plant(&self, copy: &Copy, seed: Seed) -> Verdict {
        let mut step = self.progress.step(&seed.name);
        let started = Instant::now();
        let ready = seed.apply(copy.root(), &[]).and_then(|()| {
            let mut build = seed.catcher.build();
            watch(copy.prepare(&mut build), &mut step)
        });
        let end = match ready {
            Err(why) => End::Stale(why),
            Ok(()) => match watch(copy.prepare(&mut seed.catcher.run()), &mut step) {
                Ok(()) => End::Missed,
                Err(_) => End::Caught,
            },
        };
        // A step that is not done is shown as failed.
        if end == End::Caught {
            step.done(end.word());
        }
        Verdict { seed, end, took: started.elapsed() }
    }
}

fn watch(command: &mut Command, step: &mut Step) -> Result<(), String> {
    match process::watch(command, |line| step.note(line)) {
        (true, _) => Ok(()),
        (false, lines) => Err(process::tail(&lines, 20)),
    }
}

impl End {
    fn word(&self) -> &'static str {
        match self {
            Self::Caught => "caught",
            Self::Missed => "MISSED",
            Self::Stale(_) => "STALE",
        }
    }
}

impl Outcome {
    /// Checks that every bug was caught.
    ///
    /// # Errors
    /// [`SeedError::Missed`] with those that were not.
    pub fn check(&self) -> Result<(), SeedError> {
        let missed: Vec<_> = self.0.iter().filter(|verdict| verdict.end != End::Caught).collect();
        if missed.is_empty() {
            return Ok(());
        }
        let told = missed.iter().map(|Verdict { seed, end, .. }| match end {
            End::Caught | End::Missed => seed.name.clone(),
            End::Stale(why) => format!("{} is stale:\n{why}", seed.name),
        });
        Err(SeedError::Missed(told.collect::<Vec<_>>().join(", ")))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|verdict| verdict.seed.name.len()).max().unwrap_or(0);
        writeln!(f, "{:width$}  {:<9}  verdict  seconds  bug", "seed", "layer")?;
        for Verdict { seed, end, took } in &self.0 {
            let (layer, seconds) = (seed.catcher.layer.name(), took.as_secs());
            let (name, word, bug) = (&seed.name, end.word(), &seed.bug);
            writeln!(f, "{name:width$}  {layer:<9}  {word:<7}  {seconds:>7}  {bug}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_says_what_it_is_and_applies_to_the_tree() {
        let seeds = all().unwrap();
        assert!(seeds.len() >= 25, "{}", seeds.len());
        for seed in seeds {
            assert_eq!(seed.apply(workspace::root(), &["--check"]), Ok(()), "{}", seed.name);
        }
    }

    #[test]
    fn every_layer_has_something_to_catch() {
        let seeds = all().unwrap();
        for layer in Layer::ALL {
            assert!(seeds.iter().any(|seed| seed.catcher.layer == *layer), "{}", layer.name());
        }
    }

    #[test]
    fn a_patch_that_does_not_say_who_catches_it_is_refused() {
        let parse = |text| Seed::parse(Path::new("a.patch"), text);
        assert_eq!(parse("bug: b\ncaught-by: unit\n").map(|seed| seed.name), Some("a".to_owned()));
        assert_eq!(parse("bug: b\ncaught-by: luck\n"), None);
        assert_eq!(parse("caught-by: unit\nbug: b\n"), None);
    }

    #[test]
    fn only_a_campaign_without_survivors_passes() {
        let seed = Seed::parse(Path::new("a.patch"), "bug: b\ncaught-by: unit\n").unwrap();
        let outcome =
            |end| Outcome(vec![Verdict { seed: seed.clone(), end, took: Duration::ZERO }]);
        assert!(outcome(End::Caught).check().is_ok());
        assert!(outcome(End::Missed).check().is_err());
        assert!(outcome(End::Stale(String::new())).check().is_err());
    }
}
