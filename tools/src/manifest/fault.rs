//! Errors in a text manifest, with the places that they are about.

use std::fmt;
use std::ops::Range;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

use super::constraint::Constraint;

/// A place in the text and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Bytes of the text.
    pub span: Range<usize>,
    /// What the reader sees at the arrow.
    pub text: String,
}

/// One error of a text manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The constraint that does not hold.
    pub constraint: Constraint,
    /// What was found.
    pub message: String,
    /// What to do; the constraint's own hint where this is `None`.
    pub hint: Option<String>,
    /// Where: the place to change first. Empty where the text has no such place.
    pub labels: Vec<Label>,
}

impl Fault {
    /// Returns a fault at one place.
    pub fn at(constraint: Constraint, span: Range<usize>, message: impl Into<String>) -> Self {
        let label = Label { span, text: "here".to_owned() };
        Self { constraint, message: message.into(), hint: None, labels: vec![label] }
    }

    /// Returns the first byte of the text that the fault is about.
    pub fn position(&self) -> usize {
        self.labels.first().map_or(0, |label| label.span.start)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl Diagnostic for Fault {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.constraint))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.hint.as_deref().unwrap_or(self.constraint.hint())))
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labels = self.labels.iter().enumerate().map(|(index, label)| {
            let text = Some(label.text.clone());
            match index {
                0 => LabeledSpan::new_primary_with_span(text, label.span.clone()),
                1.. => LabeledSpan::new_with_span(text, label.span.clone()),
            }
        });
        Some(Box::new(labels))
    }
}

/// Everything that is wrong with one text manifest.
#[derive(Debug)]
pub struct Refusal {
    source: NamedSource<String>,
    faults: Vec<Fault>,
}

impl Refusal {
    /// Returns the refusal of the text `source` of file `name`, in the order of the text.
    pub fn new(name: &str, source: &str, mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(Fault::position);
        Self { source: NamedSource::new(name, source.to_owned()), faults }
    }

    /// Returns the errors, in the order of the text.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Returns line and column of a fault's first place, both from 1.
    pub fn line_column(&self, fault: &Fault) -> (usize, usize) {
        let before = self.source.inner().get(..fault.position()).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
        let column = before.get(line_start..).unwrap_or_default().chars().count();
        (before.matches('\n').count().saturating_add(1), column.saturating_add(1))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, name) = (self.faults.len(), self.source.name());
        write!(f, "{name}: {count} error{}, no manifest", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for Refusal {}

impl Diagnostic for Refusal {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.faults.iter().map(|fault| {
            let diagnostic: &dyn Diagnostic = fault;
            diagnostic
        })))
    }
}
