"""The script end to end on tiny models: results, files, options, broken input."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import timm
import torch
from conftest import LEVELS, PATHS, make_split
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score

import train_taxonomy
from common.model.modeling import LabelTreeForImageClassification

REPOSITORY = Path(train_taxonomy.__file__).parent


def read(folder: Path, name: str = "all_results.json") -> dict:
    return json.loads((folder / name).read_text())


# ---- results and files


@pytest.mark.parametrize(
    "head", ["tree", *(pytest.param(name, marks=pytest.mark.slow) for name in ("independent", "flat"))]
)
def test_learns(options, tmp_path, head):
    """Independent heads all train at the defaults."""
    train_taxonomy.main(options(head=head, num_train_epochs=8, eval_epochs=8))
    results = read(tmp_path / "out")["eval"]
    assert results["levels"]["species"]["accuracy"] > 0.6  # chance is 0.17
    assert results["levels"]["order"]["accuracy"] > 0.9
    assert results["path"]["tree_inconsistency"] == 0


def test_output_contract(options, tmp_path):
    returned = train_taxonomy.main(options(save_predictions=True))
    folder = tmp_path / "out"
    results = read(folder)
    modes = {(folder / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1, "whoever may read the one needs the other"
    assert set(results) == {"train", "eval"}
    assert set(results["train"]) == {
        "loss",
        "global_step",
        "epochs",
        "samples_seen",
        "skipped_steps",
        "seconds",
        "images_per_second",
    }
    assert (results["train"]["global_step"], results["train"]["epochs"], results["train"]["samples_seen"]) == (
        12,
        1,
        96,
    )
    assert set(results["eval"]) == {"loss", "num_samples", "levels", "path", "argmax", "intervals"}
    assert list(results["eval"]["levels"]) == LEVELS
    for level in results["eval"]["levels"].values():
        assert set(level) == {"accuracy", "top5_accuracy", "macro_f1", "mean_confidence", "ece", "num_labelled"}
    for decoding in ("path", "argmax"):
        assert set(results["eval"][decoding]) == {
            "full_path_accuracy",
            "tree_inconsistency",
            "hierarchical_distance",
        }
    assert returned["eval"]["levels"] == results["eval"]["levels"]
    files = {"model.safetensors", "config.json", "preprocessor_config.json", "args.yaml", "history.jsonl"}
    assert files <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["hierarchy"]["levels"] == LEVELS
    assert not list(folder.glob("*.tmp"))
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [entry["global_step"] for entry in history] == [12, 12]
    # The saved arguments describe the run: they parse again, to the same.
    again = train_taxonomy.parse_arguments(
        train_taxonomy.TaxonomyArguments, ["--config", str(folder / "args.yaml")], "", train_taxonomy.DEMO_CONFIG
    )
    assert again.num_train_epochs == 1 and again.level_columns == LEVELS


def test_metrics_follow_from_saved_predictions(options, tmp_path):
    train_taxonomy.main(
        options(head="independent", level_weights=["equal"], num_train_epochs=2, save_predictions=True)
    )
    results = read(tmp_path / "out")["eval"]
    file = tmp_path / "out" / "predictions.parquet"
    table = pd.read_parquet(file)
    truth = datasets.load_from_disk(options()[1])["validation"]
    assert table["row"].tolist() == list(range(41))
    assert pyarrow.parquet.read_table(file)["species_label"].to_pylist() == truth["species"][:]
    for level in LEVELS:
        rows = table[table[f"{level}_label"].notna()]
        label, predicted = rows[f"{level}_label"], rows[f"{level}_best_path"]
        expected = results["levels"][level]
        assert len(rows) == expected["num_labelled"]
        assert accuracy_score(label, predicted) == pytest.approx(expected["accuracy"], abs=1e-12)
        assert f1_score(label, predicted, average="macro") == pytest.approx(expected["macro_f1"], abs=1e-12)
        confidence = rows[f"{level}_best_path_probability"].mean()
        assert confidence == pytest.approx(expected["mean_confidence"], abs=1e-6)
    full = table[table["species_label"].notna()]
    for decoding, column in (("path", "best_path"), ("argmax", "argmax")):
        right = np.all([full[f"{level}_{column}"] == full[f"{level}_label"] for level in LEVELS], axis=0)
        assert right.mean() == pytest.approx(results[decoding]["full_path_accuracy"], abs=1e-12)
        tuples = zip(*(table[f"{level}_{column}"] for level in LEVELS), strict=True)
        foreign = np.mean([path not in PATHS for path in tuples])
        assert foreign == pytest.approx(results[decoding]["tree_inconsistency"], abs=1e-12)
    assert (table["top5_leaves"].str.len() == 5).all()
    best_leaf = table["top5_leaves"].str[0]
    assert (best_leaf == table["species_best_path"]).all()


def test_decoding_by_levels_is_the_path_with_most_levels_expected_right(options, tmp_path):
    """Recomputed with loops over the tree from the model's own probabilities."""
    train_taxonomy.main(options(decoding="levels", save_predictions=True, max_train_steps=4))
    model = LabelTreeForImageClassification.from_pretrained(tmp_path / "out").eval()
    tree = model.hierarchy
    validation = datasets.load_from_disk(options()[1])["validation"]
    transform = timm.data.create_transform(32, mean=[0.5] * 3, std=[0.5] * 3, crop_pct=1.0, interpolation="bicubic")
    pixels = torch.stack([transform(image) for image in validation["image"]])
    with torch.no_grad():
        probabilities = [level.exp() for level in model(pixels).log_probs]
    expected = []
    for row in range(len(pixels)):
        gains = {
            leaf: sum(float(probabilities[level][row, label]) for level, label in enumerate(tree.path(2, leaf)))
            for leaf in range(tree.num_leaves)
        }
        expected.append(tree.names[2][max(gains, key=gains.get)])
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert table["species_best_path"].tolist() == expected
    assert expected != table["top5_leaves"].str[0].tolist()  # otherwise this would be the other decoding


