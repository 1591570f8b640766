//! What the bare-metal host wrote down of a random run: the `@fuzz` lines (`tests/el2/src/fuzz.rs`).

use pfnguard_shared::PAGE_SIZE;
use thiserror::Error;

/// Bytes of the argument page that one line shows.
const CHUNK: usize = 32;

/// `x0..=x7`.
pub type Registers = [u64; 8];

/// A page.
pub type Page = [u8; PAGE_SIZE];

/// A line that says nothing.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("step {step} of the log, `{line}`: {why}")]
pub struct LogError {
    /// Number of the line, from 0.
    pub step: usize,
    /// The line.
    pub line: String,
    /// What is wrong.
    pub why: &'static str,
}

/// How the host accessed a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A load.
    Load,
    /// A store.
    Store,
    /// A fetch of an instruction.
    Fetch,
}

/// An access of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The CPU.
    pub cpu: usize,
    /// The page.
    pub page: u64,
    /// How.
    pub kind: Kind,
    /// Whether it went through.
    pub went_through: bool,
}

/// A call of the host and what it brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The CPU.
    pub cpu: usize,
    /// Whether an interrupt was pending all the time.
    pub interrupted: bool,
    /// The registers.
    pub regs: Registers,
    /// The argument page before, where the call uses it.
    pub before: Box<Page>,
    /// The argument page after.
    pub after: Box<Page>,
    /// Whether the pages that came back read zero.
    pub zero: Option<bool>,
    /// The answer; `None` where the machine died in the call.
    pub answer: Option<Registers>,
}

/// A step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A call.
    Call(Call),
    /// An access.
    Touch(Touch),
}

/// Reads the steps in their order.
///
/// # Errors
/// [`LogError`]: a line is not of this protocol, or out of order.
pub fn read(lines: &[String]) -> Result<Vec<Step>, LogError> {
    let mut reader = Reader { steps: Vec::new(), before: empty(), open: None };
    for (step, line) in lines.iter().enumerate() {
        let wrong = |why| LogError { step, line: line.clone(), why };
        reader.take(line).map_err(wrong)?;
    }
    reader.steps.extend(reader.open.map(Step::Call));
    Ok(reader.steps)
}

/// The page that the next call finds, and the call that is under way.
struct Reader {
    steps: Vec<Step>,
    before: Box<Page>,
    open: Option<Call>,
}

impl Reader {
    fn take(&mut self, line: &str) -> Result<(), &'static str> {
        let words: Vec<&str> = line.split(' ').collect();
        match (words.as_slice(), &mut self.open) {
            (["arg", offset, rest @ ..], None) => chunk(&mut self.before, offset, rest)?,
            (["call", cpu, how @ ("i" | "-"), rest @ ..], None) => {
                let before = std::mem::replace(&mut self.before, empty());
                self.open = Some(Call {
                    cpu: cpu.parse().map_err(|_| "no CPU")?,
                    interrupted: *how == "i",
                    regs: numbers(rest)?,
                    before,
                    after: empty(),
                    zero: None,
                    answer: None,
                });
            }
            (["back", offset, rest @ ..], Some(call)) => chunk(&mut call.after, offset, rest)?,
            (["zero", flag], Some(call)) => call.zero = Some(yes(flag)?),
            (["done", rest @ ..], Some(call)) => {
                call.answer = Some(numbers(rest)?);
                self.steps.extend(self.open.take().map(Step::Call));
            }
            (["touch", cpu, page, kind, flag], None) => {
                let kind = match *kind {
                    "l" => Kind::Load,
                    "s" => Kind::Store,
                    "x" => Kind::Fetch,
                    _ => return Err("no kind of access"),
                };
                let [page] = numbers(&[page])?;
                let cpu = cpu.parse().map_err(|_| "no CPU")?;
                self.steps.push(Step::Touch(Touch { cpu, page, kind, went_through: yes(flag)? }));
            }
            _ => return Err("not a step, or out of order"),
        }
        Ok(())
    }
}

fn empty() -> Box<Page> {
    Box::new([0; PAGE_SIZE])
}

fn yes(flag: &str) -> Result<bool, &'static str> {
    match flag {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err("neither 0 nor 1"),
    }
}

fn numbers<const N: usize>(words: &[&str]) -> Result<[u64; N], &'static str> {
    let numbers = words.iter().map(|word| u64::from_str_radix(word, 16));
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().map_err(|_| "no number")?;
    numbers.try_into().map_err(|_| "too few or too many numbers")
}

fn chunk(page: &mut Page, offset: &str, words: &[&str]) -> Result<(), &'static str> {
    let [offset] = numbers(&[offset])?;
    let words: [u64; CHUNK / 8] = numbers(words)?;
    let offset = usize::try_from(offset).map_err(|_| "outside the page")?;
    let place = offset.checked_add(CHUNK).and_then(|end| page.get_mut(offset..end));
    let place = place.ok_or("outside the page")?;
    for (bytes, word) in place.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(lines: &[&str]) -> Result<Vec<Step>, LogError> {
        let lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        read(&lines)
    }

    #[test]
    fn a_call_has_its_argument_page_before_and_after() {
        let found = steps(&[
            "arg 20 1 0 0 ff",
            "call 1 i c6000130 1 0 0 0 0 0 0",
            "back 800 0 2 0 0",
            "zero 1",
            "done 0 0 0 0 0 0 0 0",
            "touch 0 50000 x 0",
        ])
        .unwrap();
        let [Step::Call(call), Step::Touch(touch)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((call.cpu, call.interrupted, call.zero), (1, true, Some(true)));
        assert_eq!((call.regs[0], call.answer), (0xc600_0130, Some([0; 8])));
        assert_eq!((call.before[0x20], call.before[0x38], call.after[0x808]), (1, 0xff, 2));
        let expected = Touch { cpu: 0, page: 0x5_0000, kind: Kind::Fetch, went_through: false };
        assert_eq!(*touch, expected);
    }

    #[test]
    fn a_call_without_an_answer_is_kept_as_the_last() {
        let found = steps(&["call 0 - 1 0 0 0 0 0 0 0"]).unwrap();
        assert!(matches!(&found[..], [Step::Call(Call { answer: None, .. })]));
    }

    #[test]
    fn what_is_no_step_is_refused_with_its_line() {
        for line in [
            "",
            "call 0 - 1",
            "call x - 0 0 0 0 0 0 0 0",
            "call 0 ? 0 0 0 0 0 0 0 0",
            "done 0 0 0 0 0 0 0 0",
            "arg ff0 1 2 3 4",
            "touch 0 50000 w 1",
            "touch 0 50000 l 2",
        ] {
            let error = steps(&["touch 0 0 l 1", line]).unwrap_err();
            assert_eq!((error.step, error.line.as_str()), (1, line));
        }
    }
}
