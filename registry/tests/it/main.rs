//! The client against a registry with faults to order, and against an independent one.
#![expect(unreachable_pub, reason = "the modules of a test are not a library")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod auth;
mod aws;
#[path = "../support/aws_fake.rs"]
mod aws_fake;
mod buckets;
mod conditions;
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
#[path = "../support/proxy.rs"]
mod proxy;
mod pull;
mod push;
#[path = "../support/server.rs"]
mod server;
mod trust;
