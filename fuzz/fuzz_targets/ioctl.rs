#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pfnguard_targets::ioctl::run(data));
