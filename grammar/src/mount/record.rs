//! The reading of a `--mount` record: CSV, keys, values, and which type takes which key.

use super::{Bind, Cache, Mount, MountError, Secret, Sharing, Ssh, Tmpfs};
use crate::diagnostic::shorten;
use crate::word::WordError;

pub(super) const TYPES: [(&str, Type); 5] = [
    ("bind", Type::Bind),
    ("cache", Type::Cache),
    ("tmpfs", Type::Tmpfs),
    ("secret", Type::Secret),
    ("ssh", Type::Ssh),
];

/// Every spelling of every key.
pub(super) const KEYS: [(&str, Key); 19] = [
    ("type", Key::Type),
    ("from", Key::From),
    ("source", Key::Source),
    ("src", Key::Source),
    ("target", Key::Target),
    ("dst", Key::Target),
    ("destination", Key::Target),
    ("readonly", Key::Readonly),
    ("ro", Key::Readonly),
    ("readwrite", Key::Readwrite),
    ("rw", Key::Readwrite),
    ("required", Key::Required),
    ("size", Key::Size),
    ("id", Key::Id),
    ("sharing", Key::Sharing),
    ("mode", Key::Mode),
    ("uid", Key::Uid),
    ("gid", Key::Gid),
    ("env", Key::Env),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl Type {
    fn name(self) -> &'static str {
        TYPES
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("bind", |(name, _)| *name)
    }

    /// Whether the type takes a key (B2).
    fn takes(self, key: Key) -> bool {
        let keys: &[Key] = match self {
            Self::Bind => &[Key::From, Key::Source, Key::Readonly, Key::Readwrite],
            Self::Cache => &[
                Key::From,
                Key::Source,
                Key::Readonly,
                Key::Readwrite,
                Key::Id,
                Key::Sharing,
                Key::Mode,
                Key::Uid,
                Key::Gid,
            ],
            Self::Tmpfs => &[Key::Size, Key::Readwrite],
            Self::Secret => &[
                Key::Source,
                Key::Id,
                Key::Env,
                Key::Required,
                Key::Readonly,
                Key::Mode,
                Key::Uid,
                Key::Gid,
            ],
            Self::Ssh => &[
                Key::Id,
                Key::Required,
                Key::Readonly,
                Key::Mode,
                Key::Uid,
                Key::Gid,
            ],
        };
        matches!(key, Key::Type | Key::Target) || keys.contains(&key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Type,
    From,
    Source,
    Target,
    Readonly,
    Readwrite,
    Required,
    Size,
    Id,
    Sharing,
    Mode,
    Uid,
    Gid,
    Env,
}

/// A key of a record with its value.
#[derive(Debug)]
struct Field {
    key: Key,
    /// The key as written, in lower case.
    name: &'static str,
    value: Option<String>,
}

/// Parses the value of a `--mount` flag in which nothing is left to expand.
///
/// # Errors
///
/// The record is malformed, or has a key or a value that its type does not take.
pub fn parse_mount(record: &str) -> Result<Mount, MountError> {
    expand_mount(record, &mut |value| Ok(value.to_owned()))
}

/// Parses the value of a `--mount` flag and expands the variables in each value except `from`
/// (B1.3). A comma that comes out of a variable does not start a new key.
///
/// # Errors
///
/// Those of [`parse_mount`], and what expansion refuses.
pub fn expand_mount(
    record: &str,
    expand: &mut dyn FnMut(&str) -> Result<String, WordError>,
) -> Result<Mount, MountError> {
    let mut fields = fields(record)?;
    for field in &mut fields {
        let (Some(value), true) = (&mut field.value, field.key != Key::From) else {
            continue;
        };
        *value = expand(value).map_err(|source| MountError::Expansion {
            key: field.name,
            source,
        })?;
    }
    typed(&Record { fields })
}

/// Finds what is wrong before variables are known: with a `$` anywhere, only the keys and `from`.
pub(crate) fn check(record: &str) -> Result<(), MountError> {
    let parsed = fields(record)?;
    if record.contains('$') {
        return Ok(());
    }
    typed(&Record { fields: parsed }).map(drop)
}

fn fields(record: &str) -> Result<Vec<Field>, MountError> {
    csv(record)?.iter().map(|text| field(text)).collect()
}

fn field(text: &str) -> Result<Field, MountError> {
    let (written, value) = match text.split_once('=') {
        Some((written, value)) => (written, Some(value)),
        None => (text, None),
    };
    let lower = written.to_lowercase();
    let Some(&(name, key)) = KEYS.iter().find(|(name, _)| *name == lower) else {
        return Err(MountError::Key {
            key: shorten(&lower),
            field: shorten(text),
        });
    };
    let may_be_bare = matches!(key, Key::Readonly | Key::Readwrite | Key::Required);
    if value.is_none() && !may_be_bare {
        return Err(MountError::NoValue(shorten(text)));
    }
    // A `$` at the end is a plain character.
    let variable = |value: &str| {
        value
            .split_once('$')
            .is_some_and(|(_, rest)| !rest.is_empty())
    };
    if key == Key::From && value.is_some_and(variable) {
        return Err(MountError::FromVariable);
    }
    let value = value.map(str::to_owned);
    Ok(Field { key, name, value })
}

/// Splits one CSV record. Quotes protect commas; a doubled quote inside them is a quote.
///
/// # Errors
///
/// [`MountError::Csv`] for a record that is empty or whose quotes stand wrong.
pub fn csv(record: &str) -> Result<Vec<String>, MountError> {
    if record.trim_matches(['\r', '\n']).is_empty() {
        return Err(MountError::Csv("the record is empty"));
    }
    let mut fields = Vec::new();
    let mut rest = record;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, next) = match rest.split_once(',') {
                Some((field, next)) => (field, Some(next)),
                None => (rest, None),
            };
            if field.contains('"') {
                return Err(MountError::Csv("bare \" in non-quoted field"));
            }
            fields.push(field.to_owned());
            match next {
                Some(next) => rest = next,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        rest = quoted;
        loop {
            let Some((part, next)) = rest.split_once('"') else {
                return Err(MountError::Csv("a quoted field is not closed"));
            };
            field.push_str(part);
            rest = next;
            match rest.strip_prefix('"') {
                Some(next) => rest = next,
                None => break,
            }
            field.push('"');
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None if rest.is_empty() => return Ok(fields),
            None => return Err(MountError::Csv("extraneous or missing \" in quoted field")),
        }
    }
}

/// The fields of one record; of a repeated key the last one counts.
#[derive(Debug)]
struct Record {
    fields: Vec<Field>,
}

impl Record {
    fn last(&self, key: Key) -> Option<&Field> {
        self.fields.iter().rev().find(|field| field.key == key)
    }

    /// A value that is not empty.
    fn text(&self, key: Key) -> Option<String> {
        self.last(key)?
            .value
            .clone()
            .filter(|value| !value.is_empty())
    }

    /// A switch: `key`, or `key=` and what Go takes as a truth value.
    fn truth(field: &Field) -> Result<bool, MountError> {
        match field.value.as_deref() {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(value) => Err(wrong(field, value)),
        }
    }

    /// Whether writes are refused; the last of `ro` and `rw` counts.
    fn readonly(&self) -> Result<Option<bool>, MountError> {
        let mut readonly = None;
        for field in &self.fields {
            match field.key {
                Key::Readonly => readonly = Some(Self::truth(field)?),
                Key::Readwrite => readonly = Some(!Self::truth(field)?),
                _ => {}
            }
        }
        Ok(readonly)
    }

    fn required(&self) -> Result<bool, MountError> {
        self.last(Key::Required).map_or(Ok(false), Self::truth)
    }

    fn number(&self, key: Key, radix: u32) -> Result<Option<u32>, MountError> {
        let Some(field) = self.last(key) else {
            return Ok(None);
        };
        let value = field.value.as_deref().unwrap_or_default();
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        match u32::from_str_radix(value, radix) {
            Ok(number) if digits => Ok(Some(number)),
            _ => Err(wrong(field, value)),
        }
    }

    fn mode(&self) -> Result<Option<u32>, MountError> {
        match self.number(Key::Mode, 8)? {
            Some(mode) if mode > 0o7777 => Err(MountError::Value {
                key: "mode",
                value: format!("{mode:o}"),
            }),
            mode => Ok(mode),
        }
    }

    fn target(&self) -> Result<Option<String>, MountError> {
        let target = self.text(Key::Target);
        match target {
            Some(root)
                if root.starts_with('/')
                    && root.split('/').all(|part| matches!(part, "" | ".")) =>
            {
                Err(MountError::Root(root))
            }
            target => Ok(target),
        }
    }

    fn needed_target(&self, kind: Type) -> Result<String, MountError> {
        self.target()?.ok_or(MountError::Missing {
            key: "target",
            kind: kind.name(),
        })
    }
}

fn wrong(field: &Field, value: &str) -> MountError {
    MountError::Value {
        key: field.name,
        value: shorten(value),
    }
}

fn typed(record: &Record) -> Result<Mount, MountError> {
    let kind = match record
        .last(Key::Type)
        .and_then(|field| field.value.as_deref())
    {
        None => Type::Bind,
        Some(written) => {
            let known = TYPES
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(written));
            known.ok_or_else(|| MountError::Type(shorten(written)))?.1
        }
    };
    if let Some(field) = record.fields.iter().find(|field| !kind.takes(field.key)) {
        return Err(MountError::KeyForType {
            key: field.name,
            kind: kind.name(),
        });
    }
    Ok(match kind {
        Type::Bind => Mount::Bind(Bind {
            target: record.needed_target(kind)?,
            source: record.text(Key::Source),
            from: record.text(Key::From),
            writable: record.readonly()? == Some(false),
        }),
        Type::Cache => Mount::Cache(Cache {
            target: record.needed_target(kind)?,
            id: record.text(Key::Id),
            sharing: sharing(record)?,
            readonly: record.readonly()? == Some(true),
            from: record.text(Key::From),
            source: record.text(Key::Source),
            mode: record.mode()?,
            uid: record.number(Key::Uid, 10)?,
            gid: record.number(Key::Gid, 10)?,
        }),
        Type::Tmpfs => Mount::Tmpfs(tmpfs(record, kind)?),
        Type::Secret => Mount::Secret(secret(record)?),
        Type::Ssh => {
            read_only_switch(record)?;
            Mount::Ssh(Ssh {
                id: record.text(Key::Id).unwrap_or_else(|| "default".to_owned()),
                target: record.target()?,
                required: record.required()?,
                mode: record.mode()?.unwrap_or(0o600),
                uid: record.number(Key::Uid, 10)?.unwrap_or_default(),
                gid: record.number(Key::Gid, 10)?.unwrap_or_default(),
            })
        }
    })
}

