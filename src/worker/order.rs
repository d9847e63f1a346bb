//! Which paths wait for an action that is tried again: nothing later may overtake it there.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::action::{Action, DeckyName, DeckyPath, Task};

/// How many paths are kept in order; beyond that a retry can be overtaken.
const PATHS_MAX: usize = 10_000;
/// How long after it is due a retry is waited for: another worker may have taken it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What waits for its next attempt, by the path that it changes, in the order of its first delivery.
#[derive(Debug, Default)]
pub struct Order(Mutex<HashMap<(DeckyName, DeckyPath), VecDeque<Waiting>>>);

#[derive(Debug)]
struct Waiting {
    id: Uuid,
    /// The attempt after which it waits, which tells the delay queue.
    attempt: u32,
    until: Instant,
}

impl Order {
    /// Whether the action is next on its path; `Err` is the attempt after which the one before it waits.
    pub fn is_next(&self, action: &Action, now: Instant) -> Result<(), u32> {
        let Some(key) = key(action) else { return Ok(()) };
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = paths.get_mut(&key) else { return Ok(()) };
        while queue.front().is_some_and(|first| first.until < now && first.id != action.id) {
            queue.pop_front();
        }
        match queue.front() {
            Some(first) if first.id != action.id => Err(first.attempt),
            _ => Ok(()),
        }
    }

    /// Notes that the action comes again when `delay` has passed; one that is new waits behind the others.
    pub fn waits(&self, action: &Action, attempt: u32, delay: Duration, now: Instant) {
        let Some(key) = key(action) else { return };
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if paths.len() >= PATHS_MAX && !paths.contains_key(&key) {
            paths.retain(|_, queue| queue.iter().any(|waiting| waiting.until >= now));
            if paths.len() >= PATHS_MAX {
                return;
            }
        }
        let queue = paths.entry(key).or_default();
        let until = now + delay + PATIENCE;
        match queue.iter_mut().find(|waiting| waiting.id == action.id) {
            Some(waiting) => (waiting.attempt, waiting.until) = (attempt, until),
            None => queue.push_back(Waiting { id: action.id, attempt, until }),
        }
    }

    /// Notes that the action has come to its end.
    pub fn ended(&self, action: &Action) {
        let Some(key) = key(action) else { return };
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = paths.get_mut(&key) {
            queue.retain(|waiting| waiting.id != action.id);
            if queue.is_empty() {
                paths.remove(&key);
            }
        }
    }
}

/// The path that an action changes.
fn key(action: &Action) -> Option<(DeckyName, DeckyPath)> {
    match action.task {
        Task::File(_) | Task::Edit(_) | Task::Remove(_) => {
            Some((action.dst_name.clone(), action.path()?.clone()))
        }
        Task::Traffic(_) | Task::Read(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::DecodeOptions;

    fn remove(path: &str) -> Action {
        let id = Uuid::new_v4().to_string();
        let body = format!(r#"{{"kind":"remove","dst_uuid":"d","dst_name":"web-01","path":"{path}"}}"#);
        let options = DecodeOptions { message_id: Some(&id), content_bytes_max: 1 };
        Action::decode(body.as_bytes(), options).expect("an action")
    }

    #[test]
    fn what_waits_is_next_until_it_has_ended_then_what_came_behind_it() {
        let (order, now) = (Order::default(), Instant::now());
        let (first, second, third, elsewhere) = (remove("/a"), remove("/a"), remove("/a"), remove("/b"));
        let second_long = Duration::from_secs(1);
        order.waits(&first, 1, second_long, now);
        assert_eq!(order.is_next(&second, now), Err(1));
        order.waits(&second, 1, second_long, now);
        assert_eq!((order.is_next(&third, now), order.is_next(&elsewhere, now)), (Err(1), Ok(())));
        assert_eq!(order.is_next(&first, now), Ok(()));
        order.waits(&first, 2, second_long, now);
        assert_eq!(order.is_next(&second, now), Err(2));
        order.ended(&first);
        assert_eq!((order.is_next(&second, now), order.is_next(&third, now)), (Ok(()), Err(1)));
        order.ended(&second);
        assert_eq!(order.is_next(&third, now), Ok(()));
    }

    #[test]
    fn what_does_not_come_back_is_not_waited_for_for_ever() {
        let (order, now) = (Order::default(), Instant::now());
        let (first, second) = (remove("/a"), remove("/a"));
        order.waits(&first, 1, Duration::from_secs(5), now);
        assert_eq!(order.is_next(&second, now + Duration::from_secs(14)), Err(1));
        assert_eq!(order.is_next(&second, now + Duration::from_secs(16)), Ok(()));
    }
}
