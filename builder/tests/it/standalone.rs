//! The static binary in an otherwise empty root: no libraries, no certificates, no `/etc`, no `/tmp`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::env::{TestEnv, skip, test_env};

/// The binary that `cargo xtask test` made with `cargo xtask dist`.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("KILN_TEST_STATIC").map(PathBuf::from)?;
    assert!(
        path.is_file(),
        "KILN_TEST_STATIC is no file: {}",
        path.display()
    );
    Some(path)
}

/// All that is below a folder.
fn files(root: &Path) -> Vec<String> {
    let mut found: Vec<String> = walkdir::WalkDir::new(root)
        .min_depth(1)
        .into_iter()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .strip_prefix(root)
                .unwrap()
                .display()
                .to_string()
        })
        .filter(|path| !path.starts_with("store"))
        .collect();
    found.sort();
    found
}

#[test]
fn builds_pushes_and_pulls_without_any_other_file() {
    test_env!("docker-registry", "chroot");
    let Some(binary) = binary() else {
        return skip("the static binary (KILN_TEST_STATIC)");
    };
    let env = TestEnv::new();
    let registry = env.registry();
    let root = env.path("root");
    fs::create_dir_all(root.join("context")).unwrap();
    fs::copy(binary, root.join("kiln")).unwrap();
    fs::write(
        root.join("context/Dockerfile"),
        "FROM scratch\nCOPY hello.txt /hello.txt\nCMD [\"/hello.txt\"]\n",
    )
    .unwrap();
    fs::write(root.join("context/hello.txt"), "hello\n").unwrap();
    let before = files(&root);

    let kiln = |store: &'static str, args: &[&str]| {
        let chroot = [root.to_str().unwrap(), "/kiln", "--root", store];
        env.program("chroot", chroot.into_iter().chain(args.iter().copied()))
            .success()
    };
    let port = registry.address.rsplit_once(':').unwrap().1;
    let name = format!("127.0.0.1:{port}/app:1");
    // There is no /etc/hosts and no resolver: `localhost` has to be known all the same.
    let by_name = format!("localhost:{port}/app:1");
    kiln("/store", &["build", "-t", &name, "/context"]);
    kiln("/store", &["push", &name]);
    kiln("/store2", &["pull", &by_name]);
    let archive = kiln("/store2", &["save", &by_name]).bytes;
    assert!(archive.len() > 1024);
    assert_eq!(files(&root), before, "it leaves nothing but its store");
}
