//! `map`: who owns which memory, with which type.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use miette::{IntoDiagnostic, WrapErr, miette};
use pfnguard_shared::PAGE_SHIFT;

use super::html;
use super::owner::{Owner, Owners, Row};
use super::pages::Pages;
use super::snapshot::{Life, Snapshot};
use crate::columns;
use crate::files::{self, Output};

/// Where the kernel module shows its snapshot.
const SNAPSHOT: &str = "/sys/kernel/debug/pfnguard/map";
/// Letters of sizes, and the binary logarithm of what each stands for.
const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];
/// Titles of the table's columns.
pub const TITLES: [&str; 6] = ["range", "size", "owner", "type", "VM may", "what"];

/// Which snapshot, shown how.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// The snapshot; `-` is the standard input
    #[arg(default_value = SNAPSHOT)]
    file: PathBuf,
    /// Draw it as a page for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A snapshot as it is shown.
#[derive(Clone, Debug)]
pub struct Map {
    /// Who owns what.
    pub owners: Owners,
    /// What VMs are called.
    vms: BTreeMap<u16, String>,
}

impl Map {
    /// Makes the map of a snapshot.
    pub fn new(snapshot: &Snapshot) -> Self {
        let vms = snapshot.vms.iter().map(|vm| {
            let dead = match vm.life {
                Life::Alive => "",
                Life::Dead => ", dead",
            };
            (vm.number, format!("VM {} ({}/{}{dead})", vm.number, vm.comm, vm.pid))
        });
        Self { owners: Owners::of(snapshot), vms: vms.collect() }
    }

    /// Writes who owns something.
    pub fn owner(&self, owner: &Owner) -> String {
        match owner {
            Owner::Host => "host".to_owned(),
            Owner::Hyp => "hyp".to_owned(),
            Owner::Vm(vm) => self.vm(*vm),
            Owner::Shared(vms) => {
                let vms: Vec<String> = vms.iter().map(|&vm| self.vm(vm)).collect();
                format!("host + {}", vms.join(", "))
            }
            Owner::Quarantine => "quarantine".to_owned(),
            Owner::Lost => "lost".to_owned(),
            Owner::Closed => "nobody".to_owned(),
            Owner::Contradiction => "CONTRADICTION".to_owned(),
        }
    }

    fn vm(&self, number: u16) -> String {
        self.vms.get(&number).cloned().unwrap_or_else(|| format!("VM {number}"))
    }

    /// Returns the cells of a row, in the order of [`TITLES`].
    pub fn cells(&self, row: &Row) -> [String; 6] {
        let (pages, cell) = (row.pages, &row.cell);
        let (owner, name) = (self.owner(&cell.owner), cell.name.clone());
        [addresses(pages), size(pages), owner, cell.types(), cell.perms(), name]
    }

    /// Writes the table, and what contradicts itself.
    pub fn table(&self) -> String {
        let rows: Vec<[String; 6]> = self.owners.rows.iter().map(|row| self.cells(row)).collect();
        let mut text =
            columns::align(TITLES, &rows).replace(|c: char| c.is_control() && c != '\n', "?");
        if !self.owners.problems.is_empty() {
            text += "\ncontradictions:\n";
            text.extend(self.owners.problems.iter().map(|problem| format!("  {problem}\n")));
        }
        text
    }
}

/// Writes the addresses of pages, the last one included, as /proc/iomem does.
pub fn addresses(pages: Pages) -> String {
    format!("{:#x}-{:#x}", pages.first().address(), pages.end().address().saturating_sub(1))
}

/// Writes how many bytes pages have: `4K`, `1.5M`, tenths cut off.
pub fn size(pages: Pages) -> String {
    let bytes = u128::from(pages.count()) << PAGE_SHIFT;
    let unit = UNITS.iter().rev().find(|(_, shift)| bytes >> shift != 0).unwrap_or(&UNITS[0]);
    let (letter, shift) = unit;
    let (whole, tenth) = (bytes >> shift, ((bytes * 10) >> shift) % 10);
    match tenth {
        0 => format!("{whole}{letter}"),
        _ => format!("{whole}.{tenth}{letter}"),
    }
}

/// Shows the map.
///
/// # Errors
/// A file that cannot be read or written, or a snapshot that contradicts itself.
pub fn run(args: &MapArgs) -> miette::Result<()> {
    let map = Map::new(&load(&args.file)?);
    match &args.html {
        Some(path) => files::write(&[(path, html::page(&map).as_bytes())], &[&args.file])?,
        None => drop(Output::standard().put(&map.table())?),
    }
    match map.owners.problems.len() {
        0 => Ok(()),
        1 => Err(miette!("the snapshot contradicts itself in one place")),
        count => Err(miette!("the snapshot contradicts itself in {count} places")),
    }
}

