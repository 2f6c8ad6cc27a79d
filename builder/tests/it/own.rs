//! kiln's own registry, in the process of the tests.

use std::path::Path;

use kiln_registry::server::{Server, ServerOptions};

/// kiln's own registry over a folder, for as long as this value lives.
pub(crate) struct Own {
    pub(crate) address: String,
    _runtime: tokio::runtime::Runtime,
}

impl Own {
    pub(crate) fn start(folder: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let bound = Server::bind(address, folder, ServerOptions::default());
        let server = runtime.block_on(bound).unwrap();
        let address = server.address().unwrap().to_string();
        runtime.spawn(server.run(std::future::pending()));
        Self {
            address,
            _runtime: runtime,
        }
    }
}
