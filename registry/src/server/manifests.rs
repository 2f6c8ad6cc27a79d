//! Manifests into and out of a registry (D5.1, D7.3, D8.2, D9.2).

use std::collections::BTreeSet;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, ETAG, HeaderName, LOCATION};
use hyper::{HeaderMap, Request};
use serde::Deserialize;

use super::condition::{Condition, etag};
use super::folder::{Folder, MANIFEST, Stored};
use super::reply::{Refused, Reply};
use super::route::{Query, Wanted};
use super::uploads::whole_body;
use super::{Shared, on_disk};
use crate::client::referrer;
use crate::digest::Digest;
use crate::reference::is_tag;
use crate::spec::media_type::{is_index, is_manifest, is_nondistributable};
use crate::spec::{Descriptor, Index, Manifest};

/// The most tags that are given in one request (D7.7).
const TAGS: usize = 64;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

fn unknown(wanted: &Wanted) -> Refused {
    let refused = Refused::new(
        404,
        "MANIFEST_UNKNOWN",
        "the repository has no such manifest",
    );
    match wanted {
        Wanted::Digest(digest) => refused.about(&[*digest]),
        Wanted::Tag(_) => refused,
    }
}

pub(super) async fn get(
    shared: &Arc<Shared>,
    name: String,
    wanted: Wanted,
    headers: &HeaderMap,
) -> Result<Reply, Refused> {
    let condition = Condition::of(headers);
    let asked = wanted.clone();
    let found = on_disk(shared, move |folder| folder.manifest(&name, &asked)).await?;
    let found = found.ok_or_else(|| unknown(&wanted))?;
    if condition.is_changed(Some(found.digest)) {
        return Err(Refused::precondition(Some(found.digest)));
    }
    let reply = match condition.is_known(Some(found.digest)) {
        true => Reply::empty(304),
        false => Reply::bytes(200, found.bytes).header(CONTENT_TYPE, found.media_type),
    };
    Ok(reply.header(ETAG, etag(found.digest)).digest(found.digest))
}

pub(super) async fn put(
    shared: &Arc<Shared>,
    name: String,
    wanted: Wanted,
    query: Query,
    request: Request<Incoming>,
) -> Result<Reply, Refused> {
    let header = request.headers().get(CONTENT_TYPE);
    let header = header
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let condition = Condition::of(request.headers());
    let bytes = whole_body(request.into_body(), MANIFEST, shared.options.stall).await?;
    let digest = Digest::of(&bytes);
    let mut tags: Vec<String> = query.all("tag").map(str::to_owned).collect();
    match &wanted {
        Wanted::Tag(tag) => tags.push(tag.clone()),
        Wanted::Digest(expected) if *expected != digest => {
            let message = format!("the manifest is {digest}");
            return Err(Refused::digest_invalid(message).about(&[*expected]));
        }
        Wanted::Digest(_) => {}
    }
    if tags.len() > TAGS || !tags.iter().all(|tag| is_tag(tag)) {
        return Err(Refused::new(
            400,
            "TAG_INVALID",
            "a tag is malformed, or there are too many",
        ));
    }
    let parts = Parts::of(&bytes, header.as_deref())?;
    let descriptor = Descriptor::new(&parts.media_type, digest, bytes.len() as u64);
    let about = referrer(&descriptor, &bytes);
    let subject = about.as_ref().map(|(subject, _)| *subject);
    let manifest = Stored {
        digest,
        media_type: parts.media_type,
        bytes,
    };
    let (repository, given) = (name.clone(), tags.clone());
    let store = move |folder: &Folder| {
        let mut missing = Vec::new();
        for part in parts.needed {
            if folder.blob(&repository, part)?.is_none() {
                missing.push(part);
            }
        }
        if !missing.is_empty() {
            let message = "the repository lacks what the manifest names";
            let refused = Refused::new(400, "MANIFEST_BLOB_UNKNOWN", message);
            return Ok(Err(refused.about(&missing)));
        }
        let change = folder.change();
        let now = folder.manifest(&repository, &wanted)?;
        let now = now.map(|stored| stored.digest);
        if let Err(refused) = condition.allow_change(now) {
            return Ok(Err(refused));
        }
        change.put_manifest(&repository, &manifest, &given, about.as_ref())?;
        Ok(Ok(()))
    };
    on_disk(shared, store).await??;
    let reply = Reply::empty(201)
        .header(LOCATION, format!("/v2/{name}/manifests/{digest}"))
        .digest(digest);
    let reply = tags.iter().fold(reply, |reply, tag| reply.header(TAG, tag));
    Ok(subject
        .into_iter()
        .fold(reply, |reply, subject| reply.header(SUBJECT, subject)))
}

