//! What user code may not do in any sandbox: system calls, socket families, files of `/proc`.
//!
//! Two parts build the same wall from these lists. In a container with a workspace `init` installs a filter
//! and masks a fresh `/proc` (design 6.1 (3), (4)); in one without, the engine does both from what the
//! runtime tells it at create, because nothing in that container has the right to.

/// Calls a macro with the system calls that are answered EPERM on every architecture, as libc names their
/// numbers: what SYS_ADMIN opens in
/// the engine's own profile, and what manages keys, modules and the machine.
#[macro_export]
macro_rules! refused_calls {
    ($then:ident) => {
        $then! {
            SYS_mount SYS_umount2 SYS_pivot_root SYS_move_mount SYS_open_tree SYS_mount_setattr
            SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_setns
            SYS_bpf SYS_perf_event_open SYS_fanotify_init SYS_lookup_dcookie
            SYS_name_to_handle_at SYS_open_by_handle_at SYS_quotactl SYS_quotactl_fd
            SYS_sethostname SYS_setdomainname SYS_syslog
            SYS_keyctl SYS_add_key SYS_request_key SYS_userfaultfd
            SYS_swapon SYS_swapoff SYS_reboot SYS_acct
            SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_kexec_file_load
        }
    };
}

/// Calls a macro with the system calls that are answered ENOSYS, so that libraries fall back: `clone3` hides its
/// flags from a filter behind a pointer, and io_uring performs calls that no filter sees.
#[macro_export]
macro_rules! absent_calls {
    ($then:ident) => {
        $then! { SYS_clone3 SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register }
    };
}

/// Flags of `clone` and `unshare` that make a namespace. [`NEW_TIME_NAMESPACE`] shares its bit with `clone`'s
/// exit signal and counts only for `unshare`.
pub const NEW_NAMESPACES: u32 = 0x7E02_0000;

/// `CLONE_NEWTIME`.
pub const NEW_TIME_NAMESPACE: u32 = 0x80;

/// The socket families that can be opened: UNIX, INET, INET6, NETLINK. Others either need rights that nobody
/// has, or belong to no network namespace: AF_VSOCK is a way between sandboxes past every rule.
pub const SOCKET_FAMILIES: [u32; 4] = [1, 2, 10, 16];

/// `F_SETPIPE_SZ` of `fcntl`: the memory of pipes is counted per user over all sandboxes, so no pipe grows
/// beyond its default size.
pub const SET_PIPE_SIZE: u32 = 1031;

/// Paths that everybody reads and nobody writes: most of what is there is the host's.
pub const READ_ONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Paths that are not for sandboxes: keys, addresses, loads and hardware of the host.
pub const HIDDEN_PATHS: [&str; 20] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
