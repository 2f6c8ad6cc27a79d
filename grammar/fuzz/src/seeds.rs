//! First inputs for the fuzz targets, from the test data.

use std::fs;
use std::io;
use std::path::Path;

/// The fuzz targets.
pub const TARGETS: [&str; 4] = ["dockerfile", "word", "dockerignore", "glob"];

/// The inputs that `testdata` holds for a target; none for a target that does not exist.
///
/// # Errors
///
/// The test data cannot be read.
pub fn seeds(target: &str, testdata: &Path) -> io::Result<Vec<Vec<u8>>> {
    match target {
        "dockerfile" => dockerfiles(testdata),
        "word" => rows(&testdata.join("words.tsv"), |row| match row {
            [how, text, env, ..] => Some(format!("{how}\n{env}\n{text}")),
            _ => None,
        }),
        "dockerignore" => rows(&testdata.join("dockerignore.tsv"), |row| match row {
            [patterns, path, ..] => Some(format!("{path}\n{}", patterns.replace(" | ", "\n"))),
            _ => None,
        }),
        "glob" => rows(&testdata.join("globs.tsv"), |row| match row {
            [pattern, name, ..] => Some(format!("{name}\n{pattern}")),
            _ => None,
        }),
        _ => Ok(Vec::new()),
    }
}

fn dockerfiles(testdata: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for folder in ["dockerfiles", "lowering", "builds"] {
        for case in fs::read_dir(testdata.join(folder))? {
            let file = case?.path().join("Dockerfile");
            if file.is_file() {
                seeds.push(fs::read(file)?);
            }
        }
    }
    Ok(seeds)
}

fn rows(table: &Path, seed: impl Fn(&[&str]) -> Option<String>) -> io::Result<Vec<Vec<u8>>> {
    let text = fs::read_to_string(table)?;
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    Ok(rows
        .filter_map(|line| seed(&line.split('\t').collect::<Vec<_>>()))
        .map(String::into_bytes)
        .collect())
}
