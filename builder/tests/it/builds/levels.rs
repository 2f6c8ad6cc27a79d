//! The builds that need nothing but base images, by an ordinary user: what comes out is what root
//! builds (B5.6).

use std::path::Path;
use std::time::SystemTime;

use super::image::Image;
use super::{compare, copy};
use crate::env::{TestEnv, bases, test_env};
use crate::people::{Ids, Person};

fn build(env: &TestEnv, case: &str, mirror: &str) -> Image {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/builds");
    copy(&source.join(case), &env.context());
    env.give_context();
    let build = env.kiln(["build", "-q", "-t", case, "context"]);
    build.env("KILN_MIRRORS", mirror).success();
    let archive = env.path("image.tar");
    env.kiln(["save", case, "-o"]).arg(&archive).success();
    Image::read(&archive, &env.path("unpacked"))
}

fn same_at_all_levels(case: &str) {
    let root = test_env!("newuidmap", "setpriv");
    let mirror = format!("docker.io=http://{}", bases!());
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let expected = build(&root, case, &mirror);
    for ids in [Ids::Many, Ids::None] {
        let env = TestEnv::new().with_person(Person::new(ids));
        compare::assert_same(&build(&env, case, &mirror), &expected, since);
    }
}

#[test]
fn b5_6_users_own_what_they_run_whoever_builds() {
    same_at_all_levels("users");
}

#[test]
fn b5_6_static_is_one_program_whoever_builds() {
    same_at_all_levels("static");
}
