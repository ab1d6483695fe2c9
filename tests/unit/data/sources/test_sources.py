"""Named sets, folders, functions: where raw rows come from."""

import pytest
from datasets import Dataset, DatasetDict

from castor.config.data import DataSource
from castor.config.pipeline import Config
from castor.data.rows.load import load_prompts
from castor.data.sources.hub import read_hub
from castor.data.sources.known_sets import NAMED_SETS, find_set, misspelt_id, unknown_name
from castor.data.sources.read import raw_records
from castor.data.sources.report import RowReport
from castor.io.errors import CastorError
from castor.run.check import check
from castor.run.plan import make_plan

ROWS = [{"prompt": "p0"}, {"prompt": "p1"}]


def prompts(source, **options):
    return load_prompts(DataSource(source=str(source), **options), RowReport())


@pytest.mark.parametrize("name", ["PKU-SafeRLHF", "pku-saferlhf", "PKU-Alignment/PKU-SAFERLHF", "SafeRLHF"])
def test_sets_are_found_whatever_the_case(name):
    assert find_set(name).id == "PKU-Alignment/PKU-SafeRLHF"


def test_pinned_revisions_are_commits():
    pins = [named.revision for named in NAMED_SETS] + [pin for named in NAMED_SETS for pin in named.revisions.values()]
    assert all(pin is None or (len(pin) == 40 and set(pin) <= set("0123456789abcdef")) for pin in pins)
    assert find_set("beavertails").revision != find_set("saferlhf").revision


@pytest.fixture
def asked(monkeypatch):
    """What `load_dataset` is asked for; it answers with two prompts."""
    calls = []

    def load_dataset(id, **options):
        calls.append((id, options["name"], options["data_dir"], options["split"], options["revision"]))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return calls


def test_known_sets_are_read_at_their_pinned_revision(asked):
    pku, v0 = "9421ffafec3fa40a1f1a7d567b4d525079477ecb", "ff7ba91063016c78a225b0f74e1c0860bb18230f"
    assert prompts("pku-saferlhf") == ["p0", "p1"]
    prompts("PKU-SafeRLHF", name="alpaca2-7b", split="test", revision="v0")
    prompts("PKU-SafeRLHF", revision="main")
    prompts("hh-rlhf", name="harmless-base", split="train[:10%]+test")
    prompts("someone/own-set", name="c")
    assert asked == [
        ("PKU-Alignment/PKU-SafeRLHF", None, None, "train", pku),
        ("PKU-Alignment/PKU-SafeRLHF", "alpaca2-7b", None, "test", v0),
        ("PKU-Alignment/PKU-SafeRLHF", None, None, "train", "main"),
        ("Anthropic/hh-rlhf", None, "harmless-base", "train[:10%]+test", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"),
        ("someone/own-set", "c", None, "train", None),
    ]


def test_a_set_without_a_pin_says_that_the_newest_revision_is_read(asked):
    report = RowReport()
    list(read_hub("beavertails-evaluation", None, "test", None, report))
    assert "no pinned revision is known, so the newest one is read" in report.summary()
    report = RowReport()
    list(read_hub("beavertails-evaluation", None, "test", "abc", report))
    assert report.notes == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "BeaverTail",
            {},
            "no file, folder or known data set 'BeaverTail'; the nearest known sets are PKU-Alignment/Beav",
        ),
        ("PKU-Alignment/PKU-SafeRHLF", {}, "did you mean PKU-Alignment/PKU-SafeRLHF?.* give its revision"),
        ("beavertails", {}, "BeaverTails has no split 'train'; set split to one of 30k_train, 30k_test, 330k_train"),
        ("saferlhf", {"name": "alpaca-13b"}, "no configuration 'alpaca-13b'; set name to one of default, alpaca-7b"),
        ("alpaca", {"name": "x"}, "tatsu-lab/alpaca has no configuration 'x'; leave name out"),
    ],
)
def test_wrong_names_list_the_right_ones(asked, name, options, message):
    with pytest.raises(CastorError, match=message):
        prompts(name, **options)
    assert asked == []


def test_names_are_checked_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rows_to_check.py").write_text("def make(source): return []\ndef two(source, more): return []\n")

    def finding(*sources):
        config = Config.model_validate({"sft": {"model": "org/base", "data": list(sources)}})
        try:
            check(make_plan(config))
        except CastorError as error:
            return str(error)
        return None

    for known in ("BeaverTails", "someone/own-set", "s3://bucket/rows.jsonl.zst", "rows_to_check:make", "synthetic"):
        assert finding({"source": known}) is None
    assert "sft.data.source: there is no file, folder or known data set 'Bever'" in finding({"source": "Bever"})
    assert "sft.data.source: own.rows:make: No module named 'own'" in finding({"source": "own.rows:make"})
    assert "will be called with (source): missing a required argument: 'more'" in finding(
        {"source": "rows_to_check:two"}
    )
    assert "sft.data.source: there is no gone.csv.zst: fix" in finding({"source": "gone.csv.zst"})
    mixed = [{"source": "BeaverTails", "weight": 1}, {"source": "saferlhf"}]
    assert "sft.data: saferlhf has no weight" in finding(*mixed)


def test_an_id_that_only_resembles_a_known_one_passes_with_its_revision(asked):
    prompts("PKU-Alignment/PKU-SafeRHLF", revision="main")
    assert len(asked) == 1
    assert unknown_name("someone/own-set") is misspelt_id("someone/own-set") is misspelt_id("tatsu-lab/alpaca") is None


def test_a_saved_folder(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "both")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert prompts(tmp_path / "both", split="test") == ["p0"]
    assert prompts(tmp_path / "one") == ["p0", "p1"]
    with pytest.raises(CastorError, match="has no split 'dev'; set split to one of train, test"):
        prompts(tmp_path / "both", split="dev")
    (tmp_path / "one" / "dataset_info.json").unlink()
    with pytest.raises(CastorError, match="cannot be read as a saved data set"):
        prompts(tmp_path / "one")


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_functions.py").write_text(
        "def generated(source):\n    return ({'prompt': f'{source.split} {i}'} for i in range(2))\n"
        "def text(source):\n    return 'rows'\ndef numbers(source):\n    return [1]\n"
        "def breaks(source):\n    yield {'prompt': 'p'}\n    raise OSError('the disk is full')\n"
    )
    assert prompts("own_functions:generated", split="dev") == ["dev 0", "dev 1"]
    records = list(raw_records(DataSource(source="own_functions:numbers"), "qa"))
    assert (records[0].location, records[0].raw.reason) == ("own_functions:numbers:row 1", "wrong type")
    message = r"own_functions:breaks failed: OSError: the disk is full \(.*own_functions\.py, line 9: raise OSError"
    with pytest.raises(CastorError, match=message):
        prompts("own_functions:breaks")
    with pytest.raises(CastorError, match="own_functions:text returned str; it must return an iterable of rows"):
        prompts("own_functions:text")
    with pytest.raises(
        CastorError, match="own_functions:gone: module own_functions has no function gone; check the function's name"
    ):
        prompts("own_functions:gone")
    with pytest.raises(CastorError, match="no_such_module:rows: No module named 'no_such_module'; start castor in"):
        prompts("no_such_module:rows")
