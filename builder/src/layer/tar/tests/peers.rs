//! The same archives through GNU tar and the `tar` crate.

use super::*;

/// What GNU tar lists; numeric ids, quoted names, no times.
fn gnu_tar(archive: &[u8], args: &[&str]) -> Option<String> {
    let mut tar = Command::new("tar")
        .args(args)
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = tar.stdin.take()?;
    input.write_all(archive).unwrap();
    drop(input);
    let output = tar.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn gnu_tar_reads_what_is_written() {
    let samples = samples();
    let args = [
        "-tv",
        "--numeric-owner",
        "--full-time",
        "--quoting-style=escape",
    ];
    let Some(listing) = gnu_tar(&write(&samples), &args) else {
        eprintln!("SKIPPED: no tar program");
        return;
    };
    let lines: Vec<_> = listing.lines().collect();
    assert_eq!(lines.len(), samples.len());
    assert!(lines[0].starts_with("drwxrwxrwt 0/0"), "{}", lines[0]);
    assert!(lines[1].starts_with("-rwsr-xr-x 0/0"), "{}", lines[1]);
    assert!(lines[2].ends_with("link -> dir/file"), "{}", lines[2]);
    assert!(lines[3].ends_with("hard link to dir/file"), "{}", lines[3]);
    assert!(lines[5].contains("259,1048575"), "{}", lines[5]);
    assert!(
        lines[12].ends_with(&"0123456789/".repeat(3)[..].replace("9/0123456789/", "9/x"))
            || lines[12].ends_with("9/x")
    );
    assert!(
        lines[14].ends_with("raw\\ \\377\\n\\ name") || lines[14].ends_with("raw \\377\\n name"),
        "{}",
        lines[14]
    );
    assert!(lines[17].contains("1407182137/4294967294"), "{}", lines[17]);
    assert!(lines[18].contains("1969-12-31 23:59:55"), "{}", lines[18]);
}

#[test]
fn the_tar_crate_reads_the_same() {
    // The crate reads extended headers line by line.
    let has_newline = |sample: &(Header, Vec<u8>)| sample.0.path.contains(&b'\n');
    let mut samples = samples();
    samples.retain(|sample| !has_newline(sample));
    let bytes = write(&samples);
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut count = 0;
    for (entry, (header, content)) in archive.entries().unwrap().zip(&samples) {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        assert_eq!(path.strip_suffix(b"/").unwrap_or(&path), header.path);
        assert_eq!(entry.header().mode().unwrap(), header.mode);
        let mut read = Vec::new();
        entry.read_to_end(&mut read).unwrap();
        assert_eq!(&read, content);
        count += 1;
    }
    assert_eq!(count, samples.len());
}

#[test]
fn archives_of_gnu_tar_in_each_format() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    let deep = root.join("d".repeat(90)).join("e".repeat(90));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("file"), "content").unwrap();
    std::os::unix::fs::symlink("t".repeat(150), root.join("link")).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 500_000).unwrap();
    for format in [
        &["--format=gnu", "-S"][..],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
        &["--format=posix"],
        &["--format=gnu"],
    ] {
        let output = Command::new("tar")
            .args(format)
            .args(["--sort=name", "-c", "-C"])
            .arg(directory.path())
            .arg("r")
            .output();
        let Ok(output) = output else {
            eprintln!("SKIPPED: no tar program");
            return;
        };
        let entries = read(&output.stdout).unwrap();
        let names: Vec<_> = entries.iter().map(|(h, _)| h.path.len()).collect();
        assert_eq!(names, [1, 92, 183, 188, 6, 8], "{format:?}");
        assert_eq!(entries[3].1, b"content");
        assert_eq!(entries[4].0.link.len(), 150);
        let mut expected = vec![0; 1 << 20];
        expected[500_000..500_004].copy_from_slice(b"data");
        assert!(entries[5].1 == expected, "{format:?}");
    }
}
