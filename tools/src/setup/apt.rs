//! QEMU from Debian's archive: on bookworm from its backports, later from the release itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::SetupError;
use crate::progress::Progress;

/// Debian 12, whose own QEMU is too old.
const BOOKWORM: &str = "bookworm";
/// Its suite of newer packages.
const BACKPORTS: &str = "bookworm-backports";
/// Where the suite is from if the configuration names no mirror.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// The file that adds the suite.
const LIST: &str = "/etc/apt/sources.list.d/pfnguard-backports.list";
/// The package with the emulator.
const PACKAGE: &str = "qemu-system-arm";

/// What is to be done on this Debian.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The line that adds the suite, where it is needed and not yet there.
    source: Option<String>,
    /// The release to take the package from, where it is not the default one.
    release: Option<&'static str>,
}

/// Where the configuration takes bookworm from.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

/// Installs QEMU with apt where this is Debian and we are root.
///
/// # Errors
/// [`SetupError::Missing`] with the one line to run where we may not; [`SetupError::Install`] and
/// [`SetupError::Write`] where it went wrong.
pub(super) fn install(progress: Progress, problem: &str) -> Result<(), SetupError> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let Some(plan) = Plan::make(&release, &sources()) else {
        return Err(SetupError::Missing {
            what: problem.to_owned(),
            line: format!("your system's installation of {PACKAGE} (QEMU for Arm)"),
        });
    };
    if !is_root() {
        return Err(SetupError::Missing { what: problem.to_owned(), line: plan.one_line() });
    }
    if let Some(source) = &plan.source {
        fs::write(LIST, format!("{source}\n"))
            .map_err(|cause| SetupError::Write { path: LIST.to_owned(), cause })?;
    }
    super::run(progress, apt_get().arg("update"))?;
    super::run(progress, apt_get().args(plan.install_arguments()))
}

/// Installs packages of the release where this is Debian and we are root.
///
/// # Errors
/// As [`install`].
pub(super) fn install_packages(
    progress: Progress,
    problem: &str,
    packages: &[&str],
) -> Result<(), SetupError> {
    let install = ["install", "--yes", "--no-install-recommends"];
    if !is_root() || !crate::process::exists("apt-get") {
        let line = format!("sudo apt-get {} {}", install.join(" "), packages.join(" "));
        return Err(SetupError::Missing { what: problem.to_owned(), line });
    }
    super::run(progress, apt_get().arg("update"))?;
    super::run(progress, apt_get().args(install).args(packages))
}

impl Plan {
    /// Decides from `/etc/os-release` and the texts of apt's sources; `None` if not on Debian.
    fn make(os_release: &str, sources: &[String]) -> Option<Self> {
        if os_field(os_release, "ID") != Some("debian") {
            return None;
        }
        if os_field(os_release, "VERSION_CODENAME") != Some(BOOKWORM) {
            return Some(Self { source: None, release: None });
        }
        let there = sources.iter().any(|text| names_suite(text, BACKPORTS));
        let source = if there { None } else { Some(source_line(sources)) };
        Some(Self { source, release: Some(BACKPORTS) })
    }

    fn install_arguments(&self) -> Vec<&'static str> {
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        if let Some(release) = self.release {
            arguments.extend(["-t", release]);
        }
        arguments.push(PACKAGE);
        arguments
    }

    /// Returns the line that does the same as root.
    fn one_line(&self) -> String {
        let add = match &self.source {
            Some(source) => format!("echo \"{source}\" > {LIST} && "),
            None => String::new(),
        };
        let install = self.install_arguments().join(" ");
        format!("sudo sh -c '{add}apt-get update && apt-get {install}'")
    }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Returns whether this process is root's, as the owner of its own entry in `/proc` tells.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Returns the texts of all files that configure apt's sources.
