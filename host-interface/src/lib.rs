//! How a host kernel calls pfnguard.
#![no_std]
