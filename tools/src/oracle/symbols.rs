//! What the payload's ELF file says: where its parts lie, and what is at an address.

use std::fs;
use std::path::{Path, PathBuf};

use addr2line::Loader;
use object::{Object, ObjectSymbol};
use pfnguard_oracle::insn::Insn;
use pfnguard_oracle::record::{Event, Record};

use super::{OracleError, PAYLOAD_BASE};
use crate::{artifacts, workspace};

/// Tables of vectors, one behind the other, by the symbol of each.
const VECTORS: &[&str] =
    &["pfnguard_vectors_plain", "pfnguard_vectors_pauth", "pfnguard_vectors_guest"];

/// Bytes of the payload's parts, and offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) text: u64,
    pub(super) image: u64,
    pub(super) vectors: u64,
    pub(super) tables: u64,
}

/// The payload's symbols.
#[derive(Clone, Debug)]
pub struct Symbols {
    path: PathBuf,
    pub(super) layout: Layout,
    /// Offset of each table of vectors, in the order of their names above.
    vectors: Vec<u64>,
}

impl Symbols {
    /// Reads the payload's ELF file.
    ///
    /// # Errors
    /// [`OracleError::File`]; [`OracleError::Symbols`] where one is missing.
    pub fn read(path: &Path) -> Result<Self, OracleError> {
        let bytes = fs::read(path).map_err(artifacts::file("read", path))?;
        let failed = |cause: String| OracleError::Symbols { path: path.to_owned(), cause };
        let file = object::File::parse(&*bytes).map_err(|cause| failed(cause.to_string()))?;
        let address = |name: &str| {
            let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
            let missing = || failed(format!("no symbol `{name}`"));
            symbol.map(|symbol| symbol.address()).ok_or_else(missing)
        };
        let vectors = VECTORS.iter().map(|name| address(name)).collect::<Result<Vec<_>, _>>()?;
        let layout = Layout {
            text: address("text_end")?,
            image: address("image_end")?,
            vectors: vectors.iter().copied().min().unwrap_or(0),
            tables: u64::try_from(vectors.len()).unwrap_or(0),
        };
        Ok(Self { path: path.to_owned(), layout, vectors })
    }

    /// Returns whether a vector is one for the time that a guest runs.
    pub(super) fn is_guest_vector(&self, pc: u64) -> bool {
        let offset = pc.wrapping_sub(PAYLOAD_BASE);
        let below = self.vectors.iter().filter(|start| **start <= offset).max();
        below.is_some() && below == self.vectors.last()
    }

    /// Returns the functions at an address, inlined ones first, with file and line.
    pub fn place(&self, pc: u64) -> String {
        let offset = pc.wrapping_sub(PAYLOAD_BASE);
        let mut text = format!("{pc:#x}");
        let Ok(loader) = Loader::new(&self.path) else { return text };
        let symbol = loader.find_symbol(offset).unwrap_or("?");
        let name = readable(symbol);
        text += &format!(" in {name}");
        if name == symbol {
            // Assembly has no lines; those that are found are of functions that were left out.
            return text;
        }
        frames(&loader, offset).iter().for_each(|frame| text += &format!("\n    {frame}"));
        text
    }

    /// Returns the innermost function at an address.
    pub fn function(&self, pc: u64) -> String {
        let place = self.place(pc);
        let frame = place.lines().nth(1).map(str::trim);
        frame.or(place.split_once(" in ").map(|(_, name)| name)).unwrap_or(&place).to_owned()
    }
}

/// Returns the functions at `offset` in this workspace, inlined ones first, with file and line.
fn frames(loader: &Loader, offset: u64) -> Vec<String> {
    let root = workspace::root().to_string_lossy().into_owned() + "/";
    let mut found = Vec::new();
    let Ok(mut frames) = loader.find_frames(offset) else { return found };
    while let Ok(Some(frame)) = frames.next() {
        let name = frame.function.and_then(|name| Some(readable(&name.raw_name().ok()?)));
        let Some((file, line)) = frame.location.and_then(|at| Some((at.file?, at.line?))) else {
            continue;
        };
        // What lies elsewhere is the standard library's, and says nothing here.
        if let Some(file) = file.strip_prefix(&root) {
            found.push(format!("{} ({file}:{line})", name.unwrap_or_default()));
        }
    }
    found
}

fn readable(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// Returns a record in words.
pub(super) fn step(record: &Record) -> String {
    match record.event {
        Event::Executed { insn, operand, count, .. } => {
            let insn = Insn::decode(insn).map_or("?".to_owned(), |insn| format!("{insn:?}"));
            let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
            format!("{insn} {operand:#x}{times}")
        }
        Event::Stored { address, value } => format!("[{address:#x}] = {value:#x}"),
        Event::Entered { esr, x0 } => format!("entry, ESR_EL2 {esr:#x}, x0 {x0:#x}"),
        Event::End { .. } => "end".to_owned(),
    }
}
