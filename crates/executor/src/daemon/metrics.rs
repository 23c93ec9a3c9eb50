//! `GET /metrics` (executor 6.2): what the container uses of what it may use, not of the host.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::{Response, StatusCode};
use serde::Serialize;

use super::body::DaemonBody;
use super::tasks::lock;
use super::{Daemon, log, plain, pool};

const MIB: u64 = 1 << 20;

#[derive(Serialize)]
struct Metrics {
    ts: u64,
    cpu_count: u64,
    cpu_used_pct: f64,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    mem_total_mib: u64,
    mem_used_mib: u64,
    disk_total: u64,
    disk_used: u64,
}

/// CPU time at the last look.
pub(super) struct CpuMeter {
    at: Instant,
    used: Duration,
}

impl CpuMeter {
    pub(super) fn start() -> Self {
        Self { at: Instant::now(), used: cpu_time().unwrap_or_default() }
    }

    /// Percent of `cpus` used since the last look, two decimals.
    fn look(&mut self, used: Duration, cpus: f64) -> f64 {
        let now = Instant::now();
        let passed = now.duration_since(self.at).as_secs_f64() * cpus;
        let share = used.saturating_sub(self.used).as_secs_f64() / passed.max(1e-9);
        (self.at, self.used) = (now, used);
        (share * 10_000.0).round() / 100.0
    }
}

/// Answers the request.
pub(super) async fn answer(daemon: &Arc<Daemon>) -> Response<DaemonBody> {
    let daemon = Arc::clone(daemon);
    match pool::run(move || measure(&daemon)).await {
        Ok(metrics) => plain::json(StatusCode::OK, &metrics),
        Err(error) => {
            log!("failed to measure: {error}");
            plain::status(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

fn measure(daemon: &Daemon) -> io::Result<Metrics> {
    let cpus = cpu_limit()?;
    let cpu_used_pct = lock(&daemon.cpu).look(cpu_time()?, cpus);
    let memory = Memory::read()?;
    let disk = rustix::fs::statvfs("/")?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    Ok(Metrics {
        ts: since_epoch.as_secs(),
        // Between 1 and the machine's count.
        cpu_count: cpus.ceil() as u64,
        cpu_used_pct,
        mem_total: memory.total,
        mem_used: memory.used,
        mem_cache: memory.cache,
        mem_total_mib: memory.total / MIB,
        mem_used_mib: memory.used / MIB,
        disk_total: disk.f_blocks * disk.f_frsize,
        disk_used: disk.f_blocks.saturating_sub(disk.f_bavail) * disk.f_frsize,
    })
}

/// A file of the container's control group: its path on version 2, then on version 1.
fn group_file(version2: &str, version1: &str) -> Option<String> {
    [version2, version1]
        .iter()
        .find_map(|name| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok())
}

/// How many CPUs may be used, in parts of one too.
fn cpu_limit() -> io::Result<f64> {
    // Not the library's count of usable threads, which rounds a quota down.
    let online = f64::from(rustix::thread::sched_getaffinity(None)?.count());
    let limit = match group_file("cpu.max", "cpu/cpu.cfs_quota_us") {
        Some(text) if text.contains(' ') => quota(text.split_whitespace()),
        Some(quota_us) => {
            let period = fs::read_to_string("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?;
            quota([quota_us.trim(), period.trim()].into_iter())
        }
        None => None,
    };
    Ok(limit.map_or(online, |limit| limit.min(online)))
}

/// Quota and period, where "max" and -1 mean none.
fn quota<'a>(mut numbers: impl Iterator<Item = &'a str>) -> Option<f64> {
    let quota: f64 = numbers.next()?.parse().ok().filter(|quota| *quota > 0.0)?;
    let period: f64 = numbers.next()?.parse().ok().filter(|period| *period > 0.0)?;
    Some(quota / period)
}

/// CPU time of the container since it began.
fn cpu_time() -> io::Result<Duration> {
    if let Ok(text) = fs::read_to_string("/sys/fs/cgroup/cpu.stat")
        && let Some(micros) = member(&text, "usage_usec")
    {
        return Ok(Duration::from_micros(micros));
    }
    let nanos = fs::read_to_string("/sys/fs/cgroup/cpuacct/cpuacct.usage")?;
    nanos.trim().parse().map(Duration::from_nanos).map_err(io::Error::other)
}

struct Memory {
    total: u64,
    used: u64,
    cache: u64,
}

impl Memory {
    fn read() -> io::Result<Self> {
        let machine = fs::read_to_string("/proc/meminfo")?;
        let machine = |name| member(&machine, name).map_or(0, |kib| kib * 1024);
        let physical = machine("MemTotal:");
        let limit = group_file("memory.max", "memory/memory.limit_in_bytes");
        let total = limit
            .and_then(|text| text.trim().parse().ok())
            .map_or(physical, |l: u64| l.min(physical));
        let usage = group_file("memory.current", "memory/memory.usage_in_bytes")
            .and_then(|text| text.trim().parse::<u64>().ok());
        let stat = group_file("memory.stat", "memory/memory.stat");
        let (Some(usage), Some(stat)) = (usage, stat) else {
            // No group of our own: the machine is the container.
            let cache = machine("Cached:") + machine("Buffers:") + machine("SReclaimable:");
            return Ok(Self {
                total,
                used: physical.saturating_sub(machine("MemFree:") + cache),
                cache,
            });
        };
        // Version 1 has totals over child groups beside the group's own.
        let part = |name: &str| {
            member(&stat, &format!("total_{name}")).or_else(|| member(&stat, name)).unwrap_or(0)
        };
        let cache = part("inactive_file") + part("active_file");
        Ok(Self { total, used: usage.saturating_sub(cache), cache })
    }
}

/// A number from lines of `name number`.
fn member(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next()? == name { words.next()?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_of_both_versions() {
        assert_eq!(quota("150000 100000".split(' ')), Some(1.5));
        assert_eq!(quota("max 100000".split(' ')), None);
        assert_eq!(quota("-1 100000".split(' ')), None);
    }

    #[test]
    fn members_are_found_by_their_whole_name() {
        let text = "total_cache 1\ncache 2\nMemTotal:  3 kB\n";
        assert_eq!(member(text, "cache"), Some(2));
        assert_eq!(member(text, "MemTotal:"), Some(3));
        assert_eq!(member(text, "mem"), None);
    }

    #[test]
    fn use_is_a_share_of_all_cpus() {
        let at = Instant::now() - Duration::from_secs(10);
        let mut meter = CpuMeter { at, used: Duration::from_secs(1) };
        let share = meter.look(Duration::from_secs(6), 2.0);
        assert!((24.9..=25.0).contains(&share), "{share}");
    }
}
