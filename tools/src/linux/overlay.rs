//! The module's sources in a kernel's tree, to be linked into vmlinux.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{LinuxError, module, packages};
use crate::progress::Progress;
use crate::{artifacts, setup, workspace};

/// Where the sources go in the kernel's tree.
pub const DIRECTORY: &str = "drivers/virt/pfnguard";
/// The files that name the directory once the tree is patched, each with how.
const PATCHED: &[(&str, &str)] = &[
    ("drivers/virt/Kconfig", "source \"drivers/virt/pfnguard/Kconfig\"\n"),
    ("drivers/virt/Makefile", "obj-$(CONFIG_PFNGUARD)\t\t+= pfnguard/\n"),
];
/// What makes them do so, under `host-interface`.
const PATCH: &str = "overlay/0001-virt-pfnguard.patch";
/// What the kernel's build system reads in the module's directory; its Makefile is for people.
const SOURCES: &[&str] = &["c", "h", "S"];

/// Builds the payload and puts everything into the kernel's `tree`, which may hold an older overlay.
///
/// # Errors
/// Set-up, a build, [`LinuxError`]: it is no kernel's tree, or the patch does not apply.
pub fn install(tree: &Path, progress: Progress) -> miette::Result<()> {
    is_patched(tree)?;
    setup::ensure_patch(progress)?;
    let payload = artifacts::build(progress)?.payload;
    Ok(put(tree, &payload, progress)?)
}

/// Puts sources, header, Kconfig and payload into the tree, and patches it.
pub(super) fn put(tree: &Path, payload: &Path, progress: Progress) -> Result<(), LinuxError> {
    if !is_patched(tree)? {
        patch(tree, &workspace::root().join("host-interface").join(PATCH), progress)?;
    }
    let directory = tree.join(DIRECTORY);
    let interface = workspace::root().join("host-interface");
    let kmod = interface.join("kmod");
    let entries = fs::read_dir(&kmod).map_err(artifacts::file("read", &kmod))?;
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_source(path)) {
        module::copy(&path, &directory.join(path.file_name().unwrap_or_default()))?;
    }
    module::copy(&crate::header::path(), &directory.join("pfnguard.h"))?;
    module::copy(&interface.join("overlay/Kconfig"), &directory.join("Kconfig"))?;
    module::copy(payload, &directory.join("payload.img"))
}

/// Returns whether all files name the directory.
fn is_patched(tree: &Path) -> Result<bool, LinuxError> {
    let mut all = true;
    for (name, line) in PATCHED {
        let path = tree.join(name);
        let no_tree = |_| LinuxError::NoTree { tree: tree.to_owned(), file: name };
        let text = fs::read_to_string(&path).map_err(no_tree)?;
        all &= text.contains(line);
    }
    Ok(all)
}

/// Returns whether the kernel's build system reads the file. What a build left there ends in
/// `.mod.c`.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let known = name.rsplit_once('.').is_some_and(|(_, extension)| SOURCES.contains(&extension));
    name == "Kbuild" || known && !name.ends_with(".mod.c")
}

/// Says what the patch would have done.
fn by_hand() -> String {
    PATCHED.iter().map(|(name, line)| format!("\n  {name}: {}", line.trim_end())).collect()
}

/// Patches the tree, or changes nothing in it.
fn patch(tree: &Path, file: &Path, progress: Progress) -> Result<(), LinuxError> {
    let mut step = progress.step(&format!("patch {}", tree.display()));
    for mode in [Some("--dry-run"), None] {
        let mut command = Command::new("patch");
        command.args(["--strip=1", "--forward", "--batch", "--reject-file=-"]).args(mode);
        command.arg("--directory").arg(tree).arg("--input").arg(file);
        let run = packages::run(&mut command, &mut step);
        run.map_err(|error| LinuxError::NoPatch(error.to_string(), by_hand()))?;
    }
    step.done("");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_go_to_the_tree_and_what_a_build_left_does_not() {
        let goes = ["Kbuild", "main.c", "kmod.h", "payload.S"];
        let stays = ["Makefile", "pfnguard.mod.c", "main.o", ".gitignore", "payload.img", "c"];
        assert!(goes.iter().all(|name| is_source(Path::new(name))));
        assert!(!stays.iter().any(|name| is_source(Path::new(name))));
    }

    #[test]
    fn the_patch_adds_what_a_patched_tree_is_known_by() {
        let file = workspace::root().join("host-interface").join(PATCH);
        let text = fs::read_to_string(file).unwrap();
        for (name, line) in PATCHED {
            let (_, rest) = text.split_once(&format!("+++ b/{name}\n")).unwrap();
            let hunk = rest.split("\n--- ").next().unwrap();
            assert!(hunk.contains(&format!("\n+{line}")), "{name}");
        }
        assert!(PATCHED[0].1.contains(DIRECTORY));
    }
}
