import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castor.data.rows.schemas import QARow, parse_row
from castor.data.sources.file_names import is_data_file
from castor.data.sources.files import read_records
from castor.data.sources.hub import read_hub
from castor.data.sources.record import RowError
from castor.io.errors import CastorError
from castor.io.files import atomic_write, fingerprint, sha256_file, write_json, write_jsonl, write_text

ROWS = [{"prompt": f"p{i} é", "response": "a", "category": {"x,y": bool(i % 2)}} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def parquet_bytes(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def raws(path):
    return [record.raw for record in read_records(path)]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (".jsonl", LINES),
        (".jsonl", LINES.rstrip(b"\n")),
        (".jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")),
        (".json", json.dumps(ROWS).encode()),
        (".json", json.dumps({"version": "1", "data": ROWS, "tags": ["a"]}).encode()),
        (".json", (json.dumps(ROWS[:2]) + json.dumps(ROWS[2:]) + "\n").encode()),
        (".json", LINES),
        (".parquet", parquet_bytes(ROWS)),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, kind, content, compression):
    path = tmp_path / f"rows.v1{kind}{compression}"
    path.write_bytes(COMPRESS[compression](content))
    assert raws(path) == ROWS


def test_locations_count_lines_and_rows_from_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n" + LINES)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(ROWS))
    assert [r.location.split("/")[-1] for r in read_records(tmp_path / "a.jsonl")] == [
        f"a.jsonl:{n}" for n in (2, 3, 4)
    ]
    assert next(read_records(tmp_path / "a.json")).location.split("/")[-1] == "a.json:row 1"
    assert [r.location.split("/")[-1] for r in read_records(tmp_path / "a.parquet")][2] == "a.parquet:row 3"


@pytest.mark.parametrize("bad", [b'{"prompt": "p", ', b'{"prompt": "\xff"}', b"[" * 100_000, b"9" * 5000])
def test_a_malformed_line_is_a_bad_row_and_the_rest_is_read(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES + bad + b"\n" + LINES)
    records = list(read_records(path))
    assert [r.raw for r in records if not isinstance(r.raw, RowError)] == ROWS + ROWS
    assert records[3].location == f"{path}:4"
    assert records[3].raw.reason == "malformed line"


def test_a_line_that_is_no_object_is_a_bad_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('"text"\n')
    assert raws(tmp_path / "rows.jsonl")[0].reason == "wrong type"


def damaged(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CastorError) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_cut_files_are_errors_that_name_the_place(tmp_path):
    many = LINES * 500
    assert "rows.jsonl:3 ends in the middle of a row" in damaged(tmp_path, "rows.jsonl", LINES[:-9])
    assert "cut short or damaged" in damaged(tmp_path, "rows.jsonl.gz", gzip.compress(many)[:-40])
    assert "cut short or damaged" in damaged(tmp_path, "rows.jsonl.xz", lzma.compress(many)[:-40])
    assert "cut short or damaged" in damaged(tmp_path, "plain.jsonl.gz", LINES)
    assert "cannot be read to its end" in damaged(tmp_path, "rows.jsonl.zst", COMPRESS[".zst"](many)[:-40])
    assert "cannot be read to its end" in damaged(tmp_path, "plain.jsonl.zst", LINES)
    assert "rows.csv is not CSV after line 1 (unexpected end of data)" in damaged(
        tmp_path, "rows.csv", b'prompt,response\np,"cut sho'
    )
    assert "rows.csv is not UTF-8" in damaged(tmp_path, "rows.csv", b"prompt\n\xff\n")
    assert "rows.json:1 is not JSON" in damaged(tmp_path, "rows.json", json.dumps(ROWS).encode()[:-5])
    assert "rows.json:2 is not UTF-8" in damaged(tmp_path, "rows.json", b'[{"prompt":\n "\xff"}]')
    assert "cannot be read as Parquet" in damaged(tmp_path, "rows.parquet", parquet_bytes(ROWS)[:-20])
    assert "cannot be read as Parquet" in damaged(tmp_path, "empty.parquet.gz", gzip.compress(b""))


