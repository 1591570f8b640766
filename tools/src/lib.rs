//! pfnguard's command-line program as a library: what `cargo run` does, and what the tests that
//! need a machine do it with.

#![forbid(unsafe_code)]

pub mod abi;
pub mod artifacts;
pub mod bench;
pub mod cli;
pub mod columns;
pub mod demo;
pub mod fields;
pub mod files;
pub mod fuzz;
pub mod fuzz_machine;
pub mod header;
pub mod image;
pub mod linux;
pub mod machine;
pub mod manifest;
pub mod oracle;
pub mod par;
pub mod process;
pub mod progress;
pub mod qemu;
pub mod seeds;
pub mod setup;
pub mod suite;
pub mod uart;
pub mod viewer;
pub mod words;
pub mod workspace;
