"""Objects named on the command line, from real files and modules."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from compressor.errors import WrongUsage
from compressor.system.user_code import is_named, object_named


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("losses.py:focal", True),
        ("path/to/losses.py:Focal.make", True),
        ("package.module:name", True),
        (r"C:\code\losses.py:focal", True),
        ("losses.py:not-a-name", True),
        (r"C:\data", False),
        ("C:/data", False),
        ("torchvision:resnet18", False),
        ("timm:resnet18", False),
        ("digits", False),
        ("org/name", False),
        ("losses.py:", False),
        (":name", False),
        ("https://example.org", False),
        ("", False),
    ],
)
def test_what_has_the_form_of_a_name(text: str, named: bool) -> None:
    assert is_named(text) is named


def test_objects_of_files_and_modules(tmp_path: Path, monkeypatch) -> None:
    path = written(tmp_path / "my-losses.py", "class A:\n    class B:\n        value = 7\n")
    assert object_named(f"{path}:A.B.value", "--loss") == 7
    assert object_named("os.path:join", "--loss") is __import__("os").path.join
    monkeypatch.chdir(tmp_path)
    assert object_named("my-losses.py:A", "--loss") is object_named(f"{path}:A", "--loss")
    written(tmp_path / "module_of_the_working_folder.py", "x = 3")
    before = list(sys.path)
    assert object_named("module_of_the_working_folder:x", "--loss") == 3
    assert sys.path == before


def test_a_file_is_loaded_once_beside_its_own_modules(tmp_path: Path) -> None:
    written(tmp_path / "sibling_of_the_named_file.py", "origin = 'here'")
    path = written(
        tmp_path / "torch.py",
        "import dataclasses, sibling_of_the_named_file as s\ncount = []\ncount.append(1)\n"
        "@dataclasses.dataclass\nclass Point:\n    x: 'int' = 1\norigin = s.origin\n",
    )
    before, real = list(sys.path), sys.modules["torch"]
    count, point = object_named(f"{path}:count", "--data"), object_named(f"{path}:Point", "--data")
    assert (count, object_named(f"{path}:origin", "--data")) == ([1], "here")
    assert pickle.loads(pickle.dumps(point(5))) == point(5)
    assert sys.path == before
    assert sys.modules["torch"] is real


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise ValueError('first\\nsecond')", r"bad\.py raises ValueError: first$"),
        ("raise KeyError", r"bad\.py raises KeyError$"),
        ("def f(:", r"bad\.py raises SyntaxError: invalid syntax \(bad\.py, line 1\)$"),
        ("import no_such_module_at_all", r"bad\.py raises ModuleNotFoundError: No module named"),
        ("import sys; sys.exit(3)", r"bad\.py raises SystemExit: 3$"),
        ("def focal(): pass", r"has no focl; did you mean focal\?$"),
        ("def other(): pass", r"has no focl; it has other$"),
        ("", r"has no focl; it has no public name$"),
        (
            "def __getattr__(name):\n    if name == 'focl': raise OSError('late')\n    raise AttributeError(name)",
            "raises OSError: late",
        ),
    ],
)
def test_what_a_file_can_do_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path / "bad.py", content)
    before = list(sys.path)
    with pytest.raises(WrongUsage, match=message) as caught:
        object_named(f"{path}:focl", "loss")
    assert str(caught.value).startswith(f"loss='{path}:focl': ")
    assert "\n" not in str(caught.value)
    assert sys.path == before


def test_a_file_that_failed_is_loaded_again(tmp_path: Path) -> None:
    path = written(tmp_path / "mended.py", "raise ValueError")
    with pytest.raises(WrongUsage, match="raises ValueError"):
        object_named(f"{path}:x", "--loss")
    assert not any("mended" in name for name in sys.modules)
    written(path, "x = 'a longer text'")
    assert object_named(f"{path}:x", "--loss") == "a longer text"


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    written(tmp_path / "notes.txt", "x = 1")
    written(tmp_path / "broken_module_for_names.py", "import another_missing_module")
    for name, message in (
        ("focal", "name an object as"),
        ("a.py:", "name an object as"),
        (f"{tmp_path}/none.py:x", "does not exist"),
        (f"{tmp_path}/folder.py:x", "is a folder"),
        (f"{tmp_path}/notes.txt:x", "is no Python file"),
        ("a\0b.py:x", "no such file"),
        (f"{'n' * 5000}.py:x", "no such file|does not exist"),
        ("no_such_package.module:x", "no module no_such_package can be imported"),
        ("os.nothing_here:x", "no module os.nothing_here can be imported"),
        ("..:x", "raises|no module"),
        ("os.path:jion", r"os\.path has no jion; did you mean join\?"),
        ("os:path.jion", r"os:path has no jion; did you mean join\?"),
    ):
        with pytest.raises(WrongUsage, match=message) as caught:
            object_named(name, "--loss")
        assert "\n" not in str(caught.value)


def test_a_module_that_misses_another_is_not_called_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "broken_module_for_names.py", "import another_missing_module")
    with pytest.raises(WrongUsage, match="broken_module_for_names raises ModuleNotFoundError: No module named 'another"):
        object_named("broken_module_for_names:x", "--loss")
