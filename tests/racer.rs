//! A user of a decky who races every step of a plant in a directory of theirs gains nothing by it.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use deckswain::action::{Action, DecodeOptions};
use deckswain::driver::{Attempt, Driver, DriverOptions, LEFTOVER_AGE};
use deckswain::subprocess::HostCommands;
use serde_json::{Value, json};
use support::batch::All;
use support::means::{Means, decky_with};
use support::{docker, file, inside, wait_until, with};
use uuid::Uuid;

/// How many plants each kind of decky is given alone, and as many again in batches.
const PLANTS: &str = "DECKSWAIN_RACER_PLANTS";
const PLANTS_DEFAULT: usize = 12;
/// How many plants share an exec.
const BATCH: usize = 20;

/// The racer, compiled so that it runs in any decky.
fn compiled(folder: &Path) -> String {
    let racer = folder.join("racer");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/racer.c");
    let made = Command::new("cc").args(["-O2", "-static", "-o"]).args([&racer, Path::new(source)]).status();
    assert!(made.expect("a C compiler").success());
    racer.to_str().expect("text").to_owned()
}

/// All that is not the user's: owner, mode, times, links and content.
fn guarded(decky: &str) -> String {
    let list = "find /etc /root /srv /var /usr/local /home -path /home/alice -prune -o \
                -printf '%p %y %m %U %G %s %T@ %C@ %l\\n'; find /etc /root /srv -type f -exec sha256sum {} +";
    String::from_utf8(inside(decky, &["sh", "-c", list])).expect("text")
}

fn plant(decky: &str, n: usize) -> Action {
    let path = match n % 3 {
        0 => format!("/home/alice/n/deep{n}/f"),
        1 => format!("/home/alice/n/f{n}"),
        _ => "/home/alice/n/same".to_owned(),
    };
    let look = json!({"content": "x".repeat(n * 97 % 5000), "owner": "alice:alice", "mode": "0755", "mtime": "2026-04-17T18:05:00+02:00"});
    let action: Value = with(file(decky, &path), look);
    let id = Uuid::new_v4().to_string();
    let options = DecodeOptions { message_id: Some(&id), content_bytes_max: 1 << 20 };
    Action::decode(action.to_string().as_bytes(), options).expect("an action")
}

async fn race(means: Means, racer: String, plants: usize) {
    let decky = decky_with(means);
    let options = DriverOptions {
        container_cli: "docker".to_owned(),
        container_suffix: decky.suffix.clone(),
        time_max: Duration::from_secs(20),
        fleet: "a-test".to_owned(),
        follow_links: true,
        leftover_age: LEFTOVER_AGE,
    };
    let driver = Driver::new(options, HostCommands);
    inside(
        &decky.name,
        &[
            "bash",
            "-c",
            "mkdir -m 755 /srv/guard /srv/guard/empty && echo kept >/srv/guard/file && \
                  install -d -o alice -g alice /home/alice/n",
        ],
    );
    docker(&["cp", &racer, &format!("{}:/usr/local/bin/racer", decky.container())]);
    let before = guarded(&decky.name);
    let container = decky.container();
    let race = [
        "exec",
        "-d",
        "-u",
        "alice",
        &container,
        "racer",
        "/home/alice/n",
        "/srv/guard",
        "/home/alice/count",
    ];
    assert!(docker(&race).status.success());
    let runs = || decky.processes().iter().any(|process| process.contains("racer"));
    wait_until("the racer runs", runs);
    for n in 0..plants {
        driver
            .perform(&plant(&decky.name, n), Attempt { now: Utc::now(), is_repeat: false })
            .await
            .expect("run");
    }
    for batch in 0..plants.div_ceil(BATCH) {
        let mut done = Vec::new();
        let actions = (0..BATCH).map(|n| Arc::new(plant(&decky.name, batch * BATCH + n)));
        let waiting = actions.enumerate().collect();
        driver.perform_batch(All { waiting, done: &mut done, done_max: usize::MAX }).await.expect("run");
        assert_eq!(done.len(), BATCH, "each has an outcome");
    }
    assert!(runs(), "the racer went on to the end");
    assert_eq!(guarded(&decky.name), before, "{means:?}");
    let swaps = String::from_utf8(inside(&decky.name, &["cat", "/home/alice/count"])).expect("text");
    let swaps: usize = swaps.trim().parse().expect("a number");
    eprintln!("{means:?}: {swaps} swaps in {} plants", 2 * plants);
    assert!(swaps >= plants, "{means:?}: {swaps} swaps");
    // Once nobody interferes the same plants succeed, and leave nothing beside them.
    let end = "for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in racer) kill -9 ${p#/proc/} ;; esac; done; \
               rm -rf /home/alice/n; install -d -o alice -g alice /home/alice/n";
    inside(&decky.name, &["bash", "-c", end]);
    for n in 0..3 {
        let attempt = Attempt { now: Utc::now(), is_repeat: false };
        let outcome = driver.perform(&plant(&decky.name, n), attempt).await.expect("run");
        assert_eq!(outcome.failure, None, "{means:?}: {}", outcome.payload);
    }
    let left = String::from_utf8(inside(&decky.name, &["find", "/home/alice/n", "-printf", "%P %u %m\n"]));
    let mut left: Vec<String> = left.expect("text").lines().map(ToOwned::to_owned).collect();
    left.sort();
    assert_eq!(
        left,
        [" alice 755", "deep0 alice 755", "deep0/f alice 755", "f1 alice 755", "same alice 755"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_races_every_step_of_a_plant_changes_nothing_but_their_own_files() {
    let plants = std::env::var(PLANTS).map_or(PLANTS_DEFAULT, |text| text.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let racer = compiled(folder.path());
    let all = [Means::Python, Means::Dash, Means::Bash, Means::Busybox];
    let races = all.map(|means| tokio::spawn(race(means, racer.clone(), plants)));
    for race in races {
        race.await.expect("nothing but the user's own files changed");
    }
}
