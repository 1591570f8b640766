//! A copy of the working tree, in which bugs are planted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{SeedError, failed};
use crate::workspace;

/// A copy of the working tree with a build directory of its own.
#[derive(Debug)]
pub(super) struct Copy {
    /// What is copied, relative to the root.
    files: BTreeSet<PathBuf>,
    root: PathBuf,
    build: PathBuf,
}

impl Copy {
    /// Returns the copy of what git knows or does not ignore; nothing is copied yet.
    pub(super) fn of_tree() -> Result<Self, SeedError> {
        let mut git = Command::new("git");
        git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listed = git.current_dir(workspace::root()).output().map_err(failed("git".as_ref()))?;
        let names = String::from_utf8_lossy(&listed.stdout);
        let files = names.split_terminator('\0').map(PathBuf::from);
        // What was deleted is listed until that is committed.
        let files = files.filter(|file| workspace::root().join(file).is_file()).collect();
        let folder = workspace::output_dir().join("seeds");
        Ok(Self { files, root: folder.join("tree"), build: folder.join("target") })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes `command` run in the copy.
    pub(super) fn prepare<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.build);
        // Whether a sequence fails is the question, not which is the shortest one.
        command.env("PROPTEST_MAX_SHRINK_ITERS", "0")
    }

    /// Makes the copy like the tree. Files that are alike stay as they are: cargo builds anew what
    /// is younger than its last build, so that only what a bug has touched is built again.
    pub(super) fn restore(&self) -> Result<(), SeedError> {
        for file in &self.files {
            let (from, to) = (workspace::root().join(file), self.root.join(file));
            let wanted = fs::read(&from).map_err(failed(&from))?;
            if fs::read(&to).is_ok_and(|found| found == wanted) {
                continue;
            }
            let folder = to.parent().unwrap_or(&self.root);
            fs::create_dir_all(folder).map_err(failed(folder))?;
            fs::write(&to, wanted).map_err(failed(&to))?;
        }
        self.remove_others(&self.root)
    }

    /// Removes what the tree does not have: what a failed test kept, what an earlier tree had.
    fn remove_others(&self, folder: &Path) -> Result<(), SeedError> {
        for entry in fs::read_dir(folder).map_err(failed(folder))? {
            let path = entry.map_err(failed(folder))?.path();
            if path.is_dir() {
                self.remove_others(&path)?;
            } else if !path.strip_prefix(&self.root).is_ok_and(|name| self.files.contains(name)) {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        Ok(())
    }
}
