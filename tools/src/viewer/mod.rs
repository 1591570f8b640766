//! Viewers of what the hypervisor shows: its trace rings.

pub mod filter;
pub mod line;
pub mod pages;
pub mod record;
pub mod ring;
pub mod syndrome;
#[cfg(test)]
pub(crate) mod testing;