/// Secrets and sockets are read-only whatever is said; saying the opposite is refused.
fn read_only_switch(record: &Record) -> Result<(), MountError> {
    match (record.readonly()?, record.last(Key::Readonly)) {
        (Some(false), Some(field)) => Err(wrong(field, "false")),
        _ => Ok(()),
    }
}

fn sharing(record: &Record) -> Result<Sharing, MountError> {
    let Some(written) = record
        .last(Key::Sharing)
        .and_then(|field| field.value.as_deref())
    else {
        return Ok(Sharing::Shared);
    };
    match written.to_ascii_lowercase().as_str() {
        "shared" => Ok(Sharing::Shared),
        "private" => Ok(Sharing::Private),
        "locked" => Ok(Sharing::Locked),
        _ => Err(MountError::Sharing(shorten(written))),
    }
}

fn tmpfs(record: &Record, kind: Type) -> Result<Tmpfs, MountError> {
    if let (Some(true), Some(field)) = (record.readonly()?, record.last(Key::Readwrite)) {
        return Err(wrong(field, "false"));
    }
    let size = match record.last(Key::Size) {
        None => None,
        Some(field) => {
            let value = field.value.as_deref().unwrap_or_default();
            // A size of 0 is no limit.
            Some(size(value).ok_or_else(|| wrong(field, value))?).filter(|size| *size > 0)
        }
    };
    Ok(Tmpfs {
        target: record.needed_target(kind)?,
        size,
    })
}

