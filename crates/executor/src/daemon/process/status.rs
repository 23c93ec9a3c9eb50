//! How a process ended, in the words of Go's process state (executor 4.4).

use std::os::unix::process::ExitStatusExt;

use sandyard_contract::rpc::process::process_event::EndEvent;

/// A status as `waitpid` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct ExitStatus(std::process::ExitStatus);

impl ExitStatus {
    pub(super) fn from_raw(status: i32) -> Self {
        Self(std::process::ExitStatus::from_raw(status))
    }

    /// The event that tells clients.
    pub(in super::super) fn end_event(self) -> EndEvent {
        let (exit_code, exited) = (self.0.code().unwrap_or(-1), self.0.code().is_some());
        let status = match self.0.signal() {
            Some(signal) => {
                let dumped = if self.0.core_dumped() { " (core dumped)" } else { "" };
                format!("signal: {}{dumped}", signal_words(signal))
            }
            None => format!("exit status {exit_code}"),
        };
        let error = (exit_code != 0).then(|| status.clone());
        EndEvent { exit_code, exited, status, error }
    }
}

fn signal_words(signal: i32) -> String {
    let words = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(status: i32) -> (i32, bool, String, Option<String>) {
        let end = ExitStatus::from_raw(status).end_event();
        (end.exit_code, end.exited, end.status, end.error)
    }

    #[test]
    fn the_table_of_outcomes() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(event(0), (0, true, "exit status 0".into(), None));
        assert_eq!(event(3 << 8), (3, true, "exit status 3".into(), text("exit status 3")));
        assert_eq!(event(9), (-1, false, "signal: killed".into(), text("signal: killed")));
        let dumped = "signal: segmentation fault (core dumped)";
        assert_eq!(event(11 | 0x80), (-1, false, dumped.into(), text(dumped)));
        assert_eq!(event(31).2, "signal: signal 31");
        for (signal, words) in [
            (1, "hangup"),
            (2, "interrupt"),
            (3, "quit"),
            (4, "illegal instruction"),
            (5, "trace/breakpoint trap"),
            (6, "aborted"),
            (7, "bus error"),
            (8, "floating point exception"),
            (10, "user defined signal 1"),
            (12, "user defined signal 2"),
            (13, "broken pipe"),
            (14, "alarm clock"),
            (15, "terminated"),
        ] {
            assert_eq!(event(signal).2, format!("signal: {words}"));
        }
    }
}
