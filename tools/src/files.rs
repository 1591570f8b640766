//! What commands read and write: files, standard input and output.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{self, Path, PathBuf};

use miette::Diagnostic;
use tempfile::NamedTempFile;
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

/// Says a line on the standard output; a reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// [`FileError`].
pub fn say(line: impl Display) -> Result<(), FileError> {
    Output::standard().put(&format!("{line}\n")).map(drop)
}

/// Writes whole files, or none of them. Neither one of `inputs` is replaced nor one file by another.
///
/// # Errors
/// [`FileError`]; then each file is as it was.
pub fn write(files: &[(&Path, &[u8])], inputs: &[&Path]) -> Result<(), FileError> {
    for (index, (path, _)) in files.iter().enumerate() {
        refuse_inputs(path, inputs)?;
        if files[..index].iter().any(|(other, _)| are_same(other, path)) {
            return Err(FileError::new(
                "write",
                path,
                io::Error::other("another output goes there"),
            ));
        }
    }
    let staged = files.iter().map(|(path, bytes)| Staged::new(path, bytes));
    let staged: Vec<Staged<'_>> = staged.collect::<Result<_, _>>()?;
    staged.into_iter().try_for_each(Staged::keep)
}

/// Fails where a file cannot be written that a long run will write at its end.
///
/// # Errors
/// [`FileError`].
pub fn ensure_writable(path: &Path) -> Result<(), FileError> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|cause| FileError::new("write", path, cause))
}

fn refuse_inputs(path: &Path, inputs: &[&Path]) -> Result<(), FileError> {
    match inputs.iter().any(|input| are_same(input, path)) {
        true => Err(FileError::new("write", path, io::Error::other("it is the input"))),
        false => Ok(()),
    }
}

/// Returns whether two paths lead to one file, there or not.
fn are_same(one: &Path, other: &Path) -> bool {
    let places = (path::absolute(one).ok(), path::absolute(other).ok());
    places.0 == places.1 || same_file::is_same_file(one, other).unwrap_or(false)
}

/// A file that is written and not yet in its place.
struct Staged<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// `None` for what is no regular file (`/dev/null`, a pipe), which nothing is to replace.
    fresh: Option<(NamedTempFile, PathBuf)>,
}

impl<'a> Staged<'a> {
    fn new(path: &'a Path, bytes: &'a [u8]) -> Result<Self, FileError> {
        let failed = |cause| FileError::new("write", path, cause);
        if fs::metadata(path).is_ok_and(|old| !old.is_file()) {
            return Ok(Self { path, bytes, fresh: None });
        }
        // Through a symbolic link to what it means.
        let target = fs::canonicalize(path).or_else(|_| path::absolute(path)).map_err(failed)?;
        let directory = target.parent().unwrap_or(Path::new("/"));
        let mut builder = tempfile::Builder::new();
        let mut fresh = builder
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)
            .map_err(|error| failed(error.kind().into()))?;
        fresh.write_all(bytes).map_err(failed)?;
        Ok(Self { path, bytes, fresh: Some((fresh, target)) })
    }

    fn keep(self) -> Result<(), FileError> {
        let failed = |cause| FileError::new("write", self.path, cause);
        match self.fresh {
            None => fs::write(self.path, self.bytes).map_err(failed),
            Some((fresh, target)) => {
                fresh.persist(target).map(drop).map_err(|error| failed(error.error))
            }
        }
    }
}

/// Where a command writes as it goes.
pub struct Output {
    name: String,
    to: Box<dyn Write>,
}

impl Output {
    /// Returns the standard output.
    pub fn standard() -> Self {
        Self { name: "the output".to_owned(), to: Box::new(io::stdout()) }
    }

    /// Opens a file that is none of `inputs`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn create(path: &Path, inputs: &[&Path]) -> Result<Self, FileError> {
        refuse_inputs(path, inputs)?;
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
    fn neither_an_input_nor_another_output_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (input, output) = (directory.path().join("in"), directory.path().join("out"));
        let (bytes, again) = (b"fresh".as_slice(), directory.path().join(".").join("out"));
        fs::write(&input, "old").unwrap();
        std::os::unix::fs::symlink(&input, directory.path().join("link")).unwrap();
        let link = directory.path().join("link");
        assert!(write(&[(&link, bytes)], &[&input]).is_err());
        assert!(write(&[(&output, bytes), (&again, bytes)], &[]).is_err());
        assert!(
            write(&[(&output, bytes), (&directory.path().join("no/dir"), bytes)], &[]).is_err()
        );
        assert_eq!(
            (fs::read(&input).unwrap().as_slice(), output.exists()),
            (b"old".as_slice(), false)
        );
        write(&[(&output, bytes), (Path::new("/dev/null"), bytes)], &[&input]).unwrap();
        assert_eq!(fs::read(&output).unwrap(), bytes);
        write(&[(&link, bytes)], &[&output]).unwrap();
        assert_eq!(fs::read(&input).unwrap(), bytes, "a link is followed");
        // Nothing temporary is left.
        assert_eq!(names(directory.path()).unwrap().len(), 3);
    }

    #[test]
    fn only_the_modules_own_files_are_explained() {
        let error = |path| FileError::new("read", Path::new(path), io::ErrorKind::NotFound.into());
        assert!(error("/sys/kernel/debug/pfnguard/map").help.is_some());
        assert!(error("copy").help.is_none() && error("copy").is_absence());
        assert_eq!(error("copy").to_string(), "cannot read copy: entity not found");
    }
}
