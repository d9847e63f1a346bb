//! What the engine's client program says when it cannot do what it was asked to.

/// Whether the client program, rather than the command in the decky, says that it failed.
///
/// The words are those of docker 20 to 29, podman 4 and nerdctl. A hostile decky can
/// write them too: all it gains is that the action is tried again, within its attempts.
pub fn is_engine_trouble(stderr: &str) -> bool {
    let said = stderr.to_ascii_lowercase();
    let begins = ["error response from daemon:", "error: no such container", "error during connect"];
    let has = [
        "cannot connect to the docker daemon",
        "failed to connect to the docker api",
        "permission denied while trying to connect to the docker",
        "cannot connect to podman",
        "no such container",
        "container state improper",
        "no container with name or id",
    ];
    let first = said.lines().find(|line| !line.starts_with("time=")).unwrap_or_default();
    begins.iter().any(|words| first.starts_with(words))
        || ((first.starts_with("error")
            || first.starts_with("cannot connect")
            || first.starts_with("failed to connect")
            || first.starts_with("permission denied while"))
            && has.iter().any(|words| first.contains(words)))
}

/// What a person can do about what the client program said.
#[must_use]
pub fn engine_hint(said: &str) -> &'static str {
    let said = said.to_ascii_lowercase();
    let has = |words: &str| said.contains(words);
    if has("argv[0] not found") {
        "install the engine's client, or name another with --container-cli (docker, podman, nerdctl)"
    } else if has("permission denied") {
        "let this user use the engine's socket: `usermod -aG docker USER` and a new login, or a rootless engine"
    } else if has("cannot connect") || has("failed to connect") || has("error during connect") {
        "start the engine (`systemctl start docker`), or name its socket in DOCKER_HOST"
    } else if has("no such container") || has("no container with name") {
        "check the decky's name and --container-suffix; `deckswain check` lists the deckies that are there"
    } else if has("is not running") || has("state improper") || has("paused") {
        "start its container; what was dead-lettered meanwhile comes back with `deckswain dead-letters replay`"
    } else {
        "`deckswain check` looks at the engine and the deckies"
    }
}
