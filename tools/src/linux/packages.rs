//! A stock Debian kernel with what modules for it are built with, or its source: fetched as packages
//! and unpacked under the build directory, never installed.
//!
//! The packages are arm64's, so apt works on a state of its own: the system's configuration of
//! mirrors and keys, but not its list of architectures and of what is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::LinuxError;
use crate::progress::{Progress, Step};
use crate::{artifacts, process, workspace};

/// The kernel series that late launch is tried on.
const SERIES: &str = "6.12";
/// The package with BusyBox.
const BUSYBOX: &str = "busybox-static";
/// What says that a kernel's directory holds all of it.
const COMPLETE: &str = "complete";

/// A kernel, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As its packages are called: `6.12.107+deb12`.
    pub version: String,
    root: PathBuf,
}

/// The source of a Debian kernel, unpacked, and a userland for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    root: PathBuf,
}

impl Source {
    /// Returns what was fetched, or fetches the newest of the series.
    ///
    /// # Errors
    /// As [`Kernel::fetch`].
    pub fn fetch(progress: Progress) -> Result<Self, LinuxError> {
        let base = workspace::target_dir().join("debian");
        let source = Self { root: base.join("source").join(SERIES) };
        let complete = source.root.join(COMPLETE);
        if complete.exists() {
            return Ok(source);
        }
        let apt = Apt::set_up(&base, progress)?;
        let mut step = progress.step(&format!("fetch the source of Debian's kernel {SERIES}"));
        let package = format!("linux-source-{SERIES}");
        apt.unpack(&[package.clone(), BUSYBOX.to_owned()], &source.root, &mut step)?;
        let archive = source.root.join("usr/src").join(format!("{package}.tar.xz"));
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--directory").arg(&source.root).arg("--file").arg(&archive);
        run(&mut tar, &mut step)?;
        fs::remove_file(&archive).map_err(artifacts::file("remove", &archive))?;
        fs::write(&complete, "").map_err(artifacts::file("write", &complete))?;
        step.done("");
        Ok(source)
    }

    /// Returns the kernel's tree.
    pub fn tree(&self) -> PathBuf {
        self.root.join(format!("linux-source-{SERIES}"))
    }

    /// Returns a static BusyBox for the machine.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }
}

impl Kernel {
    /// Returns the newest one that was fetched, or fetches the newest that there is.
    ///
    /// # Errors
    /// [`LinuxError`]: no apt, no such package, or a command failed.
    pub fn fetch(progress: Progress) -> Result<Self, LinuxError> {
        let base = workspace::target_dir().join("debian");
        fs::create_dir_all(&base).map_err(artifacts::file("create", &base))?;
        if let Some(kernel) = Self::fetched(&base) {
            return Ok(kernel);
        }
        let apt = Apt::set_up(&base, progress)?;
        let version = apt.newest()?;
        let root = base.join(&version);
        let mut step = progress.step(&format!("fetch the Debian kernel {version}"));
        apt.unpack(&packages(&version), &root, &mut step)?;
        let complete = root.join(COMPLETE);
        fs::write(&complete, "").map_err(artifacts::file("write", &complete))?;
        step.done("");
        Ok(Self { version, root })
    }

    fn fetched(base: &Path) -> Option<Self> {
        let entries = fs::read_dir(base).ok()?.flatten();
        let complete = entries.filter(|entry| entry.path().join(COMPLETE).exists());
        let version = complete.filter_map(|entry| entry.file_name().into_string().ok());
        let version = version.max_by_key(|version| numbers(version))?;
        Some(Self { root: base.join(&version), version })
    }

    /// Returns the kernel's image.
    pub fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}-arm64", self.version))
    }

    /// Returns one of its modules, compressed by xz: `drivers/net/virtio_net`.
    pub fn module(&self, name: &str) -> PathBuf {
        let path = format!("lib/modules/{}-arm64/kernel/{name}.ko.xz", self.version);
        self.root.join(path)
    }

    /// Returns a static BusyBox for the machine.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// Makes the directory ready that modules are built with (`KDIR`), and returns it.
    ///
    /// # Errors
    /// [`LinuxError::File`].
    pub fn build_dir(&self) -> Result<PathBuf, LinuxError> {
        let headers = |flavour: &str| {
            self.root.join(format!("usr/src/linux-headers-{}-{flavour}", self.version))
        };
        // The package expects to be installed in the root directory.
        let makefile = headers("arm64").join("Makefile");
        let text = format!("include {}\n", headers("common").join("Makefile").display());
        artifacts::put(&makefile, text.as_bytes())?;
        Ok(headers("arm64"))
    }
}

