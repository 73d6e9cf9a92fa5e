"""A scripted run with a mirror, which a test can kill while a file is being sent.

`mirrored_run.py FOLDER ADDRESS SENT`: once SENT files were sent, the process kills itself (SIGKILL)
some milliseconds into the next one.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import scripted_run
from scripted_runtime import scripted_runtime

from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.backup import Backup


def run(folder: Path, address: str) -> list[str]:
    """Returns what was said about the mirror."""
    said: list[str] = []
    with Store.write(folder) as store:
        settings = prepare.load_or_create_settings(store, scripted_run.SMALL, "tiny")
        copies = Backup(store, address, said.append)
        runtime = scripted_runtime(ChatFormat.load(TINY_MODEL))
        loop.run(store, settings, runtime, copies.watching(lambda at: None))
        copies.copy(last=True)
    return said


def kill_while_sending(sent: int) -> None:
    """Replace s3fs's upload by one that kills this process after `sent` uploads."""
    from s3fs import S3FileSystem

    put, count = S3FileSystem.put_file, [0]

    def watched(system, *arguments, **options):
        if count[0] == sent:
            threading.Timer(0.004, os.kill, (os.getpid(), signal.SIGKILL)).start()
        count[0] += 1
        return put(system, *arguments, **options)

    S3FileSystem.put_file = watched


if __name__ == "__main__":
    kill_while_sending(int(sys.argv[3]))
    run(Path(sys.argv[1]), sys.argv[2])
