//! The daemon as clients meet it: the real program on a port of its own, raw HTTP, line by line of
//! contract/executor.md. Runs as root, since it becomes other users.

mod bad_input;
mod claim;
mod composing;
mod compression;
mod files;
mod files_edges;
mod filesystem;
mod inputs;
mod leaving;
mod processes;
mod protocol;
mod rights;
mod rights_of_watchers;
mod strangers;
mod subscribers;
mod support;
mod terminals;
mod watch;
mod watch_streams;
