//! The names of the layout with a queue for each host.

use std::time::Duration;

use super::{Argument, LOOKS_MAX, Layout, Queue, Topology, text};

/// How long the actions of a decky that is away are kept; then they are dead letters.
pub const PARKED_TIME_MAX: Duration = Duration::from_secs(10 * 60);

/// After how long without use a parking queue goes: well after the last action in it has expired.
const PARKING_IDLE_TIME_MAX: Duration = Duration::from_secs(3600);

impl Topology {
    /// The same for the worker of a host.
    #[must_use]
    pub fn on_host(self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self }
    }

    /// The host of this worker.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The exchange that the host queues are bound to.
    #[must_use]
    pub fn local(&self) -> String {
        format!("{}.local", self.prefix)
    }

    /// The queue of one host; its bindings come and go with the host's deckies.
    #[must_use]
    pub fn host_queue(&self, host: &str) -> Queue {
        let mut arguments = self.action_arguments();
        arguments.push(("x-single-active-consumer", Argument::Boolean(true)));
        Queue { name: self.host_queue_name(host), binding: None, arguments }
    }

    /// The name of the queue of one host.
    #[must_use]
    pub fn host_queue_name(&self, host: &str) -> String {
        format!("{}.host.{host}", self.prefix)
    }

    /// The host whose queue bears this name.
    #[must_use]
    pub fn host_of<'a>(&self, queue: &'a str) -> Option<&'a str> {
        queue.strip_prefix(&self.prefix)?.strip_prefix(".host.")
    }

    /// The exclusive queue that exists while a host has a worker.
    #[must_use]
    pub fn presence(&self, host: &str) -> String {
        format!("{}.alive", self.host_queue_name(host))
    }

    /// The queue that keeps the actions of a decky while it is away.
    #[must_use]
    pub fn parking_queue(&self, decky: &str) -> Queue {
        let mut arguments = self.action_arguments();
        let milliseconds =
            |time: Duration| Argument::Integer(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        arguments.push(("x-message-ttl", milliseconds(PARKED_TIME_MAX)));
        arguments.push(("x-expires", milliseconds(PARKING_IDLE_TIME_MAX)));
        Queue { name: format!("{}.parked.{decky}", self.prefix), binding: None, arguments }
    }

    /// The decky whose parking queue bears this name.
    #[must_use]
    pub fn parked_decky<'a>(&self, queue: &'a str) -> Option<&'a str> {
        queue.strip_prefix(&self.prefix)?.strip_prefix(".parked.")
    }

    /// The queue that version 0.1 had for each decky.
    #[must_use]
    pub fn former_decky_queue(&self, decky: &str) -> String {
        format!("{}.decky.{decky}", self.prefix)
    }

    /// The routing key of the actions for a decky.
    #[must_use]
    pub fn decky_key(decky: &str) -> String {
        format!("decky.{decky}")
    }

    /// The queue that holds the registry.
    #[must_use]
    pub fn registry_queue(&self) -> Option<Queue> {
        // Each change takes the message out, and a worker that is killed midway counts as a delivery.
        let limit = ("x-delivery-limit", Argument::Integer(LOOKS_MAX));
        let arguments = vec![("x-queue-type", text("quorum")), limit];
        let name = format!("{}.registry", self.prefix);
        (self.layout == Layout::Local).then_some(Queue { name, binding: None, arguments })
    }

    /// The exclusive queue whose owner may change the registry.
    #[must_use]
    pub fn registry_lock(&self) -> String {
        format!("{}.registry.lock", self.prefix)
    }
}
