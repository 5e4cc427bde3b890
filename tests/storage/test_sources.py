"""Which modules are the user's own, what of them travels, and that an archive can't lead anywhere."""

from __future__ import annotations

import gc
import io
import os
import stat
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sklearn

from gridfleet.storage.errors import InvalidSearchError, PayloadError
from gridfleet.storage.sources import archive, collect
from gridfleet.storage.sources.archive import pack, unpack
from gridfleet.storage.sources.collect import collect_sources
from gridfleet.storage.sources.imports import imported_by, imported_names, mentioned_names
from gridfleet.storage.sources.local import is_installed
from gridfleet.storage.sources.parsing import parse

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files of a project, ``write(**{"pkg/__init__.py": ""})``; returns its folder."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / "project" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path / "project"

    return write


@pytest.fixture
def names_of(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a script that prints the names in its archive, ``names_of(script)``."""

    def names_of(script: Path, *options: str, **variables: str) -> list[str]:
        with script.open("a") as file:
            file.write("\nfrom gridfleet.storage.sources.collect import collect_sources\n")
            file.write("print(*sorted(collect_sources().files))\n")
        ran = subprocess.run(
            [sys.executable, *options, str(script)],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout.split()

    return names_of


@pytest.mark.parametrize(
    ("path", "installed"),
    [
        (os.__file__, True),
        (sklearn.__file__, True),
        ("/somewhere/site-packages/pkg/__init__.py", True),
        ("/home/ada/.cache/uv/archive-v0/x1/lib/python3.12/site-packages/pkg.py", True),
        ("/usr/lib/python3/dist-packages/pkg.py", True),
        ("/home/ada/project/helpers.py", False),
        ("/usr/local/project/helpers.py", False),
        (f"{sys.prefix}/src/project/helpers.py", False),
    ],
)
def test_what_lies_where_installers_put_it_is_installed(path: str, installed: bool) -> None:
    assert is_installed(path) is installed


@pytest.mark.parametrize("editable", [False, True])
def test_what_a_distribution_names_as_its_own_is_installed_wherever_it_lies(
    editable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "pkg-1.0.dist-info"
    metadata.mkdir()
    (metadata / "RECORD").write_text("pkg/__init__.py,,\npkg-1.0.dist-info/RECORD,,\n")
    (metadata / "direct_url.json").write_text(f'{{"dir_info": {{"editable": {str(editable).lower()}}}}}')
    monkeypatch.syspath_prepend(tmp_path)

    assert is_installed(f"{tmp_path}/pkg/__init__.py") is not editable
    assert is_installed(f"{tmp_path}/pkg") is not editable
    assert not is_installed(f"{tmp_path}/helpers.py")


def test_a_package_travels_whole_and_so_does_what_its_functions_import(
    write: Write, names_of: Callable[..., list[str]]
) -> None:
    project = write(
        **{
            "src/train.py": "import pkg.model\ndef build():\n    from parts import head\n    return head()",
            "src/data.csv": "of nobody",
            "src/words.txt": "of parts",
            "src/texts/words.txt": "of parts",
            "src/texts/.key": "hidden",
            "src/rows.csv": "ignored",
            "src/parts.py": """
                from pathlib import Path

                HERE = Path(__file__).parent
                WORDS = HERE / "words.txt", HERE / "texts" / "words.txt", HERE / "texts" / ".key", HERE / "rows.csv"

                def head():
                    import more, spaces.load
            """,
            "src/more.py": "'''import unrelated'''\nfrom . import unrelated",
            "src/unrelated.py": "",
            "src/spaces/load.py": "",
            "src/spaces/rows.csv": "of a folder that is no package",
            "src/pkg/__init__.py": "",
            "src/pkg/model.py": "",
            "src/pkg/deep/lazy.py": "",
            "src/pkg/deep/words.txt": "",
            "src/pkg/.secret/key": "",
            "src/pkg/.env": "",
            "src/pkg/__pycache__/model.pyc": "",
            "src/pkg/env/pyvenv.cfg": "",
            "src/pkg/env/lib.py": "",
            "src/pkg/data/rows.csv": "",
            "src/pkg/data/keep.csv": "",
            "src/pkg/out/log.txt": "",
            "src/pkg/data/.gitignore": "!keep.csv",
            ".gitignore": "*.csv\n/src/pkg/out/",
            ".git/HEAD": "",
        }
    )
    (project / "src/pkg/loop").symlink_to(project / "src/pkg")

    assert names_of(project / "src/train.py") == [
        "more.py",
        "parts.py",
        "pkg/__init__.py",
        "pkg/data/keep.csv",
        "pkg/deep/lazy.py",
        "pkg/deep/words.txt",
        "pkg/model.py",
        "spaces/load.py",
        "texts/words.txt",
        "words.txt",
    ]


def test_what_is_imported_travels_whatever_git_ignores(write: Write, names_of: Callable[..., list[str]]) -> None:
    project = write(
        **{
            "script.py": "import pkg._version",
            "pkg/__init__.py": "",
            "pkg/_version.py": "",
            "pkg/_other.py": "",
            ".gitignore": "pkg/_*.py\n!__init__.py",
        }
    )

    assert names_of(project / "script.py") == ["pkg/__init__.py", "pkg/_version.py"]


def test_modules_in_a_zip_file_travel_too(write: Write, names_of: Callable[..., list[str]], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "modules.zip", "w") as modules:
        modules.writestr("zipped/__init__.py", "from zipped.inner import VALUE")
        modules.writestr("zipped/inner.py", "VALUE = 1")
    script = write(**{"script.py": "import zipped"}) / "script.py"
    path = os.pathsep.join([str(tmp_path / "modules.zip"), os.environ.get("PYTHONPATH", "")])

    assert names_of(script, PYTHONPATH=path) == ["zipped/__init__.py", "zipped/inner.py"]


def test_a_script_of_installed_packages_only_has_no_archive(write: Write, names_of: Callable[..., list[str]]) -> None:
    script = write(**{"script.py": "import numpy, cloudpickle", "other.py": "1 / 0"}) / "script.py"

    assert names_of(script) == []


def test_more_than_an_archive_takes_is_refused_with_the_largest_files(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write(**{"big_package/__init__.py": "", "big_package/a.bin": "a" * 900, "big_package/b.txt": "b"})
    monkeypatch.syspath_prepend(project)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(project / "none.py"), raising=False)
    monkeypatch.setattr(collect, "_imported_modules", lambda: [__import__("big_package")])
    monkeypatch.setattr(collect, "MAX_BYTES", 800)

    with pytest.raises(
        InvalidSearchError, match=rf"too much to travel .*largest are {project}/big_package/a.bin .*gitignore"
    ):
        collect_sources()


def test_imports_are_found_in_all_statements_and_not_in_texts() -> None:
    source = b"""if True: import a.b, c as d; from e.f import g
def f():
    '''
    import nothing
    '''
    from . import own
    from .own import more
    import \\
        h
    async def g():
        try: from i import j
        except ImportError: pass
"""

    assert imported_names(source) == {"a", "c", "e", "h", "i"}
    assert imported_names(source) | {"nothing"} == mentioned_names(source)
    assert imported_names(b"import a\n{% template %}") == frozenset()


def test_imports_of_functions_without_a_source_are_found() -> None:
    namespace: dict[str, object] = {"__name__": "notebook"}
    exec(
        "from json import dumps\nclass Model:\n    @staticmethod\n    def fit():\n        def inner():\n"
        "            import parts.head\n        return inner\nbuild = lambda: __import__('x')",
        namespace,
    )

    assert imported_by(list(namespace.values()), "notebook") == {"parts"}


def test_the_same_files_are_the_same_archive_whatever_their_order_and_times() -> None:
    files = {"pkg/a.py": b"1", "b.py": b"2"}

    assert pack(files) == pack(dict(reversed(files.items())))
    assert unpack(pack(files)) == files
    assert pack(files) != pack({**files, "b.py": b"3"})


def entry(name: str, *, mode: int = stat.S_IFREG | 0o600) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../up.py")],
        [entry("/etc/passwd")],
        [entry("a/../../up.py")],
        [entry("a//b.py")],
        [entry("./a.py")],
        [entry("a\\b.py")],
        [entry("a\nb.py")],
        [entry("folder/")],
        [entry("link.py", mode=stat.S_IFLNK | 0o777)],
        [entry("pipe", mode=stat.S_IFIFO | 0o600)],
        [entry("a.py"), entry("a.py")],
        [entry("a"), entry("a/b.py")],
    ],
    ids=lambda entries: entries[-1].filename.encode("unicode_escape").decode(),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_entry_of_an_archive_leads_out_of_its_folder(entries: list[zipfile.ZipInfo]) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for info in entries:
            opened.writestr(info, b"1")

    with pytest.raises(PayloadError, match="somebody else than gridfleet made it"):
        unpack(stream.getvalue())


def test_an_archive_that_would_unpack_to_more_than_is_packed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack({"zeros": bytes(10_000)})
    monkeypatch.setattr(archive, "MAX_BYTES", 9_999)

    with pytest.raises(PayloadError, match="more than gridfleet packs"):
        unpack(packed)


@pytest.mark.parametrize("damage", [lambda packed: packed[:-30], lambda packed: packed.replace(b"spam", b"eggs", 1)])
def test_a_damaged_archive_is_refused(damage: Callable[[bytes], bytes]) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr(entry("a.py"), b"spam")

    with pytest.raises(PayloadError, match="is damaged"):
        unpack(damage(stream.getvalue()))


@pytest.fixture
def threads_take_turns_within_a_call() -> Iterator[None]:
    """Let Python run in the middle of what is written in C, where another thread may go on."""

    def take_turns(*_: object) -> None:
        time.sleep(0)

    thresholds = gc.get_threshold()
    gc.callbacks.append(take_turns)
    gc.set_threshold(20)
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks.remove(take_turns)


@pytest.mark.usefixtures("threads_take_turns_within_a_call")
def test_threads_that_parse_at_once_do_not_mix_up_how_deep_their_trees_are() -> None:
    function = "def f{0}(a=[1, {{2: (3,)}}]):\n    import m{0}\n    return [x for x in a if (x, [a])]\n"
    source = "".join(function.format(number) for number in range(50)).encode()

    with ThreadPoolExecutor(8) as threads:
        trees = list(threads.map(parse, [source] * 40))

    assert {len(tree.body) for tree in trees} == {50}
