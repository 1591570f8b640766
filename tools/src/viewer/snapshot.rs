//! The kernel module's snapshot of who holds what: one line each, `word key=value …`.
//!
//! Numbers are those of pages, lengths are in pages. Blank lines and lines that start with `#` say
//! nothing. A space in a name is `\040`, as in /proc/mounts.

use miette::Diagnostic;
use pfnguard_shared::info::RegionState;
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::{MemType, Mode, Perms};
use thiserror::Error;

use super::pages::{Pages, Pfn};
use crate::fields::{Fields, LineError};

/// A line that cannot be read.
#[derive(Debug, Error, Diagnostic, PartialEq, Eq)]
#[error("{file}, line {number}: {cause}\n  {line}")]
pub struct SnapshotError {
    /// The file.
    pub file: String,
    /// Which line, from 1.
    pub number: usize,
    /// The line.
    pub line: String,
    /// What is wrong with it.
    pub cause: LineError,
}

/// A region of the manifest and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its place in the hypervisor's table.
    pub index: u64,
    /// Its name.
    pub name: String,
    /// Its pages.
    pub pages: Pages,
    /// What its manifest entry says of it.
    pub flags: RegionFlags,
    /// Where it is in its life.
    pub state: RegionState,
    /// VMs that hold it.
    pub holders: u8,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its number.
    pub number: u16,
    /// The process that runs it.
    pub pid: u32,
    /// That process's name.
    pub comm: String,
    /// Whether it still runs.
    pub life: Life,
}

/// Whether a VM still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It does.
    Alive,
    /// It was torn down, and its pages have not all come back.
    Dead,
}

/// RAM of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// The VM.
    pub vm: u16,
    /// Where the VM sees it.
    pub ipa: Pages,
    /// Where it is.
    pub pages: Pages,
    /// What the VM may do.
    pub perms: Perms,
}

/// Pages of a region that a VM has bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The VM.
    pub vm: u16,
    /// Where the VM sees it.
    pub ipa: Pages,
    /// Where it is.
    pub pages: Pages,
    /// Whether the host keeps access.
    pub mode: Mode,
    /// The memory type that stage 2 forces.
    pub mem_type: MemType,
    /// What the VM may do.
    pub perms: Perms,
}

/// Everything that the module knows of the machine's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The hypervisor's own memory.
    pub hyp: Vec<Pages>,
    /// Banks of RAM.
    pub ram: Vec<Pages>,
    /// Regions.
    pub regions: Vec<Region>,
    /// VMs.
    pub vms: Vec<Vm>,
    /// Memory for stage-2 tables, each for a VM.
    pub tables: Vec<(u16, Pages)>,
    /// RAM that the host shares with a VM.
    pub lent: Vec<Ram>,
    /// RAM that was donated to a VM.
    pub given: Vec<Ram>,
    /// Regions that a VM has bound.
    pub bindings: Vec<Binding>,
}

impl Snapshot {
    /// Reads `text`, the contents of `file`.
    ///
    /// # Errors
    /// The first line that cannot be read.
    pub fn read(file: &str, text: &str) -> Result<Self, SnapshotError> {
        let mut snapshot = Self::default();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            snapshot.take(line).map_err(|cause| {
                let (file, number) = (file.to_owned(), index.saturating_add(1));
                SnapshotError { file, number, line: line.to_owned(), cause }
            })?;
        }
        Ok(snapshot)
    }

    fn take(&mut self, line: &str) -> Result<(), LineError> {
        let mut words = line.trim_end().split(' ');
        let word = words.next().unwrap_or_default();
        let fields = Fields::read(words)?;
        match word {
            "hyp" => self.hyp.push(fields.pages("pfn")?),
            "ram" => self.ram.push(fields.pages("pfn")?),
            "region" => self.regions.push(fields.region()?),
            "vm" => self.vms.push(fields.vm()?),
            "tables" => self.tables.push((fields.number("vm")?, fields.pages("pfn")?)),
            "lent" => self.lent.push(fields.ram()?),
            "given" => self.given.push(fields.ram()?),
            "bind" => self.bindings.push(fields.binding()?),
            // A VM whose program is in the middle of a call: nobody waits for it.
            "busy" => {}
            unknown => return Err(LineError::UnknownWord(unknown.to_owned())),
        }
        Ok(())
    }
}

