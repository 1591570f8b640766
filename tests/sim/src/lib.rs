//! A machine in the developer's memory: the real core over the real page-table code of hyp/arch.
//!
//! What it does is compared with the specification elsewhere (`tests/harness`). All of the core that
//! is generic over the machine is compiled here, behind [`Launched`], and nowhere else: a fuzzer
//! that counts this crate's branches counts the core's.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "picks out what it looks at; naming all is for those who decide"
)]

pub mod board;
pub mod guest;
mod launch;
pub mod machine;
pub mod memory;

pub use launch::Launched;
pub use pfnguard_walker as walker;
