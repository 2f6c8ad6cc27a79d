//! A registry over a folder: the distribution specification's server side (D5, D7-D9).
//!
//! `route` reads an address, `folder` keeps things on disk, `uploads` takes blobs in, `blobs`,
//! `manifests` and `lists` answer for the rest, `condition` says whether a request is for the state
//! that it finds, `reply` makes answers. Nothing becomes visible
//! before it is whole and of the right digest, sizes and counts are bounded, and whatever a client
//! sends ends in an answer of the specification's form.
//!
//! There is no access control: whoever reaches the port may read and write. Content that nothing
//! refers to any more stays on disk.

mod blobs;
mod condition;
mod folder;
mod lists;
mod manifests;
mod reply;
mod route;
mod uploads;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use folder::Folder;
use reply::{Refused, Reply};
use route::{Route, Target};
use uploads::Uploads;

/// Connections served at once; others wait.
const CONNECTIONS: usize = 512;

/// How long a client may take to send the head of a request, and to begin another one.
const HEAD: Duration = Duration::from_secs(60);

/// How a [`Server`] behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Whether manifests, tags and blobs may be deleted.
    pub deletes: bool,
    /// The largest blob, bytes.
    pub largest_blob: u64,
    /// No byte of a request's body for this long ends the request.
    pub stall: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            deletes: true,
            largest_blob: 1 << 40,
            stall: Duration::from_secs(60),
        }
    }
}

/// A registry that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// What all requests share.
#[derive(Debug)]
struct Shared {
    folder: Arc<Folder>,
    uploads: Uploads,
    options: ServerOptions,
}

impl Server {
    /// Opens a folder, made first where there is none, and listens at an address. One folder is
    /// served by one server at a time.
    ///
    /// # Errors
    /// When the folder cannot be written, is served already, or the address is taken.
    pub async fn bind(
        address: SocketAddr,
        folder: &Path,
        options: ServerOptions,
    ) -> io::Result<Self> {
        let root = folder.to_owned();
        let opened = tokio::task::spawn_blocking(move || Folder::open(&root));
        let folder = Arc::new(opened.await.map_err(io::Error::other)??);
        let shared = Shared {
            uploads: Uploads::new(Arc::clone(&folder), options.clone()),
            folder,
            options,
        };
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            shared: Arc::new(shared),
        })
    }

    /// The address that it listens at.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until a future is ready; requests under way are dropped then, and what they had
    /// taken in of a blob is kept.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        let accept = async {
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                    return;
                };
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let shared = Arc::clone(&self.shared);
                        connections.spawn(async move {
                            serve(shared, stream).await;
                            drop(slot);
                        });
                    }
                    // Most likely there are too many open files; some will be closed soon.
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
                while connections.try_join_next().is_some() {}
            }
        };
        tokio::select! {
            () = accept => {}
            () = stop => {}
        }
    }
}

/// Serves one connection to its end. How it ends is the client's matter.
async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    drop(stream.set_nodelay(true));
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    drop(connection.await);
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> reply::Response {
    let reply = match Route::parse(request.uri()) {
        Ok(route) => dispatch(shared, route, request).await,
        Err(refused) => Err(refused),
    };
    reply.unwrap_or_else(Reply::from).finish()
}

async fn dispatch(
    shared: &Arc<Shared>,
    route: Route,
    request: Request<Incoming>,
) -> Result<Reply, Refused> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let Route {
        name,
        target,
        query,
    } = route;
    match (target, request.method()) {
        (Target::Root, _) if reads => Ok(Reply::json(200, b"{}".to_vec())),
        (Target::Catalog, _) if reads => lists::catalog(shared, query).await,
        (Target::Tags, _) if reads => lists::tags(shared, name, query).await,
        (Target::Referrers(subject), _) if reads => {
            lists::referrers(shared, name, subject, query).await
        }
        (Target::Blob(digest), _) if reads => {
            blobs::get(shared, name, digest, request.headers()).await
        }
        (Target::Blob(digest), &Method::DELETE) => blobs::delete(shared, name, digest).await,
        (Target::Uploads, &Method::POST) => uploads::begin(shared, name, query, request).await,
        (Target::Upload(id), &Method::GET) => uploads::status(shared, name, &id).await,
        (Target::Upload(id), &Method::PATCH) => uploads::patch(shared, name, &id, request).await,
        (Target::Upload(id), &Method::PUT) => {
            uploads::finish(shared, name, &id, query, request).await
        }
        (Target::Upload(id), &Method::DELETE) => uploads::cancel(shared, name, &id).await,
        (Target::Manifest(wanted), _) if reads => {
            manifests::get(shared, name, wanted, request.headers()).await
        }
        (Target::Manifest(wanted), &Method::PUT) => {
            manifests::put(shared, name, wanted, query, request).await
        }
        (Target::Manifest(wanted), &Method::DELETE) => {
            manifests::delete(shared, name, wanted, request.headers()).await
        }
        _ => Err(Refused::unsupported("the method is not for this address")),
    }
}

/// Runs what uses the disk on the pool for that.
async fn on_disk<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
) -> Result<T, Refused> {
    let folder = Arc::clone(&shared.folder);
    let done = tokio::task::spawn_blocking(move || work(&folder)).await;
    let done = done.map_err(|_| Refused::failed())?;
    done.map_err(|error| Refused::disk(&error))
}