/// Returns the packages of a kernel.
fn packages(version: &str) -> [String; 5] {
    [
        format!("linux-image-{version}-arm64-unsigned"),
        format!("linux-headers-{version}-arm64"),
        format!("linux-headers-{version}-common"),
        // Programs that build modules run here.
        format!("linux-kbuild-{version}:{}", native_architecture()),
        BUSYBOX.to_owned(),
    ]
}

/// Returns the numbers in a version, to compare by.
fn numbers(version: &str) -> Vec<u32> {
    let words = version.split(|c: char| !c.is_ascii_digit());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// apt with a state of its own.
struct Apt {
    state: PathBuf,
}

impl Apt {
    fn set_up(base: &Path, progress: Progress) -> Result<Self, LinuxError> {
        let apt = Self { state: base.join("apt") };
        for directory in ["lists/partial", "cache/archives/partial"] {
            let path = apt.state.join(directory);
            fs::create_dir_all(&path).map_err(artifacts::file("create", &path))?;
        }
        let status = apt.state.join("status");
        fs::write(&status, "").map_err(artifacts::file("write", &status))?;
        let mut step = progress.step("fetch Debian's lists of packages");
        run(apt.command("apt-get").arg("update"), &mut step)?;
        step.done("");
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let own = native_architecture();
        let state = self.state.display();
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        for option in [
            format!("Dir::State={state}"),
            format!("Dir::State::lists={state}/lists"),
            format!("Dir::State::status={state}/status"),
            format!("Dir::Cache={state}/cache"),
            "APT::Architecture=arm64".to_owned(),
            "APT::Architectures::=arm64".to_owned(),
            format!("APT::Architectures::={own}"),
            // It would want to read the files as somebody who may not enter the build directory.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Returns the newest version of the series that headers exist for.
    fn newest(&self) -> Result<String, LinuxError> {
        let pattern =
            format!("^linux-headers-{}\\.[0-9.]+\\+(deb|bpo)[0-9]*-arm64$", regex(SERIES));
        let mut command = self.command("apt-cache");
        command.args(["search", "--names-only", &pattern]);
        let (_, lines) = process::watch(&mut command, |_| ());
        let names = lines.iter().filter_map(|line| line.split_whitespace().next());
        let versions = names.filter_map(|name| {
            name.strip_prefix("linux-headers-").and_then(|name| name.strip_suffix("-arm64"))
        });
        let newest = versions.max_by_key(|version| numbers(version));
        newest.map(str::to_owned).ok_or_else(|| LinuxError::NoKernel {
            series: SERIES,
            command: process::show(&command),
            output: lines.join("\n"),
        })
    }

    /// Fetches packages and unpacks them.
    fn unpack(&self, packages: &[String], root: &Path, step: &mut Step) -> Result<(), LinuxError> {
        let debs = self.state.join("debs");
        let _ = fs::remove_dir_all(&debs);
        for directory in [&debs, root] {
            fs::create_dir_all(directory).map_err(artifacts::file("create", directory))?;
        }
        let mut download = self.command("apt-get");
        download.current_dir(&debs).arg("download").args(packages);
        run(&mut download, step)?;
        let packages = fs::read_dir(&debs).map_err(artifacts::file("read", &debs))?;
        for package in packages.flatten() {
            run(Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(root), step)?;
        }
        fs::remove_dir_all(&debs).map_err(artifacts::file("remove", &debs))?;
        Ok(())
    }
}

fn regex(text: &str) -> String {
    text.replace('.', "\\.")
}

/// Returns Debian's name of the architecture that this program was built for.
const fn native_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Runs a command to its end.
pub(super) fn run(command: &mut Command, step: &mut Step) -> Result<(), LinuxError> {
    let (ran, output) = process::watch(command, |line| step.note(line));
    if ran {
        return Ok(());
    }
    let output = process::tail(&output, 30);
    Err(LinuxError::Command { command: process::show(command), output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(numbers("6.12.107+deb12") > numbers("6.12.95+deb12"));
        assert!(numbers("6.12.107+deb13") > numbers("6.12.107+deb12"));
    }
}
