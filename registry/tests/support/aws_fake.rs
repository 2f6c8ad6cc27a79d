//! A fake of the services of AWS that are needed for a password: it really checks signatures. The
//! check is written apart from the client, and proven with curl's signatures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use crate::proxy::Proxy;
use crate::server::{Asked, Reply, Server, error};

pub const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// Keys that hold for ever, and what `secret_of` knows.
pub const ID: &str = "AKIDLONG";

fn secret_of(id: &str) -> Option<Secret> {
    match id {
        ID => Some(("long/secret+key", None)),
        "ASIAROLE" => Some(("role/secret+key", Some("role-session+token=="))),
        _ => None,
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 2104, on SHA-256.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text);
    let outer = Sha256::new().chain_update(pad(0x5c));
    outer.chain_update(inner.finalize()).finalize().to_vec()
}

/// A secret key, and the session that it is for.
type Secret = (&'static str, Option<&'static str>);

/// Whether a request is signed as AWS wants it (Signature Version 4) by a key that `secret_of`
/// knows; the id of the key.
pub fn verified(
    asked: &Asked,
    service: &str,
    secret_of: impl Fn(&str) -> Option<Secret>,
) -> Result<String, String> {
    let header = |name: &str| asked.header(name).ok_or(format!("no {name}"));
    let authorization = header("authorization")?;
    let rest = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or("another algorithm")?;
    let parts: BTreeMap<&str, &str> = rest
        .split(", ")
        .filter_map(|part| part.split_once('='))
        .collect();
    let credential: Vec<&str> = parts["Credential"].split('/').collect();
    let [id, day, region, for_service, "aws4_request"] = credential[..] else {
        return Err("a wrong scope".to_owned());
    };
    if (region, for_service) != ("eu-west-1", service) {
        return Err(format!("a scope for {region} and {for_service}"));
    }
    let (secret, session) = secret_of(id).ok_or("an unknown key")?;
    if session != asked.header("x-amz-security-token") {
        return Err("a wrong session".to_owned());
    }
    let time = header("x-amz-date")?;
    if !time.starts_with(day) {
        return Err("another day".to_owned());
    }
    let signed: Vec<&str> = parts["SignedHeaders"].split(';').collect();
    for name in asked.headers.keys() {
        if (name.starts_with("x-amz-") || name == "host") && !signed.contains(&name.as_str()) {
            return Err(format!("{name} is not signed"));
        }
    }
    let mut headers = String::new();
    for name in &signed {
        headers.push_str(&format!("{name}:{}\n", header(name)?.trim()));
    }
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{}\n{}",
        asked.method,
        asked.path,
        asked.query,
        parts["SignedHeaders"],
        hex(&Sha256::digest(&asked.body))
    );
    let scope = credential[1..].join("/");
    let text = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        hex(&Sha256::digest(canonical))
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [day, region, for_service, "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    if hex(&hmac(&key, text.as_bytes())) != parts["Signature"] {
        return Err("another signature".to_owned());
    }
    Ok(id.to_owned())
}

/// All of AWS that is needed: passwords, roles, and the services of containers and machines.
pub struct Aws {
    pub server: Server,
    /// The passwords given out so far; the last one is accepted.
    pub given: Arc<Mutex<usize>>,
}

impl Aws {
    pub async fn start(lifetime: u64) -> Self {
        let server = Server::start().await;
        let given = Arc::new(Mutex::new(0));
        let count = given.clone();
        server.custom(move |asked| Some(answer(asked, &count, lifetime)));
        Self { server, given }
    }

    /// Makes an ECR of a registry, which takes the last password that was given out; the proxy that
    /// knows its name.
    pub async fn serve(&self, registry: &Server) -> Proxy {
        let given = self.given.clone();
        registry.custom(move |asked| {
            let held = format!("AWS:password-{}", given.lock().unwrap());
            let held = format!("Basic {}", base64(held.as_bytes()));
            let challenge = r#"Basic realm="https://ecr.example/",service="ecr.amazonaws.com""#;
            (asked.header("authorization") != Some(&held))
                .then(|| error(401, "UNAUTHORIZED").with("www-authenticate", challenge))
        });
        let proxy = Proxy::http().await;
        proxy.name(&format!("{REGISTRY}:80"), &registry.address);
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// What was asked of it, in short.
    pub fn log(&self) -> Vec<String> {
        let log = self.server.log().into_iter();
        log.map(|asked| format!("{} {}", asked.method, asked.path))
            .collect()
    }
}

fn answer(asked: &Asked, given: &Mutex<usize>, lifetime: u64) -> Reply {
    let body = String::from_utf8_lossy(&asked.body).into_owned();
    let keys = r#"{"Code":"Success","AccessKeyId":"ASIAROLE","SecretAccessKey":"role/secret+key","Token":"role-session+token==","Expiration":"2099-01-01T00:00:00Z"}"#;
    let refused = |code: &str, message: &str| {
        let body = format!(r#"{{"__type":"x#{code}","message":"{message}"}}"#);
        Reply::new(400).body(body)
    };
    match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", "/container") if asked.header("authorization") == Some("container-token") => {
            Reply::new(200).body(keys)
        }
        ("PUT", "/latest/api/token")
            if asked
                .header("x-aws-ec2-metadata-token-ttl-seconds")
                .is_some() =>
        {
            Reply::new(200).body("machine-token")
        }
        ("GET", path) if asked.header("x-aws-ec2-metadata-token") == Some("machine-token") => {
            let roles = "/latest/meta-data/iam/security-credentials/";
            match path.strip_prefix(roles) {
                Some("") => Reply::new(200).body("builder"),
                Some("builder") => Reply::new(200).body(keys),
                _ => Reply::new(404),
            }
        }
        ("POST", "/") if body.contains("Action=AssumeRole") => {
            let web = body.contains("Action=AssumeRoleWithWebIdentity")
                && body.contains("WebIdentityToken=web.identity%2Btoken")
                && asked.header("authorization").is_none();
            if !web && let Err(problem) = verified(asked, "sts", secret_of) {
                return refused("InvalidSignatureException", &problem);
            }
            if !body.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fci") {
                return refused("AccessDenied", "another role");
            }
            Reply::new(200).body(
                "<R xmlns=\"x\"><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>\
                 <SecretAccessKey>role/secret+key</SecretAccessKey>\
                 <SessionToken>role-session+token==</SessionToken></Credentials></R>",
            )
        }
        ("POST", "/") => {
            let target = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
            if asked.header("x-amz-target") != Some(target) {
                return refused("UnknownOperationException", "no such operation");
            }
            if let Err(problem) = verified(asked, "ecr", secret_of) {
                return refused("InvalidSignatureException", &format!("{problem}\\nhunter2"));
            }
            let mut given = given.lock().unwrap();
            *given += 1;
            let pair = base64(format!("AWS:password-{given}").as_bytes());
            let now = std::time::SystemTime::now();
            let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let end = now + lifetime;
            Reply::new(200).body(format!(
                r#"{{"authorizationData":[{{"authorizationToken":"{pair}","expiresAt":{end}.5,"proxyEndpoint":"https://{REGISTRY}"}}]}}"#
            ))
        }
        _ => Reply::new(404),
    }
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub const OFF: (&str, &str) = ("AWS_EC2_METADATA_DISABLED", "true");
pub const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", ID),
    ("AWS_SECRET_ACCESS_KEY", "long/secret+key"),
];
