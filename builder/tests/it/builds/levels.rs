//! The builds at each level: by an ordinary user with subordinate ids and without, and by root without
//! the right to mount. What comes out is what root builds (B5.6, DEMAND 1).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::image::Image;
use super::website::website;
use super::{NETWORK, archive_plugins, compare, copy};
use crate::env::{TestEnv, bases, test_env};
use crate::people::{Ids, Person};

/// The builds whose steps fetch packages.
const FETCHES: [&str; 3] = ["flask", "node-site", "debian-nginx"];

/// The folder with the files of a build.
fn folder(case: &str) -> PathBuf {
    let builds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/builds");
    builds.join(case)
}

fn build(env: &TestEnv, case: &str, mirror: &str, arg: Option<&str>) -> Image {
    copy(&folder(case), &env.context());
    let mut args = vec!["build", "-q", "-t", case];
    if let Some(arg) = arg {
        archive_plugins(&env.context());
        args.extend(["--build-arg", arg]);
    }
    if FETCHES.contains(&case) {
        args.push("--host-ca");
    }
    args.push("context");
    env.give_context();
    let build = env.kiln(args).env("KILN_MIRRORS", mirror);
    build.inherit(&NETWORK).success();
    let archive = env.path("image.tar");
    env.kiln(["save", case, "-o"]).arg(&archive).success();
    Image::read(&archive, &env.path("unpacked"))
}

fn same_at_all_levels(case: &str) {
    let root = test_env!("newuidmap", "setpriv");
    let mirror = format!("docker.io=http://{}", bases!());
    // One build fetches a file.
    let website = fs::read(folder(case).join("words.txt")).map(website);
    let arg = website.map(|website| {
        (
            format!("WORDS_URL=http://{}/words.txt", website.address),
            website,
        )
    });
    let arg = arg.as_ref().ok().map(|(arg, _)| arg.as_str());
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let expected = build(&root, case, &mirror, arg);
    let user = |ids| TestEnv::new().with_person(Person::new(ids));
    let chroot = TestEnv::new().with_variable("KILN_ISOLATION", "chroot");
    for env in [user(Ids::Many), user(Ids::None), chroot] {
        compare::assert_same(&build(&env, case, &mirror, arg), &expected, since);
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

#[test]
fn b5_6_service_is_one_base_whoever_builds() {
    same_at_all_levels("service");
}

#[test]
fn b5_6_flask_serves_its_guest_book_whoever_builds() {
    same_at_all_levels("flask");
}

#[test]
fn b5_6_node_site_has_the_pages_whoever_builds() {
    same_at_all_levels("node-site");
}

#[test]
fn b5_6_debian_nginx_serves_on_its_port_whoever_builds() {
    same_at_all_levels("debian-nginx");
}
