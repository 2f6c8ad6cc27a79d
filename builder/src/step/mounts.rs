//! The mounts of a step (B2), ready for the runtime.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use kiln_grammar::mount::Sharing;
use kiln_registry::credentials::SecretBytes;
use kiln_registry::digest::{Digest, Hasher};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::agent::Forward;
use super::mask::Mask;
use super::shown::Inputs;
use super::{StepError, Worker};
use crate::event::Event;
use crate::graph::{MountOp, RunOp};
use crate::runtime::{Isolation, Mount};
use crate::snapshot::Active;
use crate::store::{CacheMount, TempDir};
use crate::sys::owner;

/// Permission bits of the directory of a cache mount (B2).
const CACHE_MODE: u32 = 0o755;
/// How often a cache mount that another step uses is tried again.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// The mounts of a step, and what has to stay until its process has ended.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// In the order in which they were asked for.
    pub(super) mounts: Vec<Mount>,
    /// Variables that the environment gets where it does not have them.
    pub(super) env: Vec<(String, String)>,
    /// Variables with secrets.
    pub(super) secret_env: Vec<(String, SecretBytes)>,
    /// Hides the secrets in what the process prints.
    pub(super) mask: Mask,
    /// Empty directories that stand for stages without files.
    empty: Vec<Active>,
    /// By what they are known by.
    caches: BTreeMap<Digest, CacheMount>,
    /// The sockets of agents, and their folder; they go before it.
    sockets: Vec<Forward>,
    private: Option<TempDir>,
}

/// Makes the mounts of steps.
struct Maker<'a> {
    worker: &'a Worker,
    inputs: &'a Inputs<'a>,
    step: usize,
    made: Mounts,
}

impl Mounts {
    /// Makes the mounts of a step. Blocks, also for as long as other steps use a cache mount that is
    /// to be locked.
    pub(super) fn make(
        worker: &Worker,
        op: &RunOp,
        inputs: &Inputs<'_>,
        step: usize,
    ) -> Result<Self, StepError> {
        let made = Self::default();
        let mut maker = Maker {
            worker,
            inputs,
            step,
            made,
        };
        let keys = maker.take_caches(op)?;
        for (mount, key) in op.mounts.iter().zip(keys) {
            maker.add(mount, key)?;
        }
        let secrets = maker.made.mounts.iter().filter_map(|mount| match mount {
            Mount::File { content, .. } => Some(content),
            _ => None,
        });
        let variables = maker.made.secret_env.iter().map(|(_, value)| value);
        maker.made.mask = Mask::new(secrets.chain(variables));
        Ok(maker.made)
    }
}

