//! The serial line: one whole line at a time, whichever CPU speaks.

use core::fmt::{self, Write};
use core::ptr::{NonNull, with_exposed_provenance_mut};

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use spin::Mutex;

/// Registers of the machine's first PL011.
const BASE: usize = 0x0900_0000;
/// Longest line in bytes; what is longer is cut.
const LINE: usize = 480;

/// Proof that the line is this CPU's.
struct Turn;

static TURN: Mutex<Turn> = Mutex::new(Turn);

/// A line on its way out.
struct Line {
    bytes: [u8; LINE],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes().filter(|byte| *byte != b'\n') {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
        Ok(())
    }
}

/// Prints one line.
macro_rules! say {
    ($($arguments:tt)*) => { $crate::uart::say(format_args!($($arguments)*)) };
}

/// Prints one line as a whole.
pub fn say(arguments: fmt::Arguments<'_>) {
    let _turn = TURN.lock();
    say_unlocked(arguments);
}

/// Prints one line although another CPU, or this one, may be in the middle of its own: for the
/// last words of a crash.
pub fn say_unlocked(arguments: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE], length: 0 };
    // `Line` takes whatever it is given; formatting cannot fail.
    let _ = line.write_fmt(arguments);
    let mut uart = uart();
    for byte in line.bytes.iter().take(line.length).chain(b"\r\n") {
        uart.write_word(*byte);
    }
}

fn uart() -> Uart<'static> {
    let registers = with_exposed_provenance_mut::<PL011Registers>(BASE);
    let registers = NonNull::new(registers).unwrap_or(NonNull::dangling());
    // SAFETY: The address is that of the PL011, mapped as device memory for good. Lines are taken
    // in turns; a crash that speaks out of turn can only garble text, as its registers are volatile.
    Uart::new(unsafe { UniqueMmioPointer::new(registers) })
}
