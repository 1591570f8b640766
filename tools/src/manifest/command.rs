//! The commands `tools manifest compile | derive | check | show`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use miette::{IntoDiagnostic, Result, WrapErr, bail};
use pfnguard_shared::manifest::{Entry, Header, MAGIC};

use crate::files;
use crate::words::counted;

use super::binary::parse_binary;
use super::compile;
use super::derive::derive;
use super::render::{to_table, to_text};

/// What to do with manifests.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Compiles a text manifest to the binary that the hypervisor reads
    Compile {
        /// Text manifest (TOML, see docs/manifest.md)
        input: PathBuf,
        /// Binary to write
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Derives a manifest from a device tree: whatever is unsafe or unknown gets no grant
    Derive {
        /// Device tree blob (QEMU's dumpdtb=, or /sys/firmware/fdt)
        dtb: PathBuf,
        /// Text with regions to grant: parts of PCI windows, or whole devices
        #[arg(long)]
        grants: Option<PathBuf>,
        /// Binary to write
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Text to write; `-`, and no file, is the standard output
        #[arg(long, num_args = 0..=1, default_missing_value = "-")]
        text: Option<PathBuf>,
    },
    /// Checks manifests, text or binary
    Check {
        /// Manifests
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Shows a manifest, text or binary, as a table
    Show {
        /// Manifest
        file: PathBuf,
    },
}

/// Runs a command.
///
/// # Errors
///
/// Returns what is wrong with a file: unreadable, or refused with every place and cure.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Compile { input, output } => {
            let bytes = read(&input)?;
            if bytes.starts_with(&MAGIC) {
                bail!("{} is compiled already: `manifest show` shows it", input.display());
            }
            let name = input.to_string_lossy();
            let binary = compile(&name, &utf8(&name, bytes)?)?;
            Ok(files::write(&[(&output, &binary)], &[&input])?)
        }
        Command::Derive { dtb, grants, output, text } => {
            run_derive(&dtb, grants.as_deref(), output.as_deref(), text.as_deref())
        }
        Command::Check { files } => run_check(&files),
        Command::Show { file } => {
            let (header, entries) = load(&file)?;
            Ok(files::say(to_table(&header, &entries).trim_end())?)
        }
    }
}

fn run_derive(
    dtb: &Path,
    grants: Option<&Path>,
    output: Option<&Path>,
    text: Option<&Path>,
) -> Result<()> {
    let (grants_name, grants_text) = match grants {
        Some(path) => (path.to_string_lossy().into_owned(), read_utf8(path)?),
        None => ("no grants".to_owned(), String::new()),
    };
    let derived = derive(&read(dtb)?, &grants_name, &grants_text)?;
    let binary = output.map(|_| derived.binary()).transpose()?;
    let rendered = to_text(&derived.manifest, &derived.notes);
    // Somebody who asks for nothing in particular wants to read.
    let text = text.or((output.is_none()).then_some(Path::new("-")));
    let (shown, kept) = match text {
        Some(path) if path == Path::new("-") => (Some(&rendered), None),
        path => (None, path.map(|path| (path, rendered.as_bytes()))),
    };
    let binary = output.zip(binary.as_deref());
    let outputs: Vec<_> = binary.into_iter().chain(kept).collect();
    let inputs: Vec<_> = std::iter::once(dtb).chain(grants).collect();
    files::write(&outputs, &inputs)?;
    Ok(shown.map_or(Ok(()), |text| files::say(text.trim_end()))?)
}

fn run_check(files: &[PathBuf]) -> Result<()> {
    let mut refused = 0usize;
    for file in files {
        match load(file) {
            Ok((header, entries)) => {
                let hash: String =
                    header.sha256.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                let count = counted(entries.len(), "entry", "entries");
                files::say(format!("{}: ok, {count}, sha256 {hash}…", file.display()))?;
            }
            Err(report) => {
                eprintln!("{report:?}");
                refused = refused.saturating_add(1);
            }
        }
    }
    if refused != 0 {
        bail!("{refused} of {} manifests refused", files.len());
    }
    Ok(())
}

/// Loads a manifest; a file that starts with the magic is binary, every other is text.
fn load(path: &Path) -> Result<(Header, Vec<Entry>)> {
    let bytes = read(path)?;
    let name = path.to_string_lossy();
    let binary =
        if bytes.starts_with(&MAGIC) { bytes } else { compile(&name, &utf8(&name, bytes)?)? };
    parse_binary(&binary).map_err(miette::Report::new).wrap_err_with(|| name.into_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).into_diagnostic().wrap_err_with(|| format!("cannot read {}", path.display()))
}

fn read_utf8(path: &Path) -> Result<String> {
    utf8(&path.to_string_lossy(), read(path)?)
}

fn utf8(name: &str, bytes: Vec<u8>) -> Result<String> {
    let text = String::from_utf8(bytes).into_diagnostic();
    text.wrap_err_with(|| format!("{name} is neither a compiled manifest nor text"))
}
