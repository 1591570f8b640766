//! The built-in way: a kernel built from Debian's source with the hypervisor linked in, and booted.
//!
//! The kernel is small: `allnoconfig` and `host-interface/overlay/qemu.config`.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use super::packages::{self, Source};
use super::{CROSS_COMPILE, Linux, LinuxError, archive, overlay};
use crate::progress::{Progress, Step};
use crate::suite::{Tally, verdict};
use crate::{artifacts, setup, workspace};

/// What the kernel is made of, beyond what every kernel has.
const FRAGMENT: &str = "host-interface/overlay/qemu.config";
/// The compiler that Debian builds its kernels with.
const COMPILER: &str = "aarch64-linux-gnu-gcc-12";

/// Fetches, builds and boots; `linux` names the machine, and its scenario is
/// [`Scenario::Builtin`](super::Scenario::Builtin).
///
/// # Errors
/// Set-up, a build, [`LinuxError`]; as [`Linux::run`].
pub fn run(linux: &Linux) -> miette::Result<Tally> {
    let progress = linux.progress;
    setup::ensure(progress)?;
    setup::ensure_kernel_build(progress)?;
    setup::ensure_patch(progress)?;
    let payload = artifacts::build(progress)?.payload;
    let (source, image) = {
        let _lock = workspace::lock("linux-builtin").map_err(LinuxError::from)?;
        let source = Source::fetch(progress)?;
        overlay::put(&source.tree(), &payload, progress)?;
        let image = Build::new(&source).image(progress)?;
        (source, image)
    };
    let archive = archive(&source.busybox(), progress)?;
    verdict(&linux.boot(&image, archive, &[], "")?)
}

/// A build of the kernel beside its tree.
struct Build {
    tree: PathBuf,
    output: PathBuf,
}

impl Build {
    fn new(source: &Source) -> Self {
        Self { tree: source.tree(), output: workspace::output_dir().join("linux-builtin") }
    }

    /// Configures and builds. Returns the image.
    fn image(&self, progress: Progress) -> Result<PathBuf, LinuxError> {
        fs::create_dir_all(&self.output).map_err(artifacts::file("create", &self.output))?;
        self.configure(progress)?;
        let mut step = progress.step("build the kernel with the hypervisor linked in");
        let jobs = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.make(&[&format!("-j{jobs}"), "Image"], &mut step)?;
        step.done("");
        Ok(self.output.join("arch/arm64/boot/Image"))
    }

    /// Makes the configuration. One that has not changed rebuilds nothing.
    fn configure(&self, progress: Progress) -> Result<(), LinuxError> {
        let file = workspace::root().join(FRAGMENT);
        let fragment = fs::read_to_string(&file).map_err(artifacts::file("read", &file))?;
        let mut step = progress.step("configure the kernel");
        let preset = format!("KCONFIG_ALLCONFIG={}", file.display());
        self.make(&[&preset, "allnoconfig"], &mut step)?;
        let config = self.output.join(".config");
        let text = fs::read_to_string(&config).map_err(artifacts::file("read", &config))?;
        let refused = refused(&fragment, &text);
        if !refused.is_empty() {
            return Err(LinuxError::Config { file: FRAGMENT, lines: refused.join("\n") });
        }
        step.done("");
        Ok(())
    }

    fn make(&self, targets: &[&str], step: &mut Step) -> Result<(), LinuxError> {
        let mut make = Command::new("make");
        make.arg("-C").arg(&self.tree).arg(output_argument(&self.output));
        make.args(["ARCH=arm64", &format!("CROSS_COMPILE={CROSS_COMPILE}")]);
        make.arg(format!("CC={COMPILER}")).args(targets);
        packages::run(&mut make, step)
    }
}

fn output_argument(directory: &Path) -> String {
    format!("O={}", directory.display())
}

/// Returns the lines of the fragment that Kconfig did not take.
fn refused<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let says = |line: &str| line.starts_with("CONFIG_") || line.ends_with(" is not set");
    let taken = |line: &str| config.lines().any(|other| other == line);
    fragment.lines().filter(|line| says(line) && !taken(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kconfig_did_not_take_is_named_and_comments_are_not() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_B=\"b\"\n# CONFIG_C is not set\n\nCONFIG_D=y\n";
        let config = "CONFIG_A=y\nCONFIG_B=\"\"\nCONFIG_D=y\nCONFIG_E=y\n";
        assert_eq!(refused(fragment, config), ["CONFIG_B=\"b\"", "# CONFIG_C is not set"]);
        assert!(refused(fragment, fragment).is_empty());
    }
}
