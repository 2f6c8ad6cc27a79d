//! The client against a registry with faults to order, and against an independent one.
#![expect(unreachable_pub, reason = "the modules of a test are not a library")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod auth;
mod aws;
mod copies;
mod distribution;
mod env;
#[path = "../support/fault_proxy.rs"]
mod fault_proxy;
mod fault_table;
mod faults;
mod lists;
mod own;
mod proxies;
mod proxy;
mod pull;
mod push;
mod server;
mod trust;
