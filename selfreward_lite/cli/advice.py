"""What to do about an error of the system: its file systems, and its limits of processes."""

import errno

from selfreward_lite.system.errors import as_line

AGAIN = "and give the same command again"
KEPT = "What was committed is kept"
FREE = f"free space {AGAIN}"
UNLOCK = f"let this user read and write it, {AGAIN}"
CHECK = f"check the disk, or go on with a copy on another one, {AGAIN}"
MOVE = "move what is in the way, or give another --name or --runs-dir"
RAISE = f"let a process open more (`ulimit -n 1024`), {AGAIN}"
LARGER = (
    f"files of this size are not allowed here (`ulimit -f`, or a disk in FAT): raise that {AGAIN}, "
    "or give a --runs-dir on another disk"
)
MOUNT = f"its drive is gone: mount it again {AGAIN}"
LOCAL = "this drive lacks what a run needs, as locks: give a --runs-dir on a disk of this machine"
PROCESSES = (
    "the system starts no more processes: end some, or let this user have more (`ulimit -u`), "
    f"or free memory, {AGAIN}"
)
MEMORY = (
    f"The memory that this command may have is used up. {KEPT}: free memory, or raise its limit "
    f"(`ulimit -v`), {AGAIN}."
)
# Other errors are bugs, and keep their traceback.
ADVICE = {
    "ENOSPC": FREE,
    "EDQUOT": FREE,
    "EFBIG": LARGER,
    "EIO": CHECK,
    "EROFS": UNLOCK,
    "EACCES": UNLOCK,
    "EPERM": UNLOCK,
    "EEXIST": MOVE,
    "ENOTDIR": MOVE,
    "EISDIR": MOVE,
    "ENAMETOOLONG": MOVE,
    "ELOOP": MOVE,
    "EMFILE": RAISE,
    "ENFILE": RAISE,
    "ESTALE": MOUNT,
    "ENOTCONN": MOUNT,
    "EREMOTEIO": MOUNT,
    "EHOSTDOWN": MOUNT,
    "ENODEV": MOUNT,
    "ENXIO": MOUNT,
    "ENOLCK": LOCAL,
    "ENOTSUP": LOCAL,
    "EAGAIN": PROCESSES,
    "ENOMEM": PROCESSES,
}


def explain(error: OSError | RuntimeError) -> str | None:
    """One line with what happened and what to do about it; None if it is a bug."""
    if isinstance(error, RuntimeError):  # the threading module's own
        no_thread = str(error).startswith("can't start new thread")
        return f"a new thread: {error}. {KEPT}: {PROCESSES}." if no_thread else None
    advice = ADVICE.get(errno.errorcode.get(error.errno or 0, ""))
    if isinstance(error, FileNotFoundError) and error.filename is None:  # of `tempfile` alone
        advice = f"set TMPDIR to a folder that can be written, {AGAIN}"
    if advice is None:
        return None
    named = error.filename2 or error.filename  # of a copy the target, which is the one written
    place = "a new process" if advice is PROCESSES else named or "the disk or the output"
    return f"{as_line(str(place))}: {error.strerror}. {KEPT}: {advice}."
