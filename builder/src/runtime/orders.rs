//! What whoever watches a process tells it while it runs: signals, and the size of its terminal.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::EventfdFlags;

/// Something that a running process is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It gets this signal.
    Signal(i32),
    /// Its terminal has so many rows and columns now.
    Size {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// The way to a process that runs in the foreground; clones lead to the same process.
#[derive(Clone, Debug)]
pub struct Orders(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<VecDeque<Order>>,
    /// Readable while orders wait.
    event: OwnedFd,
}

impl Orders {
    /// Makes a way on which nothing waits.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared {
            waiting: Mutex::default(),
            event,
        })))
    }

    /// Gives an order. One that comes before the process has begun is kept for it.
    pub fn give(&self, order: Order) {
        let mut waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(order);
        // Fails only when the counter is full, and then it is readable already.
        _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }

    /// Takes all orders that wait.
    pub(super) fn take(&self) -> VecDeque<Order> {
        let mut waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Fails only when nothing waits.
        _ = rustix::io::read(&self.0.event, &mut [0; 8][..]);
        std::mem::take(&mut *waiting)
    }
}

/// The descriptor is readable, for `poll`, while orders wait.
impl AsFd for Orders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_taken_once_and_in_order() {
        let orders = Orders::new().unwrap();
        assert!(orders.take().is_empty());
        let size = Order::Size {
            rows: 3,
            columns: 5,
        };
        orders.clone().give(Order::Signal(2));
        orders.give(size);
        assert_eq!(orders.take(), [Order::Signal(2), size]);
        assert!(orders.take().is_empty());
    }
}
