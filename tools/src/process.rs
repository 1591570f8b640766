//! Subprocesses that are watched while they run.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// How often whoever watches is told that nothing new was said.
pub const TICK: Duration = Duration::from_secs(5);

/// Returns the command as a person would type it into a shell.
pub fn show(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.to_string_lossy(), quote(&value?.to_string_lossy())))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quote(&word.to_string_lossy()));
    set.chain(words).collect::<Vec<_>>().join(" ")
}

/// Quotes a word where the shell would not take it literally.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Returns whether `program` can be started.
pub fn exists(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}

/// Runs `command` to its end, handing each line of its output to `seen`, and the last one again
/// now and then while there is no other. Returns whether it succeeded, and all lines; one that
/// could not be started says why in its only line.
pub fn watch(command: &mut Command, mut seen: impl FnMut(&str)) -> (bool, Vec<String>) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(cause) => return (false, vec![format!("cannot start it: {cause}")]),
    };
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        send_lines(stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        send_lines(stderr, sender.clone());
    }
    drop(sender);
    let mut lines: Vec<String> = Vec::new();
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(line) => lines.push(line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        seen(lines.last().map_or("", |line| line.trim()));
    }
    (child.wait().is_ok_and(|status| status.success()), lines)
}

/// Sends each line of `source` from a thread of its own, until its end or the receiver's.
pub fn send_lines(source: impl Read + Send + 'static, sender: Sender<String>) {
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while source.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
}

/// Returns the last `count` lines as one text.
pub fn tail(lines: &[String], count: usize) -> String {
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_seen_and_kept() {
        let mut seen = Vec::new();
        let mut shell = Command::new("sh");
        let (ran, lines) = watch(shell.args(["-c", "echo a; echo b"]), |l| seen.push(l.to_owned()));
        assert!(ran);
        assert_eq!(seen, ["a", "b"]);
        assert_eq!(lines, seen);
    }

    #[test]
    fn a_shown_command_can_be_typed() {
        let mut command = Command::new("a");
        command.args(["b=c,d", "it's", ""]).env("E", "f g").env_remove("H");
        assert_eq!(show(&command), r"E='f g' a b=c,d 'it'\''s' ''");
    }

    #[test]
    fn what_cannot_be_started_says_so() {
        let (ran, lines) = watch(&mut Command::new("no-such-program-here"), |_| ());
        assert!(!ran);
        assert!(lines[0].starts_with("cannot start it"));
    }

    #[test]
    fn the_tail_is_the_end() {
        let lines = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(tail(&lines, 2), "b\nc");
        assert_eq!(tail(&lines, 9), "a\nb\nc");
    }
}
