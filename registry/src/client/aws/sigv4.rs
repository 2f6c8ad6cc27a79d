//! AWS Signature Version 4: a request is signed with a key made of the secret, the day, the region
//! and the service.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, Tag, sign as hmac};
use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use zeroize::Zeroizing;

use super::Keys;
use crate::client::wire::Request;
use crate::credentials::Secret;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Whom a signature is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

/// Signs a request with all its headers; `None` when a key or a header cannot stand in a request.
pub(super) fn sign(
    request: &mut Request,
    keys: &Keys,
    to: Scope<'_>,
    now: Timestamp,
) -> Option<()> {
    let content = hash(&request.body);
    sign_content(request, &content, keys, to, now)
}

/// The same for a request whose content has this SHA-256, in hexadecimal, and need not be here.
pub(super) fn sign_content(
    request: &mut Request,
    content: &str,
    keys: &Keys,
    to: Scope<'_>,
    now: Timestamp,
) -> Option<()> {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = time.get(..8)?.to_owned();
    request
        .headers
        .insert("x-amz-date", HeaderValue::from_str(&time).ok()?);
    if let Some(token) = &keys.session {
        let token = secret_value(token.expose())?;
        request.headers.insert("x-amz-security-token", token);
    }
    let (canonical, signed) = canonical(request, content)?;
    let scope = format!("{day}/{}/{}/aws4_request", to.region, to.service);
    let text = format!(
        "{ALGORITHM}\n{time}\n{scope}\n{}",
        hash(canonical.as_bytes())
    );
    let signature = hex(hmac(&signing_key(&keys.secret, &day, to), text.as_bytes()).as_ref());
    let header = format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders={signed}, Signature={signature}",
        keys.id
    );
    request
        .headers
        .insert(AUTHORIZATION, secret_value(&header)?);
    Some(())
}

fn secret_value(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn signing_key(secret: &Secret, day: &str, to: Scope<'_>) -> Key {
    let first = Zeroizing::new(format!("AWS4{}", secret.expose()));
    let key = |bytes: &[u8]| Key::new(HMAC_SHA256, bytes);
    let next = |tag: Tag, text: &str| hmac(&key(tag.as_ref()), text.as_bytes());
    let day = hmac(&key(first.as_bytes()), day.as_bytes());
    let service = next(next(day, to.region), to.service);
    key(next(service, "aws4_request").as_ref())
}

/// The request as both sides write it before they hash it, and the names of the signed headers.
fn canonical(request: &Request, content: &str) -> Option<(String, String)> {
    let mut headers = vec![("host".to_owned(), authority(&request.url)?)];
    for (name, value) in &request.headers {
        headers.push((
            name.as_str().to_owned(),
            value.to_str().ok()?.trim().to_owned(),
        ));
    }
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let mut query: Vec<String> = request
        .url
        .query_pairs()
        .map(|(name, value)| format!("{}={}", encode(&name), encode(&value)))
        .collect();
    query.sort();
    let Request { method, url, .. } = request;
    let text = format!(
        "{method}\n{}\n{}\n{lines}\n{names}\n{content}",
        url.path(),
        query.join("&"),
    );
    Some((text, names))
}

/// The value of the `Host` header that the HTTP library will send.
fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// Percent-encoding as AWS has it.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// SHA-256 in hexadecimal.
pub(super) fn hash(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::Method;

    fn keys() -> Keys {
        Keys {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session: None,
            origin: String::new(),
        }
    }

    fn signed(mut request: Request, region: &str, service: &str) -> String {
        let now = "2015-08-30T12:36:00Z".parse().unwrap();
        let to = Scope { region, service };
        sign(&mut request, &keys(), to, now).unwrap();
        let header = &request.headers[AUTHORIZATION];
        assert!(header.is_sensitive());
        header.to_str().unwrap().to_owned()
    }

    fn request(method: Method, url: &str) -> Request {
        Request::new(method, Url::parse(url).unwrap())
    }

    /// The examples of the AWS documentation and of its published test suite.
    #[test]
    fn d3_7_the_published_examples() {
        let key = signing_key(
            &keys().secret,
            "20150830",
            Scope {
                region: "us-east-1",
                service: "iam",
            },
        );
        let text = "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/iam/aws4_request\n\
             f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59";
        assert_eq!(
            hex(hmac(&key, text.as_bytes()).as_ref()),
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );

        let mut list = request(
            Method::GET,
            "https://iam.amazonaws.com/?Version=2010-05-08&Action=ListUsers",
        );
        list.headers.insert(
            "content-type",
            HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8"),
        );
        assert_eq!(
            signed(list, "us-east-1", "iam"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );

        let vanilla = |method| {
            let request = request(method, "https://example.amazonaws.com/");
            signed(request, "us-east-1", "service")
        };
        assert!(vanilla(Method::GET).ends_with(
            "Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        ));
        assert!(vanilla(Method::POST).ends_with(
            "Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        ));
    }

    #[test]
    fn d3_7_a_key_with_a_line_end_is_refused() {
        let mut broken = keys();
        broken.session = Some(Secret::new("a\nb"));
        let to = Scope {
            region: "r",
            service: "s",
        };
        let mut request = request(Method::GET, "https://example.com/");
        assert!(sign(&mut request, &broken, to, Timestamp::now()).is_none());
    }
}
