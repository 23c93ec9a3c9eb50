//! The daemon as clients meet it: the real program on a port of its own, raw HTTP, line by line of
//! contract/executor.md. Runs as root, since it becomes other users.

mod files;
mod filesystem;
mod processes;
mod protocol;
mod support;
mod watch;
