//! Viewers of what the hypervisor shows: its trace rings ([`trace`]), and who owns what ([`map`]).

pub mod export;
pub mod filter;
pub mod html;
pub mod line;
pub mod map;
pub mod owner;
pub mod pages;
pub mod record;
pub mod ring;
pub mod snapshot;
pub mod syndrome;
#[cfg(test)]
pub(crate) mod testing;
pub mod trace;
