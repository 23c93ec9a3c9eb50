"""Tries to break out of the sandbox; prints one line a probe: name, a tab, "ok" or the error's name.

Runs as whoever starts it; `probes.json` says what each may come to. Arguments: the secret written backwards, so that the probe does not find itself.
"""
import ctypes, errno, fcntl, mmap, os, signal, socket, struct, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
SECRET = sys.argv[1][::-1].encode()
NULL = ctypes.c_void_p(None)


def report(name, result):
    print(f"{name}\t{result}", flush=True)


def probe(name, action):
    try:
        report(name, action() or "ok")
    except OSError as error:
        report(name, errno.errorcode.get(error.errno, str(error.errno)))


def call(number, *arguments):
    wide = [a if isinstance(a, (bytes, ctypes._SimpleCData, ctypes.Array)) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def syscall(name, number, *arguments):
    probe(name, lambda: call(number, *arguments) and None)


def in_child(name, action):
    """For what would change this process: the child tells the errno as its exit code."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            action()
        except OSError as error:
            code = error.errno
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        report(name, signal.Signals(-code).name)
    else:
        report(name, "ok" if code == 0 else errno.errorcode.get(code, str(code)))


def command(name, *arguments):
    done = subprocess.run(arguments, capture_output=True)
    report(name, "ok" if done.returncode == 0 else "refused")


def write(name, path, text=b"1"):
    def action():
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
    probe(name, action)


def read(name, path):
    def action():
        with open(path, "rb", buffering=0) as file:
            return "ok" if file.read(64) else "empty"
    probe(name, action)


NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET, NEWTIME = 0x10000000, 0x20000000, 0x40000000, 0x80

# mounts
syscall("mount", 165, b"none", b"/mnt", b"tmpfs", 0, 0)
syscall("remount", 165, b"none", b"/workspace", b"none", 0x20 | 0x1000, 0)
syscall("umount", 166, b"/workspace", 0)
syscall("umount-lazy", 166, b"/workspace", 2)
command("fusermount", "fusermount", "-u", "/workspace")
syscall("fsopen", 430, b"tmpfs", 0)
syscall("open_tree", 428, -100, b"/", 0)
syscall("open_tree-clone", 428, -100, b"/", 1)
syscall("move_mount", 429, -100, b"/workspace", -100, b"/mnt", 0)
syscall("mount_setattr", 442, -100, b"/", 0, 0, 0)
syscall("pivot_root", 155, b"/", b"/mnt")
in_child("setns-file", lambda: call(308, os.open("/proc/self/ns/mnt", os.O_RDONLY), 0))
in_child("setns-pidfd", lambda: call(308, os.pidfd_open(1), NEWNS))

# namespaces
for name, flag in [("mnt", NEWNS), ("user", NEWUSER), ("time", NEWTIME), ("cgroup", NEWCGROUP), ("net", NEWNET),
                   ("uts", NEWUTS), ("ipc", NEWIPC), ("pid", NEWPID)]:
    in_child(f"unshare-{name}", lambda flag=flag: call(272, flag))
command("unshare-Urm", "unshare", "-Urm", "true")
for name, flag in [("user", NEWUSER), ("mnt", NEWNS)]:
    def clone(flag=flag):
        if call(56, flag | signal.SIGCHLD, 0, 0, 0, 0) == 0:
            os._exit(0)
    in_child(f"clone-{name}", clone)
syscall("clone3", 435, 0, 0)
in_child("x32", lambda: call(0x40000000 + 165, b"none", b"/mnt", b"tmpfs", 0, 0))


def int80(number, first):
    """mov eax, number; mov ebx, first; int 0x80; ret"""
    code = b"\xb8" + struct.pack("<I", number) + b"\x53\xbb" + struct.pack("<I", first) + b"\xcd\x80\x5b\xc3"
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if result < 0:
        raise OSError(-result, "")


in_child("int80-mount", lambda: int80(21, 0))
in_child("int80-unshare", lambda: int80(310, NEWUSER))

# the rest of what SYS_ADMIN opens
syscall("bpf", 321, 0, 0, 0)
syscall("perf_event_open", 298, 0, 0, -1, -1, 0)
syscall("fanotify_init", 300, 0, 0)
syscall("keyctl", 250, 0, -3, 0)
syscall("add_key", 248, b"user", b"x", b"y", 1, -3)
syscall("request_key", 249, b"user", b"x", 0, 0)
syscall("io_uring", 425, 1, 0)
syscall("userfaultfd", 323, 0)
syscall("syslog", 103, 10, 0, 0)
syscall("quotactl", 179, 0, 0, 0, 0)
syscall("sethostname", 170, b"x", 1)
syscall("setdomainname", 171, b"x", 1)
syscall("name_to_handle_at", 303, -100, b"/", 0, 0, 0)
syscall("open_by_handle_at", 304, -100, 0, 0)
syscall("swapon", 167, b"/x", 0)
syscall("reboot", 169, 0, 0, 0, 0)
syscall("init_module", 175, 0, 0, b"")
syscall("kexec_load", 246, 0, 0, 0, 0)
syscall("acct", 163, 0)

# the daemon, first process here
probe("pid1-root", lambda: "ok" if "run" in os.listdir("/proc/1/root/.sandyard") else "absent")
PTRACE_SEIZE, PTRACE_ATTACH = 0x4206, 16
if os.getpid() != 1:  # in the control this is the first process itself, which would be stopped
    in_child("pid1-seize", lambda: call(101, PTRACE_SEIZE, 1, 0, 0))
    in_child("pid1-attach", lambda: call(101, PTRACE_ATTACH, 1, 0, 0))
probe("pid1-mem", lambda: open("/proc/1/mem", "rb").close())
probe("pid1-environ", lambda: open("/proc/1/environ", "rb").close())
probe("pid1-fd", lambda: os.readlink("/proc/1/fd/0") and None)
probe("pid1-pidfd_getfd", lambda: os.close(call(438, os.pidfd_open(1), 0, 0)))


def vm_write():
    """Nothing is mapped at 8; who may write at all gets EFAULT."""
    piece = (ctypes.c_ulong * 2)(8, 1)
    call(311, 1, piece, 1, piece, 1, 0)


probe("pid1-vm-write", vm_write)


def seize_child():
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        call(101, PTRACE_SEIZE, child, 0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


in_child("own-child-seize", seize_child)
command("kill-KILL-1", "kill", "-KILL", "1")
command("kill-TERM-1", "kill", "-TERM", "1")


def forge():
    """A siginfo with si_code SI_QUEUE and the sender 0, as a sender outside the namespace looks."""
    call(129, 1, signal.SIGTERM, struct.pack("<iiiiII", signal.SIGTERM, 0, -1, 0, 0, 0).ljust(128, b"\0"))


probe("forge-TERM-1", forge)
time.sleep(0.2)
report("pid1-lives", "ok" if os.path.exists("/proc/1/status") else "dead")

# what is visible of the other side
seen, leaks = set(), set()
for entry in filter(str.isdigit, os.listdir("/proc")):
    for file in ["cmdline", "environ", "mountinfo", "mounts", "comm"]:
        try:
            text = open(f"/proc/{entry}/{file}", "rb").read()
        except OSError:
            continue
        if file == "comm" and text.strip() in (b"s3fs", b"rclone"):
            seen.add(text.strip().decode())
        if file == "cmdline" and text.split(b"\0")[1:2] == [b"init"]:
            seen.add("init")
        if SECRET in text or (file != "cmdline" and (b"url=" in text or b"passwd_file" in text)):
            leaks.add(f"{entry}/{file}")
report("other-side-visible", ",".join(sorted(seen)) or "absent")
report("secret-in-proc", ",".join(sorted(leaks)) or "absent")
probe("private-tree", lambda: ",".join(os.listdir("/.sandyard/run")) or "empty")
probe("cache-tree", lambda: ",".join(os.listdir("/.sandyard/cache")) or "empty")


def memory():
    found, scanned = [], 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/maps") as maps, open(f"/proc/{entry}/mem", "rb", buffering=0) as mem:
                for line in maps:
                    area, rights = line.split()[:2]
                    start, end = (int(part, 16) for part in area.split("-"))
                    if not rights.startswith("r") or end - start > 1 << 28:
                        continue
                    try:
                        mem.seek(start)
                        text = mem.read(end - start)
                    except (OSError, OverflowError, ValueError):
                        continue
                    scanned += 1
                    if SECRET in text:
                        found.append(entry)
        except OSError:
            continue
    return ",".join(found) or ("absent" if scanned else "EACCES")


probe("secret-in-memory", memory)

# the executor's own files
for name, action in [
    ("rmdir-run", lambda: os.rmdir("/.sandyard/run")),
    ("rename-run", lambda: os.rename("/.sandyard/run", "/.sandyard/run2")),
    ("rename-sandyard", lambda: os.rename("/.sandyard", "/.other")),
    ("write-sandyard", lambda: open("/.sandyard/x", "w").close()),
    ("write-fuse-tree", lambda: open("/.sandyard/fuse/bin/s3fs", "r+b").close()),
    ("write-executor", lambda: open("/.sandyard/executor", "r+b").close()),
    ("write-proc-1-exe", lambda: open("/proc/1/exe", "r+b").close()),
]:
    probe(name, action)

# the host's /proc and /sys
write("core_pattern", "/proc/sys/kernel/core_pattern", b"core")
write("overcommit", "/proc/sys/vm/overcommit_memory", b"0")
write("irq-affinity", "/proc/irq/default_smp_affinity", b"3")
write("sysrq", "/proc/sysrq-trigger", b"h")
for file in ["kcore", "keys", "key-users", "kallsyms", "timer_list", "kmsg", "vmallocinfo", "slabinfo", "interrupts"]:
    read(f"read-{file}", f"/proc/{file}")
probe("sys-firmware", lambda: ",".join(os.listdir("/sys/firmware")) or "empty")


def writable(top):
    found = []
    for directory, directories, files in os.walk(top):
        if directory == "/proc":
            directories[:] = [d for d in directories if not d.isdigit() and d not in ("self", "thread-self")]
        for file in files:
            path = os.path.join(directory, file)
            if os.path.islink(path):
                continue
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                found.append(path)
            except OSError:
                pass
    return found


report("writable-sys", ",".join(writable("/sys")[:5]) or "absent")
report("writable-proc", ",".join(writable("/proc")) or "absent")

# cgroups
write("cgroup-memory", "/sys/fs/cgroup/memory/memory.limit_in_bytes", b"-1")
write("cgroup-pids", "/sys/fs/cgroup/pids/pids.max", b"max")
write("cgroup-procs", "/sys/fs/cgroup/pids/cgroup.procs", b"0")
write("cgroup-release-agent", "/sys/fs/cgroup/memory/release_agent", b"/x")
probe("cgroup-mkdir", lambda: os.mkdir("/sys/fs/cgroup/memory/x"))
syscall("mount-cgroup", 165, b"cgroup", b"/mnt", b"cgroup", 0, b"memory")

# devices
DIR = "/tmp" if os.getuid() else "/root"


def device(name, mode, major, minor):
    def action():
        path = f"{DIR}/node-{name}"
        os.mknod(path, mode | 0o600, os.makedev(major, minor))
        os.close(os.open(path, os.O_RDWR))
    probe(f"mknod-{name}", action)


device("disk", 0o060000, 254, 0)
device("fuse", 0o020000, 10, 229)
device("mem", 0o020000, 1, 1)
device("kmsg", 0o020000, 1, 11)
probe("dev-fuse", lambda: os.close(os.open("/dev/fuse", os.O_RDWR)))

# network, scheduling, clock, engine
probe("af_packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close())
probe("raw-socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
probe("af_vsock", lambda: socket.socket(40, socket.SOCK_STREAM, 0).close())
probe("af_alg", lambda: socket.socket(38, socket.SOCK_SEQPACKET, 0).close())
probe("socketpair-tipc", lambda: socket.socketpair(30, socket.SOCK_STREAM, 0) and None)
probe("pipe-size", lambda: fcntl.fcntl(os.pipe()[1], 1031, 1 << 20) and None)
syscall("pipe-size-high-bits", 72, os.pipe()[1], 1 << 32 | 1031, 1 << 20)
write("oom-score", "/proc/self/oom_score_adj", b"-500")
in_child("nice", lambda: os.nice(-5))
probe("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
probe("docker-socket", lambda: os.stat("/var/run/docker.sock"))


def escape():
    os.makedirs(f"{DIR}/jail", exist_ok=True)
    hold = os.open("/", os.O_RDONLY)
    os.chroot(f"{DIR}/jail")
    os.fchdir(hold)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    # The container's own root has its own /proc and no tree of init.
    if os.listdir("/.sandyard/run"):
        return
    raise OSError(errno.EPERM, "")


in_child("chroot-escape", escape)
