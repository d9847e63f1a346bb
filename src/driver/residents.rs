//! Which deckies run on this engine, as they come and go.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use super::Driver;
use crate::action::DeckyName;
use crate::subprocess::{CommandLine, Dialogue, RunCommand};

/// How often the engine is asked whether it says anything or not: not every engine tells of everything.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// An engine can tell that a container died and still list it as running; so it is asked once more.
const SECOND_LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// After so long the client that tells of events is started anew.
const EVENTS_TIME_MAX: Duration = Duration::from_secs(3600);
/// How long after its end.
const EVENTS_PAUSE: Duration = Duration::from_secs(2);

/// The events that can change which containers run; the words are docker's, then podman's own.
const EVENTS: [&str; 9] = ["start", "die", "destroy", "rename", "pause", "unpause", "kill", "died", "remove"];

/// Hears that the engine said something, whatever it was: what there is now, the engine is asked.
struct Ear<'a>(&'a Notify);

impl Dialogue for Ear<'_> {
    fn next_turn(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn hear(&mut self, output: &[u8]) -> usize {
        if !output.is_empty() {
            self.0.notify_one();
        }
        0
    }
}

impl<R: RunCommand> Driver<R> {
    /// Keeps `residents` up to date with the deckies that run here and are `wanted`; returns when nobody looks any more.
    pub async fn follow_residents(
        &self,
        residents: watch::Sender<Option<BTreeSet<DeckyName>>>,
        wanted: impl Fn(&DeckyName) -> bool,
    ) {
        let changed = Notify::new();
        let events = async {
            loop {
                self.commands.converse(self.events_command(), Ear(&changed)).await;
                // Something may have happened while nobody listened.
                sleep(EVENTS_PAUSE).await;
                changed.notify_one();
            }
        };
        let looking = async {
            let (mut said, mut interval) = (None, LOOK_INTERVAL);
            loop {
                match self.list().await {
                    Ok(listed) => {
                        let running = listed.into_iter().filter(|decky| decky.is_running());
                        let names: BTreeSet<DeckyName> =
                            running.map(|decky| decky.name).filter(|name| wanted(name)).collect();
                        residents.send_if_modified(|known| {
                            let is_new = known.as_ref() != Some(&names);
                            *known = Some(names);
                            is_new
                        });
                        if said.take().is_some() {
                            info!("the engine answers again");
                        }
                    }
                    // What was there is kept: an engine that is away will have its deckies again.
                    Err(failure) => {
                        if said.as_ref() != Some(&failure.message) {
                            let error = failure.message.as_str();
                            warn!(error, "cannot list the running deckies");
                            said = Some(failure.message);
                        }
                    }
                }
                tokio::select! {
                    () = changed.notified() => interval = SECOND_LOOK_INTERVAL,
                    () = sleep(interval) => interval = LOOK_INTERVAL,
                }
            }
        };
        tokio::select! {
            () = events => {}
            () = looking => {}
            () = residents.closed() => {}
        }
    }

    fn events_command(&self) -> CommandLine {
        let mut argv = vec![self.options.container_cli.clone(), "events".to_owned()];
        for event in EVENTS {
            argv.extend(["--filter".to_owned(), format!("event={event}")]);
        }
        CommandLine { argv, stdin: None, stdout_bytes_max: 0, stderr_bytes_max: 0, time_max: EVENTS_TIME_MAX }
    }
}
