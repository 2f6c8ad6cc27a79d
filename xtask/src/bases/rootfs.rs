//! The two root file systems that everything else is built on.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// The release of Debian that the base images have.
const SUITE: &str = "bookworm";
/// Packages beside the minimal system: what `https` in apt's sources needs.
const TLS_PACKAGES: &str = "ca-certificates";

/// What Docker Hub's Debian tells apt, so that layers have neither packages nor apt's caches.
const SMALL: &str = r#"Acquire::Languages "none";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"#;

/// dpkg reads this file, too.
const SPEEDUP: &str = "etc/dpkg/dpkg.cfg.d/docker-apt-speedup";

/// Returns all that determines the busybox image, as text.
pub(super) fn busybox_description() -> Result<String> {
    let digest = process::find("busybox").map(|program| process::sha256_file(&program));
    Ok(format!("1 {}", digest.transpose()?.unwrap_or_default()))
}

/// Fills `root` with busybox and a link for each of its programs.
pub(super) fn busybox(root: &Path) -> Result<()> {
    let program = process::find("busybox").context("busybox is not installed")?;
    for folder in [
        "bin",
        "dev",
        "etc",
        "home",
        "proc",
        "root",
        "sbin",
        "sys",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "var/spool",
        "var/tmp",
        "var/www",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    for folder in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o1777))?;
    }
    fs::copy(&program, root.join("bin/busybox"))?;
    for applet in process::output(Command::new(&program).arg("--list-full"))?.lines() {
        let link = root.join(applet);
        if applet != "bin/busybox" && link.parent().is_some_and(Path::is_dir) {
            symlink("/bin/busybox", &link).with_context(|| format!("cannot link `{applet}`"))?;
        }
    }
    let nobody = "nobody:x:65534:65534:nobody:/home:/bin/false\n";
    let passwd = format!("root:x:0:0:root:/root:/bin/sh\n{nobody}");
    fs::write(root.join("etc/passwd"), passwd)?;
    fs::write(root.join("etc/group"), "root:x:0:\nnobody:x:65534:\n")?;
    // a dynamically linked busybox is of no use in an image of its own
    if process::find("ldd").is_some()
        && process::output(Command::new("ldd").arg(&program)).is_ok_and(|text| text.contains("=>"))
    {
        bail!(
            "`{}` is not static; install busybox-static",
            program.display()
        );
    }
    Ok(())
}

/// Returns all that determines the Debian image, as text.
pub(super) fn debian_description() -> Result<String> {
    Ok(format!("3 {SUITE} {:?}", Apt::of_host()?))
}

