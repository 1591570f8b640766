//! Where things lie: the clone this program was built from, and its build directory.

use std::env;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// Returns a suffix for file names that no other thread and no other process uses.
pub fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
