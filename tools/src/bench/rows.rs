//! What is measured: each row's title, unit, target, and what Linux pKVM takes for the same.

use std::collections::BTreeMap;

use thiserror::Error;

/// What a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Instructions, from the clock read before the call to the clock read behind it.
    Call,
    /// As [`Self::Call`], divided by the pages of the call.
    Page,
    /// As [`Self::Call`], divided by the items of the batch.
    Item,
    /// Pages of table memory.
    Tables,
    /// Bytes for each frame of RAM.
    FrameBytes,
    /// Bytes of the payload's image.
    ImageBytes,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// How the bare-metal host calls it.
    pub name: &'static str,
    /// How people call it.
    pub title: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// The most that is good enough, in the unit; `None` for what is only reported.
    pub target: Option<u64>,
    /// Instructions of Linux 7.2.13 and of Linux 6.12 with pKVM, measured the same way on the same
    /// machine model; `None` where it has no such call.
    pub linux: [Option<u64>; 2],
}

impl Spec {
    const fn new(name: &'static str, title: &'static str, unit: Unit, target: u64) -> Self {
        Self { name, title, unit, target: Some(target), linux: [None; 2] }
    }

    const fn reported(name: &'static str, title: &'static str, unit: Unit) -> Self {
        Self { name, title, unit, target: None, linux: [None; 2] }
    }

    const fn beside(self, linux: [Option<u64>; 2]) -> Self {
        Self { linux, ..self }
    }
}

/// Name of the row about the image: `tools` measures it, not the bare-metal host.
pub const IMAGE: &str = "text-rodata";

/// The table, top to bottom.
pub const SPECS: &[Spec] = &[
    Spec::reported("empty", "nothing: the cost of measuring", Unit::Call),
    Spec::new("unknown-call", "unknown call", Unit::Call, 75).beside([Some(151), Some(151)]),
    Spec::new("share-hyp", "share a page with the hypervisor", Unit::Call, 200)
        .beside([Some(293), Some(2237)]),
    Spec::new("unshare-hyp", "unshare it", Unit::Call, 200).beside([Some(296), Some(2403)]),
    Spec::new("share-guest", "share a page with a guest", Unit::Call, 800),
    Spec::new("unshare-guest", "unshare it", Unit::Call, 800),
    Spec::new("donate-guest", "donate a page to a guest", Unit::Call, 800),
    Spec::new("reclaim-guest", "reclaim it", Unit::Call, 800),
    Spec::new("donate-protected", "donate a page to a protected guest", Unit::Call, 800),
    Spec::new("reclaim-protected", "reclaim it, zeroed", Unit::Call, 800),
    Spec::new("share-hyp-512", "share 512 pages with the hypervisor", Unit::Page, 60),
    Spec::new("unshare-hyp-512", "unshare them", Unit::Page, 60),
    Spec::new("donate-guest-512", "donate 512 pages, as pages", Unit::Page, 60),
    Spec::new("reclaim-guest-512", "reclaim them", Unit::Page, 60),
    Spec::new("donate-guest-2m", "donate 512 pages, as one block", Unit::Page, 60),
    Spec::new("reclaim-guest-2m", "reclaim them", Unit::Page, 60),
    Spec::new("donate-protected-512", "donate 512 pages to a protected guest", Unit::Page, 60),
    Spec::reported("reclaim-protected-512", "reclaim them, zeroed", Unit::Page),
    Spec::new("bind-share-1g", "bind and map 1 GiB, shared", Unit::Call, 1500),
    Spec::reported("unbind-share-1g", "unbind it", Unit::Call),
    Spec::new("bind-donate-1g", "bind and map 1 GiB, donated", Unit::Call, 1500),
    Spec::reported("unbind-donate-1g", "unbind it", Unit::Call),
    Spec::new("bind-1g-tables", "tables for 1 GiB beyond the root", Unit::Tables, 0),
    Spec::new("check-64", "CHECK of 64, all granted", Unit::Item, 150),
    Spec::new("check-64-refused", "CHECK of 64, all refused", Unit::Item, 150),
    Spec::new("vmemmap", "state of RAM", Unit::FrameBytes, 4),
    Spec::new(IMAGE, "payload, text and rodata", Unit::ImageBytes, 192 << 10),
];

/// What was measured for one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Calls measured; not zero.
    pub calls: u64,
    /// What one call handles; not zero.
    pub items: u64,
    /// Of the cheapest call.
    pub least: u64,
    /// Of the dearest call.
    pub most: u64,
}

impl Sample {
    /// Returns whether the cheapest call keeps to `target` an item.
    pub fn meets(&self, target: u64) -> bool {
        target.checked_mul(self.items).is_none_or(|most| self.least <= most)
    }
}

/// Samples by row.
pub type Samples = BTreeMap<String, Sample>;

/// Why a `@bench` line is none.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("malformed line `{0}`")]
pub struct Malformed(String);

/// Splits a log into samples and all other lines.
///
/// # Errors
/// The first `@bench` line that is not `name=… calls=… items=… least=… most=…`.
pub fn read(log: &[String]) -> Result<(Samples, Vec<String>), Malformed> {
    let (mut samples, mut rest) = (Samples::new(), Vec::new());
    for line in log {
        match line.strip_prefix("@bench ") {
            Some(fields) => {
                let (name, sample) = parse(fields).ok_or_else(|| Malformed(line.clone()))?;
                samples.insert(name, sample);
            }
            None => rest.push(line.clone()),
        }
    }
    Ok((samples, rest))
}

fn parse(fields: &str) -> Option<(String, Sample)> {
    let mut words = fields.trim_end().split(' ');
    let mut field = |key| words.next()?.strip_prefix(key)?.strip_prefix('=');
    let name = field("name")?.to_owned();
    let [calls, items, least, most] =
        ["calls", "items", "least", "most"].map(|key| field(key)?.parse().ok());
    let sample = Sample { calls: calls?, items: items?, least: least?, most: most? };
    (sample.calls > 0 && sample.items > 0 && words.next().is_none()).then_some((name, sample))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn samples_are_told_from_the_rest() {
        let line = "@bench name=share-hyp calls=512 items=1 least=190 most=200";
        let (samples, rest) = read(&log(&["[hyp] hello", line, "@end passed=1 failed=0"])).unwrap();
        assert_eq!(samples["share-hyp"], Sample { calls: 512, items: 1, least: 190, most: 200 });
        assert_eq!(rest, ["[hyp] hello", "@end passed=1 failed=0"]);
    }

    #[test]
    fn a_line_with_other_fields_is_an_error() {
        for line in [
            "@bench name=a calls=1 items=1 least=1",
            "@bench name=a calls=1 items=0 least=1 most=1",
            "@bench name=a calls=1 items=1 least=1 most=1 more=1",
            "@bench name=a calls=x items=1 least=1 most=1",
        ] {
            assert_eq!(read(&log(&[line])), Err(Malformed(line.to_owned())));
        }
    }

    #[test]
    fn a_target_is_for_each_item() {
        let sample = Sample { calls: 1, items: 64, least: 64 * 150, most: u64::MAX };
        assert!(sample.meets(150));
        assert!(!Sample { least: 64 * 150 + 1, ..sample }.meets(150));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = SPECS.iter().map(|spec| spec.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SPECS.len());
    }
}
