//! Set-up: QEMU and the parts of the Rust toolchain that cargo does not fetch by itself.
//!
//! What is there already is left alone: a machine with everything in place sees no call of `apt`
//! or `rustup`. Nothing here asks a question.

mod apt;
mod toolchain;

use std::fmt;
use std::process::Command;

use miette::Diagnostic;
use thiserror::Error;

use crate::progress::Progress;

/// The emulator's program.
pub const QEMU: &str = "qemu-system-aarch64";
/// The oldest QEMU whose models have FWB and DIC and whose TCG faults on unaligned Device access.
pub const MIN_QEMU: Version = Version { major: 10, minor: 0, patch: 2 };

/// Programs that build kernel modules, each with Debian's package.
const CROSS_TOOLS: &[(&str, &str)] =
    &[("aarch64-linux-gnu-gcc-12", "gcc-12-aarch64-linux-gnu"), ("make", "make")];
/// Programs that a kernel's build needs beyond those.
const KERNEL_TOOLS: &[(&str, &str)] =
    &[("bc", "bc"), ("bison", "bison"), ("flex", "flex"), ("perl", "perl"), ("xz", "xz-utils")];

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub patch: u16,
}

/// Why the machine is not ready.
#[derive(Debug, Error, Diagnostic)]
pub enum SetupError {
    /// Something is missing that this program may not install.
    #[error("{what}")]
    #[diagnostic(help("run:  {line}"))]
    Missing {
        /// What is missing.
        what: String,
        /// The one line that installs it.
        line: String,
    },
    /// An installation ran and failed.
    #[error("`{command}` failed:\n{output}")]
    Install {
        /// The command.
        command: String,
        /// The end of what it said.
        output: String,
    },
    /// A file of the set-up could not be written.
    #[error("cannot write {path}: {cause}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
}

impl Version {
    /// Finds the version in what `qemu-system-aarch64 --version` prints.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.split_once("version ")?.1;
        let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = number.split('.').map(|part| part.parse::<u16>().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        let patch = parts.next().unwrap_or(Some(0))?;
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Makes the machine ready: QEMU and the Rust components. Returns QEMU's version.
///
/// # Errors
/// [`SetupError`]: something is missing and cannot be installed from here. It is safe to call
/// this again.
pub fn ensure(progress: Progress) -> Result<Version, SetupError> {
    toolchain::ensure(progress)?;
    if let Some(version) = installed_qemu().filter(|version| *version >= MIN_QEMU) {
        return Ok(version);
    }
    apt::install(progress, &qemu_problem())?;
    match installed_qemu().filter(|version| *version >= MIN_QEMU) {
        Some(version) => Ok(version),
        None => Err(SetupError::Missing {
            what: format!("the packages were installed, but {}", qemu_problem()),
            line: format!("{QEMU} --version  # an older QEMU may come first in PATH"),
        }),
    }
}

/// Makes sure that modules for an arm64 kernel can be built: Debian builds its kernels with this
/// compiler, and the headers name it.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_cross_compiler(progress: Progress) -> Result<(), SetupError> {
    ensure_programs(CROSS_TOOLS, progress)
}

/// Makes sure that an arm64 kernel can be built.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_kernel_build(progress: Progress) -> Result<(), SetupError> {
    ensure_cross_compiler(progress)?;
    ensure_programs(KERNEL_TOOLS, progress)
}

/// Makes sure that a kernel's tree can be patched.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_patch(progress: Progress) -> Result<(), SetupError> {
    ensure_programs(&[("patch", "patch")], progress)
}

fn ensure_programs(wanted: &[(&str, &str)], progress: Progress) -> Result<(), SetupError> {
    let missing: Vec<_> =
        wanted.iter().filter(|(program, _)| !crate::process::exists(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let problem = format!("not installed: {}", programs.join(", "));
    apt::install_packages(progress, &problem, &packages)
}

/// Returns the version of the QEMU in PATH, or `None` without one.
fn installed_qemu() -> Option<Version> {
    let output = Command::new(QEMU).arg("--version").output().ok()?;
    Version::parse(&String::from_utf8_lossy(&output.stdout))
}

fn qemu_problem() -> String {
    match installed_qemu() {
        Some(version) => format!("{QEMU} is {version}; {MIN_QEMU} or later is needed"),
        None => format!("{QEMU} is not installed; {MIN_QEMU} or later is needed"),
    }
}

/// Runs an installing command to its end, showing what it says.
pub(crate) fn run(progress: Progress, command: &mut Command) -> Result<(), SetupError> {
    let shown = crate::process::show(command);
    let mut step = progress.step(&shown);
    let (ran, output) = crate::process::watch(command, |line| step.note(line));
    if ran {
        step.done("");
        return Ok(());
    }
    Err(SetupError::Install { command: shown, output: crate::process::tail(&output, 20) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_what_qemu_prints() {
        let debian =
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(Version::parse(debian), Some(MIN_QEMU));
        let plain = "QEMU emulator version 11.1\n";
        assert_eq!(Version::parse(plain), Some(Version { major: 11, minor: 1, patch: 0 }));
        let candidate = "QEMU emulator version 9.2.90 (v10.0.0-rc0)";
        assert_eq!(Version::parse(candidate), Some(Version { major: 9, minor: 2, patch: 90 }));
        assert_eq!(Version::parse("command not found"), None);
        assert_eq!(Version::parse("version x.y"), None);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version { major: 10, minor: 0, patch: 13 } > MIN_QEMU);
        assert!(Version { major: 7, minor: 2, patch: 22 } < MIN_QEMU);
    }
}
