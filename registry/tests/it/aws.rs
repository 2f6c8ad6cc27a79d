//! Amazon's registries with AWS credentials of every kind (D3.7).

use std::process::Command;

use kiln_registry::client::{AwsEnvironment, Client, ClientError, ClientOptions, LoginKind};
use kiln_registry::credentials::Keychain;
use kiln_registry::spec::media_type::OCI_MANIFEST;

use crate::aws_fake::{Aws, ID, KEYS, OFF, REGISTRY, base64};
use crate::env::{Image, bytes, chain, linux, options, read, reference};
use crate::proxies;
use crate::proxy::Proxy;
use crate::server::Server;

/// An ECR: a registry that takes the last password that AWS gave, behind a proxy that knows its name.
struct World {
    aws: Aws,
    registry: Server,
    image: Image,
    proxy: Proxy,
    home: tempfile::TempDir,
}

impl World {
    async fn new(lifetime: u64) -> Self {
        let (aws, registry) = (Aws::start(lifetime).await, Server::start().await);
        let image = Image::new(&[bytes(1000, 1), bytes(1000, 2)]);
        for bytes in image.blobs.values() {
            registry.add_blob(bytes);
        }
        registry.add_manifest("a", "1", OCI_MANIFEST, &image.manifest.bytes);
        let proxy = aws.serve(&registry).await;
        Self {
            aws,
            registry,
            image,
            proxy,
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn options(&self, variables: &[(&str, &str)]) -> ClientOptions {
        let all = [("AWS_ENDPOINT_URL", self.aws.url())].into_iter();
        let own = variables
            .iter()
            .map(|(name, value)| (*name, (*value).replace("HOME", &self.home())));
        let all = all.chain(own).map(|(name, value)| (name.to_owned(), value));
        let proxy = [("HTTP_PROXY", self.proxy.address.as_str())];
        ClientOptions {
            aws: Some(AwsEnvironment::new(all, Some(self.home.path().to_owned()))),
            settings: proxies::with(&proxy, &[REGISTRY]),
            ..options()
        }
    }

    fn home(&self) -> String {
        self.home.path().display().to_string()
    }

    fn file(&self, name: &str, content: &str) {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Pulls, and tells where the keys come from.
    async fn pull(&self, variables: &[(&str, &str)]) -> Result<String, ClientError> {
        let client = Client::new(self.options(variables));
        let name = reference(REGISTRY, "a:1");
        client.resolve(&name, &linux("amd64")).await?;
        let facts = client.inspect_login(REGISTRY, None).await?.unwrap();
        assert_eq!(facts.kind, LoginKind::Password("AWS".to_owned()));
        assert!(facts.expires.is_some());
        let origin = facts.origin.unwrap();
        Ok(origin.replace("AWS, with the keys of ", ""))
    }
}

#[tokio::test]
async fn d3_7_keys_of_every_source() {
    let world = World::new(3600).await;
    let origin = world.pull(&[KEYS[0], KEYS[1], OFF]).await.unwrap();
    assert_eq!(origin, "AWS_ACCESS_KEY_ID");

    let session = [
        ("AWS_ACCESS_KEY_ID", "ASIAROLE"),
        ("AWS_SECRET_ACCESS_KEY", "role/secret+key"),
        ("AWS_SESSION_TOKEN", "role-session+token=="),
    ];
    world.pull(&session).await.unwrap();

    world.file("token", "web.identity+token\n");
    let web = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "HOME/token"),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/ci"),
    ];
    let origin = world.pull(&web).await.unwrap();
    assert_eq!(origin, "the role `arn:aws:iam::1:role/ci`");

    world.file(
        ".aws/credentials",
        "[default]\naws_access_key_id=AKIDLONG\naws_secret_access_key = long/secret+key\n",
    );
    world.file(
        ".aws/config",
        "[default]\nregion = us-west-2\n[profile deploy]\nrole_arn = arn:aws:iam::1:role/ci\nsource_profile = default\n\
         [profile loop]\nrole_arn = x\nsource_profile = loop2\n[profile loop2]\nrole_arn = x\nsource_profile = loop\n\
         [profile sso]\nsso_session = s\n",
    );
    assert_eq!(world.pull(&[OFF]).await.unwrap(), "the profile `default`");
    let deploy = [("AWS_PROFILE", "deploy"), OFF];
    let origin = world.pull(&deploy).await.unwrap();
    assert_eq!(origin, "the role `arn:aws:iam::1:role/ci`");
    for (profile, part) in [
        ("loop", "too many profiles"),
        ("sso", "`sso_session`"),
        ("none", "there is none of that name"),
    ] {
        let error = world.pull(&[("AWS_PROFILE", profile), OFF]).await;
        let error = error.unwrap_err();
        assert!(chain(&error).contains(part), "{}", chain(&error));
        let hint = error.hint().unwrap();
        assert!(
            hint.contains("kiln login --username AWS --password-stdin"),
            "{hint}"
        );
    }

    std::fs::remove_dir_all(world.home.path().join(".aws")).unwrap();
    let url = format!("{}/container", world.aws.url());
    let container = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "HOME/container-token",
        ),
    ];
    world.file("container-token", "container-token\n");
    let origin = world.pull(&container).await.unwrap();
    assert_eq!(origin, "the container's service");

    let url = world.aws.url();
    let machine = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str())];
    assert_eq!(world.pull(&machine).await.unwrap(), "the machine's role");

    let refused = world.pull(&[OFF]).await.unwrap_err();
    assert_eq!(refused.status(), Some(401), "without keys nobody logs in");
    assert!(refused.hint().unwrap().contains("AWS_ACCESS_KEY_ID"));
    // None of this may go through a proxy: keys are at stake.
    let log = world.proxy.log();
    assert!(
        log.iter()
            .all(|line| line.ends_with(&format!("{REGISTRY}:80"))
                || line.ends_with(&format!("{REGISTRY}:443"))),
        "{log:?}"
    );
}

