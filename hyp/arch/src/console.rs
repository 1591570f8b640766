//! The log: PL011 where the machine has one, and a ring in memory in any case.
//!
//! Works from the first instruction on: while the MMU is off nothing here uses exclusives, which
//! need Normal memory. In a panic the lock is not waited for, since its holder may be the one who
//! panics.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use log::{Level, LevelFilter, Log, Metadata, Record};
use pfnguard_core::addr::{PfnRange, PhysAddr};
use spin::mutex::TicketMutex;

/// Bytes that the ring keeps.
pub const RING_SIZE: usize = 16 * 1024;
/// Polls of a full transmit FIFO before a character is dropped: the host can stop the UART, and
/// must not stop EL2 with it.
const FIFO_PATIENCE: usize = 100_000;
/// What every line starts with.
const PREFIX: &str = "[hyp] ";

struct Console {
    uart: Option<Uart<'static>>,
    audience: Audience,
    ring: Ring,
}

/// Who gets a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    /// The UART and the ring.
    All,
    /// The ring: in the middle of the host's own output nobody could read it.
    Ring,
}

impl Audience {
    fn of(level: Level) -> Self {
        if HOST_RUNS.load(Ordering::Relaxed) && level > Level::Warn {
            Self::Ring
        } else {
            Self::All
        }
    }
}

/// The last [`RING_SIZE`] bytes of the log.
#[repr(C)]
struct Ring {
    /// Bytes written so far; the newest is at `(written - 1) % RING_SIZE`.
    written: usize,
    bytes: [u8; RING_SIZE],
}

struct Shared {
    lock: TicketMutex<()>,
    console: UnsafeCell<Console>,
}

// SAFETY: the console is used under the lock, or by the only CPU that runs, or in a panic, where
// mixed lines are better than none.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared {
    lock: TicketMutex::new(()),
    console: UnsafeCell::new(Console {
        uart: None,
        audience: Audience::All,
        ring: Ring { written: 0, bytes: [0; RING_SIZE] },
    }),
};
/// Whether the lock works: the MMU is on.
static LOCKING: AtomicBool = AtomicBool::new(false);
/// Whether the host runs: the UART is its own then, and hears from EL2 only what is wrong.
static HOST_RUNS: AtomicBool = AtomicBool::new(false);
/// Whether the lock is not waited for any more.
static PANICKING: AtomicBool = AtomicBool::new(false);

impl Ring {
    fn push(&mut self, byte: u8) {
        self.bytes[self.written % RING_SIZE] = byte;
        self.written = self.written.wrapping_add(1);
    }
}

impl Console {
    fn push(&mut self, byte: u8) {
        self.ring.push(byte);
        let Some(uart) = self.uart.as_mut().filter(|_| self.audience == Audience::All) else {
            return;
        };
        for _ in 0..FIFO_PATIENCE {
            if !uart.is_tx_fifo_full() {
                uart.write_word(byte);
                return;
            }
        }
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}

/// Runs `write` on the console.
fn with_console(write: impl FnOnce(&mut Console)) {
    let waits = LOCKING.load(Ordering::Relaxed) && !PANICKING.load(Ordering::Relaxed);
    let guard = waits.then(|| SHARED.lock.lock());
    // SAFETY: see `Shared`.
    write(unsafe { &mut *SHARED.console.get() });
    drop(guard);
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        with_console(|console| {
            console.audience = Audience::of(record.level());
            // Writing to the console cannot fail.
            let _ = console.write_fmt(format_args!("{PREFIX}{}\n", record.args()));
        });
    }

    fn flush(&self) {}
}

/// Makes this the log.
///
/// # Safety
///
/// Only the boot CPU runs.
pub unsafe fn init() {
    // SAFETY: nobody logs at the same time. The other setter would need exclusives.
    let installed = unsafe { log::set_logger_racy(&Logger) };
    assert!(installed.is_ok(), "a log was there before");
    log::set_max_level(LevelFilter::Info);
}

/// Adds the PL011 at `base`, which the firmware or the loader has set up, to the log.
///
/// # Safety
///
/// `base` must be the registers of a PL011, accessible at that address from now on.
pub unsafe fn add_uart(base: PhysAddr) {
    let address = usize::try_from(base.0).expect("addresses have 64 bits");
    let registers = core::ptr::with_exposed_provenance_mut::<PL011Registers>(address);
    let registers = NonNull::new(registers).expect("no device is at address 0");
    // SAFETY: the caller's promise; the host may use the same UART, which only mixes output.
    let registers = unsafe { UniqueMmioPointer::new(registers) };
    with_console(|console| console.uart = Some(Uart::new(registers)));
}

/// Returns the pages of the UART's registers at `base`.
pub fn uart_pages(base: PhysAddr) -> Option<PfnRange> {
    PfnRange::single(base.pfn())
}

/// Starts to lock: the MMU is on, so exclusives work, and other CPUs may come.
pub fn start_locking() {
    LOCKING.store(true, Ordering::Release);
}

/// Leaves the UART to the host, but for warnings and errors.
pub(crate) fn host_runs() {
    HOST_RUNS.store(true, Ordering::Relaxed);
}

/// Lets the ring begin anew with these words. Returns where they lie and how many bytes they are.
///
/// For a launch that is given up: the next thing to happen to the ring is that somebody reads it.
pub(crate) fn last_words(words: &dyn fmt::Display) -> (usize, usize) {
    let mut found = (0, 0);
    with_console(|console| {
        console.ring.written = 0;
        console.audience = Audience::Ring;
        // Writing to the console cannot fail.
        let _ = console.write_fmt(format_args!("{words}"));
        found = (console.ring.bytes.as_ptr().addr(), console.ring.written.min(RING_SIZE));
    });
    found
}

/// Stops waiting for the lock.
pub fn begin_panic() {
    PANICKING.store(true, Ordering::Relaxed);
}
