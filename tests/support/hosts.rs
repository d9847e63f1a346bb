//! Hosts with a container engine of their own, as clients of one engine that each show a part of it.

use std::process::Command;

/// A client of an engine that has only the containers whose names hold `mine`, and is away while a file is there.
///
/// While it is away a list fails later than an exec, as on a busy host: failures come in before the circuit opens.
pub struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    pub fn with(mine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Self { folder };
        let script = format!(
            r#"#!/bin/sh
if [ -e {away} ]; then
    [ "$1" != ps ] || sleep 0.5
    echo 'Cannot connect to the Docker daemon at unix:///run/docker.sock. Is the docker daemon running?' >&2
    exit 1
fi
case $1 in
ps) docker "$@" | grep -e '{mine}' || true; exit ;;
events) exec docker "$@" ;;
esac
for word; do
    case $word in
    *{mine}*) exec docker "$@" ;;
    own-*) echo "Error response from daemon: No such container: $word" >&2; exit 1 ;;
    esac
done
exec docker "$@"
"#,
            away = host.file("away"),
        );
        std::fs::write(host.client(), script).unwrap();
        assert!(Command::new("chmod").args(["+x", &host.client()]).status().unwrap().success());
        host
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn client(&self) -> String {
        self.file("client")
    }

    pub fn goes_away(&self) {
        std::fs::write(self.file("away"), "").unwrap();
    }

    pub fn is_back(&self) {
        std::fs::remove_file(self.file("away")).unwrap();
    }
}
