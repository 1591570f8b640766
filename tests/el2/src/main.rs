//! Bare-metal host.
#![no_std]
#![no_main]
