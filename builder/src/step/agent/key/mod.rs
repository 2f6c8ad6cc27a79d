//! Private keys of ssh: their files, and what they sign.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding,
};
use base64::Engine as _;
use zeroize::Zeroizing;

use super::wire::{Reader, put_integer, put_string};

/// How files of OpenSSH's own format begin, once they are decoded.
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// Bits of a request that ask for a hash better than SHA-1 with an RSA key (RFC 8332).
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// The curves: the key's type, the curve's name, and the algorithm.
const CURVES: [(&str, &str, &EcdsaSigningAlgorithm); 3] = [
    (
        "ecdsa-sha2-nistp256",
        "nistp256",
        &ECDSA_P256_SHA256_FIXED_SIGNING,
    ),
    (
        "ecdsa-sha2-nistp384",
        "nistp384",
        &ECDSA_P384_SHA384_FIXED_SIGNING,
    ),
    (
        "ecdsa-sha2-nistp521",
        "nistp521",
        &ECDSA_P521_SHA512_FIXED_SIGNING,
    ),
];

/// Why a file is no key that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is not PEM, or the key in it is damaged.
    #[error("no private key in PEM")]
    Malformed,
    /// It needs a passphrase.
    #[error("the key is encrypted")]
    Encrypted,
    /// It is of a kind that is not known here, as DSA or one that lies in a device.
    #[error("a key of this type is not supported")]
    Type,
}

/// A private key.
pub(super) struct Key {
    /// The public key as agents list it.
    pub(super) public: Vec<u8>,
    /// What its file says of it.
    pub(super) comment: String,
    private: Private,
}

enum Private {
    Ed25519(Ed25519KeyPair),
    Rsa(rsa::KeyPair),
    Ecdsa(&'static str, EcdsaKeyPair),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("comment", &self.comment)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// Reads a file in OpenSSH's format, PKCS#8, PKCS#1 or SEC1, each in PEM.
    pub(super) fn parse(file: &[u8]) -> Result<Self, KeyError> {
        let (label, encrypted, body) = pem(file).ok_or(KeyError::Malformed)?;
        if encrypted || label == "ENCRYPTED PRIVATE KEY" {
            return Err(KeyError::Encrypted);
        }
        let (private, comment) = match label {
            "OPENSSH PRIVATE KEY" => openssh(&body)?,
            "RSA PRIVATE KEY" => {
                let key = rsa::KeyPair::from_der(&body).map_err(|_| KeyError::Malformed)?;
                (Private::Rsa(key), String::new())
            }
            "EC PRIVATE KEY" => {
                let key = on_a_curve(|curve| EcdsaKeyPair::from_private_key_der(curve, &body).ok());
                (key.ok_or(KeyError::Type)?, String::new())
            }
            "PRIVATE KEY" => (pkcs8(&body).ok_or(KeyError::Type)?, String::new()),
            label if label.ends_with("PRIVATE KEY") => return Err(KeyError::Type),
            _ => return Err(KeyError::Malformed),
        };
        Ok(Self {
            public: private.public().ok_or(KeyError::Malformed)?,
            comment,
            private,
        })
    }

    /// Signs for a request with these flags; `None` where that cannot be done, as with SHA-1.
    pub(super) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let mut signature = Vec::new();
        match &self.private {
            Private::Ed25519(key) => {
                put_string(&mut signature, b"ssh-ed25519");
                put_string(&mut signature, key.try_sign(data).ok()?.as_ref());
            }
            Private::Rsa(key) => {
                let (name, hash): (&str, &'static dyn RsaEncoding) = if flags & RSA_SHA2_512 != 0 {
                    ("rsa-sha2-512", &RSA_PKCS1_SHA512)
                } else if flags & RSA_SHA2_256 != 0 {
                    ("rsa-sha2-256", &RSA_PKCS1_SHA256)
                } else {
                    return None;
                };
                let mut signed = vec![0; key.public_modulus_len()];
                key.sign(hash, &SystemRandom::new(), data, &mut signed)
                    .ok()?;
                put_string(&mut signature, name.as_bytes());
                put_string(&mut signature, &signed);
            }
            Private::Ecdsa(name, key) => {
                let signed = key.sign(&SystemRandom::new(), data).ok()?;
                let signed = signed.as_ref();
                let (r, s) = signed.split_at_checked(signed.len() / 2)?;
                let mut numbers = Vec::new();
                put_integer(&mut numbers, r);
                put_integer(&mut numbers, s);
                put_string(&mut signature, name.as_bytes());
                put_string(&mut signature, &numbers);
            }
        }
        Some(signature)
    }
}

