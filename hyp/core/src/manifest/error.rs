//! Why a manifest is refused: one line for the console, with the entry and the reason.

use core::fmt;

use super::{Constraint, Label};

/// Refusal of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The constraint that does not hold.
    pub constraint: Constraint,
    /// The entry, or `None` for the file as a whole.
    pub place: Option<Place>,
    /// The values.
    pub fact: Fact,
}

/// An entry of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its index, from 0.
    pub index: usize,
    /// Its name; empty where that is garbled.
    pub name: Label,
}

/// Values that explain a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The constraint says it all.
    None,
    /// The value that was found.
    Value(u64),
    /// The value that was found, and the one that it has to fit.
    Beside(u64, u64),
    /// Index of the other entry.
    Other(usize),
}

impl ManifestError {
    pub(super) fn of_file(constraint: Constraint, fact: Fact) -> Self {
        Self { constraint, place: None, fact }
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { index, name }) = &self.place {
            write!(f, "entry {index} \"{name}\": ")?;
        }
        f.write_str(self.constraint.broken())?;
        match self.fact {
            Fact::None => {}
            Fact::Value(found) => write!(f, ": {found:#x}")?,
            Fact::Beside(found, needed) => write!(f, ": {found:#x} beside {needed:#x}")?,
            Fact::Other(index) => write!(f, ": see entry {index}")?,
        }
        write!(f, " ({}, {})", self.constraint.rule().name(), self.constraint.id())
    }
}

impl core::error::Error for ManifestError {}
