//! Tasks that run side by side, up to a bound.

use tokio::task::{JoinError, JoinSet};

/// How many publishes wait for their confirm at once.
const AT_ONCE_MAX: usize = 64;

/// Tasks that run; what they give comes out in the order in which they end.
pub struct InFlight<T>(JoinSet<T>);

impl<T: Send + 'static> InFlight<T> {
    pub fn new() -> Self {
        Self(JoinSet::new())
    }

    /// Starts a task, as soon as there is room; gives what has ended meanwhile.
    pub async fn push(&mut self, task: impl Future<Output = T> + Send + 'static) -> Vec<T> {
        let mut ended = Vec::new();
        while let Some(next) = self.0.try_join_next() {
            ended.push(given(next));
        }
        if self.0.len() >= AT_ONCE_MAX {
            ended.extend(self.next().await);
        }
        self.0.spawn(task);
        ended
    }

    /// What the next task to end gives; `None` when none runs.
    pub async fn next(&mut self) -> Option<T> {
        self.0.join_next().await.map(given)
    }
}

fn given<T>(ended: Result<T, JoinError>) -> T {
    // No task is cancelled while this holds it, so it can only have panicked.
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