#[tokio::test]
async fn d3_7_one_password_serves_until_it_ends() {
    let world = World::new(3600).await;
    let client = Client::new(world.options(&[KEYS[0], KEYS[1]]));
    let name = reference(REGISTRY, "a:1");
    client.resolve(&name, &linux("amd64")).await.unwrap();
    let repository = client.repository(&name);
    let layers = &world.image.manifest.value.layers;
    let reads = layers.iter().map(|layer| read(&repository, layer, 0));
    for outcome in futures_util::future::join_all(reads).await {
        outcome.unwrap();
    }
    assert_eq!(world.aws.log(), ["POST /"], "one password for all");
    // The registry forgets it: another is fetched, once.
    *world.aws.given.lock().unwrap() += 1;
    read(&repository, &layers[0], 0).await.unwrap();
    assert_eq!(world.aws.log().len(), 2);
    assert!(
        world
            .registry
            .log()
            .iter()
            .all(|asked| asked.header("x-amz-date").is_none())
    );

    let world = World::new(0).await;
    let client = Client::new(world.options(&[KEYS[0], KEYS[1]]));
    client.resolve(&name, &linux("amd64")).await.unwrap();
    assert!(
        world.aws.log().len() > 1,
        "what has ended is not used again"
    );
}

#[tokio::test]
async fn d3_7_refusals_name_what_is_wrong_and_hold_no_secret() {
    let world = World::new(3600).await;
    let wrong = [KEYS[0], ("AWS_SECRET_ACCESS_KEY", "wr0ng-secret")];
    let error = world.pull(&wrong).await.unwrap_err();
    let shown = format!("{} {error:?}", chain(&error));
    assert!(
        shown.contains("InvalidSignatureException: another signature"),
        "{shown}"
    );
    assert!(
        !shown.contains("wr0ng-secret") && !shown.contains("hunter2"),
        "{shown}"
    );
    assert!(error.hint().unwrap().contains("clock"));

    let half = world.pull(&KEYS[..1]).await.unwrap_err();
    assert!(chain(&half).contains("AWS_SECRET_ACCESS_KEY is not set"));
    let far = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://evil.example/"),
        OFF,
    ];
    let far = world.pull(&far).await.unwrap_err();
    assert!(chain(&far).contains("AWS_CONTAINER_CREDENTIALS_FULL_URI"));
}

#[tokio::test]
async fn d3_7_the_users_own_credentials_go_first_and_a_missing_helper_is_no_hindrance() {
    let world = World::new(3600).await;
    *world.aws.given.lock().unwrap() = 7;
    let auth = base64(b"AWS:password-7");
    let config = format!(r#"{{"auths":{{"{REGISTRY}":{{"auth":"{auth}"}}}}}}"#);
    let client = Client::new(ClientOptions {
        keychain: Keychain::from_docker_config(config.as_bytes()).unwrap(),
        ..world.options(&KEYS)
    });
    client.check_login(REGISTRY).await.unwrap();
    assert!(world.aws.log().is_empty());

    let config = format!(r#"{{"credHelpers":{{"{REGISTRY}":"kiln-test-none"}}}}"#);
    let client = Client::new(ClientOptions {
        keychain: Keychain::from_docker_config(config.as_bytes()).unwrap(),
        ..world.options(&KEYS)
    });
    client.check_login(REGISTRY).await.unwrap();
    assert_eq!(world.aws.log().len(), 1);
}

/// The fake takes what another program signs, and refuses what that one signs wrongly.
#[tokio::test(flavor = "multi_thread")]
async fn d3_7_the_fake_checks_signatures_as_curl_makes_them() {
    if !crate::distribution::present(&["curl"]) {
        return;
    }
    let aws = Aws::start(3600).await;
    let ask = async |secret: &str| {
        let url = aws.url();
        let user = format!("{ID}:{secret}");
        let run = move || {
            Command::new("curl")
                .args([
                    "-s",
                    "--aws-sigv4",
                    "aws:amz:eu-west-1:ecr",
                    "--user",
                    &user,
                ])
                .args(["-H", "content-type: application/x-amz-json-1.1"])
                .args([
                    "-H",
                    "x-amz-target: AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
                ])
                .args(["--noproxy", "*", "-d", "{}", &url])
                .output()
                .unwrap()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let right = ask("long/secret+key").await;
    assert!(right.contains("authorizationToken"), "{right}");
    let wrong = ask("other").await;
    assert!(wrong.contains("another signature"), "{wrong}");
}
