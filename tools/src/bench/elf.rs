//! What the linked files say: how large the payload is, where functions lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use addr2line::Loader;
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use super::BenchError;
use crate::artifacts;

/// Sections of the payload that count as text and read-only data. Tables that the entry uses up
/// before the MMU is on (`.rela.dyn` and what the linker adds for a loader) do not.
const READ_ONLY: &[&str] = &[".text", ".rodata", ".data.rel.ro"];

/// A linked file, in memory.
pub struct Elf {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Elf {
    /// Reads a file.
    ///
    /// # Errors
    /// [`BenchError::File`].
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let bytes = std::fs::read(path).map_err(artifacts::file("read", path))?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    fn parse(&self) -> Result<object::File<'_>, BenchError> {
        object::File::parse(&*self.bytes).map_err(|cause| self.unreadable(cause.to_string()))
    }

    fn unreadable(&self, cause: String) -> BenchError {
        BenchError::Symbols { path: self.path.clone(), cause }
    }

    /// Returns the bytes of text and read-only data.
    ///
    /// # Errors
    /// [`BenchError::Symbols`].
    pub fn read_only_bytes(&self) -> Result<u64, BenchError> {
        let file = self.parse()?;
        let counts = |name: &str| READ_ONLY.contains(&name);
        let sections = file.sections().filter(|section| section.name().is_ok_and(counts));
        Ok(sections.map(|section| section.size()).sum())
    }

    /// Returns the address of a symbol.
    ///
    /// # Errors
    /// [`BenchError::Symbols`] where there is none.
    pub fn address(&self, name: &str) -> Result<u64, BenchError> {
        let file = self.parse()?;
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
        let missing = || self.unreadable(format!("no symbol `{name}`"));
        symbol.map(|symbol| symbol.address()).ok_or_else(missing)
    }

    /// Returns each function with its bytes, largest first.
    ///
    /// # Errors
    /// [`BenchError::Symbols`].
    pub fn functions(&self) -> Result<Vec<(String, u64)>, BenchError> {
        let file = self.parse()?;
        let mut sizes = BTreeMap::<String, u64>::new();
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
            let name = symbol.name().unwrap_or("?");
            *sizes.entry(readable(name)).or_default() += symbol.size();
        }
        let mut sizes: Vec<_> = sizes.into_iter().filter(|(_, size)| *size > 0).collect();
        sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        Ok(sizes)
    }

    /// Returns what finds the functions behind an address.
    ///
    /// # Errors
    /// [`BenchError::Symbols`].
    pub fn loader(&self) -> Result<Functions, BenchError> {
        Loader::new(&self.path).map(Functions).map_err(|cause| self.unreadable(cause.to_string()))
    }
}

/// Finds functions by address.
pub struct Functions(Loader);

impl Functions {
    /// Returns the function that was inlined at `address` innermost, and the one that holds it.
    pub fn at(&self, address: u64) -> (String, String) {
        let symbol = self.0.find_symbol(address).map_or("?".to_owned(), readable);
        let frames = self.0.find_frames(address).ok();
        let innermost = frames.and_then(|mut frames| frames.next().ok().flatten());
        let name = innermost.and_then(|frame| frame.function);
        let name = name.and_then(|name| name.raw_name().ok().map(|name| readable(&name)));
        (name.unwrap_or_else(|| symbol.clone()), symbol)
    }
}

/// Demangles a name, without hash.
fn readable(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}
