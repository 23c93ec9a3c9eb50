//! The real router and proxy over TCP, on an engine in memory.

mod connections;
mod harness;
mod proxy;
mod proxy_access;
mod proxy_grpc;
mod proxy_streams;
mod proxy_wake;
mod rest;
mod rest_life_cycle;
mod rest_lists;
mod rest_refusals;
mod tls;
