//! A token that tells running steps to stop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::EventfdFlags;
use tokio::sync::watch;

/// Tells whoever holds a clone of it to stop; cannot be taken back.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cancelled: AtomicBool,
    /// For those who wait with `poll`.
    event: OwnedFd,
    /// For those who wait asynchronously.
    waiting: watch::Sender<bool>,
    /// Those that are cancelled with it.
    children: Mutex<Vec<Weak<Self>>>,
}

impl Shared {
    fn children(&self) -> MutexGuard<'_, Vec<Weak<Self>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cancel {
    /// Makes a token that is not cancelled.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared {
            cancelled: AtomicBool::new(false),
            event,
            waiting: watch::Sender::new(false),
            children: Mutex::default(),
        })))
    }

    /// Makes a token for a part of the work: it is cancelled with this one, and not the other way
    /// round.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn child(&self) -> io::Result<Self> {
        let child = Self::new()?;
        let mut children = self.0.children();
        children.retain(|other| other.strong_count() > 0);
        children.push(Arc::downgrade(&child.0));
        drop(children);
        if self.is_cancelled() {
            child.cancel();
        }
        Ok(child)
    }

    /// Cancels, for all clones and for ever.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        self.0.waiting.send_replace(true);
        // Fails only when the counter is full, and then it is readable already.
        _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        let children: Vec<_> = self.0.children().iter().filter_map(Weak::upgrade).collect();
        for child in children {
            Self(child).cancel();
        }
    }

    /// Waits until it is cancelled.
    pub async fn cancelled(&self) {
        // Fails only when the sender is gone, and that lives as long as the token.
        drop(
            self.0
                .waiting
                .subscribe()
                .wait_for(|&cancelled| cancelled)
                .await,
        );
    }

    /// Whether it is cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }
}

/// The descriptor is readable, for `poll`, once the token is cancelled. Nobody reads from it.
impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_cancelled_with_the_whole_and_not_the_other_way_round() {
        let whole = Cancel::new().unwrap();
        let (one, other) = (whole.child().unwrap(), whole.child().unwrap());
        one.cancel();
        assert!(!whole.is_cancelled() && !other.is_cancelled());
        whole.cancel();
        assert!(other.is_cancelled());
        assert!(whole.child().unwrap().is_cancelled());
    }
}
