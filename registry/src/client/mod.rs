//! The registry client: the distribution specification's client side, on HTTP.
//!
//! Every request goes one way: [`Repository`] (`pull`, `push`, `resolve`) says what is wanted,
//! `places` knows which hosts have it, `transport` finds a host's scheme, adds credentials
//! (`challenge`, `auth`, `aws`) and tries again (`retry`), `wire` does one exchange and sees that it
//! moves, `tls` holds the connections.

mod ahead;
mod auth;
mod aws;
mod challenge;
mod document;
mod error;
mod fetch;
mod hint;
mod known;
mod login;
mod mount;
mod names;
mod paging;
mod places;
mod pull;
mod push;
mod quota;
mod referrers;
mod refusal;
mod resolve;
mod retry;
mod search;
mod session;
mod tags;
mod tls;
mod transport;
mod upload;
mod wire;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use aws::{AwsEnvironment, AwsError, Bucket, BucketOptions};
pub use document::Found;
pub use error::{ClientError, is_library_error};
pub use fetch::{Body, redacted};
pub use known::Known;
pub use login::{LoginFacts, LoginKind};
pub use names::NameLookup;
pub use quota::Quota;
pub use referrers::{is_fallback_tag, referrer};
pub use refusal::Refusal;
pub use resolve::Resolved;
pub use search::{Hit, SEARCH_HOST};
pub use tags::Untagged;

use crate::blob::{BlobError, BlobReader, BlobSink, BlobSource, BoxFuture, Progress, Put};
use crate::credentials::{Keychain, Login};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::settings::Settings;
use crate::spec::Descriptor;
use mount::Seen;
use session::Sessions;
use transport::{Endpoint, Transport, lock};

/// The host behind the name `docker.io`.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Another place to pull a registry's images from (D4.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry it stands for, `docker.io`.
    pub registry: String,
    /// Its address, `http://127.0.0.1:5000` or `https://mirror.example/prefix`.
    pub url: String,
}

/// Something worth telling while a request goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A request failed and is tried again.
    Retry {
        /// The wait before that.
        wait: Duration,
        /// How it failed.
        reason: String,
    },
    /// A mirror could not serve; the next one, or the registry itself, is asked.
    Mirror {
        /// The mirror's address.
        address: String,
        /// How it failed.
        reason: String,
    },
    /// A registry wants the user to know something (D6.2).
    Warning(String),
}

/// Who is told about [`Notice`]s; nobody by default.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<Tell>>);

type Tell = dyn Fn(&Notice) + Send + Sync;

