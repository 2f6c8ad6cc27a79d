//! Lints: what is legal in a Dockerfile and yet probably not meant (A17).
//!
//! - [`rules`](rules()) is the table of all rules: docker's 22 and kiln's own, each with its page;
//! - `docker` finds what docker's rules say and the text alone shows. The rest of the 22 needs the
//!   values of variables or the base images and is found while the build is planned;
//! - `practice` finds what kiln's own rules advise against, which only `kiln check` shows;
//! - `fix` does what warnings say, where that is mechanical; `pair` rewrites old pairs of `ENV`;
//! - [`Settings`] filters what was found: `# check=`, build arguments, comments above instructions.

mod docker;
mod fix;
mod pair;
mod practice;
mod rules;
mod settings;

pub use docker::{MAX_FOUND, is_secret, lint};
pub use fix::{Looked, fix, fix_all};
pub use practice::practices;
pub use rules::{FoundBy, Rule, Set, rule, rules};
pub use settings::{Names, Settings};
