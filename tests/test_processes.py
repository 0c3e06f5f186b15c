"""experiments/processes.py: time limits, and trees of processes that leave nothing behind."""

import os
import socket
import sys
import time

import psutil
from experiments.processes import MARK, ProcessTree, free_port

from .tiny import SCRIPTS, run_command

DETACHED = SCRIPTS / "detached_child.py"


def processes_with(name, value):
    """The processes that have an environment variable."""

    def has_it(process):
        try:
            return process.environ().get(name) == value
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if has_it(process)]


def start(tree, folder, *words, **environment):
    with (folder / "log.txt").open("ab") as log:
        return tree.start([sys.executable, *words], environment=environment, folder=folder, output=log)


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def test_a_tree_ends_with_a_child_that_has_its_own_session(tmp_path):
    """As torchrun's workers have."""
    with ProcessTree() as tree:
        start(tree, tmp_path, str(DETACHED), str(tmp_path / "started"), TREE=str(tmp_path))
        assert not tree.wait(0.1)
        wait_for(tmp_path / "started")
        assert len(processes_with("TREE", str(tmp_path))) == 2
    assert processes_with("TREE", str(tmp_path)) == []


def test_a_tree_holds_the_trees_that_its_processes_start(tmp_path, monkeypatch):
    with ProcessTree() as outer:
        process = start(outer, tmp_path, str(DETACHED), str(tmp_path / "outer"), TREE=str(tmp_path))
        wait_for(tmp_path / "outer")
        monkeypatch.setenv(MARK, psutil.Process(process.pid).environ()[MARK])
        with ProcessTree() as inner:
            start(inner, tmp_path, str(DETACHED), str(tmp_path / "inner"), TREE=str(tmp_path))
            wait_for(tmp_path / "inner")
            outer.kill()
            assert processes_with("TREE", str(tmp_path)) == []


def test_a_tree_leaves_other_processes_alone(tmp_path):
    with ProcessTree() as other:
        bystander = start(other, tmp_path, "-c", "import time; time.sleep(600)")
        with ProcessTree() as tree:
            start(tree, tmp_path, "-c", "")
            assert tree.wait(30)
        assert bystander.poll() is None


def test_waiting_ends_at_a_condition(tmp_path):
    with ProcessTree() as tree:
        start(tree, tmp_path, str(DETACHED), str(tmp_path / "started"))
        assert tree.wait(30, until=(tmp_path / "started").exists)
        assert not tree.wait(0.1)


def test_a_command_past_its_time_returns_what_it_printed(tmp_path):
    done = run_command(sys.executable, DETACHED, tmp_path / "started", timeout=5, TREE=tmp_path)
    assert done.returncode == -9
    assert (done.stdout, done.stderr) == ("started a child\n", "\nkilled after 5 s")
    assert processes_with("TREE", str(tmp_path)) == []


def test_a_free_port_can_be_listened_on():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_children_import_this_repository():
    done = run_command(sys.executable, "-c", "import experiments; print(experiments.__path__[0])")
    assert os.path.samefile(done.stdout.strip(), SCRIPTS.parent.parent / "scripts" / "experiments")
