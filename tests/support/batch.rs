//! A batch whose actions are all there from the start.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use deckswain::action::Action;
use deckswain::driver::{Batch, Next};
use deckswain::result::Outcome;
use deckswain::subprocess::TURNS_AHEAD;

/// What came of one action of a batch.
pub struct Done {
    pub index: usize,
    pub outcome: Outcome,
}

/// Actions that are all there from the start.
pub struct All<'a> {
    pub waiting: VecDeque<(usize, Arc<Action>)>,
    pub done: &'a mut Vec<Done>,
    /// After so many that have ended none is begun.
    pub done_max: usize,
}

impl Batch for All<'_> {
    type Ticket = usize;

    fn next(&mut self) -> Option<Next<usize>> {
        let is_over = self.done.len() >= self.done_max;
        let (ticket, action) = if is_over { None } else { self.waiting.pop_front() }?;
        Some(Next { action, ticket, is_repeat: true })
    }

    fn ahead_max(&self) -> usize {
        TURNS_AHEAD
    }

    fn expected(&self) -> usize {
        self.waiting.len()
    }

    async fn wait(&mut self) -> bool {
        false
    }

    fn may_begin(&self, _index: &usize) -> bool {
        self.done.len() < self.done_max
    }

    fn done(&mut self, index: usize, outcome: Outcome, _span: (DateTime<Utc>, DateTime<Utc>)) {
        self.done.push(Done { index, outcome });
    }

    fn not_begun(&mut self, _index: usize) {}
}
