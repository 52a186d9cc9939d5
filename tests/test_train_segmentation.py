"""The script end to end on tiny models: results, files, options, bad data."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import SMALLEST, TILES_TREE, draw_tile, make_tiles, words_of
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

import train_segmentation
from common.model.modeling import LabelTreeForSemanticSegmentation

REPOSITORY = Path(train_segmentation.__file__).parent
LEVELS = ["binary", "coarse", "fine"]
# What each fine class is called above: clean has no coarse class.
LIFTED = {"binary": [0, 1, 1, 1], "coarse": [-1, 0, 0, 1], "fine": [0, 1, 2, 3]}
NAMES = {
    "binary": ["clean", "defect"],
    "coarse": ["line", "spot"],
    "fine": ["clean", "scratch", "crack", "hole"],
}


def read(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def masks_of(tiles: Path) -> list[np.ndarray]:
    return [np.asarray(mask) for mask in datasets.load_from_disk(tiles)["validation"]["mask"]]


# ---- results and files


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "tree"},
        {"head": "independent", "decoder": "unet"},
        {"head": "flat"},
    ],
)
@pytest.mark.slow
def test_learns(dense_options, tmp_path, changes):
    size = {"per_device_train_batch_size": 4, "num_train_epochs": 10, "learning_rate": 1e-2}
    train_segmentation.main(dense_options(**changes, **size, scale_jitter=[1, 1.2], rot90=0, eval_epochs=100))
    results = read(tmp_path / "out")["eval"]
    assert results["levels"]["binary"]["mean_iou"] > 0.6
    assert results["levels"]["fine"]["mean_iou"] > 0.45  # of four classes; clean alone would be 0.2
    assert results["path"]["tree_inconsistency"] == 0


def test_output_contract(dense_options, tmp_path):
    returned = train_segmentation.main(dense_options(save_predictions=True, max_eval_samples=3, no_report=None))
    folder = tmp_path / "out"
    results = read(folder)
    assert set(results) == {"train", "eval"}
    assert results["train"]["global_step"] == 6 and results["train"]["samples_seen"] == 48
    assert set(results["eval"]) == {"loss", "num_samples", "num_pixels", "levels", "path", "argmax", "intervals"}
    assert results["eval"]["num_samples"] == 3
    assert list(results["eval"]["levels"]) == LEVELS
    for name, level in results["eval"]["levels"].items():
        assert set(level) == {"mean_iou", "pixel_accuracy", "mean_f1", "per_class"}
        assert list(level["per_class"]) == NAMES[name]
        for row in level["per_class"].values():
            assert set(row) == {"iou", "precision", "recall", "f1", "num_pixels"}
    assert set(results["eval"]["path"]) >= {"full_path_accuracy", "tree_inconsistency"}
    fine = returned["eval"]["levels"]["fine"]
    assert fine["mean_iou"] == results["eval"]["levels"]["fine"]["mean_iou"]
    files = {"model.safetensors", "config.json", "preprocessor_config.json", "args.yaml", "history.jsonl"}
    assert files | {"hierarchy.json", "plots", "predictions"} <= {file.name for file in folder.iterdir()}
    plots = {f"{kind}_{level}.png" for kind in ("examples", "confusion") for level in LEVELS} | {"iou.png"}
    assert plots <= {file.name for file in (folder / "plots").iterdir()}
    assert not list(folder.glob("*.tmp")) and {file.name for file in folder.glob(".*")} == {".lock"}
    saved = ["--config", str(folder / "args.yaml")]
    kind = train_segmentation.SegmentationArguments
    again = train_segmentation.parse_arguments(kind, saved, "", train_segmentation.DEMO_CONFIG)
    assert again.metric_for_best_model == "levels.fine.mean_iou" and again.level_weights == ["rising"]


@pytest.fixture(scope="module")
def saved_model(tiles, tmp_path_factory) -> Path:
    """A model that knows nothing, and finds classes everywhere."""
    folder = tmp_path_factory.mktemp("saved")
    own = {"dataset_name": tiles, "max_train_steps": 1, "no_report": True, "output_dir": folder}
    train_segmentation.main(words_of({**SMALLEST, **own, "head": "independent"}))
    model = LabelTreeForSemanticSegmentation.from_pretrained(folder)
    torch.nn.init.normal_(model.heads.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [{}, {"resize_mode": "fit"}, {"eval_crop": 32, "eval_stride": 16}, {"eval_crop": 32, "resize_longer": 40}],
    ids=["squash", "fit", "windows", "resized windows"],
)
def test_metrics_follow_from_saved_masks(dense_options, saved_model, tiles, tmp_path, changes):
    """At the masks' own sizes, with scikit-learn; ignored pixels left out."""
    saved = {"model_name_or_path": saved_model, "image_size": None, "no_pretrained": None, "decoder_channels": None}
    train_segmentation.main(dense_options(**saved, **changes, eval_only=True, save_predictions=True))
    results = read(tmp_path / "out")["eval"]
    truth, predicted = [], []
    for row, mask in enumerate(masks_of(tiles)):
        image = Image.open(tmp_path / "out" / "predictions" / f"{row:06d}.png")
        assert image.mode == "P" and image.size == mask.shape[::-1]
        truth.append(mask[mask != 255])
        predicted.append(np.asarray(image)[mask != 255])
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    assert results["num_pixels"] == len(truth)
    assert len(np.unique(predicted)) > 2  # otherwise this shows little
    for level, table in LIFTED.items():
        reference, answer = np.array(table)[truth], np.array(table)[predicted]
        reference, answer = reference[reference >= 0], answer[reference >= 0]
        found = results["levels"][level]
        labels = sorted({*reference, *answer} - {-1})
        assert found["pixel_accuracy"] == pytest.approx(accuracy_score(reference, answer), abs=1e-12)
        for name, score in (("mean_iou", jaccard_score), ("mean_f1", f1_score)):
            expected = score(reference, answer, labels=labels, average="macro", zero_division=0)
            assert found[name] == pytest.approx(expected, abs=1e-12)
        per_class = jaccard_score(reference, answer, labels=labels, average=None, zero_division=0)
        for label, value in zip(labels, per_class, strict=True):
            row = found["per_class"][NAMES[level][label]]
            assert row["iou"] == pytest.approx(value, abs=1e-12)
            assert row["num_pixels"] == (reference == label).sum()
    assert results["path"]["full_path_accuracy"] == pytest.approx((truth == predicted).mean(), abs=1e-12)


