//! What a machine boots: the payload and the bare-metal host, built for aarch64 and made flat.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use miette::Diagnostic;
use thiserror::Error;

use crate::image::{Image, ImageError};
use crate::progress::{Progress, Step};
use crate::{process, workspace};

/// The target of everything that runs in the machine. Its linker, rust-lld, comes with Rust. It
/// aligns strictly, which EL2 needs while its MMU is off.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// Why there is nothing to boot.
#[derive(Debug, Error, Diagnostic)]
pub enum ArtifactError {
    /// cargo failed.
    #[error("building the {what} failed:\n{output}")]
    #[diagnostic(help("the command was:  {command}"))]
    Build {
        /// What was being built.
        what: &'static str,
        /// The command.
        command: String,
        /// What cargo said.
        output: String,
    },
    /// The linked file is no image.
    #[error("{path} cannot be made into an image: {cause}")]
    Image {
        /// The ELF file.
        path: PathBuf,
        /// Why.
        cause: ImageError,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {cause}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// Flat images, ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifacts {
    /// The payload, an arm64 Image.
    pub payload: PathBuf,
    /// The bare-metal EL1 host.
    pub host: PathBuf,
}

/// What a cargo call builds.
struct Recipe {
    what: &'static str,
    package: &'static str,
    binary: &'static str,
    target: &'static str,
    /// Name of the profile, and of its directory.
    profile: &'static str,
    /// Directory under the build directory; one per set of flags, so that no build evicts another.
    target_dir: &'static str,
    /// Flags of `rustc` for everything in it.
    rustflags: &'static [&'static str],
    /// Further arguments of cargo.
    arguments: &'static [&'static str],
}

/// The payload. Branch protection and a core library that has it too are not yet settable in
/// stable Rust: `-Z` flags on the pinned compiler, with `RUSTC_BOOTSTRAP=1`, are how the Linux
/// kernel builds its Rust code as well. The pin in `rust-toolchain.toml` keeps them meaning the
/// same. Nothing outside this recipe uses an unstable feature.
const PAYLOAD: Recipe = Recipe {
    what: "payload",
    package: "pfnguard-hyp",
    binary: "pfnguard",
    target: TARGET,
    profile: "payload",
    target_dir: "payload",
    rustflags: &[
        "-Zbranch-protection=bti,pac-ret",
        // A function that calls none needs no frame: its caller is in x30, which reports show.
        "-Cforce-frame-pointers=non-leaf",
        "-Zunstable-options",
        // The image relocates itself: it runs wherever it was put.
        "-Crelocation-model=pic",
        // `{:?}` prints nothing, which is 32 KiB less; what a person is to read is `Display`.
        "-Zfmt-debug=none",
        // Loops are unrolled to 40 instructions at most, not to 300: 13 KiB less, and no call is
        // dearer for it.
        "-Cllvm-args=-unroll-threshold=40",
        // SHA-256 as a loop: it runs once, over the manifest.
        "--cfg=sha2_backend_soft=\"compact\"",
    ],
    arguments: &[
        "-Zbuild-std=core,compiler_builtins",
        // Sorting and formatting serve launch and reports: the small ones of the core library.
        "-Zbuild-std-features=compiler-builtins-mem,optimize_for_size",
        // Calls use little of core, and at this level it is as fast. Here, because Cargo.toml may
        // name no package that other builds lack.
        "--config=profile.payload.package.core.opt-level=\"s\"",
    ],
};

/// The bare-metal host: stable Rust.
const HOST: Recipe = Recipe {
    what: "bare-metal host",
    package: "pfnguard-el2-tests",
    binary: "el1-host",
    target: TARGET,
    profile: "release",
    target_dir: "bare-metal",
    rustflags: &["-Cforce-frame-pointers=yes"],
    arguments: &[],
};

/// The program that runs under Linux: static, so that it needs nothing there.
const PROGRAM: Recipe = Recipe {
    what: "program for Linux",
    package: "pfnguard-linux-program",
    binary: "program",
    target: "aarch64-unknown-linux-musl",
    profile: "release",
    target_dir: "linux",
    rustflags: &[],
    arguments: &[],
};

impl Recipe {
    fn command(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(workspace::root());
        // A caller's flags are for the caller's machine; they would replace the target's own.
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"] {
            command.env_remove(variable);
        }
        if self.arguments.iter().any(|argument| argument.starts_with("-Z")) {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command.args(["build", "--package", self.package, "--bin", self.binary]);
        command.args(["--target", self.target, "--profile", self.profile]).args(self.arguments);
        if !self.rustflags.is_empty() {
            // Quoting as Rust's debug format does it is valid TOML for these flags.
            command.arg("--config");
            command.arg(format!("target.{}.rustflags={:?}", self.target, self.rustflags));
        }
        command.arg("--target-dir").arg(self.directory());
        command
    }

