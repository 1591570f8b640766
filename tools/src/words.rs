//! Numbers of the ABI in words: what was asked for, what was granted, what a refusal is about.

use std::fmt::Display;

use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::request::{HostAlias, MemTypes, Modes, Perms, RequestFlags};
use pfnguard_shared::vm::{PageState, VmState};
use pfnguard_shared::{Constant, MemType, Mode, Subject};

/// Says what a refusal is about: what was asked for or needed, and what was granted or there.
pub fn explain(subject: Subject, requested: u64, granted: u64) -> String {
    let (left, right) = (value(subject, requested), value(subject, granted));
    match subject {
        Subject::None => String::new(),
        Subject::Function => format!("function {left}"),
        Subject::Argument => format!("argument {left} is at most {right}"),
        Subject::Modes => format!("mode {left}, granted {right}"),
        Subject::Types => format!("type {left}, granted {right}"),
        Subject::Permissions => format!("permissions {left}, granted {right}"),
        Subject::Holders => format!("{left} VMs would hold it, {right} may"),
        Subject::Pages if granted == 0 => "not in the manifest".to_owned(),
        Subject::Pages => format!("{left} pages, at most {right}"),
        Subject::PageState => format!("the page must be {left} and is {right}"),
        Subject::RegionState => format!("the region must be {left} and is {right}"),
        Subject::Capabilities => format!("the platform needs {left} and has {right}"),
        Subject::RegionFlags => format!("the entry needs {left} and has {right}"),
        Subject::RequestFlags => format!("asked for {left}, accepted {right}"),
        Subject::HostAlias => format!("the host's mapping is {left} and must be {right}"),
        Subject::Object => format!("object {left} of {right}"),
        Subject::ObjectState if requested == granted => "the VM's contract forbids it".to_owned(),
        Subject::ObjectState => format!("the VM must be {left} and is {right}"),
        Subject::Tables => format!("{left} table pages needed, {right} left"),
        Subject::Ipa => format!("IPA page {left} is taken or beyond {right}"),
        Subject::Entry => format!("starts in entry {left} and ends in entry {right}"),
        Subject::Streams => format!("{left} stream IDs are neither translated nor blocked"),
    }
}

/// Counts things: `1 entry`, `2 entries`.
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, one: &str, more: &str) -> String {
    let noun = if count == N::from(1) { one } else { more };
    format!("{count} {noun}")
}

/// Writes one value of a refusal.
fn value(subject: Subject, value: u64) -> String {
    match subject {
        Subject::Modes => bits(Modes::CONSTANTS, value, camel),
        Subject::Types => bits(MemTypes::CONSTANTS, value, camel),
        Subject::Permissions => permissions(value),
        Subject::Capabilities => bits(Capabilities::CONSTANTS, value, str::to_owned),
        Subject::RegionFlags => bits(RegionFlags::CONSTANTS, value, str::to_owned),
        Subject::RequestFlags => bits(RequestFlags::CONSTANTS, value, str::to_owned),
        Subject::PageState => number(PageState::CONSTANTS, value),
        Subject::RegionState => number(RegionState::CONSTANTS, value),
        Subject::HostAlias => number(HostAlias::CONSTANTS, value),
        Subject::ObjectState => number(VmState::CONSTANTS, value),
        Subject::None | Subject::Function | Subject::Ipa => format!("{value:#x}"),
        Subject::Argument
        | Subject::Holders
        | Subject::Pages
        | Subject::Object
        | Subject::Tables
        | Subject::Entry
        | Subject::Streams => value.to_string(),
    }
}

/// Writes permissions as letters.
pub fn letters(perms: Perms) -> String {
    permissions(perms.raw().into())
}

/// Writes what was asked for.
pub fn request(mode: Mode, mem_type: MemType, perms: Perms) -> String {
    format!("{:<6} {:<11} {:<2}", mode.name(), mem_type.name(), letters(perms))
}

/// Writes permissions as letters, whatever is set beside them.
pub fn permissions(value: u64) -> String {
    let letter = |name: &str| name.chars().next().map_or('?', |c| if c == 'E' { 'X' } else { c });
    let set = Perms::CONSTANTS.iter().filter(|bit| is_set(value, bit));
    let letters: String = set.map(|bit| letter(bit.name)).collect();
    if letters.is_empty() { "none".to_owned() } else { letters }
}

/// Writes the names of the bits that are set; those without one as a number.
pub fn bits(constants: &[Constant], value: u64, name: impl Fn(&str) -> String) -> String {
    let mut names: Vec<String> =
        constants.iter().filter(|bit| is_set(value, bit)).map(|bit| name(bit.name)).collect();
    let known = constants.iter().fold(0, |sum, bit| sum | bit.value.cast_unsigned());
    if value & !known != 0 {
        names.push(format!("{:#x}", value & !known));
    }
    if names.is_empty() { "none".to_owned() } else { names.join("+") }
}

/// Writes the name of a number, or the number where it has none.
pub fn number(constants: &[Constant], value: u64) -> String {
    let known = constants.iter().find(|constant| constant.value.cast_unsigned() == value);
    known.map_or_else(|| format!("{value:#x}"), |constant| constant.name.to_owned())
}

fn is_set(value: u64, bit: &Constant) -> bool {
    value & bit.value.cast_unsigned() != 0
}

/// Writes `ANY_UNCACHED` as `AnyUncached`, which is what the requests are called.
fn camel(name: &str) -> String {
    let word = |word: &str| {
        let (head, rest) = word.split_at_checked(1).unwrap_or((word, ""));
        format!("{head}{}", rest.to_ascii_lowercase())
    };
    name.split('_').map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_the_names_of_the_requests() {
        assert_eq!(explain(Subject::Types, 4, 3), "type Cacheable, granted Device+AnyUncached");
        assert_eq!(explain(Subject::Modes, 2, 0), "mode Donate, granted none");
        assert_eq!(explain(Subject::Permissions, 5, 3), "permissions RX, granted RW");
    }

    #[test]
    fn unknown_bits_and_numbers_are_shown_as_they_are() {
        assert_eq!(explain(Subject::Modes, 0x82, 1), "mode Donate+0x80, granted Share");
        assert_eq!(explain(Subject::RegionState, 0, 9), "the region must be Free and is 0x9");
    }

    #[test]
    fn missing_abilities_are_named() {
        let text = explain(Subject::Capabilities, 3, 1);
        assert_eq!(text, "the platform needs FWB+DIC and has FWB");
    }
}
