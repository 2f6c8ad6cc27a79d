//! The door to the kernel: everything that needs unsafe code or is nothing but a system call with
//! its rules. Unsafe code lives in this folder only, each block with its SAFETY line.

pub mod allocator;
pub mod content;
pub mod ids;
pub mod loopback;
pub mod mount;
pub mod notify;
pub mod owner;
pub mod process;
pub mod root;
pub mod users;
pub mod writeback;
pub mod xattr;
