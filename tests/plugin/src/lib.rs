//! QEMU TCG plugin: writes down what EL2 executes, for the oracle to judge.
//!
//! `-plugin libpfnguard_plugin.so,trace=SOCKET,build=SHA256,base=0x…,text=0x…,image=0x…,vectors=0x…`
//!
//! | argument | what |
//! |---|---|
//! | `trace` | path of a Unix socket that takes the trace; without it the plugin does nothing |
//! | `build` | SHA-256 of the image, 64 hexadecimal digits |
//! | `base` | address at which the image is loaded and runs |
//! | `text`, `image` | bytes of the image's code, and of all of it |
//! | `vectors` | offset of the exception vectors, one table or more behind each other |
//! | `tables` | number of vector tables |
//!
//! Only instructions in the image's code are watched, and only where they lie in the memory that
//! the image was first seen in: the host and guests have the same virtual addresses for other
//! memory. Of stores, only those of eight bytes or more outside the image are written down.

mod arguments;
mod qemu;
mod recorder;

use std::ffi::{CStr, c_char, c_int, c_void};

use crate::arguments::Arguments;
use crate::qemu::PluginId;
use crate::recorder::Recorder;

/// QEMU's way in.
///
/// # Safety
///
/// `argv` must hold `argc` C strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_plugin_install(
    id: PluginId,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let strings = (0..count).map(|index| {
        // SAFETY: below the count: the caller's promise.
        let string = unsafe { *argv.wrapping_add(index) };
        // SAFETY: a C string: the caller's promise.
        unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
    });
    let strings: Vec<String> = strings.collect();
    match Arguments::parse(&strings).and_then(|arguments| arguments.map(Recorder::new).transpose())
    {
        Ok(Some(recorder)) => qemu::register(id, Box::new(recorder)),
        Ok(None) => {}
        Err(problem) => {
            eprintln!("pfnguard-plugin: {problem}");
            return 1;
        }
    }
    0
}
