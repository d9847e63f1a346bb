//! A scripted engine in place of `docker`: it keeps a record of every run and misbehaves when told to.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;

/// Looks until it is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client program that keeps a record of its calls and misbehaves when a file tells it to.
///
/// It reads what a decky would: the programs, the code of a batch or an empty line, and a line for each call. The
/// files: `slow` holds seconds a call takes; while `hang` is there no call ends, while `hang-in` holds a container none there; `poison` holds
/// the path whose call kills its worker; `engine-stopped` and `container-stopped` (which holds the
/// container's name) fail as docker does; `deckies` holds the lines that `ps` prints.
const CLIENT: &str = r#"#!/bin/sh
cd 'FOLDER' || exit 1
all=" $* "
if [ "$1" = ps ] && [ -e deckies ]; then cat deckies; exit 0; fi
case $* in *'command -v python3'*) programs=2 ;; *'sh -c read -r c;'*) programs=1 ;; *) printf gone; exit 0 ;; esac
if [ -e engine-stopped ]; then
    echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?' >&2
    exit 1
fi
if [ -e container-stopped ] && read -r c <container-stopped; then
    case " $* " in *" $c "*) echo 'refused /m/' >>record; echo "Error response from daemon: Container $c is not running" >&2; exit 1 ;; esac
fi
act() {
printf 'begin %s\n' "$p" >>record
if [ -e poison ] && read -r bad <poison && [ "$p" = "$bad" ]; then kill -9 "$PPID"; exit 1; fi
if [ -e slow ] && read -r seconds <slow; then sleep "$seconds"; fi
while [ -e hang ]; do sleep 0.05; done
while [ -e hang-in ] && read -r held <hang-in; do case $all in *" $held "*) sleep 0.05 ;; *) break ;; esac; done
printf 'end %s\n' "$p" >>record
}
while [ $programs -gt 0 ]; do read -r c; programs=$((programs - 1)); done
read -r c
i=0
while read -r l; do
    eval "set -- $l"
    p=$3/$4
    act
    [ -n "$c" ] || { echo; exit; }
    printf '\n%s %s 0\n' "$c" $i
    i=$((i + 1))
done
"#;

/// The scripted engine.
pub struct Engine(TempDir);

impl Engine {
    pub fn new() -> Self {
        let engine = Self(tempfile::tempdir().unwrap());
        let folder = engine.0.path().to_str().unwrap();
        std::fs::write(engine.client(), CLIENT.replace("FOLDER", folder)).unwrap();
        let chmod = std::process::Command::new("chmod").arg("+x").arg(engine.client()).status();
        assert!(chmod.unwrap().success());
        engine
    }

    pub fn client(&self) -> PathBuf {
        self.0.path().join("client")
    }

    /// Puts a control file in place as a whole.
    pub fn set(&self, name: &str, value: &str) {
        let draft = self.0.path().join("draft");
        std::fs::write(&draft, format!("{value}\n")).unwrap();
        std::fs::rename(draft, self.0.path().join(name)).unwrap();
    }

    pub fn clear(&self, name: &str) {
        let _ = std::fs::remove_file(self.0.path().join(name));
    }

    /// The program goes missing, or comes back.
    pub fn missing(&self, missing: bool) {
        let (here, away) = (self.client(), self.0.path().join("away"));
        let (from, to) = if missing { (here, away) } else { (away, here) };
        std::fs::rename(from, to).unwrap();
    }

    /// How often the call for each path did `what`: `begin` or `end`.
    pub fn calls(&self, what: &str) -> HashMap<String, usize> {
        let record = std::fs::read_to_string(self.0.path().join("record")).unwrap_or_default();
        let mut calls = HashMap::new();
        for path in record.lines().filter_map(|line| line.strip_prefix(what)) {
            *calls.entry(path.trim().to_owned()).or_default() += 1;
        }
        calls
    }

    /// The paths of all calls in the order in which they began.
    pub fn begun(&self) -> Vec<String> {
        let record = std::fs::read_to_string(self.0.path().join("record")).unwrap_or_default();
        record.lines().filter_map(|line| line.strip_prefix("begin ")).map(ToOwned::to_owned).collect()
    }

    /// Waits until so many different actions have begun or ended.
    pub async fn wait_for(&self, what: &str, actions: usize) {
        until(&format!("{actions} {what}"), || self.calls(what).len() >= actions).await;
    }

    /// The client's processes that still run.
    pub fn processes(&self) -> Vec<String> {
        let client = self.client();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.starts_with("/bin/sh") && line.contains(client.to_str().unwrap())).collect()
    }
}
