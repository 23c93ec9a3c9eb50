//! The server: REST API, sandbox proxy, S3 gateway and scheduler in one process, and the commands of
//! the program `sandyard`.

pub mod api;
pub mod commands;
pub mod config;
pub mod connection_budget;
pub mod control_socket;
pub mod data_dir;
pub mod domain;
mod event_log;
pub mod executor_client;
pub mod grants;
mod http_server;
pub mod installation;
pub mod proxy;
pub mod secrets;
pub mod tls;
