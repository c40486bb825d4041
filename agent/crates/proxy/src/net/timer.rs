//! One deadline that moves often and is reached rarely.
//!
//! Moving a deadline later costs a store: the runtime's timer stays armed for the earlier moment and is armed anew only
//! when it fires. So a keep-alive connection touches the timer wheel once per limit, not once per request.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A deadline, or none.
#[derive(Debug, Default)]
pub struct Timer {
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Moves the deadline; `None` waits for ever.
    pub fn set(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// The deadline in force.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Ready once the deadline has passed. Cancel-safe; to be polled only by a task that found nothing else to do.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}
