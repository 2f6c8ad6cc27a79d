//! PAX extended headers: records `LENGTH KEY=VALUE\n`, read by length and never by line.

use std::collections::BTreeMap;

use super::Time;

/// Records by key. Of two with the same key the last one counts.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";
pub(super) const SPARSE: &[u8] = b"GNU.sparse.";
pub(super) const SPARSE_MAP: &[u8] = b"GNU.sparse.map";
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";

/// Reads all records of an extended header; the offset and length pairs of sparse format 0.0,
/// which repeat their keys, become one map as in format 0.1.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::new();
    let mut map: Vec<u8> = Vec::new();
    let mut count = 0usize;
    while !bytes.is_empty() {
        let (key, value) = record(&mut bytes)?;
        if key == SPARSE_OFFSET || key == SPARSE_LENGTH {
            let expected = [SPARSE_OFFSET, SPARSE_LENGTH][count % 2];
            if key != expected || value.contains(&b',') {
                return Err("sparse records out of order");
            }
            if count > 0 {
                map.push(b',');
            }
            map.extend_from_slice(value);
            count += 1;
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
    }
    if count > 0 {
        records.insert(SPARSE_MAP.to_vec(), map);
    }
    Ok(records)
}

/// Takes one record off the front: key, and value.
fn record<'a>(bytes: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), &'static str> {
    const WRONG: &str = "malformed extended header record";
    let blank = bytes.iter().take(8).position(|&b| b == b' ').ok_or(WRONG)?;
    let length = decimal(&bytes[..blank]).ok_or(WRONG)?;
    let length = usize::try_from(length).map_err(|_| WRONG)?;
    let record = bytes.get(blank + 1..length).ok_or(WRONG)?;
    let record = record.strip_suffix(b"\n").ok_or(WRONG)?;
    let equals = record.iter().position(|&b| b == b'=').ok_or(WRONG)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let is_name = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || key.contains(&0) || is_name && value.contains(&0) {
        return Err(WRONG);
    }
    *bytes = &bytes[length..];
    Ok((key, value))
}

/// A number without sign, blanks or anything else that some readers take and others do not.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// A time: seconds, perhaps negative, perhaps with a fraction of any length.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|&b| b == b'.');
    let seconds = decimal(&text[..point.unwrap_or(text.len())])?;
    let seconds = i64::try_from(seconds).ok()?;
    let fraction = point.map_or(&b""[..], |point| &text[point + 1..]);
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |index| fraction.get(index).map_or(0, |d| u32::from(d - b'0'));
    let nanos = (0..9).fold(0, |nanos, index| nanos * 10 + digit(index));
    Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time::seconds(-seconds),
        (true, _) => Time {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

/// Appends one record.
pub(super) fn put(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    if rest + digits(length) != length {
        length = rest + digits(length);
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_length() {
        let evil = b"x\n22 linkpath=/etc/evil\n";
        let mut bytes = Vec::new();
        put(&mut bytes, b"SCHILY.xattr.user.a", evil);
        put(&mut bytes, b"path", b"first");
        put(&mut bytes, b"path", b"last");
        let records = parse(&bytes).unwrap();
        assert_eq!(records[&b"SCHILY.xattr.user.a"[..]], evil);
        assert_eq!(records[&b"path"[..]], b"last");
        assert_eq!(records.len(), 2);
    }

    #[test]
    fn the_length_counts_itself() {
        for size in 0..1200 {
            let mut bytes = Vec::new();
            put(&mut bytes, b"k", &vec![b'v'; size]);
            assert!(bytes.starts_with(format!("{} ", bytes.len()).as_bytes()));
            assert_eq!(parse(&bytes).unwrap()[&b"k"[..]].len(), size);
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"9 k=v\n"[..],
            b"6 k=v",
            b"5 k=v\n",
            b"+6 k=v\n",
            b"6\tk=v\n",
            b"5 kv\n",
            b"4 =\n",
            b"5 =v\n",
            b"9 path=\0\n",
            b"0 \n",
            b"2 ",
            b"1 ",
            b"\0\0\0\0",
            b"99999999999999999999 k=v\n",
        ] {
            assert!(parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn times_are_rounded_towards_the_past() {
        for (text, seconds, nanos) in [
            ("0", 0, 0),
            ("1350244992.023960108", 1_350_244_992, 23_960_108),
            ("-1.5", -2, 500_000_000),
            ("-1", -1, 0),
            ("-0.1", -1, 900_000_000),
            ("1.0000000009", 1, 0),
            ("1.", 1, 0),
        ] {
            assert_eq!(
                time(text.as_bytes()),
                Some(Time { seconds, nanos }),
                "{text}"
            );
        }
        for text in ["", ".5", "--1", "1.5e3", "1.-5", "9223372036854775808"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }
}
