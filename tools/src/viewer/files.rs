//! What viewers read and write: files, standard input and output.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use miette::Diagnostic;
use thiserror::Error;

/// The module's directory on the machine that it runs on.
const DEBUGFS: &str = "/sys/kernel/debug";

/// A file that cannot be read or written.
#[derive(Debug, Error, Diagnostic)]
#[error("cannot {action} {file}: {cause}")]
pub struct FileError {
    action: &'static str,
    file: String,
    cause: io::Error,
    #[help]
    help: Option<&'static str>,
}

impl FileError {
    fn new(action: &'static str, path: &Path, cause: io::Error) -> Self {
        let help = path.starts_with(DEBUGFS).then_some(
            "this is where pfnguard.ko shows it, to root, with debugfs mounted; elsewhere, name copies",
        );
        Self { action, file: name(path), cause, help }
    }

    /// Returns whether the file is not there.
    pub fn is_absence(&self) -> bool {
        self.cause.kind() == io::ErrorKind::NotFound
    }
}

/// Returns whether a path stands for the standard input.
pub fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Returns what messages call a file.
pub fn name(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

/// Reads a file, or the standard input.
///
/// # Errors
/// [`FileError`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |cause| FileError::new("read", path, cause);
    if !is_stdin(path) {
        return fs::read(path).map_err(failed);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Returns the names of the files in a directory.
///
/// # Errors
/// [`FileError`].
pub fn names(directory: &Path) -> Result<Vec<String>, FileError> {
    let failed = |cause| FileError::new("list", directory, cause);
    let entries = fs::read_dir(directory).map_err(failed)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(failed)
}

/// Where a viewer writes.
pub struct Output {
    name: String,
    to: Box<dyn Write>,
}

impl Output {
    /// Opens a file, or the standard output.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: Option<&Path>) -> Result<Self, FileError> {
        let Some(path) = path else {
            return Ok(Self { name: "the output".to_owned(), to: Box::new(io::stdout()) });
        };
        let file = File::create(path).map_err(|cause| FileError::new("create", path, cause))?;
        Ok(Self { name: path.display().to_string(), to: Box::new(file) })
    }

    /// Writes text; a reader that has seen enough (`| head`) is a reason to stop, and no error.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn put(&mut self, text: &str) -> Result<ControlFlow<()>, FileError> {
        match self.to.write_all(text.as_bytes()).and_then(|()| self.to.flush()) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(cause) => Err(FileError::new("write", Path::new(&self.name), cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_modules_own_files_are_explained() {
        let error = |path| FileError::new("read", Path::new(path), io::ErrorKind::NotFound.into());
        assert!(error("/sys/kernel/debug/pfnguard/map").help.is_some());
        assert!(error("copy").help.is_none() && error("copy").is_absence());
        assert_eq!(error("copy").to_string(), "cannot read copy: entity not found");
    }
}