    fn directory(&self) -> PathBuf {
        workspace::target_dir().join(self.target_dir)
    }

    /// Returns where cargo puts the linked file.
    fn elf(&self) -> PathBuf {
        self.directory().join(self.target).join(self.profile).join(self.binary)
    }

    fn build(&self, progress: Progress) -> Result<Image, ArtifactError> {
        let step = self.compile(progress)?;
        let image = flatten(&self.elf())?;
        step.done(&format!("{} KiB", image.bytes.len().div_ceil(1024)));
        Ok(image)
    }

    /// Runs cargo; what it has built is in [`Self::elf`].
    fn compile(&self, progress: Progress) -> Result<Step, ArtifactError> {
        let mut step = progress.step(&format!("build the {}", self.what));
        let mut command = self.command();
        let (built, output) = process::watch(&mut command, |line| step.note(line));
        if !built {
            let command = process::show(&command);
            return Err(ArtifactError::Build {
                what: self.what,
                command,
                output: output.join("\n"),
            });
        }
        Ok(step)
    }
}

/// Returns where cargo puts the linked payload: for its symbols and its sections.
pub fn payload_elf() -> PathBuf {
    PAYLOAD.elf()
}

/// Returns where cargo puts the linked bare-metal host.
pub fn host_elf() -> PathBuf {
    HOST.elf()
}

/// Builds the program that runs under Linux, and returns it.
///
/// # Errors
/// [`ArtifactError::Build`].
pub fn linux_program(progress: Progress) -> Result<PathBuf, ArtifactError> {
    PROGRAM.compile(progress)?.done("");
    Ok(PROGRAM.elf())
}

/// Builds the payload and the bare-metal host and makes them flat.
///
/// Builds once per process, and one at a time among processes.
///
/// # Errors
/// [`ArtifactError`]; what was built before stays.
pub fn build(progress: Progress) -> Result<Artifacts, ArtifactError> {
    static BUILT: Mutex<Option<Artifacts>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(artifacts) = &*built {
        return Ok(artifacts.clone());
    }
    let directory = workspace::output_dir();
    let _lock = workspace::lock("images")?;
    let payload = PAYLOAD.build(progress)?;
    payload.check_header().map_err(|cause| ArtifactError::Image { path: PAYLOAD.elf(), cause })?;
    let host = HOST.build(progress)?;
    let artifacts =
        Artifacts { payload: directory.join("payload.img"), host: directory.join("host.bin") };
    put(&artifacts.payload, &payload.bytes)?;
    put(&artifacts.host, &host.bytes)?;
    *built = Some(artifacts.clone());
    Ok(artifacts)
}

/// Reads an ELF file and makes it flat.
///
/// # Errors
/// [`ArtifactError::File`] and [`ArtifactError::Image`].
pub fn flatten(path: &Path) -> Result<Image, ArtifactError> {
    let elf = fs::read(path).map_err(file("read", path))?;
    Image::flatten(&elf).map_err(|cause| ArtifactError::Image { path: path.to_owned(), cause })
}

/// Writes a file so that a machine that boots the old one meanwhile keeps it whole. What has not
/// changed is not written.
///
/// # Errors
/// [`ArtifactError::File`].
pub fn put(path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", workspace::unique()));
    let fresh = path.with_file_name(name);
    fs::write(&fresh, bytes).map_err(file("write", &fresh))?;
    fs::rename(&fresh, path).map_err(file("replace", path))
}

/// Returns what makes an I/O error of doing `action` to `path` into ours.
pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArtifactError {
    let path = path.to_owned();
    move |cause| ArtifactError::File { action, path, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_payload_gets_unstable_flags() {
        let payload = process::show(&PAYLOAD.command());
        assert!(payload.contains("-Zbuild-std=core,compiler_builtins"));
        assert!(payload.contains("rustflags=[\"-Zbranch-protection=bti,pac-ret\", "));
        assert!(payload.starts_with("RUSTC_BOOTSTRAP=1 "));
        let host = process::show(&HOST.command());
        assert!(!host.contains("-Z"));
        assert!(HOST.command().get_envs().all(|(name, _)| name != "RUSTC_BOOTSTRAP"));
    }

    #[test]
    fn each_set_of_flags_has_a_directory_of_its_own() {
        assert_ne!(PAYLOAD.directory(), HOST.directory());
    }
}
