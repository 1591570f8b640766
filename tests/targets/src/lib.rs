//! What the fuzzer calls: one function a target, from bytes to a judged outcome.
//!
//! Each target is a plain function, so that three drivers share it: cargo-fuzz (`fuzz/`, nightly),
//! the replay of the checked-in corpus (`cargo test`, stable) and a campaign (`cargo run -- fuzz`).
//! A target panics where it finds something; bytes that mean nothing to it are no finding.

#![forbid(unsafe_code)]

pub mod arg_page;
pub mod ioctl;
pub mod launch_tree;
pub mod manifest_bytes;
pub mod manifest_text;
pub mod migration;
pub mod sequence;
pub mod single_call;
pub mod tree;
pub mod worlds;

/// A target: its name is that of its binary, its corpus and its working folder.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name.
    pub name: &'static str,
    /// What it looks for, in one line.
    pub looks_for: &'static str,
    /// The function under the fuzzer.
    pub run: fn(&[u8]),
}

/// Every target.
pub const ALL: &[Target] = &[
    Target {
        name: "manifest_bytes",
        looks_for: "a binary manifest on which compiler and hypervisor disagree",
        run: manifest_bytes::run,
    },
    Target {
        name: "manifest_text",
        looks_for: "a text that compiles to what the hypervisor refuses, or loses something",
        run: manifest_text::run,
    },
    Target {
        name: "device_tree",
        looks_for: "a device tree from which a bad manifest is derived",
        run: tree::run,
    },
    Target {
        name: "launch_tree",
        looks_for: "a device tree that the hypervisor itself reads wrongly at launch",
        run: launch_tree::run,
    },
    Target {
        name: "single_call",
        looks_for: "a call with raw registers that is not answered as specified",
        run: single_call::run,
    },
    Target {
        name: "sequence",
        looks_for: "a sequence of calls, guests and accesses after which anything is not as specified",
        run: sequence::run,
    },
    Target {
        name: "arg_page",
        looks_for: "contents of an argument page that are believed, or read twice",
        run: arg_page::run,
    },
    Target {
        name: "migration",
        looks_for: "a descriptor that is judged otherwise than specified, or fails where it came from",
        run: migration::run,
    },
    Target {
        name: "ioctl",
        looks_for: "an argument of /dev/pfnguard that the kernel module's C judges otherwise than specified",
        run: ioctl::run,
    },
];
