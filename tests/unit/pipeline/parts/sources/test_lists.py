import json

import pytest
from PIL import Image

from pipeline.base.errors import DataError
from pipeline.parts.sources.listing import ALL, Finding, existing
from pipeline.parts.sources.lists import list_listed

ROWS = [("a.png", "cat", "train"), ("b/c.png", "dog", "val"), ("d.png", "cat", "test"), ("e.png", "dog", "train")]


@pytest.fixture
def folder(tmp_path):
    for path, _, _ in ROWS:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / path)
    return tmp_path


def write(folder, rows, *, form="csv", columns=("path", "label", "split")):
    file = folder / f"list.{form}"
    if form == "csv":
        file.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows), ""]))
    else:
        file.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=False))) for row in rows) + "\n\n")
    return file


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_list_names_images_labels_and_splits(folder, form):
    listing = list_listed(write(folder, ROWS, form=form))
    assert listing.labels == ("cat", "dog")
    assert listing.root == folder
    assert {name: [(i.path, i.label) for i in items] for name, items in listing.parts.items()} == {
        "train": [("a.png", 0), ("e.png", 1)],
        "validation": [("b/c.png", 1)],
        "test": [("d.png", 0)],
    }
    assert listing.findings == []


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_list_without_splits_is_one_part(folder, form):
    listing = list_listed(write(folder, [row[:2] for row in ROWS], form=form, columns=("path", "label")))
    assert list(listing.parts) == [ALL]
    assert len(listing.parts[ALL]) == 4


def test_labels_may_be_numbers(folder):
    rows = [("a.png", 1), ("d.png", 0)]
    assert list_listed(write(folder, rows, form="jsonl", columns=("path", "label"))).labels == ("0", "1")


def test_what_is_missing_on_either_side_is_found(folder):
    rows = [*ROWS[:3], ("gone.png", "dog", "train")]
    listing = list_listed(write(folder, rows))
    assert listing.findings == [
        Finding("unpaired", ("gone.png",), "in the list, but there is no such file"),
        Finding("ignored", ("e.png",), "an image in no row of the list"),
    ]
    assert [item.path for item in listing.parts["train"]] == ["a.png"]


def csv_of(*rows, header="path,label,split"):
    return "\n".join([header, *rows, ""])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (csv_of("../a.png,cat,train"), "line 2: path '../a.png' leaves the folder of the list"),
        (csv_of("/etc/a.png,cat,train"), "line 2: path '/etc/a.png' leaves the folder"),
        (csv_of("a.png,cat,train", "a.png,dog,train"), "line 3: 'a.png' stands in the list before; keep one line"),
        (csv_of("a.png,,train"), "line 2: `label` is ''; every row needs path and label"),
        (csv_of("a.png"), "line 2: `label` is None"),
        (csv_of(",cat,train"), "line 2: `path` is ''"),
        (csv_of("a.png,cat,holdout"), "line 2: split 'holdout' is unknown; use train, val or test"),
        (csv_of("a.png,cat,val", "d.png,dog,val"), "has no row with the split 'train'"),
        (csv_of("a.png,cat,train", "d.png,dog,"), "has rows with and without a split"),
        (csv_of("a.png,cat,train"), r"holds 1 class\(es\) \('cat'\); at least two are needed"),
        (csv_of("a.png,cat", header="file,class"), r"has the columns \['file', 'class'\]; its first line must name"),
        ("", "has the columns None; its first line must name path and label"),
    ],
    ids=range(12),
)
def test_lists_that_cannot_be_used_are_refused(folder, text, words):
    file = folder / "list.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        list_listed(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"path": "a.png"', "line 1 is no JSON"),
        (b'["a.png", "cat"]', "line 1 holds list; give an object with path and label"),
        (b'{"path": "a.png", "label": ["cat"]}', r"line 1: `label` is \['cat'\]"),
        ("{'ä'}".encode("latin-1"), "cannot be read .*; save it as UTF-8"),
    ],
)
def test_json_lines_that_cannot_be_used_are_refused(folder, content, words):
    file = folder / "list.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=words):
        list_listed(file)


def test_a_path_that_no_file_system_takes_is_missing(folder):
    (folder / "list.csv").write_text(f"path,label\na.png,cat\n{'x' * 300}.png,dog\n")
    (finding, *_) = [one for one in list_listed(folder / "list.csv").findings if one.kind == "unpaired"]
    assert finding.reason == "in the list, but there is no such file"


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("list", "none.csv", "`prepare.path` .*none.csv' is no file; give the list of your images"),
        ("list", "", "is no file; give the list of your images"),
        ("folder", "none", "`prepare.path` .*none' is no folder; give the folder that holds your images"),
        ("folder", "a.png", "is no folder; give the folder"),
    ],
)
def test_what_is_not_there_is_named(folder, source, name, words):
    with pytest.raises(DataError, match=words):
        existing(folder / name, source=source)