/// Reads a size: a number, perhaps with a fraction, and `b`, `k`, `m`, `g`, `t` or `p`, perhaps
/// followed by `b` or `ib`; units count by 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let shift = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" if unit == "ib" => return None,
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    let mut part = 0_u128;
    let mut place = 1_u128 << shift;
    for digit in fraction.bytes().take(20) {
        part += place * u128::from(digit - b'0') / 10;
        place /= 10;
    }
    whole.checked_add(u64::try_from(part).ok()?)
}

fn secret(record: &Record) -> Result<Secret, MountError> {
    let (source, id) = (record.text(Key::Source), record.text(Key::Id));
    let (target, env) = (record.target()?, record.text(Key::Env));
    read_only_switch(record)?;
    if source.is_some() && id.is_some() {
        return Err(MountError::NamedTwice);
    }
    let last = |path: &str| {
        path.rsplit('/')
            .find(|part| !part.is_empty())
            .map(str::to_owned)
    };
    let id = id
        .or(source)
        .or_else(|| target.as_deref().and_then(last))
        .ok_or(MountError::Unnamed)?;
    let default = || Some(format!("/run/secrets/{}", last(&id)?));
    let target = match (&target, &env) {
        (None, None) => Some(default().ok_or(MountError::Unnamed)?),
        _ => target,
    };
    Ok(Secret {
        target,
        env,
        required: record.required()?,
        mode: record.mode()?.unwrap_or(0o400),
        uid: record.number(Key::Uid, 10)?.unwrap_or_default(),
        gid: record.number(Key::Gid, 10)?.unwrap_or_default(),
        id,
    })
}
