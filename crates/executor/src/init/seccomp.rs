//! The system call filter of the user's side (design 6.1 (4)).
//!
//! Made by hand: it must answer ENOSYS to foreign architectures, where ready-made builders kill, and it
//! is installed with SYS_ADMIN instead of no_new_privs, so that sudo goes on working.

use std::io;
use std::mem::offset_of;

use libc::{c_long, seccomp_data, sock_filter};
use sandyard_contract::boundary::{
    NEW_NAMESPACES, NEW_TIME_NAMESPACE, SET_PIPE_SIZE, SOCKET_FAMILIES,
};
use sandyard_contract::{absent_calls, refused_calls};

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;

/// First number that this table was not written for; what is newer does not exist for user code. The
/// x32 calls have bit 30 set and so lie above it.
const FIRST_UNKNOWN: u32 = 467;

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Answered with EPERM.
const REFUSED: &[c_long] = refused_calls!(numbers);

/// Answered with EPERM as well, where there are such calls.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] = &[libc::SYS_iopl, libc::SYS_ioperm];
#[cfg(target_arch = "aarch64")]
const REFUSED_HERE: &[c_long] = &[];

/// Answered with ENOSYS.
const ABSENT: &[c_long] = absent_calls!(numbers);

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
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
    let mut f = Vec::with_capacity(2 * (REFUSED.len() + ABSENT.len()) + 50);
    f.push(load(offset_of!(seccomp_data, arch)));
    f.push(jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0));
    f.push(answer(PRETEND_ABSENT));
    f.push(load(offset_of!(seccomp_data, nr)));
    f.push(jump(libc::BPF_JGE, FIRST_UNKNOWN, 0, 1));
    f.push(answer(PRETEND_ABSENT));
    for (calls, result) in [(REFUSED, REFUSE), (REFUSED_HERE, REFUSE), (ABSENT, PRETEND_ABSENT)] {
        for call in calls {
            f.push(jump(libc::BPF_JEQ, number(*call), 0, 1));
            f.push(answer(result));
        }
    }
    for (call, flags) in [
        (libc::SYS_clone, NEW_NAMESPACES),
        (libc::SYS_unshare, NEW_NAMESPACES | NEW_TIME_NAMESPACE),
    ] {
        let judged = vec![jump(libc::BPF_JSET, flags, 0, 1), answer(REFUSE), answer(ALLOW)];
        judge_argument(&mut f, call, 0, judged);
    }
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        let mut judged = Vec::new();
        for family in SOCKET_FAMILIES {
            judged.push(jump(libc::BPF_JEQ, family, 0, 1));
            judged.push(answer(ALLOW));
        }
        judged.push(answer(REFUSE));
        judge_argument(&mut f, call, 0, judged);
    }
    let judged = vec![jump(libc::BPF_JEQ, SET_PIPE_SIZE, 0, 1), answer(REFUSE), answer(ALLOW)];
    judge_argument(&mut f, libc::SYS_fcntl, 1, judged);
    f.push(answer(ALLOW));
    f
}

/// Has `judged` decide about `call` by the low half of one of its arguments, which is all of an `int`. The
/// number of the call is loaded, before and after.
fn judge_argument(
    f: &mut Vec<sock_filter>,
    call: c_long,
    argument: usize,
    judged: Vec<sock_filter>,
) {
    // Both architectures are little-endian.
    let low_half = offset_of!(seccomp_data, args) + argument * size_of::<u64>();
    // A few instructions: they fit.
    let length = u8::try_from(judged.len() + 1).unwrap_or(u8::MAX);
    f.push(jump(libc::BPF_JEQ, number(call), 0, length));
    f.push(load(low_half));
    f.extend(judged);
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

    /// Runs the filter on one call with its first two arguments, as the kernel would.
    fn judge(arch: u32, nr: u32, arguments: [u32; 2]) -> u32 {
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
                        k if k == offset_of!(seccomp_data, args) => arguments[0],
                        k if k == offset_of!(seccomp_data, args) + 8 => arguments[1],
                        k => panic!("load from {k}"),
                    };
                }
            }
        }
    }

    fn native(call: c_long, first_argument: u32) -> u32 {
        judge(AUDIT_ARCH, number(call), [first_argument, 0])
    }

    #[test]
    fn ordinary_calls_pass() {
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_chroot] {
            assert_eq!(native(call, 0), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn every_listed_call_is_refused_or_absent() {
        for call in REFUSED.iter().chain(REFUSED_HERE) {
            assert_eq!(native(*call, 0), REFUSE, "{call}");
        }
        for call in ABSENT {
            assert_eq!(native(*call, 0), PRETEND_ABSENT, "{call}");
        }
    }

    #[test]
    fn foreign_architectures_and_newer_calls_are_absent() {
        assert_eq!(judge(0x4000_0003, 21, [0; 2]), PRETEND_ABSENT);
        assert_eq!(judge(AUDIT_ARCH, FIRST_UNKNOWN, [0; 2]), PRETEND_ABSENT);
        assert_eq!(judge(AUDIT_ARCH, 0x4000_0000, [0; 2]), PRETEND_ABSENT);
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
        assert_eq!(native(libc::SYS_unshare, NEW_TIME_NAMESPACE), REFUSE);
    }

    #[test]
    fn only_sockets_of_the_listed_families_are_made() {
        const AF_ALG: u32 = 38;
        const AF_VSOCK: u32 = 40;
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            for family in SOCKET_FAMILIES {
                assert_eq!(native(call, family), ALLOW, "{call} {family}");
            }
            for family in [0, 17, AF_ALG, AF_VSOCK, 44, u32::MAX] {
                assert_eq!(native(call, family), REFUSE, "{call} {family}");
            }
        }
    }

    #[test]
    fn pipes_keep_their_size_and_other_commands_pass() {
        let fcntl = |command| judge(AUDIT_ARCH, number(libc::SYS_fcntl), [3, command]);
        assert_eq!(fcntl(SET_PIPE_SIZE), REFUSE);
        assert_eq!(fcntl(SET_PIPE_SIZE + 1), ALLOW);
        assert_eq!(native(libc::SYS_fcntl, SET_PIPE_SIZE), ALLOW);
    }
}
