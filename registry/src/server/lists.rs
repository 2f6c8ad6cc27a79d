//! Lists, page by page: tags, repositories, referrers (D8.2, D9.1).

use std::sync::Arc;

use hyper::header::{CONTENT_TYPE, HeaderName, LINK};
use serde_json::json;

use super::reply::{Refused, Reply};
use super::route::{Query, encode};
use super::{Shared, on_disk};
use crate::digest::Digest;
use crate::spec::media_type::OCI_INDEX;
use crate::spec::{Descriptor, Index};

/// The most entries of a page.
const PAGE: usize = 1000;

/// The most referrers of a page: each may carry annotations.
const REFERRERS: usize = 100;

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

pub(super) async fn tags(
    shared: &Arc<Shared>,
    name: String,
    query: Query,
) -> Result<Reply, Refused> {
    let repository = name.clone();
    let list = move |folder: &super::Folder| {
        let there = folder.has_repository(&repository);
        there.then(|| folder.tags(&repository)).transpose()
    };
    let Some(tags) = on_disk(shared, list).await? else {
        let message = "there is no such repository";
        return Err(Refused::new(404, "NAME_UNKNOWN", message));
    };
    let (tags, link) = page(tags, &query, &format!("/v2/{name}/tags/list"))?;
    Ok(listed(&json!({ "name": name, "tags": tags }), link))
}

pub(super) async fn catalog(shared: &Arc<Shared>, query: Query) -> Result<Reply, Refused> {
    let names = on_disk(shared, super::Folder::catalog).await?;
    let (names, link) = page(names, &query, "/v2/_catalog")?;
    Ok(listed(&json!({ "repositories": names }), link))
}

pub(super) async fn referrers(
    shared: &Arc<Shared>,
    name: String,
    subject: Digest,
    query: Query,
) -> Result<Reply, Refused> {
    let repository = name.clone();
    let list = move |folder: &super::Folder| folder.referrers(&repository, subject);
    let mut found: Vec<Descriptor> = on_disk(shared, list).await?;
    let kind = query.get("artifactType").filter(|kind| !kind.is_empty());
    if let Some(kind) = kind {
        found.retain(|entry| entry.artifact_type.as_deref() == Some(kind));
    }
    if let Some(last) = query.get("last") {
        found.retain(|entry| entry.digest.to_string().as_str() > last);
    }
    let more = found.len() > REFERRERS;
    found.truncate(REFERRERS);
    let last = found
        .last()
        .map(|entry| entry.digest.to_string())
        .filter(|_| more);
    let index = serde_json::to_vec(&Index::new(OCI_INDEX, found));
    let mut reply = Reply::bytes(200, index.map_err(|_| Refused::failed())?);
    reply = reply.header(CONTENT_TYPE, OCI_INDEX);
    if let Some(last) = last {
        let filter = kind.map_or(String::new(), |kind| {
            format!("&artifactType={}", encode(kind))
        });
        let next = format!(
            "/v2/{name}/referrers/{subject}?last={}{filter}",
            encode(&last)
        );
        reply = reply.header(LINK, format!("<{next}>; rel=\"next\""));
    }
    Ok(match kind {
        Some(_) => reply.header(FILTERS, "artifactType"),
        None => reply,
    })
}

fn listed(list: &serde_json::Value, link: Option<String>) -> Reply {
    let reply = Reply::json(200, list.to_string().into_bytes());
    link.into_iter()
        .fold(reply, |reply, link| reply.header(LINK, link))
}

/// Cuts a page out of a sorted list, as `n` and `last` ask for it, and says where the next one is.
fn page(
    mut list: Vec<String>,
    query: &Query,
    path: &str,
) -> Result<(Vec<String>, Option<String>), Refused> {
    let count = match query.get("n") {
        None | Some("") => PAGE,
        Some(text) => match text.parse::<usize>() {
            Ok(count) => count.min(PAGE),
            Err(_) => {
                let message = "`n` is no number";
                return Err(Refused::new(400, "PAGINATION_NUMBER_INVALID", message));
            }
        },
    };
    if let Some(last) = query.get("last") {
        list.retain(|entry| entry.as_str() > last);
    }
    let more = list.len() > count;
    list.truncate(count);
    let link = list
        .last()
        .filter(|_| more)
        .map(|last| format!("<{path}?n={count}&last={}>; rel=\"next\"", encode(last)));
    Ok((list, link))
}
