//! The commands `tools manifest compile | derive | check | show`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use miette::{IntoDiagnostic, Result, WrapErr, bail};
use pfnguard_shared::manifest::{Entry, Header, MAGIC};

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
            let text = read_utf8(&input)?;
            write(&output, &compile(&input.to_string_lossy(), &text)?)
        }
        Command::Derive { dtb, grants, output, text } => {
            run_derive(&dtb, grants.as_deref(), output.as_deref(), text.as_deref())
        }
        Command::Check { files } => run_check(&files),
        Command::Show { file } => {
            let (header, entries) = load(&file)?;
            print!("{}", to_table(&header, &entries));
            Ok(())
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
    if let Some(path) = output {
        write(path, &derived.binary()?)?;
    }
    // Somebody who asks for nothing in particular wants to read.
    let text = text.or((output.is_none()).then_some(Path::new("-")));
    match text {
        Some(path) if path == Path::new("-") => {
            print!("{}", to_text(&derived.manifest, &derived.notes));
        }
        Some(path) => write(path, to_text(&derived.manifest, &derived.notes).as_bytes())?,
        None => {}
    }
    Ok(())
}

fn run_check(files: &[PathBuf]) -> Result<()> {
    let mut refused = 0usize;
    for file in files {
        match load(file) {
            Ok((header, entries)) => {
                let hash: String =
                    header.sha256.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                println!("{}: ok, {} entries, sha256 {hash}…", file.display(), entries.len());
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

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot write {}", path.display()))
}
