//! Where things lie: the clone this program was built from, and its build directory.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::artifacts::{self, ArtifactError};

/// Returns the root of the workspace that this program was built from.
pub fn root() -> &'static Path {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR"));
    tools.parent().unwrap_or(tools)
}

/// Returns cargo's build directory: `CARGO_TARGET_DIR`, or `target` under the root.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(dir),
        Some(_) | None => root().join("target"),
    }
}

/// Returns the directory under the build directory that holds what this program makes.
pub fn output_dir() -> PathBuf {
    target_dir().join("pfnguard")
}

/// Takes the lock `name` among all processes that share the build directory; it is free when the
/// file is closed.
///
/// # Errors
/// [`ArtifactError::File`].
pub fn lock(name: &str) -> Result<File, ArtifactError> {
    let directory = output_dir();
    fs::create_dir_all(&directory).map_err(artifacts::file("create", &directory))?;
    let path = directory.join(format!(".lock-{name}"));
    let lock = File::create(&path).map_err(artifacts::file("create", &path))?;
    lock.lock().map_err(artifacts::file("lock", &path))?;
    Ok(lock)
}

/// Returns a suffix for file names that no other thread and no other process uses.
pub fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