pub(super) async fn delete(
    shared: &Arc<Shared>,
    name: String,
    wanted: Wanted,
    headers: &HeaderMap,
) -> Result<Reply, Refused> {
    if !shared.options.deletes {
        return Err(Refused::unsupported("deletion is off"));
    }
    let condition = Condition::of(headers);
    let delete = move |folder: &Folder| {
        let change = folder.change();
        if let Some(now) = folder.manifest(&name, &wanted)?
            && let Err(refused) = condition.allow_change(Some(now.digest))
        {
            return Ok(Err(refused));
        }
        let was_there = match &wanted {
            Wanted::Tag(tag) => change.delete_tag(&name, tag)?,
            Wanted::Digest(digest) => change.delete_manifest(&name, *digest)?,
        };
        Ok(was_there.then_some(()).ok_or_else(|| unknown(&wanted)))
    };
    on_disk(shared, delete).await??;
    Ok(Reply::empty(202))
}

/// What a manifest is, and what must be there before it.
#[derive(Debug)]
struct Parts {
    media_type: String,
    needed: BTreeSet<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
}

impl Parts {
    fn of(bytes: &[u8], header: Option<&str>) -> Result<Self, Refused> {
        let invalid = |message: String| Refused::new(400, "MANIFEST_INVALID", message);
        let malformed = |error: serde_json::Error| invalid(error.to_string());
        let typed: Typed = serde_json::from_slice(bytes).map_err(malformed)?;
        let header = header
            .and_then(|text| text.split(';').next())
            .map(str::trim);
        let media_type = match (header, typed.media_type.as_deref()) {
            (Some(header), Some(own)) if header != own => {
                return Err(invalid(format!(
                    "the manifest is of type `{own}`, not `{header}`"
                )));
            }
            (Some(kind), _) | (None, Some(kind)) => kind.to_owned(),
            (None, None) => return Err(invalid("the manifest has no type".to_owned())),
        };
        if typed.schema_version != 2 {
            return Err(invalid("`schemaVersion` is not 2".to_owned()));
        }
        let needed = if is_index(&media_type) {
            let index: Index = serde_json::from_slice(bytes).map_err(malformed)?;
            index.manifests.iter().map(|child| child.digest).collect()
        } else if is_manifest(&media_type) {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
            let own = manifest
                .layers
                .iter()
                .filter(|layer| !is_nondistributable(&layer.media_type));
            own.chain([&manifest.config])
                .map(|part| part.digest)
                .collect()
        } else {
            return Err(invalid(format!("unknown type of manifest `{media_type}`")));
        };
        Ok(Self { media_type, needed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::media_type::{OCI_INDEX, OCI_MANIFEST};

    #[test]
    fn d7_3_malformed_manifests_are_refused() {
        let digest = Digest::of(b"x");
        let config = format!(r#""config":{{"mediaType":"a","digest":"{digest}","size":1}}"#);
        let good = format!(r#"{{"schemaVersion":2,{config},"layers":[]}}"#);
        let parts = Parts::of(good.as_bytes(), Some(OCI_MANIFEST)).unwrap();
        assert_eq!(parts.needed, BTreeSet::from([digest]));
        let nested = format!(
            r#"{{"schemaVersion":2,"annotations":{}}}"#,
            "[".repeat(100_000)
        );
        let bad_digest =
            r#"{"schemaVersion":2,"config":{"mediaType":"a","digest":"sha256:0","size":1}}"#;
        let negative = good.replace("\"size\":1", "\"size\":-1");
        let other = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}",{config}}}"#);
        for (text, header) in [
            ("", Some(OCI_MANIFEST)),
            ("[]", Some(OCI_MANIFEST)),
            ("{}", Some(OCI_MANIFEST)),
            (good.as_str(), None),
            (good.as_str(), Some("text/plain")),
            (nested.as_str(), Some(OCI_MANIFEST)),
            (bad_digest, Some(OCI_MANIFEST)),
            (negative.as_str(), Some(OCI_MANIFEST)),
            (other.as_str(), Some(OCI_MANIFEST)),
            (r#"{"schemaVersion":1}"#, Some(OCI_MANIFEST)),
            (r#"{"schemaVersion":2}"#, Some(OCI_MANIFEST)),
        ] {
            assert!(
                Parts::of(text.as_bytes(), header).is_err(),
                "{text:.80} {header:?}"
            );
        }
    }
}