fn sources() -> Vec<String> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = parts.map(|part| part.path()).collect();
    files.sort();
    files.insert(0, Path::new("/etc/apt/sources.list").to_owned());
    let extensions = ["list", "sources"];
    let known = |file: &&PathBuf| {
        file.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e))
    };
    files.iter().filter(known).flat_map(fs::read_to_string).collect()
}

fn os_field<'a>(os_release: &'a str, key: &str) -> Option<&'a str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"'))
}

/// Returns whether a source in `text` has the suite.
fn names_suite(text: &str, suite: &str) -> bool {
    let active = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    active.flat_map(str::split_whitespace).any(|word| word == suite)
}

fn source_line(sources: &[String]) -> String {
    let mirror = sources.iter().find_map(|text| one_line_mirror(text).or_else(|| stanza(text)));
    let Mirror { uri, signed_by } =
        mirror.unwrap_or(Mirror { uri: DEFAULT_MIRROR.to_owned(), signed_by: None });
    let options = signed_by.map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
    format!("deb {options}{uri} {BACKPORTS} main")
}

/// Finds bookworm's mirror in the one-line format: `deb [options] uri suite components`.
fn one_line_mirror(text: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(bracket) => bracket.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        let signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by="));
        let mirror = Mirror { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned) };
        (suite == BOOKWORM).then_some(mirror)
    })
}

/// Finds bookworm's mirror in the stanza format.
fn stanza(text: &str) -> Option<Mirror> {
    text.split("\n\n").find_map(|stanza| {
        let field = |key: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
        };
        let bookworm = field("Suites")?.split_whitespace().any(|suite| suite == BOOKWORM);
        let uri = field("URIs")?.split_whitespace().next()?.to_owned();
        // A key that is written out in the stanza has no path that another source could name.
        let signed_by = field("Signed-By").filter(|key| key.starts_with('/')).map(str::to_owned);
        bookworm.then_some(Mirror { uri, signed_by })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OS: &str = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
    const STANZAS: &str = "Types: deb\n# http://snapshot.debian.org/\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n";

    #[test]
    fn bookworm_gets_backports_from_its_own_mirror() {
        let plan = Plan::make(OS, &[STANZAS.to_owned()]).unwrap();
        let line = "deb [signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm-backports main";
        assert_eq!(plan.source.as_deref(), Some(line));
        assert_eq!(plan.release, Some("bookworm-backports"));
    }

    #[test]
    fn one_line_sources_are_understood() {
        let text = "# deb http://no bookworm main\ndeb [arch=amd64 signed-by=/k] http://m/d bookworm main\n";
        let mirror = Mirror { uri: "http://m/d".into(), signed_by: Some("/k".into()) };
        assert_eq!(one_line_mirror(text), Some(mirror));
    }

    #[test]
    fn a_configured_suite_is_not_added_again() {
        let there = "deb http://m/d bookworm-backports main".to_owned();
        assert_eq!(Plan::make(OS, &[there]).unwrap().source, None);
        let commented = "# deb http://m/d bookworm-backports main".to_owned();
        assert!(Plan::make(OS, &[commented]).unwrap().source.is_some());
    }

    #[test]
    fn later_releases_need_no_backports_and_other_systems_no_plan() {
        let trixie = OS.replace("bookworm", "trixie");
        let plan = Plan::make(&trixie, &[]).unwrap();
        assert_eq!(plan, Plan { source: None, release: None });
        assert_eq!(Plan::make("ID=fedora\n", &[]), None);
    }

    #[test]
    fn the_one_line_does_all_of_it() {
        let plan = Plan::make(OS, &[]).unwrap();
        assert_eq!(
            plan.one_line(),
            "sudo sh -c 'echo \"deb http://deb.debian.org/debian bookworm-backports main\" > \
             /etc/apt/sources.list.d/pfnguard-backports.list && apt-get update && apt-get install \
             --yes --no-install-recommends -t bookworm-backports qemu-system-arm'"
        );
    }
}
