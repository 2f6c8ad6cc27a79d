//! Requests for a certain state of what they change.

use kiln_registry::digest::Digest;
use kiln_registry::spec::media_type::OCI_INDEX;
use reqwest::Method;

use crate::own::{Served, header};

/// RFC 9110, 13: nobody's change of a tag is lost.
#[tokio::test]
async fn conditions_on_a_manifest_are_kept() {
    let (_folder, served) = Served::empty().await;
    let (tag, index) = ("/v2/app/manifests/list", |number: usize| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[],"annotations":{{"n":"{number}"}}}}"#
        )
    });
    let etag = |number| format!("\"{}\"", Digest::of(index(number).as_bytes()));
    let ask = async |method, number, (name, value): (&str, &str)| {
        let headers = [("content-type", OCI_INDEX), (name, value)];
        let body = index(number);
        let answer = served.ask(method, tag, &headers, body.as_bytes());
        answer.await.status().as_u16()
    };
    let put = async |number, condition| ask(Method::PUT, number, condition).await;
    let (first, seen) = (etag(1), etag(2));
    assert_eq!(put(1, ("if-match", "*")).await, 412, "there is nothing");
    assert_eq!(put(1, ("if-none-match", "*")).await, 201);
    assert_eq!(put(2, ("if-none-match", "*")).await, 412, "there is one");
    assert_eq!(put(2, ("if-match", &first)).await, 201);
    assert_eq!(put(3, ("if-match", &first)).await, 412, "it was changed");
    // Many at once, who all have seen the same: one of them may.
    let all = (10..30).map(|number| put(number, ("if-match", &seen)));
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all.iter().filter(|status| **status == 201).count(), 1);
    assert_eq!(all.iter().filter(|status| **status == 412).count(), 19);
    let now = header(&served.get(tag).await, "etag").to_owned();
    let get = async |condition| ask(Method::GET, 0, condition).await;
    assert_eq!(get(("if-none-match", &now)).await, 304);
    assert_eq!(get(("if-none-match", &seen)).await, 200);
    assert_eq!(get(("if-match", &seen)).await, 412);
    let delete = async |condition| ask(Method::DELETE, 0, condition).await;
    assert_eq!(delete(("if-match", &seen)).await, 412);
    assert_eq!(delete(("if-match", &now)).await, 202);
    assert_eq!(delete(("if-match", &now)).await, 404);
}
