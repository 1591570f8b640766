//! Reading single TOML values: numbers, words, sets of words; every failure is a fault with a place.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::constraint::Constraint;
use super::fault::Fault;
use super::range::parse_number;

/// A TOML value and its place.
pub type Value<'t> = Spanned<DeValue<'t>>;

/// A table whose fields are asked for by name; what nobody asked for is an unknown field.
pub struct Fields<'t> {
    table: &'t DeTable<'t>,
    span: Range<usize>,
    title: String,
    asked: Vec<&'static str>,
}

impl<'t> Fields<'t> {
    /// Opens `table`; `title` names it in messages, `span` is where it starts.
    pub fn new(table: &'t DeTable<'t>, span: Range<usize>, title: impl Into<String>) -> Self {
        Self { table, span, title: title.into(), asked: Vec::new() }
    }

    /// Opens a value that must be a table.
    pub fn of(value: &'t Value<'t>, title: &str, faults: &mut Vec<Fault>) -> Option<Self> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            faults.push(wrong_type(value, title, "a table"));
        }
        table.map(|table| Self::new(table, value.span(), title))
    }

    /// Returns the field `key`, if it is there.
    pub fn get(&mut self, key: &'static str) -> Option<&'t Value<'t>> {
        self.asked.push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Returns the field `key`; its absence is a fault.
    pub fn require(&mut self, key: &'static str, faults: &mut Vec<Fault>) -> Option<&'t Value<'t>> {
        let value = self.get(key);
        if value.is_none() {
            let message = format!("{} has no `{key}`", self.title);
            faults.push(Fault::at(Constraint::MissingField, self.span.clone(), message));
        }
        value
    }

    /// Reports the fields that nobody asked for.
    pub fn finish(self, faults: &mut Vec<Fault>) {
        for (name, _) in self.table.iter() {
            let key = name.get_ref().as_ref();
            if self.asked.contains(&key) {
                continue;
            }
            let message = format!("{} has no field `{key}`", self.title);
            let mut fault = Fault::at(Constraint::UnknownField, name.span(), message);
            let known = self.asked.join(", ");
            fault.hint = Some(match closest(key, &self.asked) {
                Some(near) => format!("did you mean `{near}`? Known fields: {known}"),
                None => format!("remove it; known fields: {known}"),
            });
            faults.push(fault);
        }
    }
}

/// Returns the word that differs from `key` in a letter or two.
fn closest<'w>(key: &str, words: &[&'w str]) -> Option<&'w str> {
    let scored = words.iter().map(|word| (edit_distance(key, word), *word));
    scored.filter(|(distance, _)| *distance <= 2).min().map(|(_, word)| word)
}

fn edit_distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index.saturating_add(1));
        for (column, target) in other.bytes().enumerate() {
            let (left, above) = (row[column], row[column.saturating_add(1)]);
            let substituted = diagonal.saturating_add(usize::from(letter != target));
            diagonal = above;
            row[column.saturating_add(1)] = left.min(above).saturating_add(1).min(substituted);
        }
    }
    row.last().copied().unwrap_or_default()
}

fn wrong_type(value: &Value<'_>, what: &str, wanted: &str) -> Fault {
    let found = value.get_ref().type_str();
    let message = format!("{what} must be {wanted}, found: {found}");
    Fault::at(Constraint::BadValue, value.span(), message)
}

/// Reads a number: a TOML integer, or a string such as `"0x1000"`, `"64K"`, `"1G"`.
pub fn number(value: &Value<'_>, what: &str, faults: &mut Vec<Fault>) -> Option<u64> {
    let raw = value.get_ref();
    let read = match (raw.as_integer(), raw.as_str()) {
        (Some(integer), _) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
        (None, Some(text)) => parse_number(text),
        (None, None) => None,
    };
    if read.is_none() {
        let message = format!("`{what}` is not a number from 0 to 2^64 - 1");
        let mut fault = Fault::at(Constraint::BadValue, value.span(), message);
        fault.hint =
            Some("write an integer (4096, 0x1000) or a string (\"64K\", \"16M\", \"1G\")".into());
        faults.push(fault);
    }
    read
}

/// Reads `true` or `false`.
pub fn boolean(value: &Value<'_>, what: &str, faults: &mut Vec<Fault>) -> Option<bool> {
    let read = value.get_ref().as_bool();
    if read.is_none() {
        faults.push(wrong_type(value, &format!("`{what}`"), "true or false"));
    }
    read
}

/// Reads a string.
pub fn string<'t>(value: &'t Value<'t>, what: &str, faults: &mut Vec<Fault>) -> Option<&'t str> {
    let read = value.get_ref().as_str();
    if read.is_none() {
        faults.push(wrong_type(value, &format!("`{what}`"), "a string"));
    }
    read
}

/// Reads a list.
pub fn list<'t>(
    value: &'t Value<'t>,
    what: &str,
    faults: &mut Vec<Fault>,
) -> Option<&'t [Value<'t>]> {
    let read = value.get_ref().as_array();
    if read.is_none() {
        faults.push(wrong_type(value, &format!("`{what}`"), "a list"));
    }
    read.map(|array| &**array)
}

/// Reads one of `words` and returns what it stands for.
pub fn word<T: Copy>(
    value: &Value<'_>,
    what: &str,
    words: &[(&str, T)],
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let text = string(value, what, faults)?;
    let found = words.iter().find(|(word, _)| *word == text).map(|&(_, meaning)| meaning);
    if found.is_none() {
        let message = format!("`{what}` does not know \"{text}\"");
        let mut fault = Fault::at(Constraint::BadValue, value.span(), message);
        let known = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>();
        fault.hint = Some(format!("use {}", known.join(", ")));
        faults.push(fault);
    }
    found
}

/// Reads a list of distinct `words` as a set of bits.
pub fn word_set(
    value: &Value<'_>,
    what: &str,
    words: &[(&str, u8)],
    faults: &mut Vec<Fault>,
) -> Option<u8> {
    let mut set = Some(0);
    for item in list(value, what, faults)? {
        let bit = word(item, what, words, faults);
        if let Some((seen, bit)) = set.zip(bit)
            && seen & bit != 0
        {
            let message = format!("`{what}` repeats a word");
            faults.push(Fault::at(Constraint::Repeated, item.span(), message));
        }
        set = set.zip(bit).map(|(seen, bit)| seen | bit);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_finds_its_neighbour() {
        assert_eq!(closest("mods", &["name", "modes", "base"]), Some("modes"));
        assert_eq!(closest("perm", &["perms", "types"]), Some("perms"));
        assert_eq!(closest("colour", &["perms", "types"]), None);
    }
}
