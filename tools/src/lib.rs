//! pfnguard tools library.
