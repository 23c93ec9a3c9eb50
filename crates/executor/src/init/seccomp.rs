//! The system call filter of the user's side (design 6.1 (4)).
//!
//! Made by hand: it must answer ENOSYS to foreign architectures, where ready-made builders kill, and it
//! is installed with SYS_ADMIN instead of no_new_privs, so that sudo goes on working.

use std::io;
use std::mem::offset_of;

use libc::{c_long, seccomp_data, sock_filter};

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;

/// First number that this table was not written for; what is newer does not exist for user code. The
/// x32 calls have bit 30 set and so lie above it.
const FIRST_UNKNOWN: u32 = 467;

/// `quotactl_fd`, which libc does not name.
const SYS_QUOTACTL_FD: c_long = 443;

/// Answered with EPERM: what SYS_ADMIN opens in the engine's own profile, and what manages keys,
/// modules and the machine.
const REFUSED: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    SYS_QUOTACTL_FD,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// Answered with ENOSYS, so that libraries fall back: clone3 hides its flags from a filter behind a
/// pointer, and io_uring performs calls that no filter sees.
const ABSENT: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Flags of clone and unshare that make a namespace. `NEWTIME` shares its bit with clone's exit
/// signal and counts only for unshare.
const NAMESPACES: u32 = 0x7E02_0000;
const NEWTIME: u32 = 0x80;

const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const PRETEND_ABSENT: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Installs the filter for this process and all that it starts. Needs SYS_ADMIN.
pub(super) fn install() -> io::Result<()> {
    let mut instructions = filter();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: `program` and the instructions it points to live until the call returns; the kernel
    // copies them.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER),
            0,
            &raw const program,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn filter() -> Vec<sock_filter> {
    let mut f = Vec::with_capacity(2 * (REFUSED.len() + ABSENT.len()) + 20);
    f.push(load(offset_of!(seccomp_data, arch)));
    f.push(jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0));
    f.push(answer(PRETEND_ABSENT));
    f.push(load(offset_of!(seccomp_data, nr)));
    f.push(jump(libc::BPF_JGE, FIRST_UNKNOWN, 0, 1));
    f.push(answer(PRETEND_ABSENT));
    for (calls, result) in [(REFUSED, REFUSE), (ABSENT, PRETEND_ABSENT)] {
        for call in calls {
            f.push(jump(libc::BPF_JEQ, number(*call), 0, 1));
            f.push(answer(result));
        }
    }
    for (call, flags) in [(libc::SYS_clone, NAMESPACES), (libc::SYS_unshare, NAMESPACES | NEWTIME)]
    {
        f.push(jump(libc::BPF_JEQ, number(call), 0, 4));
        // The low half of the first argument: both architectures are little-endian.
        f.push(load(offset_of!(seccomp_data, args)));
        f.push(jump(libc::BPF_JSET, flags, 0, 1));
        f.push(answer(REFUSE));
        f.push(answer(libc::SECCOMP_RET_ALLOW));
    }
    f.push(answer(libc::SECCOMP_RET_ALLOW));
    f
}

/// System call numbers are small and positive.
const fn number(call: c_long) -> u32 {
    call as u32
}

const fn load(offset: usize) -> sock_filter {
    let code = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    sock_filter { code, jt: 0, jf: 0, k: offset as u32 }
}

const fn jump(test: u32, value: u32, if_true: u8, if_false: u8) -> sock_filter {
    let code = (libc::BPF_JMP | test | libc::BPF_K) as u16;
    sock_filter { code, jt: if_true, jf: if_false, k: value }
}

const fn answer(result: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: result }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter on one call, as the kernel would.
    fn judge(arch: u32, nr: u32, first_argument: u32) -> u32 {
        let program = filter();
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            let yes = match u32::from(step.code) & 0xF0 {
                test if test == libc::BPF_JEQ => value == step.k,
                test if test == libc::BPF_JGE => value >= step.k,
                _ => value & step.k != 0,
            };
            match u32::from(step.code) & 0x07 {
                class if class == libc::BPF_RET => return step.k,
                class if class == libc::BPF_JMP => {
                    at += usize::from(if yes { step.jt } else { step.jf });
                }
                _ => {
                    value = match step.k as usize {
                        k if k == offset_of!(seccomp_data, nr) => nr,
                        k if k == offset_of!(seccomp_data, arch) => arch,
                        k if k == offset_of!(seccomp_data, args) => first_argument,
                        k => panic!("load from {k}"),
                    };
                }
            }
        }
    }

    fn native(call: c_long, first_argument: u32) -> u32 {
        judge(AUDIT_ARCH, number(call), first_argument)
    }

    #[test]
    fn ordinary_calls_pass() {
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_chroot] {
            assert_eq!(native(call, 0), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn every_listed_call_is_refused_or_absent() {
        for call in REFUSED {
            assert_eq!(native(*call, 0), REFUSE, "{call}");
        }
        for call in ABSENT {
            assert_eq!(native(*call, 0), PRETEND_ABSENT, "{call}");
        }
    }

    #[test]
    fn foreign_architectures_and_newer_calls_are_absent() {
        assert_eq!(judge(0x4000_0003, 21, 0), PRETEND_ABSENT);
        assert_eq!(judge(AUDIT_ARCH, FIRST_UNKNOWN, 0), PRETEND_ABSENT);
        assert_eq!(judge(AUDIT_ARCH, 0x4000_0000, 0), PRETEND_ABSENT);
    }

    #[test]
    fn clone_and_unshare_make_threads_but_no_namespaces() {
        let thread = 0x003D_0F00;
        let exit_signal = 17;
        for call in [libc::SYS_clone, libc::SYS_unshare] {
            assert_eq!(native(call, thread), libc::SECCOMP_RET_ALLOW);
            for bit in [17, 25, 26, 27, 28, 29, 30] {
                assert_eq!(native(call, 1 << bit | exit_signal), REFUSE, "{call} {bit}");
            }
        }
        assert_eq!(native(libc::SYS_unshare, NEWTIME), REFUSE);
    }
}
