//! Where the trace arrives.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use super::{Oracle, OracleError, Oversight, PAYLOAD_BASE, Watch};
use crate::machine::comma_safe;
use crate::workspace;

/// A socket with a thread that judges what comes.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    argument: String,
    judge: Option<JoinHandle<Oversight>>,
}

impl Listener {
    pub(super) fn open(watch: &Watch, oracle: &Oracle) -> Result<Self, OracleError> {
        // Paths of sockets are short: not below the build directory, which may be deep.
        let path = std::env::temp_dir().join(format!("pfnguard-{}.trace", workspace::unique()));
        let failed = |cause| OracleError::Socket { path: path.clone(), cause };
        let socket = UnixListener::bind(&path).map_err(failed)?;
        let copy = match oracle {
            Oracle::Keep(file) => Some(
                File::create(file)
                    .map_err(|cause| OracleError::Socket { path: file.clone(), cause })?,
            ),
            Oracle::On | Oracle::Off => None,
        };
        let argument = argument(watch, &path.to_string_lossy());
        let watch = watch.clone();
        let judge = thread::spawn(move || match socket.accept() {
            Ok((source, _)) => watch.judge(Copied { source, copy }),
            Err(cause) => Oversight::Refused(cause.to_string()),
        });
        Ok(Self { path, argument, judge: Some(judge) })
    }

    /// Returns the value of QEMU's option `-plugin`.
    pub fn argument(&self) -> &str {
        &self.argument
    }

    /// Returns the verdict on a machine that has ended.
    pub fn finish(mut self) -> Oversight {
        self.release();
        let judge = self.judge.take().map(JoinHandle::join);
        let gone = || Oversight::Refused("the judge itself broke down".to_owned());
        judge.and_then(Result::ok).unwrap_or_else(gone)
    }

    /// Makes an end of the wait for a machine that never connected: an empty trace is refused.
    fn release(&self) {
        drop(UnixStream::connect(&self.path));
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.judge.is_some() {
            self.release();
        }
    }
}

fn argument(watch: &Watch, socket: &str) -> String {
    let layout = &watch.symbols.layout;
    let plugin = comma_safe(&watch.plugin);
    let socket = socket.replace(',', ",,");
    format!(
        "{plugin},trace={socket},build={},base={PAYLOAD_BASE:#x},text={:#x},image={:#x},vectors={:#x},tables={:#x}",
        watch.build, layout.text, layout.image, layout.vectors, layout.tables
    )
}

/// A source of which a copy is kept.
struct Copied {
    source: UnixStream,
    copy: Option<File>,
}

impl Read for Copied {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(bytes)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&bytes[..count])?;
        }
        Ok(count)
    }
}
