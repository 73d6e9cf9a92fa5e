"""Memory of a process with its descendants, by the real /proc."""

import mmap
import os
import subprocess
import sys

import pytest

from selfreward_lite.system import process_memory

MEBI = 2**20
CHILD = """
import subprocess, sys
own = bytearray(b"x" * int(sys.argv[1]))
if len(sys.argv) > 2:
    subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdin=sys.stdin)
else:
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_childs_child_counts_too():
    command = [sys.executable, "-c", CHILD, str(64 * MEBI), CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdin
        child.stdout.readline()
        found = process_memory.read_tree(child.pid)
        child.stdin.close()
    assert 128 * MEBI < found.held < 200 * MEBI


def test_pages_of_a_file_are_mapped_not_held(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 64 * MEBI)
    before = process_memory.read_tree(os.getpid())
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert sum(pages[:: mmap.PAGESIZE]) > 0
        after = process_memory.read_tree(os.getpid())
    assert after.mapped - before.mapped == pytest.approx(64 * MEBI, rel=0.05)
    assert after.held - before.held < 8 * MEBI


def test_a_process_that_ended_has_none():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert process_memory.read_tree(ended.pid) == process_memory.Memory(0, 0)
    assert process_memory.read_available() > MEBI


def test_a_name_with_brackets_is_no_parent(tmp_path, monkeypatch):
    for pid, parent in ((7, 1), (8, 7), (9, 8)):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "stat").write_text(f"{pid} (a) 5 (b)) S {parent} 1 1 0")
        (folder / "status").write_text("Name:\t9 kB\nRssAnon:   10 kB\nRssFile: 5 kB\nVmRSS: 99 kB")
    monkeypatch.setattr(process_memory, "PROC", tmp_path)
    assert process_memory.read_tree(8) == process_memory.Memory(20 * 1024, 10 * 1024)
