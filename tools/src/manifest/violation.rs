//! What the checker finds: a constraint that does not hold, the facts, and the places.

use std::fmt;

use pfnguard_shared::manifest::Entry;

use super::constraint::Constraint;

/// A field of an entry, by the name it has in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `name`.
    Name,
    /// `base`.
    Base,
    /// `size`.
    Size,
    /// `class`.
    Class,
    /// `modes`.
    Modes,
    /// `types`.
    Types,
    /// `perms`.
    Perms,
    /// `max_vms`.
    MaxVms,
    /// `blocks`.
    Blocks,
    /// `closed`.
    Closed,
    /// `nc_safe`.
    NcSafe,
    /// `cmo_by_address`.
    CmoByAddress,
    /// `tags`.
    Tags,
    /// `exclusives`.
    Exclusives,
    /// `atomics`.
    Atomics,
    /// `zero_on_return`.
    ZeroOnReturn,
    /// `quirk`.
    Quirk,
    /// `reset`.
    Reset,
    /// `reset.register`.
    ResetRegister,
    /// `reset.width`.
    ResetWidth,
    /// `reset.mask`.
    ResetMask,
    /// `reset.value`.
    ResetValue,
    /// `reset.bound`.
    ResetBound,
    /// `streams`.
    Streams,
    /// Bytes that no field of the text reaches.
    Reserved,
}

impl Field {
    /// Returns the name in the text.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Base => "base",
            Self::Size => "size",
            Self::Class => "class",
            Self::Modes => "modes",
            Self::Types => "types",
            Self::Perms => "perms",
            Self::MaxVms => "max_vms",
            Self::Blocks => "blocks",
            Self::Closed => "closed",
            Self::NcSafe => "nc_safe",
            Self::CmoByAddress => "cmo_by_address",
            Self::Tags => "tags",
            Self::Exclusives => "exclusives",
            Self::Atomics => "atomics",
            Self::ZeroOnReturn => "zero_on_return",
            Self::Quirk => "quirk",
            Self::Reset => "reset",
            Self::ResetRegister => "register",
            Self::ResetWidth => "width",
            Self::ResetMask => "mask",
            Self::ResetValue => "value",
            Self::ResetBound => "bound",
            Self::Streams => "streams",
            Self::Reserved => "reserved bytes",
        }
    }

    /// Returns whether the field lies inside the table `reset`.
    pub const fn is_of_reset(self) -> bool {
        match self {
            Self::ResetRegister
            | Self::ResetWidth
            | Self::ResetMask
            | Self::ResetValue
            | Self::ResetBound => true,
            Self::Name
            | Self::Base
            | Self::Size
            | Self::Class
            | Self::Modes
            | Self::Types
            | Self::Perms
            | Self::MaxVms
            | Self::Blocks
            | Self::Closed
            | Self::NcSafe
            | Self::CmoByAddress
            | Self::Tags
            | Self::Exclusives
            | Self::Atomics
            | Self::ZeroOnReturn
            | Self::Quirk
            | Self::Reset
            | Self::Streams
            | Self::Reserved => false,
        }
    }
}

/// A field of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the entry.
    pub entry: usize,
    /// Its field.
    pub field: Field,
}

/// One constraint that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The constraint.
    pub constraint: Constraint,
    /// What was found, naming the entries.
    pub fact: String,
    /// Where: first the field to change, then the fields that it contradicts; empty for the header.
    pub places: Vec<Place>,
}

impl Violation {
    /// Returns a violation of the file as a whole.
    pub fn of_file(constraint: Constraint, fact: impl Into<String>) -> Self {
        Self { constraint, fact: fact.into(), places: Vec::new() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.constraint, self.fact)?;
        match self.places.first() {
            Some(place) => write!(f, " (entry {}, {})", place.entry, place.field.key()),
            None => Ok(()),
        }
    }
}

/// Returns the zero-padded text of a fixed field, or `None` if it is not UTF-8 or has bytes after
/// the padding.
pub fn padded_text(bytes: &[u8; 32]) -> Option<&str> {
    let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (text, padding) = bytes.split_at_checked(length)?;
    if padding.iter().any(|&byte| byte != 0) {
        return None;
    }
    std::str::from_utf8(text).ok()
}

/// Returns the name of an entry for messages, whatever its bytes are.
pub fn display_name(entry: &Entry) -> String {
    let text = String::from_utf8_lossy(&entry.name);
    text.trim_end_matches('\0').escape_debug().to_string()
}
