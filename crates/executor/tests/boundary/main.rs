//! The sandbox boundary, tested from outside: real containers, real mounts, a real S3 server.
//!
//! Needs Docker with /dev/fuse, `minio` on the PATH (or `.sandyard/bin/minio`), the template image
//! (`SANDYARD_TEST_IMAGE`, default `sandyard/base:latest`), the bundle (`SANDYARD_TEST_BUNDLE`, default
//! `.sandyard/bin/sandyard-bundle.tar`) and the static executor (`SANDYARD_TEST_EXECUTOR`, default where
//! cargo puts it). Every probe of the boundary's list is here; each says what it relies on.

mod busybox;
mod cgroup_limits;
mod control;
mod control_port;
mod docker;
mod drain;
mod durability;
mod memory;
mod mounts;
mod probes;
mod restart;
mod rpc;
mod s3;
mod sandbox;
mod sharing;
mod stop;
mod truncate;
