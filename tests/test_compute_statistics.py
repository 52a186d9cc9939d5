"""Statistics against plain counting, for labels and for masks."""

import json

import numpy as np
import pytest
from conftest import LEVELS
from datasets import load_from_disk
from PIL import Image

from common.losses.class_weights import class_weights
from data_prep import compute_statistics


def run(data, output, *words):
    compute_statistics.main(["--dataset_name", str(data), "--output_dir", str(output), "--num_proc", "0", *words])
    return json.loads((output / "statistics.json").read_text())


def test_labels_sizes_and_colours(fruit, tmp_path):
    """The mean over all pixels, not the mean of images' means."""
    result = run(fruit, tmp_path / "out", "--level_columns", *LEVELS, "--num_images", "0")
    rows = load_from_disk(str(fruit))["train"]
    facts = result["splits"]["train"]
    assert result["counted"] == "images" and facts["num_rows"] == 96
    species = [name for name in rows["species"] if name]
    assert facts["levels"]["species"]["counts"] == {name: species.count(name) for name in sorted(set(species))}
    assert facts["levels"]["order"]["num_labelled"] == 96
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in rows["image"]]) / 255
    np.testing.assert_allclose(facts["images"]["mean"], pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(facts["images"]["std"], pixels.std(0), atol=1e-6)
    widths = [image.width for image in rows["image"]]
    assert facts["images"]["width"]["min"] == min(widths) and facts["images"]["width"]["median"] == np.median(widths)
    assert Image.open(tmp_path / "out" / "tail.png").size[0] > 500
    assert not (tmp_path / "out.incomplete").exists()


def test_pixels_of_masks_and_the_trainers_weights(tiles, tmp_path):
    result = run(tiles, tmp_path / "out", "--mask_column", "mask")
    masks = np.concatenate([np.asarray(mask).ravel() for mask in load_from_disk(str(tiles))["train"]["mask"]])
    counts = np.bincount(masks[masks < 255], minlength=4)
    levels = result["splits"]["train"]["levels"]
    assert list(levels["fine"]["counts"].values()) == counts.tolist()
    assert levels["binary"]["counts"] == {"clean": counts[0], "defect": counts[1:].sum()}
    ratio = counts.max() / counts.min()
    assert levels["fine"]["imbalance_ratio"] == pytest.approx(ratio, abs=1e-3)
    import torch

    expected = class_weights(torch.from_numpy(counts), "inverse_sqrt", 100.0).tolist()
    found = list(levels["fine"]["class_weights"]["inverse_sqrt"].values())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_broken_images_are_counted_and_absent_classes_named(tmp_path):
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    (tmp_path / "tree.csv").write_text("kind\na\nb\nc\n")
    (tmp_path / "train.csv").write_text("image,kind\ngood.png,a\nbad.png,b\n../out.png,a\n")
    words = ["--train_file", str(tmp_path / "train.csv"), "--label_column", "kind", "--num_proc", "0"]
    words += ["--hierarchy", str(tmp_path / "tree.csv"), "--output_dir", str(tmp_path / "out")]
    compute_statistics.main(words)
    facts = json.loads((tmp_path / "out" / "statistics.json").read_text())["splits"]["train"]
    assert (facts["images"]["num_measured"], facts["images"]["num_broken"]) == (1, 2)
    assert facts["images"]["mean"] == [1.0, 0.0, 0.0]
    assert facts["levels"]["kind"]["absent"] == ["c"]
    assert facts["levels"]["kind"]["counts"] == {"a": 2, "b": 1, "c": 0}


def test_mistakes_are_told(fruit, tmp_path):
    for words, message in (
        ([], "--level_columns"),
        (["--level_columns", "genus"], "no column 'genus'"),
        (["--level_columns", "order", "--num_images", "-1"], "at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            run(fruit, tmp_path / "out", *words)
        assert not (tmp_path / "out").exists()
