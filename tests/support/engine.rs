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

/// A client program that performs changes on this host, keeps a record of them and misbehaves when a file
/// tells it to.
///
/// It runs each call by the very program that the worker sent for it, so that a plant below the engine's
/// folder is a real one; a read prints nothing. The files: `slow` holds the seconds that a call takes; while
/// `hang` is there no call ends, while `hang-in` holds a container none there; `poison` holds the path whose
/// call kills its worker; `engine-stopped` and `container-stopped` (which holds the container's name) fail as
/// docker does; `deckies` holds the lines that `ps` prints. The client of a host, `client-HOST`, lists the
/// deckies named in `deckies-HOST`, and has no others.
const CLIENT: &str = r#"#!/bin/sh
cd 'FOLDER' || exit 1
all=" $* "
host=${0##*/client}
case $1$host in
ps-*) while read -r d; do printf '%s-ssh\tUp 1 second\n' "$d"; done <"deckies$host"; exit 0 ;;
events-*)
    old=$(cat "deckies$host")
    while sleep 0.05; do new=$(cat "deckies$host"); [ "$new" = "$old" ] || echo changed; old=$new; done ;;
esac
there() {
    [ -n "$host" ] || return 0
    while read -r d; do case $all in *" $d-ssh "*) return 0 ;; esac; done <"deckies$host"
    echo 'Error response from daemon: No such container' >&2
    exit 1
}
for last; do :; done
there
if [ "$1" = ps ] && [ -e deckies ]; then cat deckies; exit 0; fi
case $1 in exec) ;; *) printf gone; exit 0 ;; esac
case $last in
sh) kind=read ;;
*python3*'read -r c'*) kind=either ;;
'read -r c'*) kind=shell ;;
*) printf gone; exit 0 ;;
esac
if [ -e engine-stopped ]; then
    echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?' >&2
    exit 1
fi
if [ -e container-stopped ] && read -r c <container-stopped; then
    case $all in *" $c "*) echo 'refused /m/' >>record; echo "Error response from daemon: Container $c is not running" >&2; exit 1 ;; esac
fi
# Whatever happens before and after a call on a path.
begin() {
    there
    p=$1
    printf 'begin %s\n' "$p" >>record
    if [ -e poison ] && read -r bad <poison && [ "$p" = "$bad" ]; then kill -9 "$PPID"; exit 1; fi
    if [ -e slow ] && read -r seconds <slow; then sleep "$seconds"; fi
    while [ -e hang ]; do sleep 0.05; done
    while [ -e hang-in ] && read -r held <hang-in; do case $all in *" $held "*) sleep 0.05 ;; *) break ;; esac; done
}
finish() { printf 'end %s\n' "$p" >>record; }
path() { eval "set -- $1"; printf '%s/%s' "$3" "$4"; }
# Runs the call $1 by the program that was sent; more content may follow on standard input.
call() { { printf '\n%s\n' "$1"; cat; } | (eval "$program") 3>&1 >/dev/null 2>&3; }
if [ $kind = read ]; then
    script=$(cat)
    eval "set -- ${script##*
h }"
    begin "$1"
    finish
    exit
fi
[ $kind = shell ] || read -r program
read -r program
program=$(printf %b "$program")
read -r code
if [ -z "$code" ]; then
    read -r line || exit 74
    printf .
    begin "$(path "$line")"
    call "$line" >&2
    status=$?
    finish
    exit $status
fi
i=0
while read -r line; do
    begin "$(path "$line")"
    said=$(call "$line" </dev/null)
    status=$?
    finish
    printf '%s\n%s %s %s\n' "$said" "$code" $i $status
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

    /// The directory below which the files of a decky lie.
    pub fn files(&self, decky: &str) -> PathBuf {
        self.0.path().join("files").join(decky)
    }

    /// The client of one of several hosts that share this engine's record, with the deckies that run there.
    pub fn client_of(&self, host: &str, deckies: &[&str]) -> PathBuf {
        self.set_deckies(host, deckies);
        let client = self.0.path().join(format!("client-{host}"));
        std::fs::copy(self.client(), &client).unwrap();
        client
    }

    pub fn set_deckies(&self, host: &str, deckies: &[&str]) {
        self.set(&format!("deckies-{host}"), &deckies.join("\n"));
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
