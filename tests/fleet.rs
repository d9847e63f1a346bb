//! Many workers on one prefix, all planting into the same few directories.

mod support;

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{OwnDecky, Peer, WorkerProcess, alpha, beta, file, fresh_directory, inside, with};

const WORKERS: usize = 20;
const DIRECTORIES: usize = 5;
/// How many plants; `make soak` asks for more than the everyday suite.
const PLANTS: &str = "DECKSWAIN_FLEET_PLANTS";
const PLANTS_DEFAULT: usize = 120;
/// The largest content: the worker's default limit.
const BYTES_MAX: f64 = 4.0 * 1024.0 * 1024.0;

/// The expected state of one file: `mode owner:group mtime` as `stat` prints them, and its digest.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    attributes: String,
    sha256: String,
}

fn plants() -> usize {
    std::env::var(PLANTS).map_or(PLANTS_DEFAULT, |text| text.parse().expect("a number of plants"))
}

/// Content of `n`'s own, its length spread evenly over the magnitudes from one byte to the limit.
fn content(n: usize, count: usize) -> Vec<u8> {
    let share = n as f64 / (count - 1) as f64;
    let length = BYTES_MAX.powf(share).round() as usize;
    let tile = Sha256::digest(n.to_le_bytes());
    tile.iter().copied().cycle().take(length).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files below a directory of the decky as they are.
fn found(decky: &str, directory: &str) -> HashMap<String, Expected> {
    let text = |command: &str| {
        let script = format!("cd {directory} && find . -type f -exec {command} {{}} +");
        String::from_utf8(inside(decky, &["sh", "-c", &script])).expect("text")
    };
    let mut attributes: HashMap<String, String> = text("stat -c '%n %a %U:%G %Y'")
        .lines()
        .map(|line| line.split_once(' ').expect("a name and attributes"))
        .map(|(name, attributes)| (name.to_owned(), attributes.to_owned()))
        .collect();
    let digests = text("sha256sum");
    let digests = digests.lines().map(|line| line.split_once("  ").expect("a digest and a name"));
    digests
        .map(|(sha256, name)| {
            let attributes = attributes.remove(name).expect("the same files");
            (name.to_owned(), Expected { attributes, sha256: sha256.to_owned() })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_workers_plant_into_shared_directories_and_every_file_holds_its_own_bytes() {
    let (count, third) = (plants(), OwnDecky::start());
    let deckies = [alpha(), beta(), third.name.clone()];
    let roots = deckies.each_ref().map(|decky| fresh_directory(decky));
    let peer = Peer::connect().await;
    let workers: Vec<WorkerProcess> = (0..WORKERS)
        .map(|_| WorkerProcess::start(&peer.prefix, &["--concurrency", "3", "--timeout", "30s"]))
        .collect();
    let mut results = peer.bind_results("#").await;
    let mut expected: Vec<HashMap<String, Expected>> = deckies.iter().map(|_| HashMap::new()).collect();
    let mut open = HashSet::new();
    for n in 0..count {
        // Small and large contents meet in every directory of every decky.
        let (at, directory) = (n % deckies.len(), n / deckies.len() % DIRECTORIES);
        let (bytes, name) = (content(n, count), format!("./d{directory}/f{n:04}"));
        let (mode, mtime) = (0o600 + n % 0o100, 1_700_000_000 + n);
        let time = chrono::DateTime::from_timestamp(mtime as i64, 0).expect("a time").to_rfc3339();
        let path = format!("{}/{}", roots[at], &name[2..]);
        let fields = json!({"content_bytes": STANDARD.encode(&bytes), "owner": "alice:alice",
            "mode": format!("{mode:04o}"), "mtime": time});
        let attributes = format!("{mode:o} alice:alice {mtime}");
        expected[at].insert(name, Expected { attributes, sha256: hex(&Sha256::digest(&bytes)) });
        open.insert(peer.submit(with(file(&deckies[at], &path), fields)).await);
    }
    while !open.is_empty() {
        let result: Value = results.next_json().await;
        assert_eq!(result["success"], true, "{result}");
        open.remove(result["action_id"].as_str().expect("an id"));
    }
    for worker in workers {
        assert_eq!(worker.stop(), 0);
    }
    for ((decky, root), expected) in deckies.iter().zip(&roots).zip(&expected) {
        assert_eq!(&found(decky, root), expected, "{decky}");
        let all = String::from_utf8(inside(decky, &["find", root, "-mindepth", "1", "-printf", "%y"]));
        let directories = all.expect("text").matches('d').count();
        assert_eq!(directories, DIRECTORIES, "no staging directory is left in {decky}");
    }
}
