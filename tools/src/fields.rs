//! Lines of `word key=value key=value …`, fields separated by single spaces: what a machine says on
//! its serial line, and what the kernel module says of the machine.

use std::collections::HashMap;

use thiserror::Error;

/// Why a line could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LineError {
    /// The line's first word is none of its format's.
    #[error("unknown line `{0}`")]
    UnknownWord(String),
    /// A field is not `key=value`.
    #[error("`{0}` is not a key=value field")]
    NotAField(String),
    /// A field is given twice.
    #[error("field `{0}` is given twice")]
    Twice(String),
    /// A field is missing.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field's value is not what the field holds.
    #[error("field `{key}` cannot be `{value}`")]
    BadValue {
        /// The field.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

/// The fields of one line, by key.
#[derive(Debug)]
pub struct Fields<'a>(HashMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    /// Reads the words behind a line's first one.
    ///
    /// # Errors
    /// [`LineError::NotAField`], [`LineError::Twice`].
    pub fn read(words: impl Iterator<Item = &'a str>) -> Result<Self, LineError> {
        let mut fields = HashMap::new();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return Err(LineError::NotAField(word.to_owned()));
            };
            if fields.insert(key, value).is_some() {
                return Err(LineError::Twice(key.to_owned()));
            }
        }
        Ok(Self(fields))
    }

    /// Returns a field as it is.
    ///
    /// # Errors
    /// [`LineError::Missing`].
    pub fn text(&self, key: &'static str) -> Result<&'a str, LineError> {
        self.0.get(key).copied().ok_or(LineError::Missing(key))
    }

    /// Reads a field with `decode`; its `None` is a bad value.
    ///
    /// # Errors
    /// [`LineError::Missing`], [`LineError::BadValue`].
    pub fn with<T>(
        &self,
        key: &'static str,
        decode: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, LineError> {
        let value = self.text(key)?;
        decode(value).ok_or_else(|| LineError::BadValue { key, value: value.to_owned() })
    }

    /// Reads a number that fits into a `T`.
    ///
    /// # Errors
    /// [`LineError::Missing`], [`LineError::BadValue`].
    pub fn number<T: TryFrom<u64>>(&self, key: &'static str) -> Result<T, LineError> {
        self.with(key, |value| T::try_from(number(value)?).ok())
    }

    /// Reads a number, or `-` for none.
    ///
    /// # Errors
    /// [`LineError::Missing`], [`LineError::BadValue`].
    pub fn option(&self, key: &'static str) -> Result<Option<u64>, LineError> {
        self.with(key, |value| if value == "-" { Some(None) } else { number(value).map(Some) })
    }
}

/// Reads `0x…` or decimal.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
