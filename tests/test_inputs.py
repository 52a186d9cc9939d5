"""What the words behind MODEL stand for."""

import io
import os
import shutil

import datasets
import pandas as pd
import pytest
from PIL import Image

from common.data.splits import Reading, read_groups
from common.images.files import BadSampleError
from common.predict.inputs import list_images, open_inputs


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "sub/c.tif", "sub/.hidden.jpg", ".cache/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            Image.new("RGB", (4, 3), "red").save(file, "PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


def names(photos, paths):
    return [path.removeprefix(f"{photos}/") for path in paths]


def test_folders_are_searched_and_sorted(photos):
    assert names(photos, list_images([str(photos)])) == ["a.PNG", "b.jpg", "sub/c.tif"]


def test_links_are_followed_and_results_are_not_images(photos, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(photos / "b.jpg", tmp_path / "elsewhere" / "far.jpg")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "sub" / "up").symlink_to(photos)  # a circle
    for name, state in (("predictions", "prediction_state.json"), ("run", "run_status.json")):
        (photos / name / "plots").mkdir(parents=True)
        (photos / name / state).write_text("{}")
        shutil.copy(photos / "b.jpg", photos / name / "plots" / "mask.png")
    assert names(photos, list_images([str(photos)])) == ["a.PNG", "b.jpg", "linked/far.jpg", "sub/c.tif"]
    assert "files that are no images: 1 .txt, 1 .jpg" in caplog.text  # a hidden one
    assert "folders of results: predictions, run" in caplog.text and "back to where they are: sub/up" in caplog.text
    assert names(photos, list_images([str(photos / "run")])) == [
        "run/plots/mask.png"
    ]  # unless it is what was asked for


def test_lists_of_names(photos):
    (photos / "007").write_bytes((photos / "b.jpg").read_bytes())
    (photos / "list.txt").write_text("b.jpg\n\nsub/c.tif\ngone.jpg\n")
    inputs = open_inputs([str(photos / "list.txt")])
    assert names(photos, inputs.names) == ["b.jpg", "sub/c.tif", "gone.jpg"]
    assert inputs.images.load(1, inputs.images.encoded([1])[0]).size == (4, 3)
    (photos / "list.txt").write_text("b\n")
    inputs = open_inputs([str(photos / "list.txt")], reading=Reading(suffix=".jpg"))
    assert names(photos, inputs.names) == ["b.jpg"]
    (photos / "list.txt").write_text("007\n")
    assert names(photos, open_inputs([str(photos / "list.txt")]).names) == ["007"]
    (photos / "list.txt").write_text("image\tplot\nb.jpg\t7\n")  # a table
    assert open_inputs([str(photos / "list.txt")]).names == ["b.jpg"]


def test_names_in_no_known_encoding_are_broken_images(photos):
    (photos / os.fsdecode(b"caf\xe9.jpg")).write_bytes((photos / "b.jpg").read_bytes())
    inputs = open_inputs([str(photos)])
    row = inputs.names.index(f"{photos}/caf\\xe9.jpg")
    with pytest.raises(BadSampleError, match="No such file"):
        inputs.images.load(row, inputs.images.encoded([row])[0])


def test_files_patterns_and_folders_mix_without_repetition(photos):
    found = list_images([str(photos / "b.jpg"), str(photos / "**/*.tif"), str(photos), str(photos / "notes.txt")])
    assert names(photos, found) == ["b.jpg", "sub/c.tif", "a.PNG", "notes.txt"]  # what is named itself is believed


def test_a_file_whose_name_is_a_pattern(photos):
    (photos / "x[1].jpg").write_bytes((photos / "b.jpg").read_bytes())
    assert names(photos, list_images([str(photos / "x[1].jpg")])) == ["x[1].jpg"]


@pytest.mark.parametrize(
    ("word", "message"),
    [("nothing", "no file or folder"), ("*.gif", "no image in"), ("empty", "no image in"), ("no.csv", "no file")],
)
def test_nothing_there(photos, word, message):
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        open_inputs([str(photos / word)])


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_tables(photos, kind):
    table = pd.DataFrame({"file": ["b.jpg", "sub/c.tif"], "plot": [7, None]})
    path = photos / f"table.{kind}"
    match kind:
        case "parquet":
            table.to_parquet(path)
        case "jsonl":
            table.to_json(path, orient="records", lines=True)
        case _:
            table.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    inputs = open_inputs([str(path)], "file")
    assert inputs.names == ["b.jpg", "sub/c.tif"] and read_groups(inputs.rows, "plot") == ["7", None]
    assert inputs.images.load(1, inputs.images.encoded([1])[0]).size == (4, 3)
    with pytest.raises(ValueError, match="no column 'file2'.*Did you mean 'file'"):
        open_inputs([str(path)], "file2")


@pytest.mark.parametrize("cell", ["../outside.png", "{folder}/outside.png", "link.png"])
def test_paths_in_tables_stay_inside_their_folder(photos, tmp_path, cell):
    outside = tmp_path / "outside.png"
    outside.write_bytes((photos / "b.jpg").read_bytes())
    (photos / "link.png").symlink_to(outside)
    (photos / "t.csv").write_text(f"image\n{cell.format(folder=tmp_path)}\n")
    inputs = open_inputs([str(photos / "t.csv")])
    with pytest.raises(ValueError, match="lies outside"):
        inputs.images.load(0, inputs.images.encoded([0])[0])


def test_data_sets(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": "x.png"}
    one = datasets.Dataset.from_dict({"image": [image, {**image, "path": None}]}).cast_column(
        "image", datasets.Image()
    )
    one.save_to_disk(tmp_path / "one")
    assert open_inputs([str(tmp_path / "one")]).names == ["x.png", ""]
    datasets.DatasetDict(a=one, b=one.select([1])).save_to_disk(tmp_path / "two")
    assert len(open_inputs([str(tmp_path / "two")], split="b")) == 1
    with pytest.raises(ValueError, match="several splits; choose one with --split: a, b"):
        open_inputs([str(tmp_path / "two")])
    with pytest.raises(ValueError, match="No split 'c'"):
        open_inputs([str(tmp_path / "two")], split="c")
    with pytest.raises(ValueError, match="as the only input"):
        open_inputs([str(tmp_path / "two"), str(tmp_path)])


def test_fingerprint_knows_files_apart(photos):
    first = open_inputs([str(photos)]).fingerprint()
    assert open_inputs([str(photos)]).fingerprint() == first
    (photos / "b.jpg").write_bytes(b"another")
    assert open_inputs([str(photos)]).fingerprint() != first
    (photos / "e.jpg").write_bytes(b"one more")
    assert open_inputs([str(photos)]).fingerprint() != first
