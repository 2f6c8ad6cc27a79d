//! Runs real steps in real namespaces, in a root made of a static busybox. Needs root.

mod cancel;
mod env;
mod isolation;
mod mounts;
mod privileges;
mod probe;
mod process;
