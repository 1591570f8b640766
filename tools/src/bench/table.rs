//! The table, for the terminal and for the document.

use super::rows::{SPECS, Sample, Samples, Spec, Unit};

/// Titles of the columns.
const TITLES: [&str; 7] =
    ["what", "measured", "most", "target", "pKVM 7.2.13", "pKVM 6.12", "verdict"];
/// Starts the part of the document that is written.
const BEGIN: &str = "<!-- begin: table, written by `cargo run -- bench --write` -->";
/// Ends it.
const END: &str = "<!-- end: table -->";

/// What came of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As good as the target or better.
    Met,
    /// Worse.
    Missed,
    /// There is no target.
    Reported,
    /// The run said nothing of it.
    Absent,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Met => "ok",
            Self::Missed => "MISSED",
            Self::Reported => "-",
            Self::Absent => "ABSENT",
        }
    }
}

/// Returns what came of the row `spec`.
pub fn verdict(spec: &Spec, samples: &Samples) -> Verdict {
    match (samples.get(spec.name), spec.target) {
        (None, _) => Verdict::Absent,
        (Some(_), None) => Verdict::Reported,
        (Some(sample), Some(target)) if sample.meets(target) => Verdict::Met,
        (Some(_), Some(_)) => Verdict::Missed,
    }
}

fn cells(spec: &Spec, samples: &Samples) -> [String; 7] {
    let sample = samples.get(spec.name);
    let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    let shown = |part: fn(&Sample) -> u64| {
        sample.map_or("-".to_owned(), |sample| per_item(spec.unit, part(sample), sample.items))
    };
    [
        format!("{}{}", spec.title, unit(spec.unit)),
        shown(|sample| sample.least),
        shown(|sample| sample.most),
        number(spec.target),
        number(spec.linux[0]),
        number(spec.linux[1]),
        verdict(spec, samples).word().to_owned(),
    ]
}

const fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Call => "",
        Unit::Page => ", per page",
        Unit::Item => ", per item",
        Unit::Tables => ", pages",
        Unit::FrameBytes => ", bytes per frame",
        Unit::ImageBytes => ", bytes",
    }
}

fn per_item(unit: Unit, total: u64, items: u64) -> String {
    match unit {
        Unit::Call | Unit::Tables | Unit::ImageBytes => total.to_string(),
        Unit::Page | Unit::Item | Unit::FrameBytes => {
            // Rounded up: what is shown as the target has met it.
            let tenths = total.saturating_mul(10).div_ceil(items);
            format!("{}.{}", tenths / 10, tenths % 10)
        }
    }
}

fn rows(samples: &Samples) -> Vec<[String; 7]> {
    let titles = std::iter::once(TITLES.map(str::to_owned));
    titles.chain(SPECS.iter().map(|spec| cells(spec, samples))).collect()
}

/// Renders the table for the terminal.
pub fn plain(samples: &Samples) -> String {
    render(&rows(samples), ["", "  ", ""])
}

fn markdown(samples: &Samples) -> String {
    render(&rows(samples), ["| ", " | ", " |"])
}

/// Renders rows; `[before, between, behind]` the cells.
fn render(rows: &[[String; 7]], [before, between, behind]: [&str; 3]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(&format!("{before}{}{behind}\n", cells.join(between)));
        if index == 0 {
            let rule = widths.map(|width| "-".repeat(width)).join(between);
            text.push_str(&format!("{before}{rule}{behind}\n"));
        }
    }
    text
}

/// Returns `document` with the table in its marked section, or `None` where it has none.
pub fn insert(document: &str, samples: &Samples) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}{END}{after}", markdown(samples)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(entries: &[(&str, u64, u64)]) -> Samples {
        let sample = |least, items| Sample { calls: 1, items, least, most: least };
        entries
            .iter()
            .map(|&(name, least, items)| (name.to_owned(), sample(least, items)))
            .collect()
    }

    fn spec(name: &str) -> &'static Spec {
        SPECS.iter().find(|spec| spec.name == name).unwrap()
    }

    #[test]
    fn a_row_is_met_missed_or_absent() {
        let samples = samples(&[("unknown-call", 75, 1), ("share-hyp", 201, 1), ("empty", 2, 1)]);
        assert_eq!(verdict(spec("unknown-call"), &samples), Verdict::Met);
        assert_eq!(verdict(spec("share-hyp"), &samples), Verdict::Missed);
        assert_eq!(verdict(spec("empty"), &samples), Verdict::Reported);
        assert_eq!(verdict(spec("check-64"), &samples), Verdict::Absent);
    }

    #[test]
    fn shares_are_rounded_up_to_a_tenth() {
        assert_eq!(per_item(Unit::Page, 512 * 60 + 1, 512), "60.1");
        assert_eq!(per_item(Unit::Item, 64 * 150, 64), "150.0");
        assert_eq!(per_item(Unit::Call, 200, 1), "200");
    }

    #[test]
    fn only_the_marked_section_of_the_document_changes() {
        let document = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let written = insert(&document, &samples(&[("empty", 2, 1)])).unwrap();
        assert!(written.starts_with(&format!("a\n{BEGIN}\n| what")));
        assert!(written.ends_with(&format!("|\n{END}\nb\n")) && !written.contains("old"));
        assert_eq!(insert(&written, &samples(&[("empty", 2, 1)])), Some(written));
        assert_eq!(insert("none", &Samples::new()), None);
    }
}
