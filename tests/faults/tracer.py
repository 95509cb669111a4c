"""Stops a program at each of its calls that changes files below a folder, its threads and children included.

There it may go on, have the call refused, or be killed. By ptrace and a seccomp filter, as strace does it, so that nothing
but those calls is slowed down; but counted over all threads and processes, and by path. Linux on x86-64.
"""

import contextlib
import ctypes
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

# name: number, and where its file stands: of (descriptor, path) arguments that one which is there
CALLS = {
    "write": (1, (0, None)), "pwrite64": (18, (0, None)), "writev": (20, (0, None)), "pwritev": (296, (0, None)),
    "pwritev2": (328, (0, None)), "sendfile": (40, (0, None)), "copy_file_range": (326, (2, None)),
    "fsync": (74, (0, None)), "fdatasync": (75, (0, None)), "ftruncate": (77, (0, None)), "fchmod": (91, (0, None)),
    "fallocate": (285, (0, None)), "truncate": (76, (None, 0)), "rename": (82, (None, 1)), "renameat": (264, (2, 3)),
    "renameat2": (316, (2, 3)), "mkdir": (83, (None, 0)), "mkdirat": (258, (0, 1)), "rmdir": (84, (None, 0)),
    "link": (86, (None, 1)), "linkat": (265, (2, 3)), "symlink": (88, (None, 1)), "symlinkat": (266, (1, 2)),
    "unlink": (87, (None, 0)), "unlinkat": (263, (0, 1)), "chmod": (90, (None, 0)), "fchmodat": (268, (0, 1)),
    "utimensat": (280, (0, 1)), "creat": (85, (None, 0)), "open": (2, (None, 0)), "openat": (257, (0, 1)),
}  # fmt: skip
_OPENING = {"open": 1, "openat": 2}  # which argument has the flags: only what may make or empty a file is stopped at
_MAKING = os.O_CREAT | os.O_TRUNC
_BY_NUMBER = {number: (name, place) for name, (number, place) in CALLS.items()}
_AT_FDCWD = -100

_SEIZE, _CONT, _LISTEN, _GETREGS, _SETREGS, _GETEVENTMSG = 0x4206, 7, 0x4208, 12, 13, 0x4201
_EVENT_STOP, _EVENT_SECCOMP, _NEW = 128, 7, (1, 2, 3)  # fork, vfork, clone
_OPTIONS = 0x100000 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7  # EXITKILL, FORK, VFORK, CLONE, EXEC, SECCOMP
_WALL = 0x40000000
_REGISTERS = struct.Struct("<27Q")
_ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9
_RAX, _ORIG_RAX = 10, 15
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Call:
    """A call that is about to change a file."""

    name: str
    path: str
    pid: int  # of the process
    program: int  # the process that began all


class Then(Enum):
    """What is done at a call, if it is neither let go on nor refused with an errno."""

    KILL_ALL = "all"
    KILL_PROGRAM = "program"  # alone: what it has begun has to see for itself


Decide = Callable[[Call], Then | int | None]