fn load(path: &Path) -> miette::Result<Snapshot> {
    let name = files::name(path);
    let text = String::from_utf8(files::read(path)?).into_diagnostic();
    let text = text.wrap_err_with(|| format!("{name} is no snapshot"))?;
    let snapshot = Snapshot::read(&name, &text)?;
    match snapshot == Snapshot::default() {
        true => Err(miette!("{name} is empty: no snapshot")),
        false => Ok(snapshot),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::viewer::pages::Pfn;
    use crate::viewer::testing::SNAPSHOT;
    use crate::workspace;

    fn map(text: &str) -> Map {
        Map::new(&Snapshot::read("map", text).unwrap())
    }

    #[test]
    fn the_table_has_everything_in_the_order_of_addresses() {
        let table = map(SNAPSHOT).table();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = table.lines().skip(2).map(words).collect();
        let expected = [
            "0x10100000-0x1017ffff 512K host + VM 0 (demo/123) AnyUncached RW edu-bar0",
            "0x10180000-0x101fffff 512K host - - edu-bar0",
            "0x10200000-0x102fffff 1M nobody - - its",
            "0x10300000-0x103fffff 1M quarantine - - nic-bar2",
            "0x40000000-0x51233fff 274.2M host - - RAM",
            "0x51234000-0x51243fff 64K hyp - - tables of VM 0",
            "0x51244000-0x55554fff 67M host - - RAM",
            "0x55555000-0x55556fff 8K host + VM 0 (demo/123), VM 1 (crosvm vcpu/456, dead) \
             Cacheable R/RW RAM",
            "0x55557000-0x55564fff 56K host + VM 0 (demo/123) Cacheable RW RAM",
            "0x55565000-0x66665fff 273M host - - RAM",
            "0x66666000-0x66865fff 2M VM 1 (crosvm vcpu/456, dead) Cacheable RWX RAM",
            "0x66866000-0x7a1fffff 313.6M host - - RAM",
            "0x7a200000-0x7a3effff 1.9M hyp - - hypervisor",
            "0x7a3f0000-0x7fffffff 92M host - - RAM",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_document_shows_this_table() {
        let document = fs::read_to_string(workspace::root().join("docs/viewers.md")).unwrap();
        let table = map(SNAPSHOT).table();
        assert!(document.contains(&format!("<!-- map -->\n```text\n{table}```\n")), "{table}");
    }

    #[test]
    fn sizes_are_short_whatever_they_are() {
        let text = |count| size(Pages::new(Pfn(0), count).unwrap());
        assert_eq!(
            (text(1), text(0x180), text(0x40000)),
            ("4K".into(), "1.5M".into(), "1G".into())
        );
        assert_eq!(text(u64::MAX), "67108863.9P");
    }

    #[test]
    fn contradictions_are_listed_at_the_end() {
        let table =
            map("ram pfn=0x1 pages=0x1\ngiven vm=0x3 ipa=0x0 pfn=0x1 pages=0x1 perms=0x1\n")
                .table();
        let expected = "\
range          size  owner  type       VM may  what
-------------  ----  -----  ---------  ------  ----
0x1000-0x1fff  4K    VM 3   Cacheable  R       RAM

contradictions:
  pfn 0x1: there is no VM 3
";
        assert_eq!(table, expected);
    }

    #[test]
    fn a_snapshot_that_contradicts_itself_is_shown_and_fails() {
        let path = std::env::temp_dir().join(format!("pfnguard-map-{}", workspace::unique()));
        let page = path.with_extension("html");
        let run = |text: &str| {
            fs::write(&path, text).unwrap();
            run(&MapArgs { file: path.clone(), html: Some(page.clone()) })
                .map_err(|e| e.to_string())
        };
        assert_eq!(run(SNAPSHOT), Ok(()));
        assert!(fs::read_to_string(&page).unwrap().contains("edu-bar0"));
        let twice = "ram pfn=0x1 pages=0x2\nram pfn=0x2 pages=0x1\n";
        assert_eq!(run(twice), Err("the snapshot contradicts itself in one place".to_owned()));
        assert!(fs::read_to_string(&page).unwrap().contains("RAM at once"));
        assert!(run("").unwrap_err().ends_with("is empty: no snapshot"));
        assert!(run("what").unwrap_err().contains(", line 1: unknown line `what`"));
        fs::remove_file(&path).unwrap();
        fs::remove_file(&page).unwrap();
    }
}
