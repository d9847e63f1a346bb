//! What waits for an action that comes again: nothing later may overtake it on its path, or, where all of
//! a decky's actions were put off, on its decky.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::action::{Action, DeckyName, DeckyPath, Task};

/// How many paths and deckies are kept in order; beyond that a retry can be overtaken.
const PLACES_MAX: usize = 10_000;
/// How many actions are kept in order for each.
const WAITING_MAX: usize = 1000;
/// How long after it is due a retry is waited for: another worker may have taken it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What waits for its next attempt, by place, in the order of its first delivery.
#[derive(Debug, Default)]
pub struct Order(Mutex<HashMap<Place, VecDeque<Waiting>>>);

/// Where actions keep their order: a path that they change, or all of a decky.
type Place = (DeckyName, Option<DeckyPath>);

#[derive(Debug, Clone, Copy)]
struct Waiting {
    id: Uuid,
    /// The attempt after which it waits, which tells the delay queue.
    attempt: u32,
    until: Instant,
}

impl Order {
    /// Whether the action is next on its path; `Err` is the attempt after which the one before it waits.
    pub fn is_next_on_path(&self, action: &Action, now: Instant) -> Result<(), u32> {
        match path_of(action).and_then(|path| self.before(&path, action, now)) {
            Some(first) => Err(first.attempt),
            None => Ok(()),
        }
    }

    /// Whether nothing of its decky that was put off has to come before the action.
    pub fn is_next_of_decky(&self, action: &Action, now: Instant) -> bool {
        self.before(&decky_of(action), action, now).is_none()
    }

    /// What waits there first, if that is another action.
    fn before(&self, place: &Place, action: &Action, now: Instant) -> Option<Waiting> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = places.get_mut(place)?;
        while queue.front().is_some_and(|first| first.until < now && first.id != action.id) {
            queue.pop_front();
        }
        let first = queue.front().copied();
        if first.is_none() {
            places.remove(place);
        }
        first.filter(|first| first.id != action.id)
    }

    /// Notes that the action comes again when `delay` has passed; one that is new waits behind the others
    /// on its path, and holds up no other path.
    pub fn waits(&self, action: &Action, attempt: u32, delay: Duration, now: Instant) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        remove(&mut places, &decky_of(action), action);
        if let Some(path) = path_of(action) {
            put(&mut places, path, Waiting { id: action.id, attempt, until: now + delay + PATIENCE }, now);
        }
    }

    /// Notes the same of an action that no later one of its decky may overtake.
    pub fn waits_for_decky(&self, action: &Action, delay: Duration, now: Instant) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = Waiting { id: action.id, attempt: 1, until: now + delay + PATIENCE };
        put(&mut places, decky_of(action), waiting, now);
    }

    /// Notes that the action has come to its end.
    pub fn ended(&self, action: &Action) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !places.is_empty() {
            remove(&mut places, &decky_of(action), action);
            if let Some(path) = path_of(action) {
                remove(&mut places, &path, action);
            }
        }
    }
}

fn remove(places: &mut HashMap<Place, VecDeque<Waiting>>, place: &Place, action: &Action) {
    let Some(queue) = places.get_mut(place) else { return };
    queue.retain(|waiting| waiting.id != action.id);
    if queue.is_empty() {
        places.remove(place);
    }
}

fn put(places: &mut HashMap<Place, VecDeque<Waiting>>, place: Place, waiting: Waiting, now: Instant) {
    if places.len() >= PLACES_MAX && !places.contains_key(&place) {
        places.retain(|_, queue| queue.iter().any(|waiting| waiting.until >= now));
        if places.len() >= PLACES_MAX {
            return;
        }
    }
    let queue = places.entry(place).or_default();
    if let Some(known) = queue.iter_mut().find(|known| known.id == waiting.id) {
        *known = waiting;
    } else if queue.len() < WAITING_MAX {
        queue.push_back(waiting);
    }
}

fn decky_of(action: &Action) -> Place {
    (action.executing_decky().clone(), None)
}

/// The path that an action changes.
fn path_of(action: &Action) -> Option<Place> {
    match action.task {
        Task::File(_) | Task::Edit(_) | Task::Remove(_) => {
            Some((action.dst_name.clone(), Some(action.path()?.clone())))
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
        assert_eq!(order.is_next_on_path(&second, now), Err(1));
        order.waits(&second, 1, second_long, now);
        assert_eq!(
            (order.is_next_on_path(&third, now), order.is_next_on_path(&elsewhere, now)),
            (Err(1), Ok(()))
        );
        assert_eq!(order.is_next_on_path(&first, now), Ok(()));
        order.waits(&first, 2, second_long, now);
        assert_eq!(order.is_next_on_path(&second, now), Err(2));
        order.ended(&first);
        assert_eq!(
            (order.is_next_on_path(&second, now), order.is_next_on_path(&third, now)),
            (Ok(()), Err(1))
        );
        order.ended(&second);
        assert_eq!(order.is_next_on_path(&third, now), Ok(()));
    }

    #[test]
    fn where_a_decky_was_put_off_nothing_later_of_it_is_next_but_a_retry_holds_up_only_its_path() {
        let (order, now, delay) = (Order::default(), Instant::now(), Duration::from_secs(1));
        let (first, second, third) = (remove("/a"), remove("/b"), remove("/c"));
        let next = |actions: [&Action; 3]| actions.map(|action| order.is_next_of_decky(action, now));
        order.waits_for_decky(&first, delay, now);
        order.waits_for_decky(&second, delay, now);
        assert_eq!(next([&first, &second, &third]), [true, false, false]);
        order.waits_for_decky(&third, delay, now);
        order.waits(&first, 2, Duration::from_secs(600), now);
        assert_eq!(next([&first, &second, &third]), [false, true, false]);
        order.ended(&second);
        assert_eq!(next([&first, &second, &third]), [false, false, true]);
        order.ended(&third);
        assert_eq!(next([&first, &second, &third]), [true; 3]);
    }

    #[test]
    fn what_does_not_come_back_is_not_waited_for_for_ever() {
        let (order, now) = (Order::default(), Instant::now());
        let (first, second) = (remove("/a"), remove("/a"));
        order.waits(&first, 1, Duration::from_secs(5), now);
        assert_eq!(order.is_next_on_path(&second, now + Duration::from_secs(14)), Err(1));
        assert_eq!(order.is_next_on_path(&second, now + Duration::from_secs(16)), Ok(()));
    }
}
