//! What a kernel starts with: an archive of files, in the format of `cpio -H newc`.

use std::fs;
use std::io;
use std::path::Path;

use cpio::newc::Builder;
use cpio::write_cpio;

use super::LinuxError;
use crate::artifacts;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that is being put together.
#[derive(Default)]
pub struct Initramfs {
    entries: Vec<(Builder, Vec<u8>)>,
}

impl Initramfs {
    /// Returns an archive with a console, which the kernel opens for `/init`.
    pub fn new() -> Self {
        let mut archive = Self::default();
        archive.directory("dev");
        let console =
            Builder::new("dev/console").mode(CHARACTER_DEVICE).rdev_major(5).rdev_minor(1);
        archive.push(console, Vec::new());
        archive
    }

    /// Adds a directory; those above it are there.
    pub fn directory(&mut self, name: &str) {
        self.push(Builder::new(name).mode(DIRECTORY), Vec::new());
    }

    /// Adds a file that may be executed.
    pub fn file(&mut self, name: &str, bytes: Vec<u8>) {
        self.push(Builder::new(name).mode(PROGRAM), bytes);
    }

    /// Adds a copy of a file.
    ///
    /// # Errors
    /// [`LinuxError::File`].
    pub fn copy(&mut self, name: &str, path: &Path) -> Result<(), LinuxError> {
        let bytes = fs::read(path).map_err(artifacts::file("read", path))?;
        self.file(name, bytes);
        Ok(())
    }

    fn push(&mut self, builder: Builder, bytes: Vec<u8>) {
        let number = u32::try_from(self.entries.len() + 1).unwrap_or(u32::MAX);
        self.entries.push((builder.ino(number), bytes));
    }

    /// Returns the archive's bytes.
    ///
    /// # Errors
    /// Only for an archive of more than 4 GiB.
    pub fn bytes(self) -> io::Result<Vec<u8>> {
        let entries = self.entries.into_iter();
        write_cpio(entries.map(|(builder, bytes)| (builder, io::Cursor::new(bytes))), Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_begins_and_ends_as_the_kernel_expects() {
        let mut archive = Initramfs::new();
        archive.file("init", b"#!/bin/sh\n".to_vec());
        let bytes = archive.bytes().unwrap();
        assert_eq!(&bytes[..6], b"070701");
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(has(b"dev/console\0") && has(b"#!/bin/sh\n") && has(b"TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