impl Fields<'_> {
    /// As many pages as the line says, from the one in `key` on.
    fn pages(&self, key: &'static str) -> Result<Pages, LineError> {
        let (first, count) = (self.number(key)?, self.number("pages")?);
        let value = || self.text("pages").map(str::to_owned);
        match Pages::new(Pfn(first), count) {
            Some(pages) => Ok(pages),
            None => Err(LineError::BadValue { key: "pages", value: value()? }),
        }
    }

    /// A number that `decode` knows.
    fn known<R: TryFrom<u64>, T>(
        &self,
        key: &'static str,
        decode: impl FnOnce(R) -> Option<T>,
    ) -> Result<T, LineError> {
        let raw = self.number(key)?;
        self.with(key, |_| decode(raw))
    }

    fn region(&self) -> Result<Region, LineError> {
        Ok(Region {
            index: self.number("index")?,
            name: self.with("name", unescape)?,
            pages: self.pages("pfn")?,
            flags: self.known("flags", RegionFlags::from_raw)?,
            state: self.known("state", RegionState::from_raw)?,
            holders: self.number("holders")?,
        })
    }

    fn vm(&self) -> Result<Vm, LineError> {
        let life = |raw: u8| match raw {
            0 => Some(Life::Alive),
            1 => Some(Life::Dead),
            2.. => None,
        };
        Ok(Vm {
            number: self.number("number")?,
            pid: self.number("pid")?,
            comm: self.with("comm", unescape)?,
            life: self.known("dead", life)?,
        })
    }

    fn ram(&self) -> Result<Ram, LineError> {
        let (vm, ipa, pages) = (self.number("vm")?, self.pages("ipa")?, self.pages("pfn")?);
        Ok(Ram { vm, ipa, pages, perms: self.known("perms", Perms::from_raw)? })
    }

    fn binding(&self) -> Result<Binding, LineError> {
        let Ram { vm, ipa, pages, perms } = self.ram()?;
        let mode = self.known("mode", Mode::from_raw)?;
        let mem_type = self.known("type", MemType::from_raw)?;
        Ok(Binding { vm, ipa, pages, mode, mem_type, perms })
    }
}

/// Undoes the kernel's `seq_escape`: a backslash and three octal digits are a byte.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let digits = (byte == b'\\').then(|| behind.split_at_checked(3)).flatten();
        let escaped = digits.and_then(|(digits, rest)| {
            let digits = str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 8).ok()?, rest))
        });
        let (byte, behind) = escaped.unwrap_or((byte, behind));
        bytes.push(byte);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::viewer::testing::SNAPSHOT;

    fn error(line: &str) -> SnapshotError {
        Snapshot::read("map", &format!("# one\n\n{line}\n")).unwrap_err()
    }

    #[test]
    fn every_kind_of_line_is_read() {
        let snapshot = Snapshot::read("map", SNAPSHOT).unwrap();
        let pages = |first, count| Pages::new(Pfn(first), count).unwrap();
        assert_eq!(snapshot.hyp, [pages(0x7a200, 0x1f0)]);
        assert_eq!(snapshot.ram, [pages(0x40000, 0x40000)]);
        assert_eq!(snapshot.regions[0].name, "edu-bar0");
        assert_eq!(snapshot.regions[0].state, RegionState::Shared);
        assert_eq!((snapshot.vms[0].pid, snapshot.vms[0].comm.as_str()), (123, "demo"));
        assert_eq!(snapshot.vms[1].comm, "crosvm vcpu");
        assert_eq!(snapshot.tables, [(0, pages(0x51234, 0x10))]);
        assert_eq!(snapshot.lent[0].ipa, pages(0x80000, 0x10));
        assert_eq!(snapshot.given[0].perms, Perms::ALL);
        assert_eq!(snapshot.bindings[0].mem_type, MemType::AnyUncached);
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_with_its_cause() {
        let unknown = error("what pfn=0x1");
        assert_eq!((unknown.number, unknown.cause), (3, LineError::UnknownWord("what".into())));
        assert_eq!(error("hyp pfn=0x1").cause, LineError::Missing("pages"));
        assert_eq!(error("ram pfn").cause, LineError::NotAField("pfn".into()));
        assert_eq!(error("ram pfn=1 pfn=2").cause, LineError::Twice("pfn".into()));
        let bad = |key, value: &str| LineError::BadValue { key, value: value.into() };
        assert_eq!(error("ram pfn=0x1 pages=0x0").cause, bad("pages", "0x0"));
        assert_eq!(error("hyp pfn=x pages=0x1").cause, bad("pfn", "x"));
        let lent = "lent vm=0x0 ipa=0x1 pfn=0x1 pages=0x1 perms=0x8";
        assert_eq!(error(lent).cause, bad("perms", "0x8"));
        let vm = error("vm number=0x10000 pid=1 comm=a dead=0");
        let text = "map, line 3: field `number` cannot be `0x10000`\n  vm number=0x10000 pid=1 comm=a dead=0";
        assert_eq!(vm.to_string(), text);
    }

    #[test]
    fn names_lose_the_kernels_escapes() {
        assert_eq!(unescape("a\\040b").as_deref(), Some("a b"));
        assert_eq!(unescape("\\134").as_deref(), Some("\\"));
        assert_eq!(unescape("a\\9\\").as_deref(), Some("a\\9\\"));
        assert_eq!(unescape("\\377"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, name in "\\PC*") {
            let _ = Snapshot::read("map", &text);
            let line = format!("region name={name} index=0 pfn=0 pages=1 flags=0 state=0 holders=0");
            let _ = Snapshot::read("map", &line);
        }
    }
}
