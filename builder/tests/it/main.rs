//! The kiln binary from end to end: real builds in real sandboxes, real registries, and the other
//! tools that read what kiln writes and write what kiln reads. One file per topic.
//!
//! A test begins with `test_env!()`, which names what it needs besides root. Where something is
//! missing the test says so on stderr and skips; with `CI` set it fails.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(
    dead_code,
    unreachable_pub,
    reason = "the tests of the registry client use more of it"
)]
#[path = "../../../registry/tests/support/aws_fake.rs"]
mod aws_fake;
mod bucket;
mod env;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the tests of the registry client use more of it"
)]
#[path = "../../../registry/tests/support/fault_proxy.rs"]
mod fault_proxy;
mod http;
mod lab;
mod liar;
mod odd_files;
mod own;
mod people;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the tests of the registry client use more of it"
)]
#[path = "../../../registry/tests/support/proxy.rs"]
mod proxy;
mod run;
mod saved;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the tests of the registry client use more of it"
)]
#[path = "../../../registry/tests/support/server.rs"]
mod server;
mod traces;
mod web;

mod add;
mod archives;
mod at_once;
mod attacks;
mod basic;
mod builds;
mod cache;
mod cache_truth;
mod call;
mod check;
mod chroot;
mod container;
mod damage;
mod errors;
mod explain;
mod foreign;
mod git;
mod git_servers;
mod images;
mod interop;
mod interrupt;
mod limits;
mod login;
mod manifests;
mod mounts;
mod named_contexts;
mod network;
mod outputs;
mod push_pull;
mod read_once;
mod remote;
mod rootless;
mod saved_mounts;
mod security;
mod shared_cache;
mod shared_cache_damage;
mod shared_cache_failed;
mod shell;
mod ssh;
mod standalone;
mod steps;
mod terminal;
mod transfers;
mod unpacking;