impl Private {
    fn public(&self) -> Option<Vec<u8>> {
        let mut public = Vec::new();
        match self {
            Self::Ed25519(key) => {
                put_string(&mut public, b"ssh-ed25519");
                put_string(&mut public, key.public_key().as_ref());
            }
            Self::Rsa(key) => {
                let (n, e) = rsa_numbers(key.public_key().as_ref())?;
                put_string(&mut public, b"ssh-rsa");
                put_integer(&mut public, e);
                put_integer(&mut public, n);
            }
            Self::Ecdsa(name, key) => {
                let (_, curve, _) = CURVES.iter().find(|(known, ..)| known == name)?;
                put_string(&mut public, name.as_bytes());
                put_string(&mut public, curve.as_bytes());
                put_string(&mut public, key.public_key().as_ref());
            }
        }
        Some(public)
    }
}

/// The label of the first block of a PEM text, whether its headers say that it is encrypted, and what
/// it holds.
fn pem(text: &[u8]) -> Option<(&str, bool, Zeroizing<Vec<u8>>)> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, text) = text.split_once("-----BEGIN ")?;
    let (label, text) = text.split_once("-----")?;
    let (body, _) = text.split_once("-----END ")?;
    let mut encrypted = false;
    let mut digits = Zeroizing::new(String::with_capacity(body.len()));
    for line in body.lines().map(str::trim) {
        match line.split_once(':') {
            Some(("Proc-Type", value)) => encrypted |= value.contains("ENCRYPTED"),
            Some(_) => {}
            None => digits.push_str(line),
        }
    }
    if encrypted {
        return Some((label, true, Zeroizing::default()));
    }
    let engine = base64::engine::general_purpose::STANDARD;
    let body = engine.decode(digits.as_bytes()).ok()?;
    Some((label, false, Zeroizing::new(body)))
}

