//! Secrets that a process prints are hidden: in the log, and in what an error repeats of it.
//!
//! Looked for are the value as a whole and, of one with several lines, each line; both without
//! blanks at their ends. Values in another form (in base64, cut in two) are not found.

use kiln_registry::credentials::SecretBytes;

use crate::event::Stream;

/// What stands in the place of a secret.
const STARS: &[u8] = b"****";
/// A shorter value is no secret, but would hide half of a log.
const SHORTEST: usize = 4;
/// The same for one line of several.
const SHORTEST_LINE: usize = 8;

/// Hides the values of secrets in the streams of a process.
#[derive(Debug, Default)]
pub(super) struct Mask {
    /// Values by their first byte, the longest first.
    values: Vec<Vec<SecretBytes>>,
    /// What may be the beginning of a value, of standard output and error.
    held: [SecretBytes; 2],
}

impl Mask {
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretBytes>) -> Self {
        let mut found: Vec<&[u8]> = Vec::new();
        for secret in secrets {
            let whole = secret.expose().trim_ascii();
            found.extend(Some(whole).filter(|value| value.len() >= SHORTEST));
            let lines = whole.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            found.extend(lines.filter(|line| line.len() >= SHORTEST_LINE));
        }
        found.sort_by_key(|value| std::cmp::Reverse(value.len()));
        found.dedup();
        let mut mask = Self::default();
        if !found.is_empty() {
            mask.values = vec![Vec::new(); 256];
        }
        for value in found {
            let first = value.first().copied().unwrap_or_default();
            if let Some(values) = mask.values.get_mut(usize::from(first)) {
                values.push(SecretBytes::from(value.to_vec()));
            }
        }
        mask
    }

    /// Takes what a process printed and gives what may be shown of it. The beginning of a value is
    /// kept until more comes.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) -> Vec<u8> {
        if self.values.is_empty() {
            return bytes.to_vec();
        }
        let held = &mut self.held[index(stream)];
        let text = SecretBytes::from([held.expose(), bytes].concat());
        let (shown, rest) = hide(&self.values, text.expose(), true);
        *held = rest.to_vec().into();
        shown
    }

    /// What was kept of a stream that has ended.
    pub(super) fn finish(&mut self, stream: Stream) -> Vec<u8> {
        let text = std::mem::take(&mut self.held[index(stream)]);
        hide(&self.values, text.expose(), false).0
    }
}

/// Replaces values; what begins one and may go on (`more`) is given back.
fn hide<'a>(values: &[Vec<SecretBytes>], text: &'a [u8], more: bool) -> (Vec<u8>, &'a [u8]) {
    let mut shown = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        let values = values
            .get(usize::from(*first))
            .map_or(&[][..], Vec::as_slice);
        let mut values = values.iter().map(SecretBytes::expose);
        let found = values.find(|value| {
            rest.starts_with(value) || more && rest.len() < value.len() && value.starts_with(rest)
        });
        match found {
            Some(value) if rest.starts_with(value) => {
                shown.extend_from_slice(STARS);
                rest = rest.get(value.len()..).unwrap_or_default();
            }
            Some(_) => return (shown, rest),
            None => {
                shown.push(*first);
                rest = behind;
            }
        }
    }
    (shown, rest)
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(secrets: &[&str]) -> Mask {
        let secrets: Vec<_> = secrets
            .iter()
            .map(|secret| SecretBytes::from(secret.as_bytes().to_vec()))
            .collect();
        Mask::new(&secrets)
    }

    fn shown(secrets: &[&str], pieces: &[&str]) -> String {
        let mut mask = mask(secrets);
        let mut shown = Vec::new();
        for piece in pieces {
            shown.extend(mask.push(Stream::Stdout, piece.as_bytes()));
        }
        shown.extend(mask.finish(Stream::Stdout));
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn values_are_hidden_however_they_arrive() {
        for pieces in [
            &["a hunter2 b"][..],
            &["a hun", "ter2 b"],
            &["a ", "h", "unter", "2", " b"],
        ] {
            assert_eq!(shown(&["hunter2\n"], pieces), "a **** b");
        }
        assert_eq!(shown(&["hunter2"], &["hunt", "ed"]), "hunted");
        assert_eq!(
            shown(&["hunter2"], &["hunter"]),
            "hunter",
            "not the whole of it"
        );
        assert_eq!(shown(&["aab1"], &["a", "aab1", "aab"]), "a****aab");
    }

    #[test]
    fn the_longest_value_is_hidden() {
        let secrets = ["pass", "password"];
        assert_eq!(shown(&secrets, &["passwords pass"]), "****s ****");
        assert_eq!(shown(&secrets, &["passw", "ater"]), "****water");
    }

    #[test]
    fn lines_of_a_long_secret_are_hidden_and_short_ones_are_not() {
        let key = "-----BEGIN KEY-----\n  c2VjcmV0a2V5\n}\n-----END KEY-----\n";
        assert_eq!(shown(&[key], &["{ c2VjcmV0a2V5 }\n"]), "{ **** }\n");
        assert_eq!(shown(&[key], &[key]), "****\n");
        assert_eq!(shown(&["abc"], &["abc"]), "abc");
    }

    #[test]
    fn streams_are_apart_and_nothing_is_shown_by_debug() {
        let mut mask = mask(&["hunter2"]);
        assert!(mask.push(Stream::Stdout, b"hunt").is_empty());
        assert_eq!(mask.push(Stream::Stderr, b"er2"), b"er2");
        assert!(!format!("{mask:?}").contains("hunt"));
    }
}
