//! The manifest compiler: text to binary, device tree to both, checks with places and cures.
//!
//! The text format and every constraint are described in `docs/manifest.md`.

mod binary;
mod check;
mod check_reset;
mod command;
mod constraint;
mod derive;
mod fault;
mod platform;
mod range;
mod render;
mod source;
mod text;
mod tree;
mod value;
mod violation;

use miette::Result;

pub use binary::{BinaryRefusal, parse_binary, write_binary};
pub use check::{check, check_ram};
pub use command::{Command, run};
pub use constraint::Constraint;
pub use derive::{Derived, derive, derive_from_dtb};
pub use fault::{Fault, Label, Refusal};
pub use range::{PhysAddr, PhysRange};
pub use render::{to_table, to_text};
pub use source::{Manifest, Ram, Region};
pub use violation::{Field, Place, Violation};

/// Compiles the text of file `name` to a binary manifest.
///
/// # Errors
///
/// Returns a [`Refusal`] with every error of the text, each with its place, rule and cure.
pub fn compile(name: &str, text: &str) -> Result<Vec<u8>> {
    let manifest = read_text(name, text)?;
    Ok(write_binary(manifest.flags.raw(), &manifest.entries())?)
}

/// Reads a text manifest and checks every constraint.
fn read_text(name: &str, text: &str) -> Result<Manifest> {
    let (mut manifest, mut faults) = text::parse(text);
    manifest.sort();
    faults.extend(manifest.judge());
    if faults.is_empty() { Ok(manifest) } else { Err(Refusal::new(name, text, faults).into()) }
}