impl Maker<'_> {
    /// Makes a mount; of a cache mount the key is given.
    fn add(&mut self, op: &MountOp, key: Option<Digest>) -> Result<(), StepError> {
        match op {
            MountOp::Bind {
                input,
                source,
                target,
                writable,
            } => {
                let lowers = self.lowers(*input)?;
                self.made.mounts.push(Mount::Layers {
                    lowers,
                    source: source.clone(),
                    target: target.clone(),
                    writable: *writable,
                });
            }
            MountOp::Tmpfs { target, size } => self.made.mounts.push(Mount::Tmpfs {
                target: target.clone(),
                size: *size,
            }),
            MountOp::Cache {
                target, writable, ..
            } => {
                let cache = key.and_then(|key| self.made.caches.get(&key));
                self.made.mounts.extend(cache.map(|cache| Mount::Cache {
                    source: cache.path().to_owned(),
                    target: target.clone(),
                    writable: *writable,
                }));
            }
            MountOp::Ssh {
                id,
                target,
                required,
                mode,
                owner,
            } => self.socket(id, target, *required, *mode, *owner)?,
            MountOp::Secret {
                id,
                target,
                env,
                required,
                mode,
                owner,
            } => {
                let Some(secret) = self.worker.settings.secrets.get(id) else {
                    if *required {
                        return Err(StepError::NoSecret(id.clone()));
                    }
                    return Ok(());
                };
                if let Some(target) = target {
                    self.made.mounts.push(Mount::File {
                        content: secret.clone(),
                        target: target.clone(),
                        mode: *mode,
                        owner: *owner,
                    });
                }
                if let Some(name) = env {
                    if secret.expose().contains(&0) {
                        return Err(StepError::SecretInEnvironment(id.clone()));
                    }
                    self.made.secret_env.push((name.clone(), secret.clone()));
                }
            }
        }
        Ok(())
    }

    /// Makes a socket for an agent, and names the first one in the environment.
    fn socket(
        &mut self,
        id: &str,
        target: &str,
        required: bool,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<(), StepError> {
        let Some(agent) = self.worker.settings.agents.get(id) else {
            return match required {
                true => Err(StepError::NoAgent(id.to_owned())),
                false => Ok(()),
            };
        };
        let folder = match &self.made.private {
            Some(folder) => folder,
            None => self.made.private.insert(self.worker.store.temporary()?),
        };
        let folder = folder.path().join("ssh");
        let name = self.made.sockets.len().to_string();
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder);
        made.map_err(io_error("making the folder", &folder))?;
        let socket = Forward::start(agent, &folder, &name, mode, owner)
            .map_err(io_error("making a socket in", &folder))?;
        self.made.mounts.push(Mount::Bind {
            source: socket.path().to_owned(),
            target: target.to_owned(),
            writable: true,
        });
        if self.made.sockets.is_empty() {
            let variable = "SSH_AUTH_SOCK".to_owned();
            self.made.env.push((variable, target.to_owned()));
        }
        self.made.sockets.push(socket);
        Ok(())
    }

    /// The layers of an input, topmost first; an empty directory where it has none.
    fn lowers(&mut self, input: usize) -> Result<Vec<PathBuf>, StepError> {
        let stack = self.worker.unpacked(&self.inputs.stack(input))?;
        let lowers = self.worker.snapshots.lowers(&stack)?;
        if !lowers.is_empty() {
            return Ok(lowers);
        }
        let active = self.worker.snapshots.prepare()?;
        let lowers = vec![active.upper()];
        self.made.empty.push(active);
        Ok(lowers)
    }

    /// Takes the cache mounts of a step, each once, and makes those that are new. All steps take them
    /// in one order, so that no two wait for each other. Gives the key of each mount that is one.
    fn take_caches(&mut self, op: &RunOp) -> Result<Vec<Option<Digest>>, StepError> {
        let mut wanted: BTreeMap<Digest, (&MountOp, Sharing)> = BTreeMap::new();
        let mut keys = Vec::with_capacity(op.mounts.len());
        for mount in &op.mounts {
            let MountOp::Cache {
                id, sharing, seed, ..
            } = mount
            else {
                keys.push(None);
                continue;
            };
            let key = self.cache_key(id, seed.as_ref())?;
            // Where nothing can be mounted the directory is moved, which only one can do.
            let sharing = match (self.worker.settings.isolation, sharing) {
                (Isolation::Chroot, Sharing::Shared) => Sharing::Locked,
                (_, sharing) => *sharing,
            };
            let (_, known) = wanted.entry(key).or_insert((mount, sharing));
            *known = stricter(*known, sharing);
            keys.push(Some(key));
        }
        for (key, (mount, sharing)) in wanted {
            if let (Some(saved), MountOp::Cache { id, .. }) = (&self.worker.saved, mount) {
                saved.restore(&key, id);
            }
            let cache = self.take_cache(&key, mount, sharing)?;
            cache.touch()?;
            if !cache.is_made() {
                self.make_cache(&cache, mount)?;
            }
            self.made.caches.insert(key, cache);
        }
        Ok(keys)
    }

    /// What a cache mount is known by: its id and its seed.
    fn cache_key(&self, id: &str, seed: Option<&(usize, String)>) -> Result<Digest, StepError> {
        let mut hasher = Hasher::new();
        hasher.update(b"kiln cache mount 1\n");
        hasher.update(id.as_bytes());
        if let Some((input, source)) = seed {
            hasher.update(b"\0");
            hasher.update(self.inputs.digest(self.worker, *input, source)?.bytes());
        }
        Ok(hasher.finish())
    }

    /// Takes a cache mount; waits, and says so, while other steps or processes use it.
    fn take_cache(
        &self,
        key: &Digest,
        mount: &MountOp,
        sharing: Sharing,
    ) -> Result<CacheMount, StepError> {
        let id = match mount {
            MountOp::Cache { id, .. } => id.as_str(),
            _ => "",
        };
        let mut told = false;
        loop {
            if let Some(cache) = self.worker.store.cache_mount(key, id, sharing)? {
                return Ok(cache);
            }
            if !told {
                told = true;
                self.worker.observer.tell(Event::Note {
                    step: Some(self.step),
                    text: format!("waiting for the cache mount `{id}`, which another step uses"),
                });
            }
            let mut cancel = [PollFd::new(&self.worker.cancel, PollFlags::IN)];
            // Interrupted or not: what counts is asked for below.
            _ = rustix::event::poll(&mut cancel, Some(&RETRY));
            if self.worker.cancel.is_cancelled() {
                return Err(StepError::Cancelled);
            }
        }
    }

    /// Makes the directory of a cache mount, aside first: nobody ever sees it half made.
    fn make_cache(&self, cache: &CacheMount, mount: &MountOp) -> Result<(), StepError> {
        let MountOp::Cache {
            seed,
            mode,
            uid,
            gid,
            ..
        } = mount
        else {
            return Ok(());
        };
        let folder = self.worker.store.temporary()?;
        let into = folder.path().join("new");
        let directory = into.join("fs");
        fs::create_dir(&into).map_err(io_error("making the folder", &into))?;
        let (mode, owner) = match seed {
            Some((input, source)) => {
                let files = self.inputs.files(self.worker, *input, source, "/fs")?;
                if !files.is_directory() {
                    return Err(StepError::CacheSeed(source.clone()));
                }
                files.copy(self.worker, &into)?;
                (*mode, (*uid, *gid))
            }
            None => {
                fs::create_dir(&directory).map_err(io_error("making the folder", &directory))?;
                let owner = (uid.or(Some(0)), gid.or(Some(0)));
                (mode.or(Some(CACHE_MODE)), owner)
            }
        };
        // With a single id every user of a step is the same to the disk.
        if !owner::is_kept_for_all() {
            chown(&directory, owner.0, owner.1)
                .map_err(io_error("setting the owner of", &directory))?;
        }
        if let Some(mode) = mode {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode))
                .map_err(io_error("setting the mode of", &directory))?;
        }
        Ok(cache.make(&directory)?)
    }
}

/// What a step does that uses one cache mount in two ways.
fn stricter(one: Sharing, other: Sharing) -> Sharing {
    match (one, other) {
        (Sharing::Locked, _) | (_, Sharing::Locked) => Sharing::Locked,
        (Sharing::Private, _) | (_, Sharing::Private) => Sharing::Private,
        (Sharing::Shared, Sharing::Shared) => Sharing::Shared,
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StepError {
    move |source| StepError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
