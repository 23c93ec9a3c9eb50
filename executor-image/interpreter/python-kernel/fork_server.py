"""Makes kernels by forking: what they all import, which is most of their start, is imported once.

    fork_server.py SOCKET

Whoever connects to the socket sends one line of JSON: `argv` (as after `python3`: `-m`, a module and its arguments),
`cwd`, `env`. The answer is a line with the kernel's `pid`, and a second one with its `status`, as `waitpid` gives it,
once it has ended. The kernel is killed, with its process group, when the connection ends before that. A server without
kernels ends.

The interpreter crate has the other side (`kernel/fork.rs`).
"""

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys

# Likelier to be ended by than all else in the sandbox, if memory runs out; the same as of kernels that are not forked.
OOM_SCORE = "500"

# Without a kernel the server ends after so many seconds. An interpreter that was killed is back before that.
IDLE = 30


def preload():
    import ipykernel.ipkernel  # noqa: F401
    import ipykernel.kernelapp  # noqa: F401
    import ipykernel.zmqshell  # noqa: F401
    import IPython.core.completer  # noqa: F401
    import orjson  # noqa: F401

    # What is there now is never looked at again by the collector, and so stays shared.
    gc.collect()
    gc.freeze()


class Server:
    def __init__(self, path):
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        # Under another name first: whoever finds the socket can connect to it.
        os.umask(0o077)
        self.listener.bind(path + ".new")
        self.listener.listen(64)
        os.rename(path + ".new", path)
        os.umask(0o022)
        # Connections by the kernel that was made for them, and those that have not asked yet.
        self.kernels = {}
        self.reading = {}
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)
        self.woken, self.wake = woken, wake
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(woken, selectors.EVENT_READ)

    def run(self):
        """Returns in a forked kernel only: the request that it is to carry out."""
        while True:
            ready = self.selector.select(None if self.kernels or self.reading else IDLE)
            if not ready:
                sys.exit()
            for key, _ in ready:
                if key.fileobj is self.listener:
                    connection, _ = self.listener.accept()
                    self.reading[connection] = b""
                    self.selector.register(connection, selectors.EVENT_READ)
                elif key.fileobj == self.woken:
                    os.read(self.woken, 4096)
                    self.reap()
                else:
                    request = self.read(key.fileobj)
                    if request is not None:
                        return request

    def read(self, connection):
        try:
            data = connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.forget(connection)
        elif connection in self.reading:
            self.reading[connection] += data
            if data.endswith(b"\n"):
                return self.fork(connection, json.loads(self.reading.pop(connection)))
        return None

    def fork(self, connection, request):
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.selector.close()
            for other in [self.listener, *self.reading, *self.kernels.values(), connection]:
                if other is not None:
                    other.close()
            os.close(self.woken)
            os.close(self.wake)
            return request
        self.kernels[pid] = connection
        self.tell(connection, {"pid": pid})
        return None

    def reap(self):
        while self.kernels:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self.kernels.pop(pid, None)
            if connection is not None:
                self.tell(connection, {"status": status})
                self.close(connection)

    def forget(self, connection):
        """The other side has gone, and its kernel with it."""
        self.reading.pop(connection, None)
        for pid, other in list(self.kernels.items()):
            if other is connection:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    # It has not made its group yet, or has ended.
                    os.kill(pid, signal.SIGKILL)
                self.kernels[pid] = None
        self.close(connection)

    def close(self, connection):
        self.selector.unregister(connection)
        connection.close()

    @staticmethod
    def tell(connection, answer):
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            # It has gone; that is found when the connection is read.
            pass


def become(request):
    os.setsid()
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write(OOM_SCORE)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    flag, module, *arguments = request["argv"]
    if flag != "-m":
        raise ValueError(f"not a module: {flag}")
    sys.argv = [module, *arguments]
    # As `python3 -m` has it.
    sys.path[0] = os.getcwd()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    preload()
    become(Server(sys.argv[1]).run())
