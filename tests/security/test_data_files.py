"""Data files that are not what they say: one sentence, before memory is taken for them."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gridfleet.scheduler.search_file import data, npz, parquet_pages
from gridfleet.scheduler.search_file.data import DataFile, read_data
from gridfleet.storage.errors import InvalidSearchError

#: Seconds within which a refusal comes: reading 32 GiB would take longer.
AT_ONCE_S = 30
#: MB by which a refusal may make this process grow.
LITTLE_MB = 100


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Read a data file that is refused: ``refused("x.npz")`` gives the sentence."""

    def read(name: str, **keys: object) -> str:
        begin = time.monotonic()
        with pytest.raises(InvalidSearchError) as error:
            read_data(DataFile(file=name, **keys), tmp_path)
        assert time.monotonic() - begin < AT_ONCE_S
        sentence = str(error.value)
        assert sentence.startswith("`data.")
        assert "\n" not in sentence
        return sentence

    return read


def _npy(shape: tuple[int, ...], descr: str = "<f8", content: bytes = b"") -> bytes:
    """Make an .npy file whose header says what it likes."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def _write_npz(file: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


Y_ENTRY = {"y.npy": _npy((2,), content=np.arange(2.0).tobytes())}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (_npy((2**32,)), "says that it has 34359738368 bytes, but 0 are there"),
        (_npy((2**32,), content=b"\0" * 64), "says that it has 34359738368 bytes, but 64 are there"),
        (_npy((2**62, 2**62)), "but 0 are there"),
        (_npy((-1, 2), content=b"\0" * 16), "bytes, but 16 are there"),
        (_npy((-2, -1), content=b"\0" * 16), "bytes, but 16 are there"),
        (_npy((2**60,), descr="|S0"), "says that it has 0 bytes, but 0 are there"),
        (_npy((2,), content=b"\0" * 24), "says that it has 16 bytes, but 24 are there"),
        (_npy((2,), descr="|O", content=b"cos\nsystem\n."), "holds Python objects, which could run code"),
        (b"\x93NUMPY\x03\x00" + b"\0" * 80, "no .npz file that can be read"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "no .npz file that can be read"),
        (_npy((2,)).replace(b"(2,)", b"eval"), "no .npz file that can be read"),
        (b"cos\nsystem\n(S'touch stolen'\ntR.", "no .npz file that can be read"),
        (b"", "no .npz file that can be read"),
    ],
)
def test_an_array_that_is_not_what_its_header_says_is_refused(
    tmp_path: Path, refused: Callable[..., str], entry: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_npz(tmp_path / "x.npz", {"X.npy": entry, **Y_ENTRY})

    assert sentence in refused("x.npz")
    assert not (tmp_path / "stolen").exists()


def test_an_archive_that_says_that_it_unpacks_to_more_than_the_bound_is_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    _write_npz(tmp_path / "x.npz", {"X.npy": _npy((2,), content=b"\0" * 16), **Y_ENTRY, "z.npy": b""})
    content = bytearray((tmp_path / "x.npz").read_bytes())
    entry = -1
    while (entry := content.find(b"PK\x01\x02", entry + 1)) >= 0:
        content[entry + 24 : entry + 28] = struct.pack("<I", 0xFFFF_FF00)  # its size in the archive's directory
    (tmp_path / "x.npz").write_bytes(content)

    assert "would unpack to 12884901120 bytes; a search file's data may have 8589934592 bytes" in refused("x.npz")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, refused: Callable[..., str]) -> None:
    # 300 MB of zeros in 300 kB
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("X.npy", "w") as entry:
            entry.write(_npy((37_500_000,)))
            for _ in range(300):
                entry.write(b"\0" * 1_000_000)
        archive.writestr("y.npy", Y_ENTRY["y.npy"])

    assert "more than 100 times as many" in refused("x.npz")


def test_what_numpy_compresses_well_is_read_all_the_same(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", X=np.zeros((100_000, 8)), y=np.zeros(100_000, dtype=int))

    X, y = read_data(DataFile(file="x.npz"), tmp_path)

    assert (X.shape, y.shape) == ((100_000, 8), (100_000,))


def test_names_that_are_there_twice_and_too_many_names_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's own, about the second X
        for _ in range(2):
            archive.writestr("X.npy", _npy((2,), content=b"\0" * 16))
    _write_npz(tmp_path / "many.npz", {f"{number}.npy": b"" for number in range(npz.MAX_ENTRIES + 1)})

    assert "has 'X.npy' more than once" in refused("twice.npz")
    assert "has 1001 arrays; an .npz file may have 1000" in refused("many.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write_are_refused(
    tmp_path: Path, refused: Callable[..., str], compression: int
) -> None:
    _write_npz(tmp_path / "x.npz", {"X.npy": _npy((2,), content=b"\0" * 16), **Y_ENTRY}, compression)

    assert "is compressed as numpy does not" in refused("x.npz")


def test_objects_in_arrays_are_not_unpickled(tmp_path: Path, refused: Callable[..., str]) -> None:
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "unpickled",)

    np.savez(tmp_path / "x.npz", X=np.arange(2.0), y=np.array([Bomb(), Bomb()]))

    assert "could run code when loaded" in refused("x.npz")
    assert not (tmp_path / "unpickled").exists()


def test_a_csv_file_of_too_many_cells_is_refused_before_it_is_parsed(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object, **__: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(pd, "read_csv", parse)
    monkeypatch.setattr(data, "MAX_CELLS", 100)
    monkeypatch.setattr(data, "MAX_FIRST_LINE", 1_000)
    (tmp_path / "long.csv").write_text("a,b\n" + "1,2\n" * 100)
    (tmp_path / "carriage.csv").write_text("a,b\r" + "1,2\r" * 100)
    (tmp_path / "wide.csv").write_text("1," * 200 + "\n" + "1," * 200)
    (tmp_path / "endless.csv").write_text("1," * 2_000)

    assert "rows of 2 columns; a search file's data may have 100 cells" in refused("long.csv", target=0)
    assert "rows of 2 columns; a search file's data may have 100 cells" in refused("carriage.csv", target=0)
    assert "2 rows of 201 columns" in refused("wide.csv", target=0)
    assert "its first line has 1000 bytes or more" in refused("endless.csv", target=0)


def test_a_parquet_file_of_too_many_cells_is_refused_before_it_is_read(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({"a": np.zeros(1_000_000), "b": 1})
    frame.to_parquet(tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    monkeypatch.setattr(data, "MAX_CELLS", 1_000_000)

    assert "has 1000000 rows of 2 columns; a search file's data may have 1000000 cells" in refused(
        "x.parquet", target="b"
    )


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pd.DataFrame({"a": np.repeat(np.arange(100.0), 1_000), "b": 1}).to_parquet(
        tmp_path / "x.parquet", compression="gzip", use_dictionary=False
    )
    monkeypatch.setattr(data, "MAX_BYTES", 100_000)

    assert "a search file's data may have 100000 bytes" in refused("x.parquet", target="b")
    assert "would unpack to" in refused("x.parquet", target="b")


def test_a_long_text_that_a_parquet_file_repeats_is_not_written_out(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x" * 100_000
    labels = pd.Categorical.from_codes(np.zeros(100_000, dtype=int), categories=[text])
    pd.DataFrame({"a": np.zeros(100_000), "b": labels}).to_parquet(tmp_path / "x.parquet")

    sentence = refused("x.parquet", target="b")

    assert "column 'b' of" in sentence
    assert "has a text of 100000 characters in 100000 rows" in sentence
    assert "is not numeric" in refused("x.parquet", target="a")


def test_one_long_label_in_a_csv_file_does_not_make_all_of_them_long(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "x.csv").write_text("a,b\n" + "1,c\n" * 100_000 + f"1,{'d' * 100_000}\n")

    assert "has a text of 100000 characters in 100001 rows" in refused("x.csv", target="b")


def _varint(number: int, size: int | None = None) -> bytes:
    """Write a number as Parquet's footer does; in more bytes than it needs, if asked."""
    zigzag, written = 2 * number, bytearray()
    while zigzag or not written:
        written.append(zigzag & 127 | 128)
        zigzag >>= 7
    written += b"\x80" * ((size or len(written)) - len(written))
    written[-1] &= 127
    return bytes(written)