def test_evaluates_what_it_saved(dense_options, tmp_path):
    """With the windows that it was trained for, unless told otherwise."""
    train_segmentation.main(dense_options(eval_crop=32, eval_stride=16, learning_rate=1e-2))
    trained = read(tmp_path / "out")["eval"]
    again = {"eval_only": True, "model_name_or_path": tmp_path / "out", "output_dir": tmp_path / "again"}
    again |= {"image_size": None, "no_pretrained": None, "decoder_channels": None}
    train_segmentation.main(dense_options(**again))
    found = read(tmp_path / "again")["eval"]
    loss = trained["loss"]  # its convolutions may add up in another order where memory is aligned otherwise
    assert found.pop("loss") == pytest.approx(trained.pop("loss"), rel=1e-6) and found == trained
    other = train_segmentation.main(dense_options(**again, eval_stride=32))["eval"]
    assert other["loss"] != pytest.approx(loss, rel=1e-6)


def test_large_images_are_shown_in_windows(dense_options, tmp_path):
    """A scan much larger than the model's input keeps what squashing would lose."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        rows = []
        for index in range(4):
            pieces = [draw_tile(rng, [index % 4]) if index % 4 else draw_tile(rng, []) for _ in range(6)]
            image = np.hstack([piece[0][:44, :44] for piece in pieces])
            mask = np.hstack([piece[1][:44, :44] for piece in pieces])
            for name, pixels in (("image", image), ("mask", mask)):
                Image.fromarray(pixels).save(tmp_path / f"{split}{index}{name}.png")
            rows.append([f"{split}{index}image.png", f"{split}{index}mask.png"])
        pd.DataFrame(rows, columns=["image", "mask"]).to_csv(tmp_path / f"{split}.csv", index=False)
    (tmp_path / "tree.yaml").write_text(TILES_TREE)
    files = {name: tmp_path / f"{name.split('_')[0]}.csv" for name in ("train_file", "validation_file")}
    results = train_segmentation.main(
        dense_options(
            **files,
            dataset_name=None,
            hierarchy=tmp_path / "tree.yaml",
            image_size=32,
            eval_crop=64,
            per_device_train_batch_size=4,
            save_predictions=True,
        )
    )
    assert results["eval"]["num_pixels"] == sum(
        (np.asarray(Image.open(file)) != 255).sum() for file in tmp_path.glob("validation?mask.png")
    )
    assert Image.open(tmp_path / "out" / "predictions" / "000000.png").size == (264, 44)


# ---- the same run again, in other ways


@pytest.mark.slow
def test_workers_repetition_and_cache_change_nothing(dense_options, tmp_path, monkeypatch):
    monkeypatch.setattr(train_segmentation, "HF_HOME", str(tmp_path / "home"))
    runs = {"a": {}, "b": {"dataloader_num_workers": 2}, "c": {"cache_decoded": True}, "d": {"cache_decoded": True}}
    for name, changes in runs.items():
        train_segmentation.main(dense_options(**changes, dropout=0.2, max_train_steps=3, output_dir=tmp_path / name))
    for other in ("b", "c", "d"):
        for name, value in weights_of(tmp_path / "a").items():
            assert torch.equal(value, weights_of(tmp_path / other)[name]), (other, name)
        assert read(tmp_path / other)["eval"] == read(tmp_path / "a")["eval"]


# Group norm and no batch statistics anywhere: how a batch is split must not show.
SPLIT = {"model_name_or_path": "timm/test_convnext", "global_batch_size": 16, "class_weighting": "inverse_sqrt"}
SPLIT |= {"max_train_samples": 32}


@pytest.mark.parametrize("head", [pytest.param("tree", marks=pytest.mark.slow), "independent"])
def test_accumulation_changes_nothing_but_rounding(dense_options, tmp_path, head):
    """Dice and focal loss of parts of a batch add up to those of the whole."""
    losses = []
    for micro in (16, 4):
        options = dense_options(
            **SPLIT, head=head, per_device_train_batch_size=micro, output_dir=tmp_path / str(micro)
        )
        losses.append(train_segmentation.main(options)["train"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_equal_one(dense_options, tmp_path, launch):
    """The same global batches; the same evaluation of the same model to the last pixel."""
    script, split = "train_segmentation.py", {**SPLIT, "class_weighting": "none"}  # evaluation alone knows no weights
    one = train_segmentation.main(
        dense_options(
            **split,
            per_device_train_batch_size=16,
            output_dir=tmp_path / "one",
            save_predictions=True,
            boundary_tolerance=2,
        )
    )
    launch(script, 2, dense_options(**split, per_device_train_batch_size=8, output_dir=tmp_path / "two"))
    assert read(tmp_path / "two")["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=1e-3)

    evaluation = {"eval_only": True, "model_name_or_path": tmp_path / "one", "save_predictions": True}
    evaluation |= {
        "image_size": None,
        "boundary_tolerance": 2,
        "no_pretrained": None,
        "per_device_eval_batch_size": 3,
        "decoder_channels": None,
    }
    launch(script, 2, dense_options(**evaluation, output_dir=tmp_path / "eval_two"))
    together = read(tmp_path / "eval_two")["eval"]
    assert {name: together[name] for name in ("levels", "path", "argmax", "num_samples")} == {
        name: read(tmp_path / "one")["eval"][name] for name in ("levels", "path", "argmax", "num_samples")
    }
    assert together["loss"] == pytest.approx(one["eval"]["loss"], abs=1e-6)
    files = sorted(file.name for file in (tmp_path / "eval_two" / "predictions").iterdir())
    assert files == [f"{row:06d}.png" for row in range(13)]
    for file in files:
        ours, theirs = (tmp_path / name / "predictions" / file for name in ("eval_two", "one"))
        assert ours.read_bytes() == theirs.read_bytes()
    for file in ("report_data.npz", "plots.npz"):
        ours, theirs = (np.load(tmp_path / name / file) for name in ("eval_two", "one"))
        assert ours.files == theirs.files
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours.files if name != "levels")


# ---- options


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9, "layer_decay": 0.8, "channels_last": True},
        {"mixed_precision": "bf16", "image_size": 32, "per_device_train_batch_size": 2, "max_eval_samples": 2},
        {"loss": "cross_entropy", "level_weights": ["0", "0", "1"], "head": "flat", "deterministic": True},
        {"loss": ["dice=1", "lovasz"], "dice_over": "batch", "class_weighting": "inverse_sqrt", "decoder": "unet"},
        {"group_column": "tile", "report_to": "tensorboard", "lr_scheduler_type": "onecycle", "rot90": 1.0},
        {"max_train_samples": 20, "max_eval_samples": 5, "vflip": 0.5, "color_jitter": 0, "rare_crop": 0},
        {"model_name_or_path": "timm/test_vit", "dropout": 0.1, "drop_path_rate": 0.1},
    ],
)
def test_options_run(dense_options, changes):
    results = train_segmentation.main(dense_options(**changes, max_train_steps=2))
    assert results["train"]["global_step"] == 2
    assert np.isfinite(results["eval"]["loss"])
    assert results["eval"]["num_samples"] == changes.get("max_eval_samples", 13)


@pytest.mark.slow
def test_an_auxiliary_head_trains_and_is_not_saved(dense_options, tmp_path):
    changes = {"aux_weight": 0.4, "loss": ["focal=0.5", "cldice"], "ema_decay": 0.9, "boundary_tolerance": 2}
    changes |= {"test_split": "validation", "image_size": 32, "per_device_train_batch_size": 2}  # skeletons take long
    results = train_segmentation.main(dense_options(**changes, max_train_steps=2))
    assert results["test"]["loss"] == pytest.approx(results["eval"]["loss"])  # of the saved model
    assert "mean_boundary_f1" in results["eval"]["levels"]["fine"]
    assert not any("auxiliary" in name for name in weights_of(tmp_path / "out"))
    again = train_segmentation.main(dense_options(**changes, max_train_steps=2))  # a finished run
    assert again["train"]["global_step"] == 2


@pytest.mark.slow
def test_curriculum(dense_options, tmp_path, capfd):
    """Heads that are not in use yet stay as they are, weight decay or not; the stages are said."""
    stages = ["1=1,0,0", "1=0.2,1,0", "1=0.2,0.3,1"]
    words = {"curriculum": stages, "curriculum_schedule": "restart", "max_train_samples": 16}  # 2 steps an epoch
    base = dense_options(**words, head="independent", weight_decay=0.5)
    config = LabelTreeForSemanticSegmentation
    rows = {}
    for steps in (1, 2, 4, 6):
        train_segmentation.main([*base, "--max_train_steps", str(steps), "--eval_epochs", "9"])
        rows[steps] = config.from_pretrained(tmp_path / "out").heads.weight.detach().split([2, 2, 4])
    unused = [torch.equal(rows[1][level], rows[2][level]) for level in range(3)]
    assert unused == [False, True, True]
    assert [torch.equal(rows[2][level], rows[4][level]) for level in range(3)] == [False, False, True]
    assert not torch.equal(rows[4][2], rows[6][2])
    output = capfd.readouterr().err
    assert "stage 2 of 3: binary 0.2, coarse 1, fine 0 (learning rate restarts)" in output


def test_goes_on_from_a_saved_model(dense_options, tmp_path):
    """Whole with the same label tree; with another one its backbone."""
    train_segmentation.main(dense_options(max_train_steps=2))
    saved = {
        "model_name_or_path": tmp_path / "out",
        "no_pretrained": None,
        "image_size": None,
        "decoder_channels": None,
    }
    again = train_segmentation.main(
        dense_options(**saved, learning_rate=1e-12, max_train_steps=1, output_dir=tmp_path / "again")
    )
    assert np.isfinite(again["eval"]["loss"])
    first, second = weights_of(tmp_path / "out"), weights_of(tmp_path / "again")
    learned = [name for name in first if "running" not in name and "num_batches" not in name]
    assert learned and all(torch.allclose(first[name], second[name], atol=1e-6) for name in learned)
    (tmp_path / "flat.yaml").write_text("levels: [fine]\ntree: [clean, scratch, crack, hole]\n")
    other = train_segmentation.main(
        dense_options(**saved, hierarchy=tmp_path / "flat.yaml", max_train_steps=1, output_dir=tmp_path / "flat")
    )
    assert list(other["eval"]["levels"]) == ["fine"]


CONFIGS = sorted((REPOSITORY / "configs").glob("artefact_*.yaml"))
# One for each network; test_readme.py runs all of them with small ones.
CONTENTS = {file: yaml.safe_load(file.read_text()) for file in CONFIGS}
CONFIGS = list({CONTENTS[file]["model_name_or_path"]: file for file in CONFIGS}.values())


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_configs_build_and_run(config, tmp_path):
    """Two steps at the real architecture, with random weights and small images."""
    content = CONTENTS[config]
    folder = tmp_path / "artefact"
    splits = {}
    for split, seed in (("train", 1), ("validation", 2)):
        tiles = make_tiles(4, seed)
        columns = {"image": tiles["image"][:], "mask": tiles["mask"][:], "content": [f"{split} {i}" for i in range(4)]}
        splits[split] = datasets.Dataset.from_dict(columns)
        splits[split] = splits[split].cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(folder)
    words = ["--config", str(config), "--dataset_name", str(folder), "--no_pretrained", "--image_size", "64"]
    words += ["--hierarchy", str(REPOSITORY / "hierarchies" / "artefact.yaml"), "--output_dir", str(tmp_path / "out")]
    words += ["--global_batch_size", "2", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2"]
    words += ["--max_train_steps", "2", "--dataloader_num_workers", "0", "--mixed_precision", "no", "--no_report"]
    words += ["--image_column", "image", "--mask_column", "mask", "--decoder_channels", "16"]
    if content.get("group_column"):
        words += ["--group_column", "content"]
    if content.get("eval_crop"):
        words += ["--eval_crop", "64", "--resize_longer", "64"]
    results = train_segmentation.main(words)
    assert results["train"]["global_step"] == 2 and list(results["eval"]["levels"]) == LEVELS


# ---- bad data


def with_mask(tiles: Path, folder: Path, row: int, mask: np.ndarray | bytes, split: str = "train") -> Path:
    """The tiles with another mask in one row."""
    splits = datasets.load_from_disk(tiles)
    plain = splits[split].cast_column("mask", datasets.Image(decode=False))
    cells = plain["mask"][:]
    if isinstance(mask, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        mask = buffer.getvalue()
    cells[row] = {"bytes": mask, "path": cells[row]["path"]}
    columns = {name: cells if name == "mask" else plain[name][:] for name in plain.column_names}
    dataset = datasets.Dataset.from_dict(columns)
    splits[split] = dataset.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    splits.save_to_disk(folder)
    (folder / "hierarchy.yaml").write_text(TILES_TREE)
    return folder


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda mask: np.where(mask == 1, 17, mask), r"row 5 of the train split, file 5_mask.png: mask values \[17\]"),
        (lambda mask: np.where(mask == 255, 4, mask), r"neither a class \(0 to 3\) nor 255"),
        (
            lambda mask: mask[:-1],
            r"row 5 of the train split, file 5_mask.png: it is \d+ x \d+ pixels large, its image",
        ),
        (lambda mask: np.dstack([mask, mask, mask + 1]), "--mask_palette"),
    ],
)
def test_wrong_masks_are_found_before_training(dense_options, tiles, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(train_segmentation, "make_optimizer", lambda *args: pytest.fail("too late"))
    mask = np.asarray(datasets.load_from_disk(tiles)["train"][5]["mask"])
    folder = with_mask(tiles, tmp_path / "wrong", 5, change(mask).astype(np.uint8))
    with pytest.raises(ValueError, match=message):
        train_segmentation.main(dense_options(dataset_name=folder))


def test_wrong_masks_are_skipped_and_listed(dense_options, tiles, tmp_path):
    mask = np.asarray(datasets.load_from_disk(tiles)["validation"][3]["mask"])
    folder = with_mask(tiles, tmp_path / "wrong", 3, np.where(mask == 3, 9, mask).astype(np.uint8), "validation")
    results = train_segmentation.main(dense_options(dataset_name=folder, on_bad_sample="skip"))
    assert results["eval"]["num_samples"] == 12
    listed = json.loads((tmp_path / "out" / "skipped_images.json").read_text())
    assert len(listed) == 1 and "row 3 of the validation split" in listed[0] and "[9]" in listed[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask_column": "masks"}, "no column 'masks'.*Did you mean 'mask'"),
        ({"hierarchy": "missing.yaml"}, "No hierarchy file at missing.yaml"),
        ({"level_weights": ["1", "2"]}, "has 2 numbers for 3 levels"),
        ({"curriculum": ["1=1,0"]}, "--curriculum has 2 numbers for 3 levels"),
        ({"metric_for_best_model": "levels.fine.miou"}, "not among the results. Did you mean levels.fine.mean_iou"),
        ({"mask_palette": "missing.yaml"}, "No palette file"),
        ({"group_column": "image"}, "not one value a row"),
    ],
)
def test_mistakes(dense_options, changes, message):
    with pytest.raises(ValueError, match=message):
        train_segmentation.main(dense_options(**changes))


def test_artworks_on_both_sides_are_an_error(dense_options, tmp_path):
    datasets.DatasetDict(train=make_tiles(16, 1), validation=make_tiles(8, 1)).save_to_disk(tmp_path / "leak")
    (tmp_path / "leak" / "hierarchy.yaml").write_text(TILES_TREE)
    with pytest.raises(ValueError, match="4 values of --group_column tile stand in training and validation"):
        train_segmentation.main(dense_options(dataset_name=tmp_path / "leak", group_column="tile"))


def test_a_model_of_the_other_script_is_refused(dense_options, options, tmp_path):
    import train_taxonomy

    train_taxonomy.main(options(max_train_steps=1))
    with pytest.raises(ValueError, match="LabelTreeForImageClassification"):
        train_segmentation.main(dense_options(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "dense"))


def test_all_ignored_masks_train_to_nothing(dense_options, tiles, tmp_path, monkeypatch):
    """A batch without a labelled pixel: a finite zero, and weights that stay what they were."""
    monkeypatch.setattr("common.run.mask_setup._check_labelled", lambda *args: None)  # it refuses such a split
    mask = np.asarray(datasets.load_from_disk(tiles)["train"][0]["mask"])
    splits = datasets.load_from_disk(tiles)
    train = splits["train"].select([0] * 8).remove_columns("mask")
    ignored = [Image.fromarray(np.full_like(mask, 255))] * 8
    columns = {"image": train["image"][:], "tile": train["tile"][:], "mask": ignored}
    splits["train"] = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    splits["train"] = splits["train"].cast_column("mask", datasets.Image())
    splits.save_to_disk(tmp_path / "ignored")
    (tmp_path / "ignored" / "hierarchy.yaml").write_text(TILES_TREE)
    results = train_segmentation.main(
        dense_options(dataset_name=tmp_path / "ignored", weight_decay=0, max_train_steps=1)
    )
    assert results["train"]["loss"] == 0
