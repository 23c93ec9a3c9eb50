//! The system call filter of containers without a workspace, as the engine takes it.
//!
//! Nothing in such a container has the right to install a filter that lets set-user-id programs work, so the
//! engine installs it. It refuses what `init`'s own filter refuses in the other containers, and what the
//! engine's default profile refuses there besides.

use std::sync::LazyLock;

use sandyard_contract::boundary::{
    NEW_NAMESPACES, NEW_TIME_NAMESPACE, SET_PIPE_SIZE, SOCKET_FAMILIES,
};
use sandyard_contract::{absent_calls, refused_calls};
use serde_json::{Value, json};

/// Calls that every program may make with any arguments. What is not here is answered EPERM, or ENOSYS if it
/// is newer than all of these.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown
    chroot clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup
    dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
    execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat
    fchmodat2 fchown fchownat fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs
    fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list
    get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid
    getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl
    ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
    lgetxattr link linkat listen listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
    lsm_get_self_attr lsm_list_modules lstat madvise map_shadow_stack membarrier memfd_create memfd_secret
    mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr
    mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
    munlock munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_getfd pidfd_open
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2
    prlimit64 process_madvise process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64
    pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages
    removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg
    sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer
    setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr
    setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice stat statfs statx
    symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill
    truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev
";

/// The execution domains that programs ask for: the default, 32-bit, and each with the old layout of memory.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, u32::MAX];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

macro_rules! names {
    ($($name:ident)*) => { [$(stringify!($name).trim_start_matches("SYS_")),*] };
}

/// The profile in the engine's form. It names no architecture, so only the engine's own has calls: a program
/// that makes one of another's is ended by SIGSYS.
pub(crate) static PROFILE: LazyLock<String> = LazyLock::new(|| profile().to_string());

fn profile() -> Value {
    let mut rules = vec![
        json!({"names": ALLOWED.split_whitespace().collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW"}),
        errno(&absent_calls!(names), ENOSYS),
        errno(&refused_calls!(names), EPERM),
        allow_if("clone", &none_of(0, NEW_NAMESPACES)),
        allow_if("unshare", &none_of(0, NEW_NAMESPACES | NEW_TIME_NAMESPACE)),
    ];
    // Any command but one. The kernel reads 32 bits of it and a comparison looks at 64, so each bit is compared.
    rules.extend((0..u32::BITS).map(|bit| 1 << bit).map(|mask| {
        allow_if("fcntl", &argument(1, "SCMP_CMP_MASKED_EQ", mask, !SET_PIPE_SIZE & mask))
    }));
    for call in ["socket", "socketpair"] {
        let families = SOCKET_FAMILIES.iter();
        rules.extend(families.map(|f| allow_if(call, &argument(0, "SCMP_CMP_EQ", *f, 0))));
    }
    let personalities = PERSONALITIES.iter();
    rules
        .extend(personalities.map(|p| allow_if("personality", &argument(0, "SCMP_CMP_EQ", *p, 0))));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "syscalls": rules,
    })
}

fn errno(names: &[&str], errno: u32) -> Value {
    json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno})
}

fn allow_if(call: &str, condition: &Value) -> Value {
    json!({"names": [call], "action": "SCMP_ACT_ALLOW", "args": [condition]})
}

fn none_of(index: u32, flags: u32) -> Value {
    argument(index, "SCMP_CMP_MASKED_EQ", flags, 0)
}

/// A condition on one argument; `other` is what a masked value is compared with.
fn argument(index: u32, compare: &str, value: u32, other: u32) -> Value {
    json!({"index": index, "value": value, "valueTwo": other, "op": compare})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_is_both_allowed_and_refused() {
        let allowed: BTreeSet<&str> = ALLOWED.split_whitespace().collect();
        assert_eq!(allowed.len(), ALLOWED.split_whitespace().count(), "each is named once");
        for name in refused_calls!(names).into_iter().chain(absent_calls!(names)) {
            assert!(!allowed.contains(name), "{name}");
        }
        for name in ["clone", "unshare", "socket", "socketpair", "fcntl", "personality"] {
            assert!(!allowed.contains(name), "{name} depends on its arguments");
        }
        for name in ["read", "execve", "openat", "futex", "ptrace", "chroot", "epoll_wait", "rseq"]
        {
            assert!(allowed.contains(name), "{name}");
        }
    }
}
