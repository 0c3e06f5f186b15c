"""fetch_smollm2.py: what it refuses before it downloads anything, and how it reads the text."""

import io
import sys
import tarfile

from fetch_smollm2 import MODEL_ARCHIVE, Archive, check_archive, fetch, prepare_all, save_text

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


def test_an_archive_of_the_wrong_size(tmp_path):
    path = tmp_path / MODEL_ARCHIVE.file_name
    path.write_bytes(b"short")
    with refuses(str(path), "has 5 bytes", "must have 92871040", "remove the file"):
        fetch(MODEL_ARCHIVE, tmp_path)


def test_an_archive_of_the_wrong_content(tmp_path):
    path = tmp_path / "abc.whl"
    right = Archive(
        "abc==1", "abc.whl", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # of FIPS 180-2
    path.write_bytes(b"abc")
    check_archive(path, right)
    path.write_bytes(b"abd")
    with refuses(str(path), "SHA-256", right.sha256, "remove the file"):
        check_archive(path, right)


def test_complete_folders_are_kept(tmp_path, capsys):
    for name in ("model", "text"):
        (tmp_path / name).mkdir()
    prepare_all(tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'text'} is complete",
        f"{tmp_path / 'model'} is complete",
    ]


def test_a_url_that_cannot_be_reached(tmp_path):
    archive = Archive("https://localhost:1/x.tgz", "x.tgz", 3, "")
    with refuses("https://localhost:1/x.tgz could not be downloaded", "run again"):
        fetch(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_last_tenth_of_the_addresses_is_for_validation(tmp_path):
    """Ten addresses of one word each, two of them later than the text, and a table of the same names."""
    years = [1790, 1791, 1792, 1793, 1794, 1795, 1796, 1797, 1898, 1899, 1900, 2021]
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        for year in reversed(years):
            for suffix in ("txt", "json"):
                content = f"in {year}\n".encode()
                member = tarfile.TarInfo(f"package/data/{year}_a_b.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    save_text(tmp_path / "x.tgz", tmp_path)
    assert (tmp_path / "train.txt").read_text().split("\n") == [*(f"in {year}" for year in years[:9]), ""]
    assert (tmp_path / "validation.txt").read_text() == "in 1899\n"
