//! Changes to a file of credentials that leave everything else in it as it is written (D2.1).

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A JSON object with its members in their order, and as they are written.
#[derive(Debug, Default)]
pub(super) struct Object(Vec<(String, Member)>);

#[derive(Debug)]
enum Member {
    Written(Box<RawValue>),
    Text(String),
    Object(Object),
}

impl Object {
    /// The object that a member is, which is made where there is none.
    ///
    /// # Errors
    /// When the member is something else.
    pub(super) fn object(&mut self, name: &str) -> Result<&mut Self, serde_json::Error> {
        let at = match self.position(name) {
            Some(at) => at,
            None => {
                self.0
                    .push((name.to_owned(), Member::Object(Self::default())));
                self.0.len() - 1
            }
        };
        if let Member::Written(raw) = &self.0[at].1 {
            let read: Option<Self> = serde_json::from_str(raw.get())?;
            self.0[at].1 = Member::Object(read.unwrap_or_default());
        }
        match &mut self.0[at].1 {
            Member::Object(object) => Ok(object),
            _ => Err(serde::de::Error::custom("a text where an object must be")),
        }
    }

    /// Sets a member to a text.
    pub(super) fn set(&mut self, name: &str, text: String) {
        match self.position(name) {
            Some(at) => self.0[at].1 = Member::Text(text),
            None => self.0.push((name.to_owned(), Member::Text(text))),
        }
    }

    /// Takes a member out; whether it was there.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.remove_all(&[name])
    }

    /// Takes some members out; whether one of them was there.
    pub(super) fn remove_all(&mut self, names: &[impl AsRef<str>]) -> bool {
        let before = self.0.len();
        self.0
            .retain(|(key, _)| !names.iter().any(|name| name.as_ref() == key));
        self.0.len() < before
    }

    /// The object as a text of its own, indented as docker does.
    pub(super) fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        self.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, tabs,
        ))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|(key, _)| key == name)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, member) in &self.0 {
            match member {
                Member::Written(raw) => map.serialize_entry(name, raw)?,
                Member::Text(text) => map.serialize_entry(name, text)?,
                Member::Object(object) => map.serialize_entry(name, object)?,
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry()? {
                    members.push((name, Member::Written(value)));
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d2_1_unknown_keys_stay_as_they_are_written() {
        let before = "{\n\t\"zebra\": 1.50,\n\t\"auths\": {\n\t\t\"b\": {\"auth\": \"x\", \"email\": null},\n\t\t\"a\": {}\n\t},\n\t\"plugins\": {\"x\":{\"y\":\"z\"}}\n}\n";
        let mut object: Object = serde_json::from_str(before).unwrap();
        assert_eq!(
            object.write().unwrap(),
            before.as_bytes(),
            "nothing changed"
        );
        let auths = object.object("auths").unwrap();
        assert!(auths.remove("a") && !auths.remove("a"));
        auths.object("b").unwrap().set("auth", "y".to_owned());
        auths.object("new").unwrap().set("auth", "\"".to_owned());
        let after = String::from_utf8(object.write().unwrap()).unwrap();
        assert_eq!(
            after,
            "{\n\t\"zebra\": 1.50,\n\t\"auths\": {\n\t\t\"b\": {\n\t\t\t\"auth\": \"y\",\n\t\t\t\"email\": null\n\t\t},\n\t\t\"new\": {\n\t\t\t\"auth\": \"\\\"\"\n\t\t}\n\t},\n\t\"plugins\": {\"x\":{\"y\":\"z\"}}\n}\n"
        );
    }

    #[test]
    fn d2_1_what_is_no_object_is_not_touched() {
        let mut object: Object = serde_json::from_str(r#"{"auths":[],"n":null}"#).unwrap();
        assert!(object.object("auths").is_err());
        assert!(object.object("n").is_ok());
        assert!(serde_json::from_str::<Object>("[]").is_err());
    }
}