/// Tries one curve after the other.
fn on_a_curve(
    key: impl Fn(&'static EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair>,
) -> Option<Private> {
    CURVES
        .iter()
        .find_map(|(name, _, curve)| Some(Private::Ecdsa(name, key(curve)?)))
}

fn pkcs8(body: &[u8]) -> Option<Private> {
    if let Ok(key) = Ed25519KeyPair::from_pkcs8(body) {
        return Some(Private::Ed25519(key));
    }
    if let Ok(key) = rsa::KeyPair::from_pkcs8(body) {
        return Some(Private::Rsa(key));
    }
    on_a_curve(|curve| EcdsaKeyPair::from_pkcs8(curve, body).ok())
}

/// Reads OpenSSH's own format: the first key of it, and its comment.
fn openssh(body: &[u8]) -> Result<(Private, String), KeyError> {
    let mut outer = Reader::new(body.strip_prefix(MAGIC).ok_or(KeyError::Malformed)?);
    let mut header = || {
        let (cipher, _kdf, _options) = (outer.string()?, outer.string()?, outer.string()?);
        let count = outer.number()?;
        let _public = outer.string()?;
        Some((cipher, count, outer.string()?))
    };
    let (cipher, count, private) = header().ok_or(KeyError::Malformed)?;
    if cipher != b"none" {
        return Err(KeyError::Encrypted);
    }
    let mut reader = Reader::new(private);
    let check = (reader.number(), reader.number());
    if count != 1 || check.0.is_none() || check.0 != check.1 {
        return Err(KeyError::Malformed);
    }
    let kind = reader.string().ok_or(KeyError::Malformed)?;
    let private = match kind {
        b"ssh-ed25519" => ed25519(&mut reader),
        b"ssh-rsa" => rsa(&mut reader),
        kind => {
            let curve = CURVES.iter().find(|(name, ..)| name.as_bytes() == kind);
            let (name, _, algorithm) = curve.ok_or(KeyError::Type)?;
            ecdsa(&mut reader, algorithm).map(|key| Private::Ecdsa(name, key))
        }
    };
    let private = private.ok_or(KeyError::Malformed)?;
    let comment = reader.string().unwrap_or_default();
    Ok((private, String::from_utf8_lossy(comment).into_owned()))
}

fn ed25519(reader: &mut Reader<'_>) -> Option<Private> {
    let (public, both) = (reader.string()?, reader.string()?);
    let (seed, _) = both.split_at_checked(32)?;
    let key = Ed25519KeyPair::from_seed_and_public_key(seed, public).ok()?;
    Some(Private::Ed25519(key))
}

fn ecdsa(reader: &mut Reader<'_>, curve: &'static EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair> {
    let (_name, point, number) = (reader.string()?, reader.string()?, reader.integer()?);
    // As long as the curve's numbers: a point is a byte and two of them.
    let mut private = Zeroizing::new(vec![0; point.len() / 2]);
    let start = private.len().checked_sub(number.len())?;
    private.get_mut(start..)?.copy_from_slice(number);
    EcdsaKeyPair::from_private_key_and_public_key(curve, &private, point).ok()
}

fn rsa(reader: &mut Reader<'_>) -> Option<Private> {
    let [n, e, d, inverse, p, q] = [(); 6].map(|()| reader.integer());
    let (n, e, d, inverse, p, q) = (n?, e?, d?, inverse?, p?, q?);
    let components = rsa::KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p,
        q,
        dP: &*exponent(d, p)?,
        dQ: &*exponent(d, q)?,
        qInv: inverse,
    };
    // All that is computed here is compared with the rest of the key there.
    rsa::KeyPair::from_components(&components)
        .ok()
        .map(Private::Rsa)
}

/// `d mod (prime - 1)`, which OpenSSH leaves out of its files.
fn exponent(d: &[u8], prime: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut modulus = Zeroizing::new(prime.to_vec());
    let last = modulus.last_mut()?;
    // A prime but 2 is odd: nothing is borrowed.
    *last = last.checked_sub(1)?;
    let mut rest = Zeroizing::new(vec![0_u8; modulus.len() + 1]);
    modulus.insert(0, 0);
    for byte in d {
        for bit in (0..8).rev() {
            let mut carry = (byte >> bit) & 1;
            for digit in rest.iter_mut().rev() {
                let high = *digit >> 7;
                *digit = *digit << 1 | carry;
                carry = high;
            }
            if *rest >= *modulus {
                subtract(&mut rest, &modulus);
            }
        }
    }
    Some(rest)
}

/// Subtracts a number from one that is as long and not smaller.
fn subtract(from: &mut [u8], number: &[u8]) {
    let mut borrowed = false;
    for (digit, other) in from.iter_mut().zip(number).rev() {
        let (one, first) = digit.overflowing_sub(*other);
        let (two, second) = one.overflowing_sub(u8::from(borrowed));
        *digit = two;
        borrowed = first || second;
    }
}

/// The modulus and exponent of an `RSAPublicKey` in DER (RFC 8017).
fn rsa_numbers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sequence, _) = element(der, 0x30)?;
    let (n, rest) = element(sequence, 2)?;
    let (e, _) = element(rest, 2)?;
    Some((n, e))
}

/// The content of a DER element of this tag, and what is behind it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (length, mut rest) = rest.split_first()?;
    let mut length = usize::from(*length);
    if length & 0x80 != 0 {
        let (bytes, behind) = rest.split_at_checked(length & 0x7f)?;
        if bytes.len() > 4 {
            return None;
        }
        length = bytes
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = behind;
    }
    (*first == tag).then(|| rest.split_at_checked(length))?
}

#[cfg(test)]
mod tests;