impl Observer {
    /// An observer that calls a function.
    pub fn new(tell: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    fn tell(&self, notice: &Notice) {
        if let Some(tell) = &self.0 {
            tell(notice);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

/// How a [`Client`] behaves; `ClientOptions { keychain, ..ClientOptions::default() }`.
pub struct ClientOptions {
    /// Where credentials come from.
    pub keychain: Keychain,
    /// Credentials that go before the keychain's, by registry, as for checking new ones.
    pub logins: BTreeMap<String, Login>,
    /// What Amazon's registries are asked with where the keychain has nothing for them; with `None`
    /// they are not.
    pub aws: Option<AwsEnvironment>,
    /// Mirrors, asked in order and before those of the settings, for pulls only.
    pub mirrors: Vec<Mirror>,
    /// Certificates, insecure registries (besides loopback addresses), more mirrors, proxies.
    pub settings: Settings,
    /// Sent as `User-Agent`.
    pub user_agent: String,
    /// PEM files of CA certificates to trust, besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// How often a request is tried again.
    pub retries: u32,
    /// The wait before the first retry, at most; it doubles each time.
    pub retry_delay: Duration,
    /// The longest wait that a registry may ask for.
    pub patience: Duration,
    /// A request without a byte moving for this long has failed.
    pub stall: Duration,
    /// A folder where unfinished uploads are remembered, so that the next process goes on with
    /// them (D7.2); made when first wanted.
    pub uploads: Option<PathBuf>,
    /// How host names become addresses.
    pub names: NameLookup,
    /// Who is told about retries, mirrors and warnings.
    pub observer: Observer,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            keychain: Keychain::anonymous(),
            logins: BTreeMap::new(),
            aws: None,
            mirrors: Vec::new(),
            settings: Settings::default(),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            ca_files: Vec::new(),
            retries: 5,
            retry_delay: Duration::from_secs(1),
            patience: Duration::from_secs(600),
            stall: Duration::from_secs(60),
            uploads: None,
            names: NameLookup::default(),
            observer: Observer::default(),
        }
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("mirrors", &self.mirrors)
            .field("settings", &self.settings)
            .field("user_agent", &self.user_agent)
            .field("ca_files", &self.ca_files)
            .field("retries", &self.retries)
            .field("stall", &self.stall)
            .finish_non_exhaustive()
    }
}

/// A client of all registries; cheap to clone, its clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    transport: Transport,
    mirrors: Vec<Mirror>,
    settings: Settings,
    seen: Seen,
    sessions: Sessions,
    /// Held by who changes a list of referrers under a tag.
    lists: tokio::sync::Mutex<()>,
    /// For buckets of S3; registries get theirs from the transport.
    aws: Option<AwsEnvironment>,
}

impl Client {
    /// A client; nothing is read or connected before it is wanted.
    #[must_use]
    pub fn new(options: ClientOptions) -> Self {
        let policy = retry::Policy {
            retries: options.retries,
            delay: options.retry_delay,
            ceiling: Duration::from_secs(30).max(options.retry_delay),
            patience: options.patience,
        };
        let wire = wire::Wire {
            connections: tls::Connections::new(
                options.settings.clone(),
                options.ca_files,
                options.user_agent,
                options.names,
            ),
            stall: options.stall,
        };
        let headers = transport::own_headers(&options.keychain);
        let sources = auth::Sources {
            keychain: options.keychain,
            logins: options.logins,
            aws: options.aws,
        };
        let aws = sources.aws.clone();
        let auth = auth::Auth::new(sources, policy);
        Self {
            shared: Arc::new(Shared {
                transport: Transport::new(wire, policy, auth, headers, options.observer),
                mirrors: options.mirrors,
                settings: options.settings,
                seen: Seen::default(),
                sessions: Sessions::new(options.uploads),
                lists: tokio::sync::Mutex::default(),
                aws,
            }),
        }
    }

    /// Remembers that a repository holds a blob, so that pushes to its neighbours in the same
    /// registry need not send it (D7.4). What the client itself reads and writes, it remembers.
    pub fn remember(&self, repository: &Reference, blob: Digest) {
        let (registry, name) = (&repository.registry, &repository.repository);
        self.shared.seen.add(registry, name, blob);
    }

    /// What was asked of each registry so far, and how much more may be (D6.3).
    #[must_use]
    pub fn quotas(&self) -> Vec<Quota> {
        self.shared.transport.quotas.all()
    }

    /// The warnings that registries have sent so far, each once (D6.2).
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.shared.transport.warnings()
    }
}

/// One repository of a registry, as the source or sink of a transfer.
#[derive(Clone, Debug)]
pub struct Repository {
    shared: Arc<Shared>,
    registry: String,
    repository: String,
    mirrors: Vec<Endpoint>,
    /// Where images are pulled from.
    source: Endpoint,
    /// Where they are pushed to: the place that the name says.
    origin: Endpoint,
    doubt: Arc<Mutex<Doubt>>,
    /// Documents that need not be fetched.
    known: Option<Known>,
}

/// What speaks against a registry's word.
#[derive(Debug, Default)]
struct Doubt {
    /// Blobs that it said to have, and then did not know.
    blobs: HashSet<Digest>,
    /// How often it refused a manifest for a blob that it did not know.
    rounds: u32,
}

impl Repository {
    fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    fn sessions(&self) -> &Sessions {
        &self.shared.sessions
    }

    fn remember(&self, blob: Digest) {
        self.shared.seen.add(&self.registry, &self.repository, blob);
    }

    fn distrusts(&self, blob: Digest) -> bool {
        lock(&self.doubt).blobs.contains(&blob)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

impl BlobSource for Repository {
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        Box::pin(pull::open(self, blob, offset, true))
    }

    fn open_unverified<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        Box::pin(pull::open(self, blob, offset, false))
    }
}

impl BlobSink for Repository {
    /// Puts a blob; foreign layers stay where they are and count as existing (D7.5).
    fn put<'a>(
        &'a self,
        blob: &'a Descriptor,
        source: &'a dyn BlobSource,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        Box::pin(push::put(self, blob, source, progress))
    }

    fn put_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: &'a [u8],
        tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        Box::pin(async move { Ok(push::put_manifest(self, descriptor, bytes, tag).await?) })
    }
}