def test_a_flipped_byte_in_a_compressed_file_is_an_error(tmp_path):
    content = bytearray(gzip.compress(LINES * 500))
    content[len(content) // 2] ^= 0xFF
    damaged(tmp_path, "rows.jsonl.gz", bytes(content))


@pytest.mark.parametrize("row", [{"messages": [{"role": "user"}]}, {"chosen": [{"role": "user"}], "rejected": []}])
def test_an_object_of_json_with_lists_of_messages_is_a_row(tmp_path, row):
    (tmp_path / "rows.json").write_text(json.dumps(row) + json.dumps(row))
    assert raws(tmp_path / "rows.json") == [row, row]


def test_json_without_rows_is_an_error(tmp_path):
    assert "2 lists of rows (keys: 'train', 'test')" in damaged(tmp_path, "a.json", b'{"train": [{}], "test": [{}]}')
    assert "holds a str" in damaged(tmp_path, "b.json", b'"text"')


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(CastorError, match=r"there is no file .*gone\.jsonl"):
        list(read_records(tmp_path / "gone.jsonl"))
    (tmp_path / "rows.tsv").write_text("prompt")
    with pytest.raises(CastorError, match=r"rows\.tsv is of an unknown kind; give a \.jsonl, \.json, \.parquet, \.csv"):
        list(read_records(tmp_path / "rows.tsv"))
    assert is_data_file("a.b/C.JSONL.gz")
    assert not is_data_file("PKU-Alignment/PKU-SafeRLHF")
    assert not is_data_file("rows.gz")
    assert is_data_file("s3://bucket/rows.csv.zst?versionId=1")
    assert not is_data_file("https://host/rows?file=a.jsonl")


def test_csv_cells_are_texts_which_the_fields_of_a_row_read(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "\ufeffprompt,response,is_safe,category,severity_level,history\n"
        '"two\nlines",1,True,,0,\n'
        'p,true,False,"{""self_harm"": true}",3,"[[""u"", ""v""]]"\n'
        "p,a,nan,self_harm,,\n"
        "p,a\n"
    )
    records = list(read_records(tmp_path / "rows.csv"))
    labels = {"is_safe": "True", "category": None, "severity_level": "0", "history": None}
    assert records[0].raw == {"prompt": "two\nlines", "response": "1"} | labels
    assert parse_row(records[0].raw) == QARow("two\nlines", "1", True, None, 0)
    assert parse_row(records[1].raw) == QARow("p", "true", False, frozenset({"self_harm"}), 3, (("u", "v"),))
    assert parse_row(records[2].raw) == QARow("p", "a", None, frozenset({"self_harm"}))
    assert (records[3].raw.reason, records[3].location) == ("malformed line", f"{tmp_path / 'rows.csv'}:6")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet", "rows.csv.zst"])
def test_urls_are_read_like_files(name):
    content = {"rows.jsonl.gz": gzip.compress(LINES), "rows.parquet": parquet_bytes(ROWS)}
    content["rows.csv.zst"] = COMPRESS[".zst"](b"prompt,response\np0 \xc3\xa9,a\n")
    with fsspec.open(f"memory://castor/{name}", "wb") as file:
        file.write(content[name])
    records = list(read_records(f"memory://castor/{name}"))
    assert records[0].raw["prompt"] == "p0 é"
    assert records[0].location.startswith(f"memory://castor/{name}:")


def test_urls_that_cannot_be_opened(tmp_path):
    with pytest.raises(CastorError, match=r"there is nothing at memory://castor/gone\.jsonl"):
        list(read_records("memory://castor/gone.jsonl"))
    with pytest.raises(CastorError, match=r"nonsense://a\.jsonl cannot be opened: Protocol not known"):
        list(read_records("nonsense://a.jsonl"))
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    assert raws(f"file://{tmp_path}/rows.jsonl") == ROWS


def test_hub_reads_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(LINES)
    records = list(read_hub(str(folder), None, "train", None))
    assert [record.raw for record in records] == ROWS
    assert records[1].location == f"{folder}[train]:row 2"
    with pytest.raises(CastorError, match=r"split 'test'.*Unknown split"):
        list(read_hub(str(folder), None, "test", None))
    script = tmp_path / "scripted"
    script.mkdir()
    (script / "scripted.py").touch()
    with pytest.raises(CastorError, match="scripts are no longer supported"):
        list(read_hub(str(script), None, "train", None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CastorError, match="cannot load the data set"):
        list(read_hub(str(tmp_path / "empty"), None, "train", None))


def test_unreachable_hub_says_how_to_use_files(tmp_path):
    script = (
        "from castor.data.sources.hub import read_hub\nfrom castor.io.errors import CastorError\n"
        "try:\n    list(read_hub('castor-tests/absent', 'default', 'train', 'v0'))\n"
        "except CastorError as error:\n    print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "castor-tests/absent (split 'train', name 'default', revision 'v0')" in output.stdout
    assert "give the path of its .jsonl" in output.stdout


def test_write_helpers(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "é\n")
    write_json(tmp_path / "a.json", {"b": [1, "é"]})
    write_jsonl(tmp_path / "a.jsonl", [{"t": "\ud800"}, {"t": "é"}])
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é\n".encode()
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, "é"]}
    assert raws(tmp_path / "a.jsonl") == [{"t": "\ud800"}, {"t": "é"}]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, "é"]}


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "state.json"
    write_text(path, "old")

    def write_half():
        with atomic_write(path, "wb") as handle:
            handle.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_costs_nothing(small_disk):
    path = small_disk / "rows.jsonl"
    write_text(path, "old")
    with pytest.raises(CastorError, match=r"cannot write .*rows\.jsonl: No space left on device \([\d,]+ bytes free\)"):
        write_text(path, "x" * 100_000)
    with pytest.raises(CastorError, match="No space left"):  # the write fits the buffer and fails only when flushed
        write_jsonl(path, ({"n": "x" * 1000} for _ in range(100)))
    assert path.read_text() == "old"
    assert list(small_disk.iterdir()) == [path]


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == expected


def test_fingerprint_ignores_the_order_of_keys_only():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    with pytest.raises(TypeError):
        fingerprint({1, 2})
