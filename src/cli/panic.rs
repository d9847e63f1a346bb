//! A panic ends the process.

use std::panic::PanicHookInfo;

use super::{EXIT_INTERNAL, log};

/// Ends the process with [`EXIT_INTERNAL`] on any panic, whichever thread or task it is in.
///
/// A task's panic alone would leave a worker that holds deliveries and never settles them. The broker
/// requeues them once the process is gone, and a supervisor starts it anew.
pub fn end_the_process() {
    std::panic::set_hook(Box::new(|panic| {
        log::write(message(panic).as_bytes());
        log::flush();
        std::process::exit(EXIT_INTERNAL.into());
    }));
}

fn message(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic");
    let place = panic.location().map_or_else(String::new, |at| format!(" ({at})"));
    format!(
        "error: internal error: {text:?}{place}\n  try: start it again, and report this: it is a fault of deckswain\n"
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Command, Stdio};

    const CHILD: &str = "DECKSWAIN_TEST_PANICS";
    const MESSAGE: &str = "a task that panics";

    /// Runs this very test as a process of its own, in which a task panics.
    fn ends_with(stderr: Stdio) -> std::process::Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cli::panic::tests::a_panic_in_a_task_ends_the_process", "--nocapture"]);
        command.env(CHILD, "1").stdout(Stdio::null()).stderr(stderr);
        command.spawn().unwrap().wait_with_output().unwrap()
    }

    #[test]
    fn a_panic_in_a_task_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            super::end_the_process();
            crate::cli::log::write_in_background();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.spawn(async { panic!("{MESSAGE}") });
            runtime.block_on(std::future::pending::<()>());
        }
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").unwrap();
        for stderr in [Stdio::piped(), closed.into(), full.into()] {
            let output = ends_with(stderr);
            assert_eq!(output.status.code(), Some(4), "{output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(
                said.is_empty() || said.starts_with(&format!("error: internal error: {MESSAGE:?} (src/")),
                "{said}"
            );
        }
        assert!(!ends_with(Stdio::piped()).stderr.is_empty());
    }
}
