use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

/// Makes a key with OpenSSH; gives its file and its public key as agents list it.
fn generate(folder: &Path, arguments: &[&str]) -> Option<(Vec<u8>, Vec<u8>)> {
    let path = folder.join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-C", "a comment", "-f"])
        .arg(&path)
        .args(arguments)
        .status();
    if made.is_err() {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs ssh-keygen"
        );
        eprintln!("SKIPPED: ssh-keygen is not installed");
        return None;
    }
    let public = fs::read_to_string(folder.join("key.pub")).unwrap();
    let public = public.split(' ').nth(1).unwrap();
    let engine = base64::engine::general_purpose::STANDARD;
    Some((fs::read(path).unwrap(), engine.decode(public).unwrap()))
}

#[test]
fn b7_2_keys_in_all_forms_that_ssh_keygen_writes_are_read() {
    for form in ["RFC4716", "PKCS8", "PEM"] {
        for kind in [
            &["-t", "ed25519"][..],
            &["-t", "rsa", "-b", "2048"],
            &["-t", "rsa", "-b", "3072"],
            &["-t", "ecdsa", "-b", "256"],
            &["-t", "ecdsa", "-b", "384"],
            &["-t", "ecdsa", "-b", "521"],
        ] {
            let folder = tempfile::tempdir().unwrap();
            let arguments = [&["-m", form], kind].concat();
            let Some((file, public)) = generate(folder.path(), &arguments) else {
                return;
            };
            let key = Key::parse(&file).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            assert_eq!(key.public, public, "{arguments:?}");
            let own = file.starts_with(b"-----BEGIN OPENSSH");
            assert_eq!(key.comment, if own { "a comment" } else { "" });
            assert!(key.sign(b"data", RSA_SHA2_512).is_some());
            let old = key.sign(b"data", 0).is_some();
            assert_eq!(old, !kind.contains(&"rsa"), "SHA-1 is not used");
        }
    }
}

#[test]
fn b7_2_encrypted_and_other_files_are_told_apart() {
    for form in ["RFC4716", "PKCS8", "PEM"] {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["-t", "rsa", "-b", "2048", "-m", form, "-N", "passphrase"];
        let Some((file, _)) = generate(folder.path(), &arguments) else {
            return;
        };
        assert_eq!(
            Key::parse(&file).unwrap_err(),
            KeyError::Encrypted,
            "{form}"
        );
    }
    for text in [
        "",
        "ssh-ed25519 AAAA",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n!\n-----END OPENSSH PRIVATE KEY-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
    ] {
        assert_eq!(
            Key::parse(text.as_bytes()).unwrap_err(),
            KeyError::Malformed,
            "{text}"
        );
    }
    let dsa = "-----BEGIN DSA PRIVATE KEY-----\nAAAA\n-----END DSA PRIVATE KEY-----\n";
    assert_eq!(Key::parse(dsa.as_bytes()).unwrap_err(), KeyError::Type);
}

#[test]
fn a_damaged_key_is_refused_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let Some((file, _)) = generate(folder.path(), &["-t", "rsa", "-b", "2048"]) else {
        return;
    };
    let (_, _, body) = pem(&file).unwrap();
    for end in 0..body.len().min(400) {
        assert!(openssh(&body[..end]).is_err());
    }
    for at in MAGIC.len()..body.len().min(400) {
        let mut damaged = body.to_vec();
        damaged[at] ^= 0x80;
        drop(openssh(&damaged));
    }
}

#[test]
fn exponents_are_remainders() {
    let rest = |d: u64, prime: u16| {
        let rest = exponent(&d.to_be_bytes(), &prime.to_be_bytes()).unwrap();
        rest.iter()
            .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    for (d, prime) in [
        (0, 3),
        (12_345_678_901, 65_521),
        (u64::MAX, 257),
        (65_520, 65_521),
    ] {
        assert_eq!(rest(d, prime), d % u64::from(prime - 1), "{d} {prime}");
    }
}