def _lie_about(content: bytes, number: int, said: int) -> bytes:
    """Change a number in a Parquet file's footer, wherever it stands there."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert _varint(number) in content[start:]
    return content[:start] + content[start:].replace(_varint(number), _varint(said, len(_varint(number))))


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_what_a_parquet_file_really_unpacks_to_counts_and_not_what_its_footer_says(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    texts = pa.array([f"{number}".ljust(1_000_000) for number in range(300)])
    table = pa.table({"a": np.zeros(300), "b": texts})
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False, write_statistics=False, write_batch_size=10)
    del table, texts
    unpacked = pq.ParquetFile(buffer).metadata.row_group(0).total_byte_size
    assert unpacked > 300_000_000
    content = _lie_about(buffer.getvalue(), unpacked, 10_000)
    (tmp_path / "x.parquet").write_bytes(content)
    assert len(content) < 1_000_000
    monkeypatch.setattr(data, "MAX_BYTES", 50_000_000)
    before = pa.default_memory_pool().max_memory()

    assert "would unpack to 30000" in refused("x.parquet", target="b")
    assert pa.default_memory_pool().max_memory() == before


def test_rows_of_a_parquet_file_are_counted_in_its_pages(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    pd.DataFrame({"a": np.zeros(3_000_000), "b": 1}).to_parquet(buffer, row_group_size=3_000_000)
    (tmp_path / "x.parquet").write_bytes(_lie_about(buffer.getvalue(), 3_000_000, 10))
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.num_rows == 10
    monkeypatch.setattr(data, "MAX_CELLS", 1_000_000)

    assert "has 3000000 rows of 2 columns" in refused("x.parquet", target="b")


def test_a_footer_that_is_too_long_is_not_read(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_pages, "MAX_FOOTER", 100)
    pd.DataFrame({"a": [1.0], "b": 1}).to_parquet(tmp_path / "x.parquet")

    assert "more than 100" in refused("x.parquet", target="b")


def test_texts_that_repeat_the_beginning_of_the_one_before_are_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    table = pa.table({"a": np.zeros(100), "b": ["x" * 100_000] * 100})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False, column_encoding={"b": "DELTA_BYTE_ARRAY"})

    assert "is encoded as DELTA_BYTE_ARRAY" in refused("x.parquet", target="b")


@pytest.mark.parametrize("kind", [pa.binary(1_000_000), pa.list_(pa.float64(), 1_000_000)], ids=str)
def test_one_wide_value_that_a_parquet_file_repeats_is_not_written_out(
    tmp_path: Path, refused: Callable[..., str], kind: pa.DataType
) -> None:
    value = b"x" * 1_000_000 if pa.types.is_fixed_size_binary(kind) else [0.0] * 1_000_000
    table = pa.table({"a": np.zeros(3), "b": pa.array([value] * 3, kind)})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    pq.write_table(table.select(["b"]), tmp_path / "alone.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 100_000

    assert "holds neither numbers nor texts" in refused("x.parquet", target="b")
    assert "is not numeric" in refused("x.parquet", target="a")
    assert "has a single column; it needs one beside y's" in refused("alone.parquet", target="b")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()], ids=str
)
def test_one_long_text_that_a_parquet_file_repeats_is_held_once(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["x" * 1_000_000] * 100).cast(kind)
    pq.write_table(pa.table({"a": np.zeros(100), "b": texts}), tmp_path / "x.parquet", compression="zstd")
    del texts
    before = pa.default_memory_pool().max_memory()

    X, y = read_data(DataFile(file="x.parquet", target="b"), tmp_path)

    assert (len(X), len(y), len(y[0])) == (100, 100, 1_000_000)
    assert pa.default_memory_pool().max_memory() == before  # less than it took to write the file


def test_columns_of_one_name_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    table = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0]), pa.array([3.0])], names=["a", "a", "b"])
    pq.write_table(table, tmp_path / "x.parquet")

    assert "has the column 'a' more than once" in refused("x.parquet", target="b")


def test_a_line_of_nothing_but_commas_is_refused_before_it_is_parsed(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    before = _megabytes()
    with (tmp_path / "x.csv").open("wb") as file:
        file.write(b"a,b\n1,2\n")
        for _ in range(101):
            file.write(b"," * 1_000_000)

    assert "a search file's data may have 100000000 cells" in refused("x.csv", target="b")
    assert _megabytes() - before < LITTLE_MB


def test_a_compressed_csv_file_is_not_unpacked(tmp_path: Path, refused: Callable[..., str]) -> None:
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 1_000_000)
    (tmp_path / "x.csv").write_bytes(packed)
    (tmp_path / "x.csv.gz").write_bytes(packed)

    assert "no CSV file that can be read" in refused("x.csv", target="b")
    assert "is none of .csv, .parquet and .npz" in refused("x.csv.gz", target="b")


def test_a_directory_of_a_million_entries_is_refused_before_it_is_read(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 4) + bytes(16) + b"name"
    directory = entry * 300_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    (tmp_path / "x.npz").write_bytes(directory + end)
    before = _megabytes()

    assert "has 300000 arrays; an .npz file may have 1000" in refused("x.npz")
    assert _megabytes() - before < LITTLE_MB


@pytest.mark.parametrize("length", [20_000, 250_000_000])
def test_a_long_header_of_an_array_is_not_read(tmp_path: Path, refused: Callable[..., str], length: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("X.npy", "w") as entry:
            entry.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", length))
            for _ in range(length // 10_000):
                entry.write(b" " * 10_000)
        archive.writestr("y.npy", Y_ENTRY["y.npy"])
    before = _megabytes()

    assert "no .npz file that can be read" in refused("x.npz")
    assert _megabytes() - before < LITTLE_MB


@pytest.mark.parametrize("kind", ["<M8[s]", "<c16", "|V8"])
def test_a_target_of_neither_numbers_nor_texts_is_refused(
    tmp_path: Path, refused: Callable[..., str], kind: str
) -> None:
    np.savez(tmp_path / "x.npz", X=np.zeros((2, 2)), y=np.zeros(2, dtype=kind))

    assert "not numbers or texts" in refused("x.npz")


def test_nested_columns_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    pd.DataFrame({"a": [1.0, 2.0], "b": [[1, 2], [3]]}).to_parquet(tmp_path / "x.parquet")

    assert "holds neither numbers nor texts" in refused("x.parquet", target="b")


def test_the_index_of_a_frame_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}, index=["first", "second"])
    frame.to_parquet(tmp_path / "x.parquet")

    X, y = read_data(DataFile(file="x.parquet", target=-1), tmp_path)

    assert (X.tolist(), y.tolist()) == ([[1.0], [2.0]], ["x", "y"])


def test_a_file_larger_than_the_bound_is_not_read(tmp_path: Path, refused: Callable[..., str]) -> None:
    for name in ("x.csv", "x.parquet", "x.npz"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(data.MAX_BYTES + 1)  # a hole, which takes no disk
        assert "has 8589934593 bytes; a search file's data may have 8589934592 bytes" in refused(name)


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_only_regular_files_of_this_machine_are_data(tmp_path: Path, refused: Callable[..., str], kind: str) -> None:
    (tmp_path / f"real.{kind}").write_text("a,b\n1,2\n")
    (tmp_path / f"link.{kind}").symlink_to(tmp_path / f"real.{kind}")
    (tmp_path / f"device.{kind}").symlink_to("/dev/zero")
    (tmp_path / f"dangling.{kind}").symlink_to("/nowhere")
    (tmp_path / f"folder.{kind}").mkdir()
    os.mkfifo(tmp_path / f"pipe.{kind}")

    for link in ("link", "device", "dangling"):
        assert f"{link}.{kind} is a symbolic link; name the file that it leads to" in refused(f"{link}.{kind}")
    for other in ("folder", "pipe"):
        assert f"{other}.{kind} is no regular file" in refused(f"{other}.{kind}")
    for url in (f"https://example.org/x.{kind}", f"file:///etc/x.{kind}", f"s3://bucket/x.{kind}"):
        assert "gridfleet reads files of this machine, so download it first" in refused(url)
    assert "there is no file" in refused(f"a\x00b.{kind}")
    assert "there is no file" in refused(f"real.{kind}/x.{kind}")


def test_a_device_is_no_data_file(refused: Callable[..., str]) -> None:
    assert "is no regular file" in refused("/dev/zero")


@pytest.mark.parametrize("cut", [1, 10, 100, 1_000])
def test_a_parquet_file_that_was_cut_is_one_sentence(tmp_path: Path, refused: Callable[..., str], cut: int) -> None:
    buffer = io.BytesIO()
    pd.DataFrame({"a": np.arange(1_000.0), "b": 1}).to_parquet(buffer)
    (tmp_path / "x.parquet").write_bytes(buffer.getvalue()[:-cut])

    assert "x.parquet is no Parquet file that can be read" in refused("x.parquet", target="b")
