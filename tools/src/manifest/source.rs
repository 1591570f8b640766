//! A manifest between text and binary: entries that know where they were written.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pfnguard_shared::manifest::{Entry, Header, PlatformFlags};

use super::check::{check, check_ram};
use super::constraint::Constraint;
use super::fault::{Fault, Label};
use super::range::PhysRange;
use super::violation::{Field, Place, Violation, display_name};

/// One region and the places of its fields.
#[derive(Clone, Debug)]
pub struct Region {
    /// The entry as the binary will have it; fields that could not be read have their default.
    pub entry: Entry,
    /// Where each field was written; fields left out are not here.
    pub spans: BTreeMap<Field, Range<usize>>,
    /// Where the region starts; `None` for a region that no text contains.
    pub start: Option<Range<usize>>,
    /// Fields that were written but could not be read: what depends on them is not judged.
    pub unread: BTreeSet<Field>,
    /// What a reader of the text should know, for derived regions.
    pub comment: String,
}

impl Region {
    /// Returns a region without text.
    pub fn without_text(entry: Entry, comment: String) -> Self {
        let (spans, unread) = (BTreeMap::new(), BTreeSet::new());
        Self { entry, spans, start: None, unread, comment }
    }

    /// Returns the range of the region.
    pub fn range(&self) -> PhysRange {
        PhysRange::of(&self.entry)
    }

    /// Returns the place of a field, or of the region where the field was left out.
    pub fn label(&self, field: Field) -> Option<Label> {
        let name = display_name(&self.entry);
        let key = field.key();
        if let Some(span) = self.spans.get(&field) {
            return Some(Label { span: span.clone(), text: format!("`{key}` of `{name}`") });
        }
        // What a reset lacks is missing there, not in the region.
        let reset = self.spans.get(&Field::Reset).filter(|_| field.is_of_reset());
        let span = reset.or(self.start.as_ref())?.clone();
        Some(Label { span, text: format!("`{name}` has no `{key}`") })
    }
}

/// A range of RAM and where it was written.
#[derive(Clone, Debug)]
pub struct Ram {
    /// The range.
    pub range: PhysRange,
    /// Place of its base; `None` for RAM that the device tree names.
    pub span: Option<Range<usize>>,
}

/// A whole manifest.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Name of the platform, for people; empty where it was left out.
    pub platform: String,
    /// Facts about the platform.
    pub flags: PlatformFlags,
    /// Known RAM.
    pub ram: Vec<Ram>,
    /// Regions, in the order of their base once `sort` was called.
    pub regions: Vec<Region>,
}

impl Manifest {
    /// Sorts the regions the way the binary has them.
    pub fn sort(&mut self) {
        self.regions.sort_by_key(|region| region.entry.base);
    }

    /// Returns the entries.
    pub fn entries(&self) -> Vec<Entry> {
        self.regions.iter().map(|region| region.entry).collect()
    }

    /// Returns every constraint that the manifest breaks, with places.
    pub fn judge(&self) -> Vec<Fault> {
        let mut header = Header::zeroed();
        header.flags = self.flags.raw();
        let entries = self.entries();
        let ram = self.ram.iter().map(|ram| ram.range).collect::<Vec<_>>();
        let mut violations = check(&header, &entries);
        violations.extend(check_ram(&entries, &ram));
        let readable = violations.iter().filter(|violation| !self.depends_on_unread(violation));
        readable.map(|violation| self.locate(violation)).collect()
    }

    fn region(&self, place: Place) -> Option<&Region> {
        self.regions.get(place.entry)
    }

    // An error about a field that could not be read was reported already: no second one.
    fn depends_on_unread(&self, violation: &Violation) -> bool {
        if violation.constraint == Constraint::ResetInside
            && self.regions.iter().any(|region| {
                [Field::Base, Field::Size, Field::Class].iter().any(|f| region.unread.contains(f))
            })
        {
            return true;
        }
        violation.places.iter().any(|&place| {
            self.region(place).is_some_and(|region| region.unread.contains(&place.field))
        })
    }

    fn locate(&self, violation: &Violation) -> Fault {
        let mut labels: Vec<Label> = Vec::new();
        for &place in &violation.places {
            let label = self.region(place).and_then(|region| region.label(place.field));
            let new = label.filter(|new| labels.iter().all(|old| old.span != new.span));
            labels.extend(new);
        }
        if violation.constraint == Constraint::Ram {
            labels.extend(self.ram_label(violation));
        }
        Fault {
            constraint: violation.constraint,
            message: violation.fact.clone(),
            hint: None,
            labels,
        }
    }

    fn ram_label(&self, violation: &Violation) -> Option<Label> {
        let region = self.region(*violation.places.first()?)?;
        let hit = self.ram.iter().find(|ram| ram.range.overlaps(region.range()))?;
        Some(Label { span: hit.span.clone()?, text: "RAM starts here".to_owned() })
    }
}