/// Installs a minimal Debian in `root`, with the host's way to packages.
pub(super) fn debian(root: &Path) -> Result<()> {
    let apt = Apt::of_host()?;
    let mut command = Command::new("debootstrap");
    command.arg("--variant=minbase");
    if apt.uses_tls() {
        command.arg(format!("--include={TLS_PACKAGES}"));
    }
    command.arg(SUITE).arg(root).args(apt.mirror.as_ref());
    if let Some(proxy) = apt.setting("Acquire::http::Proxy") {
        command.env("http_proxy", proxy);
    }
    process::quiet(&mut command)?;

    apt.install(root)?;
    // what debootstrap leaves of the host and of its own work
    for file in ["etc/hostname", "etc/resolv.conf"] {
        remove(&root.join(file))?;
    }
    fs::write(root.join("etc/machine-id"), "")?;
    for folder in [
        "var/cache/apt",
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "var/log",
    ] {
        remove_files(&root.join(folder))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_files(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// How the host gets its packages.
#[derive(Debug, Default)]
struct Apt {
    /// The server with the packages; debootstrap's own default where this is no Debian.
    mirror: Option<String>,
    /// Files of `/etc/apt` that name the sources, where the host runs the same release.
    sources: Vec<(PathBuf, String)>,
    /// Settings that decide how to reach them: name and value.
    settings: Vec<(String, String)>,
    /// The certificates that the host trusts, where a source is reached over TLS.
    certificates: Option<String>,
}

impl Apt {
    fn of_host() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let has = |line: &str| release.lines().any(|l| l.replace('"', "") == line);
        let mut apt = Self::default();
        if let Ok(dump) = process::output(Command::new("apt-config").arg("dump")) {
            apt.settings = settings(&dump);
        }
        if !has("ID=debian") {
            return Ok(apt);
        }
        let files = source_files()?;
        apt.mirror = files.iter().find_map(|(_, text)| mirror(text));
        if has(&format!("VERSION_CODENAME={SUITE}")) {
            // others may be there for the host alone, with keys that the image does not have
            apt.sources = files
                .into_iter()
                .filter(|(_, text)| mirror(text).is_some())
                .collect();
        }
        if apt.uses_tls() {
            apt.certificates = fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").ok();
        }
        Ok(apt)
    }

    fn uses_tls(&self) -> bool {
        let is_tls = |text: &str| text.contains("https://");
        self.sources.iter().any(|(_, text)| is_tls(text))
            || self.mirror.as_deref().is_some_and(is_tls)
    }

    fn setting(&self, name: &str) -> Option<&str> {
        let found = self
            .settings
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Makes apt in `root` work as it does on the host.
    fn install(&self, root: &Path) -> Result<()> {
        if !self.sources.is_empty() {
            remove(&root.join("etc/apt/sources.list"))?;
        }
        for (path, text) in &self.sources {
            let file = root.join("etc/apt").join(path);
            fs::write(&file, text).with_context(|| format!("cannot write `{}`", file.display()))?;
        }
        let mut text = String::from(SMALL);
        for (name, value) in &self.settings {
            text.push_str(&format!("{name} \"{value}\";\n"));
        }
        fs::write(root.join("etc/apt/apt.conf.d/99host"), text)?;
        // as in Docker Hub's Debian: what is installed in a layer need not wait for the disk
        fs::write(root.join(SPEEDUP), "force-unsafe-io\n")?;
        if let Some(certificates) = &self.certificates {
            fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), certificates)?;
        }
        Ok(())
    }
}

/// Picks the settings that decide how packages are reached out of `apt-config dump`.
fn settings(dump: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in dump.lines() {
        let Some((name, value)) = line.split_once(' ') else {
            continue;
        };
        let value = value.trim_end_matches(';').trim_matches('"');
        let lower = name.to_ascii_lowercase();
        let wanted = ["acquire::http::proxy", "acquire::https::proxy"]
            .iter()
            .any(|prefix| lower.starts_with(prefix))
            || ["acquire::check-valid-until", "acquire::check-date"].contains(&lower.as_str());
        if wanted && !value.is_empty() {
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    found
}

/// Returns the files below `/etc/apt` that apt reads sources from, with their contents.
fn source_files() -> Result<Vec<(PathBuf, String)>> {
    let mut paths = vec![PathBuf::from("sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in entries {
            paths.push(Path::new("sources.list.d").join(entry?.file_name()));
        }
    }
    paths.sort();
    Ok(paths
        .into_iter()
        .filter_map(|path| {
            path.extension()
                .filter(|&end| end == "list" || end == "sources")?;
            let text = fs::read_to_string(Path::new("/etc/apt").join(&path)).ok()?;
            Some((path, text))
        })
        .collect())
}

/// Returns the server that a file of sources names for the release itself, in either format.
fn mirror(text: &str) -> Option<String> {
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let main = |suites: &[String]| suites.iter().any(|suite| suite == SUITE);
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let value = stanza.lines().find_map(|line| line.strip_prefix(name));
            value.map(words).unwrap_or_default()
        };
        if main(&field("Suites:")) {
            return field("URIs:").into_iter().next();
        }
    }
    text.lines().find_map(|line| {
        let line = line.strip_prefix("deb ")?;
        let line = match line.trim_start().strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => line,
        };
        let words = words(line);
        main(words.get(1..2)?).then(|| words[0].clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mirror_in_both_formats() {
        let stanzas = "Types: deb\n# URIs: http://old.test/\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\n\
                       URIs: http://security.test/\nSuites: bookworm-security\n";
        assert_eq!(
            mirror(stanzas).as_deref(),
            Some("http://mirror.test/debian")
        );
        let lines = "# deb http://old.test bookworm main\ndeb http://s.test bookworm-security main\n\
                     deb [arch=amd64 signed-by=/k] http://mirror.test/debian bookworm main\n";
        assert_eq!(mirror(lines).as_deref(), Some("http://mirror.test/debian"));
        assert_eq!(mirror("deb http://other.test stable main\n"), None);
        assert_eq!(mirror("deb\ndeb \ndeb [x\n"), None);
    }

    #[test]
    fn keeps_proxies_and_dates_only() {
        let dump = "Acquire::http::Proxy \"http://proxy.test:3128\";\nAcquire::http::Proxy::local.test \"DIRECT\";\n\
                    Acquire::Check-Valid-Until \"false\";\nAcquire::https::Proxy \"\";\nAPT::Architecture \"amd64\";\n";
        let names: Vec<String> = settings(dump).into_iter().map(|(name, _)| name).collect();
        let expected = [
            "Acquire::http::Proxy",
            "Acquire::http::Proxy::local.test",
            "Acquire::Check-Valid-Until",
        ];
        assert_eq!(names, expected);
    }
}