def test_evaluates_what_it_saved(options, tmp_path):
    """In the way in which it was evaluated, without being told."""
    trained = train_taxonomy.main(options(resize_mode="squash", crop_pct=0.8, decoding="levels"))
    again = train_taxonomy.main(
        options(
            eval_only=True,
            model_name_or_path=tmp_path / "out",
            output_dir=tmp_path / "again",
            image_size=None,
            no_pretrained=None,
            level_columns=None,
        )
    )
    assert again["eval"] == trained["eval"]
    assert read(tmp_path / "again")["train"] is None


# ---- the same run again, in other ways


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


AUGMENTED = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5, "mixup": 0.5, "cutmix": 0.5}


def test_workers_and_repetition_change_nothing(options, tmp_path):
    """Every random draw is a function of seed and position, with everything that is random switched on."""
    for name, workers in (("a", 0), ("b", 2), ("c", 0)):
        train_taxonomy.main(
            options(
                **AUGMENTED,
                dataloader_num_workers=workers,
                drop_path_rate=0.2,
                dropout=0.2,
                output_dir=tmp_path / name,
            )
        )
    for other in ("b", "c"):
        for name, value in weights_of(tmp_path / "a").items():
            assert torch.equal(value, weights_of(tmp_path / other)[name]), name


def test_accumulation_changes_nothing_but_rounding(options, tmp_path):
    """Also with class weights and partial labels, where the mean over micro-batches would be another one."""
    for name, micro in (("whole", 16), ("parts", 4)):
        train_taxonomy.main(
            options(
                global_batch_size=16,
                per_device_train_batch_size=micro,
                class_weighting="inverse",
                level_weights=["equal"],
                mixup=0.5,
                output_dir=tmp_path / name,
            )
        )
    losses = [read(tmp_path / name)["train"]["loss"] for name in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_processes_equal_one(options, tmp_path, launch):
    """The same global batches; the same evaluation of the same model to the last digit."""
    changes = {**AUGMENTED, "global_batch_size": 16, "head": "independent", "level_weights": ["equal"]}
    one = train_taxonomy.main(options(**changes, per_device_train_batch_size=16, output_dir=tmp_path / "one"))
    launch("train_taxonomy.py", 2, options(**changes, per_device_train_batch_size=8, output_dir=tmp_path / "two"))
    two = read(tmp_path / "two")
    assert two["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=1e-3)
    assert two["train"]["samples_seen"] == one["train"]["samples_seen"]

    evaluation = {"eval_only": True, "model_name_or_path": tmp_path / "one", "save_predictions": True}
    evaluation |= {"image_size": None, "no_pretrained": None, "per_device_eval_batch_size": 7}
    alone = train_taxonomy.main(options(**evaluation, output_dir=tmp_path / "eval_one"))["eval"]
    launch("train_taxonomy.py", 2, options(**evaluation, output_dir=tmp_path / "eval_two"))
    together = read(tmp_path / "eval_two")["eval"]
    assert together["path"] == alone["path"] and together["argmax"] == alone["argmax"]
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-6)
    for level, row in alone["levels"].items():
        for name, value in row.items():
            exact = name not in {"mean_confidence", "ece"}
            assert together["levels"][level][name] == (value if exact else pytest.approx(value, abs=1e-6))
    calibrations = [read(tmp_path / name, "calibration.json") for name in ("eval_one", "eval_two")]
    assert calibrations[0]["coverage"] == calibrations[1]["coverage"] and calibrations[0]["num_images"] == 41
    assert calibrations[0]["precision"] == calibrations[1]["precision"]
    # evaluation with --eval_only writes no predictions of training; both tables hold every row once
    rows = pd.read_parquet(tmp_path / "eval_two" / "predictions.parquet")["row"]
    assert rows.tolist() == list(range(41))
    ours, theirs = (np.load(tmp_path / name / "report_data.npz") for name in ("eval_one", "eval_two"))
    assert ours.files == theirs.files
    assert all(np.allclose(ours[name], theirs[name], atol=1e-5) for name in ours.files)


# ---- options


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16", "channels_last": True, "per_device_train_batch_size": 2, "max_eval_samples": 2},
        {"ema_decay": 0.9, "layer_decay": 0.8, "logit_adjustment": 1.0, "label_smoothing": 0.1},
        {"lr_scheduler_type": "onecycle", "max_grad_norm": 0, "level_weights": ["1", "1", "2"], "deterministic": True},
        {"report_to": "tensorboard", "group_column": "tree", "max_train_samples": 50, "max_eval_samples": 9},
        {"head": "flat", "class_weighting": "effective_number", "resize_mode": "squash", "vflip": 0.5},
    ],
)
def test_options_run(options, tmp_path, changes):
    results = train_taxonomy.main(options(**changes, max_train_steps=3))
    assert results["train"]["global_step"] == 3
    assert np.isfinite(results["eval"]["loss"])
    assert results["eval"]["num_samples"] == changes.get("max_eval_samples", 41)
    if "report_to" in changes:
        assert list((tmp_path / "out").rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_compiled_model_saves_plain_names(options, tmp_path, monkeypatch):
    # Traced for real, but not translated to C++, which takes minutes.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    train_taxonomy.main(options(compile=True, max_train_steps=2))
    assert not [name for name in weights_of(tmp_path / "out") if "_orig_mod" in name]


def test_early_stopping_keeps_the_best(options, tmp_path):
    results = train_taxonomy.main(
        options(
            num_train_epochs=30,
            learning_rate=1e-9,
            early_stopping_patience=2,
            metric_for_best_model="levels.order.accuracy",
        )
    )
    assert results["train"]["epochs"] <= 6  # nothing improves at such a rate
    assert results == json.loads(json.dumps(read(tmp_path / "out")))


def test_ema_is_what_is_evaluated_and_saved(options, tmp_path):
    for name, decay in (("ema", 0.99), ("plain", 0)):
        train_taxonomy.main(options(ema_decay=decay, max_train_steps=6, output_dir=tmp_path / name))
    ema, plain = weights_of(tmp_path / "ema"), weights_of(tmp_path / "plain")
    assert any(not torch.equal(ema[name], plain[name]) for name in ema)


def test_transformers_backbone_from_a_local_folder(options, tmp_path):
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    BeitForImageClassification(config).save_pretrained(tmp_path / "beit")
    trained = train_taxonomy.main(
        options(model_name_or_path=tmp_path / "beit", no_pretrained=None, layer_decay=0.7, max_train_steps=2)
    )
    again = train_taxonomy.main(
        options(model_name_or_path=tmp_path / "out", eval_only=True, image_size=None, output_dir=tmp_path / "again")
    )
    assert again["eval"] == trained["eval"]


@pytest.mark.parametrize("head", ["tree", "flat"])
def test_training_starts_at_the_stock_models_accuracy(options, tmp_path, head):
    """--init_leaf_from_classifier keeps another model's classifier; its classes stand in another order there."""
    torch.manual_seed(3)
    stock = timm.create_model("test_vit", num_classes=6, img_size=32)
    torch.nn.init.normal_(stock.head.weight, std=0.5)
    save_file(stock.state_dict(), tmp_path / "stock.safetensors")
    order = ["lime", "apple", "leek", "cherry", "maize", "banana"]
    (tmp_path / "classes.txt").write_text("\n".join(order))
    train_taxonomy.main(
        options(
            no_pretrained=None,
            backbone_weights=tmp_path / "stock.safetensors",
            init_leaf_from_classifier=tmp_path / "classes.txt",
            head=head,
            max_train_steps=1,
            learning_rate=1e-12,
            save_predictions=True,
        )
    )
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    validation = datasets.load_from_disk(options()[1])["validation"]
    stock.eval()
    config = timm.data.resolve_model_data_config(stock)
    transform = timm.data.create_transform(**{**config, "input_size": (3, 32, 32)})
    with torch.no_grad():
        logits = stock(torch.stack([transform(image) for image in validation["image"]]))
    expected = [order[index] for index in logits.argmax(1).tolist()]
    assert table["species_best_path"].tolist() == expected
    assert len(set(expected)) > 1


# ---- what users get wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerning_rate": 1}, "Unknown option --lerning_rate. Did you mean --learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"dataset_name": "/does/not/exist"}, "No data set at /does/not/exist"),
        ({"train_split": "training"}, "No split 'training'.*train, validation"),
        ({"image_column": "picture"}, "no column 'picture'; it has: .*image"),
        ({"level_columns": ["order", "famly", "species"]}, "no column 'famly'.*Did you mean 'family'"),
        ({"level_columns": None}, "--level_columns"),
        ({"hierarchy": "/no/tree.csv", "label_column": "species", "level_columns": None}, "No hierarchy file"),
        ({"global_batch_size": 12}, "not a multiple of --per_device_train_batch_size 8"),
        ({"global_batch_size": 960}, "fewer than one global batch"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"model_name_or_path": "timm/resnet_of_my_dreams"}, "Cannot load the backbone 'timm/resnet_of_my_dreams'"),
        ({"backbone_weights": "/no/weights.safetensors"}, "No weights file"),
        ({"level_weights": ["1", "2"]}, "2 numbers for 3 levels"),
        ({"metric_for_best_model": "levels.genus.accuracy"}, "not among the results. Did you mean levels"),
        ({"class_weighting": "inverse", "logit_adjustment": 1.0}, "choose one"),
        ({"num_train_epochs": 0}, "greater than 0"),
        ({"mixup": 0.2, "per_device_train_batch_size": 3}, "even"),
        ({"eval_only": True}, "--eval_only needs"),
        ({"config": "/no/file.yaml"}, "No configuration file"),
    ],
)
def test_user_errors(options, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_taxonomy.main(options(**changes))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_asks_for_a_gpu(options):
    with pytest.raises(ValueError, match="needs a GPU"):
        train_taxonomy.main(options(mixed_precision="fp16"))


def test_class_that_training_has_never_seen(options, tmp_path):
    splits = datasets.DatasetDict(train=make_split(60, 1), validation=make_split(24, 2))
    splits["train"] = splits["train"].filter(lambda row: row["species"] != "leek")
    splits["validation"] = splits["validation"].filter(lambda row: row["species"] is not None)
    splits.save_to_disk(tmp_path / "unseen")
    (tmp_path / "tree.csv").write_text("\n".join([",".join(LEVELS), *(",".join(path) for path in PATHS)]))
    with pytest.raises(ValueError, match="validation.*not in the label tree of the training data.*leek.*row"):
        train_taxonomy.main(options(dataset_name=tmp_path / "unseen"))
    with pytest.raises(ValueError, match="1 classes of level 'species' are in validation but not in training: leek"):
        train_taxonomy.main(
            options(
                dataset_name=tmp_path / "unseen",
                level_columns=None,
                label_column="species",
                hierarchy=tmp_path / "tree.csv",
            )
        )


def test_group_in_both_splits(options, tmp_path):
    datasets.DatasetDict(train=make_split(60, 1), validation=make_split(24, 1)).save_to_disk(tmp_path / "leak")
    with pytest.raises(ValueError, match="--group_column tree stand in training and validation.*1-0"):
        train_taxonomy.main(options(dataset_name=tmp_path / "leak", group_column="tree"))


@pytest.fixture
def broken(fruit, tmp_path) -> Path:
    """Fruit with one file that is no image, and one that ends too early."""
    splits = datasets.load_from_disk(fruit)
    for split, row, damage in (("train", 5, lambda data: b"no image at all"), ("validation", 7, lambda d: d[:300])):
        plain = splits[split].cast_column("image", datasets.Image(decode=False))
        images = plain["image"][:]
        images[row] = {"bytes": damage(images[row]["bytes"]), "path": images[row]["path"]}
        columns = {name: images if name == "image" else plain[name][:] for name in plain.column_names}
        splits[split] = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    splits.save_to_disk(tmp_path / "broken")
    return tmp_path / "broken"


def test_broken_images_are_found_before_training(options, broken, fruit, tmp_path, monkeypatch):
    """Also one that only ends too early; its header is fine."""
    monkeypatch.setattr(train_taxonomy, "make_optimizer", lambda *args: pytest.fail("too late"))
    with pytest.raises(ValueError, match="row 5 of the train split"):
        train_taxonomy.main(options(dataset_name=broken))
    halves = datasets.DatasetDict(
        train=datasets.load_from_disk(fruit)["train"], validation=datasets.load_from_disk(broken)["validation"]
    )
    halves.save_to_disk(tmp_path / "halves")
    with pytest.raises(ValueError, match=r"row 7 of the validation split, file .*7.jpg: .*[Tt]runcated"):
        train_taxonomy.main(options(dataset_name=tmp_path / "halves"))


def test_an_image_broken_in_the_middle_is_found_when_it_is_read(options, fruit, tmp_path):
    splits = datasets.load_from_disk(fruit)
    plain = splits["train"].cast_column("image", datasets.Image(decode=False))
    images = plain["image"][:]
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x10\x00\x00\x00\x10\x08\x02\x00\x00\x00\x90\x91h6"
    png += b"\x00\x00\x00\x04IDATxxxx\x00\x00\x00\x00" + b"\x00\x00\x00\x00IEND\xaeB`\x82"
    images[9] = {"bytes": png, "path": "middle.png"}
    columns = {name: images if name == "image" else plain[name][:] for name in plain.column_names}
    splits["train"] = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    splits.save_to_disk(tmp_path / "middle")
    with pytest.raises(ValueError, match="row 9 of the train split, file middle.png"):
        train_taxonomy.main(options(dataset_name=tmp_path / "middle", dataloader_num_workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_stops_the_run(options, broken, workers):
    with pytest.raises(ValueError, match=r"Broken image: row 5 of the train split, file .*5.jpg"):
        train_taxonomy.main(options(dataset_name=broken, dataloader_num_workers=workers))


def test_broken_images_are_skipped_and_listed(options, broken, tmp_path):
    results = train_taxonomy.main(options(dataset_name=broken, on_bad_sample="skip"))
    assert results["eval"]["num_samples"] == 40  # left out, not replaced
    listed = json.loads((tmp_path / "out" / "skipped_images.json").read_text())
    assert len(listed) == 2 and "row 5 of the train split" in listed[0] and "row 7 of the validation" in listed[1]


def test_paths_in_tables_stay_inside_their_folder(options, tmp_path):
    folder, outside = tmp_path / "table", tmp_path / "outside.png"
    folder.mkdir()
    images = make_split(24, 1)["image"]
    images[0].save(outside)
    rows = []
    for index, image in enumerate(images):
        image.save(folder / f"{index}.png")
        rows.append([f"{index}.png", *PATHS[index % 6]])
    header = ["image", *LEVELS]
    pd.DataFrame(rows, columns=header).to_csv(folder / "good.csv", index=False)
    rows[3][0] = "../outside.png"
    pd.DataFrame(rows, columns=header).to_csv(folder / "bad.csv", index=False)
    good = {"dataset_name": None, "train_file": folder / "good.csv", "validation_file": folder / "good.csv"}
    train_taxonomy.main(options(**good, max_train_steps=1))
    with pytest.raises(ValueError, match="row 3 of the train split, file ../outside.png: it lies outside"):
        train_taxonomy.main(options(**{**good, "train_file": folder / "bad.csv"}))


def test_command_line_errors_are_one_line(options, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["train_taxonomy.py", *options(image_column="picture")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "train_taxonomy.py"), run_name="__main__")
    assert stop.value.code == 2
    said = capfd.readouterr().err
    assert said.strip().splitlines()[-1].startswith("error: The train split has no column 'picture'")
    assert "Traceback" not in said


@pytest.mark.slow
def test_piped_output_is_plain_text(options):
    done = subprocess.run(
        [sys.executable, "train_taxonomy.py", *options(max_train_steps=3, logging_steps=1)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert not re.search(r"[^\n\t\x20-\x7e]", output), re.findall(r"[^\n\t\x20-\x7e]+", output)[:5]
    assert "***** Training *****" in output and "step 3/3  loss" in output and "species" in output


def test_model_keeps_trained_backbone_weights(tmp_path):
    """Building and loading must not initialise anything anew."""
    from common.model.backbones import load_backbone
    from common.model.hierarchy import Hierarchy

    tree = Hierarchy(["a", "b"], [["x"], ["y", "z"]], [[None], [0, 0]])
    for name in ("timm/test_vit", "timm/test_convnext", "timm/test_efficientnet"):
        torch.manual_seed(0)
        backbone, _ = load_backbone(name, pretrained=False)
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        model = LabelTreeForImageClassification.build(backbone, tree, "tree").eval()
        assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
        model.save_pretrained(tmp_path / name)
        loaded = LabelTreeForImageClassification.from_pretrained(tmp_path / name).eval()
        pixels = torch.randn(2, 3, backbone.spec["image_size"], backbone.spec["image_size"])
        with torch.no_grad():
            assert torch.equal(model(pixels).logits, loaded(pixels).logits)