def traced(program: Callable[[], NoReturn], below: Path, decide: Decide, seconds: float = 600) -> int | None:
    """Runs `program` in a child and asks at each call. How the child ended, when all that it began has ended too.

    None when something still ran after so many seconds; it is killed then. Who calls this has no other children.
    """
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go)
            os.read(ready, 1)
            _filter()
            program()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    os.close(ready)
    _ptrace(_SEIZE, child, 0, _OPTIONS)
    os.close(go)
    tracer = _Tracer(child, f"{os.path.realpath(below)}/", decide)
    before = signal.signal(signal.SIGALRM, tracer.give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        return tracer.watch()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def possible() -> bool:
    """Whether this machine lets a program be traced."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return False
    with TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        try:
            traced(lambda: _make(made), Path(folder), lambda _: Then.KILL_ALL, 20)
        except OSError:
            return False
        return not made.exists()


def _make(path: Path) -> NoReturn:
    path.mkdir()
    os._exit(0)


class _Tracer:
    def __init__(self, child: int, below: str, decide: Decide) -> None:
        self.child, self.below, self.decide = child, below, decide
        self.alive = {child}
        self.process: dict[int, int] = {}  # of a thread
        self.killing = self.late = False
        self.ended: int | None = None

    def give_up(self, *_: object) -> None:
        """Time is up."""
        self.late = self.killing = True
        self.kill()

    def kill(self) -> None:
        """All that is there, and, as it shows up, what is just being begun."""
        self.killing = True
        for thread in self.alive:
            _send(thread)

    def watch(self) -> int | None:
        """Until nothing is left."""
        while True:
            try:
                thread, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return None if self.late else self.ended
            if os.WIFSTOPPED(status):
                self.alive.add(thread)
                with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
                    self.stopped(thread, os.WSTOPSIG(status), status >> 16)
            else:
                self.alive.discard(thread)
                self.process.pop(thread, None)
                if thread == self.child:
                    self.ended = os.waitstatus_to_exitcode(status)

    def stopped(self, thread: int, number: int, event: int) -> None:
        """A thread stands still: for a call, for a signal, or because it is new."""
        passed = 0
        if self.killing:
            _send(thread)
        elif event == _EVENT_SECCOMP:
            self.at_call(thread)
        elif event in _NEW:
            new = ctypes.c_ulong()
            _ptrace(_GETEVENTMSG, thread, 0, ctypes.addressof(new))
            self.alive.add(new.value)
        elif event == _EVENT_STOP and number != signal.SIGTRAP:
            _ptrace(_LISTEN, thread, 0, 0)  # stopped by a signal, until another one wakes it
            return
        elif event == 0:
            passed = number
        _ptrace(_CONT, thread, 0, passed)

    def at_call(self, thread: int) -> None:
        """Asks what is to be done, if it is a call below the folder."""
        registers = (ctypes.c_char * _REGISTERS.size)()
        _ptrace(_GETREGS, thread, 0, ctypes.addressof(registers))
        values = list(_REGISTERS.unpack(bytes(registers)))
        name, place = _BY_NUMBER[values[_ORIG_RAX]]
        path = _path(thread, [values[at] for at in _ARGUMENTS], place)
        if not path.startswith(self.below):
            return
        pid = self.process.setdefault(thread, 0) or _process(thread)
        self.process[thread] = pid
        then = self.decide(Call(name, path[len(self.below) :], pid, self.child))
        if then is Then.KILL_ALL:
            self.kill()
        elif then is Then.KILL_PROGRAM:
            _send(self.child)
        elif isinstance(then, int):
            values[_ORIG_RAX], values[_RAX] = (1 << 64) - 1, (1 << 64) - then
            registers[:] = _REGISTERS.pack(*values)
            _ptrace(_SETREGS, thread, 0, ctypes.addressof(registers))


def _path(thread: int, arguments: list[int], place: tuple[int | None, int | None]) -> str:
    """The file that a call is about, the target where it has two; empty when it is none."""
    descriptor, text = place
    name = _text(thread, arguments[text]) if text is not None else ""
    if name.startswith("/"):
        return os.path.normpath(name)
    number = _AT_FDCWD if descriptor is None else ctypes.c_int(arguments[descriptor] & 0xFFFFFFFF).value
    try:
        folder = os.readlink(f"/proc/{thread}/cwd" if number == _AT_FDCWD else f"/proc/{thread}/fd/{number}")
    except OSError:
        return ""
    return os.path.join(folder, name) if name else folder


def _text(thread: int, address: int) -> str:
    """A C string of a stopped thread."""
    found = b""
    descriptor = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
    try:
        while b"\0" not in found and len(found) < 1 << 14:
            at = address + len(found)
            more = os.pread(descriptor, 4096 - at % 4096, at)
            if not more:
                break
            found += more
    except (OSError, OverflowError):
        pass
    finally:
        os.close(descriptor)
    return os.fsdecode(found.partition(b"\0")[0])


def _process(thread: int) -> int:
    lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Tgid:"))


def _send(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _filter() -> None:
    """From here on this process and all it begins stop at CALLS."""
    load, equal, has, give = 0x20, 0x15, 0x45, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000
    plain = [number for name, (number, _) in CALLS.items() if name not in _OPENING]
    lines: list[tuple[int, int, int, int]] = [(load, 0, 0, 0)]
    for name, argument in _OPENING.items():
        lines += [(equal, 0, 4, CALLS[name][0]), (load, 0, 0, 16 + 8 * argument), (has, 0, 1, _MAKING),
                  (give, 0, 0, trace), (give, 0, 0, allow)]  # fmt: skip
    for at, number in enumerate(plain):
        lines.append((equal, len(plain) - at, 0, number))
    lines += [(give, 0, 0, allow), (give, 0, 0, trace)]
    code = b"".join(struct.pack("<HBBI", *line) for line in lines)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", len(lines), ctypes.addressof(held))
    handed = ctypes.create_string_buffer(program, len(program))
    no_new_privileges, seccomp, mode_filter = 38, 22, 2
    if _libc.prctl(no_new_privileges, 1, 0, 0, 0) or _libc.prctl(
        seccomp, mode_filter, ctypes.c_void_p(ctypes.addressof(handed)), 0, 0
    ):
        os._exit(71)
