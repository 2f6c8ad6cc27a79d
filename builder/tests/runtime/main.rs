//! Runs real steps in real namespaces, in a root made of a static busybox. Needs root.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod cancel;
mod compare;
mod env;
mod isolation;
mod mounts;
mod privileges;
mod probe;
mod process;
