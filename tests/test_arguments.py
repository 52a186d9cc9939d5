"""The command line and its YAML files."""

import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from common.model.modeling import LabelTreeConfig
from common.options.arguments import groups_of, parse_arguments, save_arguments
from common.run.setup import evaluated_as_saved
from train_segmentation import SegmentationArguments
from train_taxonomy import TaxonomyArguments

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "taxonomy_demo.yaml"
NOT_THE_DEMO = "--dataset_name=somewhere"
SCRIPTS = {"train_taxonomy.py": TaxonomyArguments, "train_segmentation.py": SegmentationArguments}


def parse(*words, demo=DEMO, kind=TaxonomyArguments):
    return parse_arguments(kind, list(words), "A test.", demo)


def config(tmp_path, text, name="config.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return f"--config={path}"


# Golden: adding, renaming or removing an option means editing these lists and the README.
# fmt: off
SHARED = [
    "dataset_name", "dataset_config_name", "train_file", "validation_file", "image_root", "image_suffix",
    "missing_values", "train_split",
    "validation_split", "test_split", "test_file", "image_column", "hierarchy", "group_column", "max_train_samples",
    "max_eval_samples", "on_bad_sample", "exclude_rows", "image_size", "image_mean", "image_std", "resize_mode",
    "hflip", "vflip", "color_jitter", "model_name_or_path", "no_pretrained", "backbone_weights", "head", "head_scale",
    "dropout", "drop_path_rate", "trust_remote_code", "level_weights", "curriculum", "curriculum_schedule",
    "class_weighting", "class_weight_max_ratio", "num_train_epochs", "max_train_steps", "global_batch_size",
    "per_device_train_batch_size", "per_device_eval_batch_size", "optimizer", "learning_rate", "find_learning_rate",
    "head_lr_scale", "momentum", "weight_decay", "adam_beta1", "adam_beta2", "layer_decay", "lr_scheduler_type",
    "warmup_ratio", "plateau_factor", "plateau_patience", "max_grad_norm", "batch_norm", "ema_decay", "output_dir",
    "seed", "deterministic", "mixed_precision", "channels_last", "compile", "dataloader_num_workers", "logging_steps",
    "eval_epochs", "metric_for_best_model", "early_stopping_patience", "eval_only", "decoding", "save_predictions",
    "export", "report_to", "checkpointing_steps", "checkpointing_seconds", "keep_last", "resume_from_checkpoint",
    "max_train_minutes", "max_skipped_steps", "watch", "no_report", "push_to_hub", "hub_model_id", "hub_private",
    "hub_strategy", "license", "tune", "lora_rank", "unfreeze_after", "gradient_checkpointing",
]
OPTIONS = {
    "train_taxonomy.py": [
        *SHARED, "tta", "level_columns", "sampling", "top_k", "label_column", "crop_pct", "crop_scale", "aspect_ratio",
        "auto_augment", "random_erasing", "mixup", "cutmix", "mix_probability", "init_leaf_from_classifier",
        "logit_adjustment", "label_smoothing", "conflicts", "eval_group_column", "costs", "score_unknown",
        "cache_features", "feature_views", "explain",
    ],
    "train_segmentation.py": [
        *SHARED, "tta", "mask_column", "mask_palette", "mask_orientation", "ignore_values", "cache_decoded",
        "eval_crop", "eval_stride", "resize_longer", "scale_jitter", "rare_crop", "balanced_crop", "copy_paste",
        "rot90", "decoder",
        "decoder_channels", "loss", "dice_weight", "focal_weight", "focal_gamma", "dice_over", "tversky_beta",
        "ohem", "aux_weight", "boundary_tolerance",
    ],
}
# fmt: on


# ---- the options


@pytest.mark.parametrize("script", SCRIPTS)
def test_option_names(script):
    assert sorted(field.name for field in fields(SCRIPTS[script])) == sorted(OPTIONS[script])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_in_one_group(script):
    groups = {title: [entry.name for entry in entries] for title, entries in groups_of(SCRIPTS[script]).items()}
    assert list(groups) == ["Data", "Images and augmentation", "Model", "Loss", "Optimization", "Run"]
    assert sorted(name for names in groups.values() for name in names) == sorted(OPTIONS[script])
    assert {"tta", "resize_mode"} <= set(groups["Images and augmentation"]) and "head" in groups["Model"]
    assert {"metric_for_best_model", "output_dir"} <= set(groups["Run"]) and "level_weights" in groups["Loss"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_option_is_dead(script):
    """The script or what it shares reads it, as an attribute or by its name."""
    sources = [ROOT / script, *ROOT.glob("common/**/*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in sources}
    named = {
        name for path, text in texts.items() if path.parent.name != "options" for name in re.findall(r'"(\w+)"', text)
    }
    read = named | set(re.findall(r"\b(?:args|arguments|self)\.(?!args\b)(\w+)\b", "".join(texts.values())))
    assert set(OPTIONS[script]) <= read


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_has_help(script, capsys):
    assert all(field.metadata["help"].endswith(".") for field in fields(SCRIPTS[script]))
    with pytest.raises(SystemExit) as stop:
        parse("--help", kind=SCRIPTS[script])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in [*OPTIONS[script], "config"])


@pytest.mark.parametrize("kind", SCRIPTS.values())
def test_defaults(kind):
    given, default = parse(NOT_THE_DEMO, kind=kind), kind(dataset_name="somewhere")
    assert given == default and isinstance(given, kind)
    assert given.level_weights is not default.level_weights


# ---- where settings come from


def test_command_line_over_file_over_defaults(tmp_path):
    file = config(tmp_path, "image_size: 96\nlearning_rate: 3.0e-4\n")
    args = parse(NOT_THE_DEMO, file, "--image_size", "128")
    assert (args.image_size, args.learning_rate, args.weight_decay) == (128, 3e-4, 0.05)
    assert parse("--image_size=128", file, NOT_THE_DEMO) == args


def test_the_demo_has_settings_of_its_own(tmp_path):
    demo = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    args = parse()
    assert args.dataset_name == "demo" and {name: getattr(args, name) for name in demo} == demo
    changed = parse(config(tmp_path, "image_size: 96\nnum_train_epochs: 3"), "--num_train_epochs=2")
    assert (changed.image_size, changed.num_train_epochs, changed.no_pretrained) == (96, 2, True)


@pytest.mark.parametrize("words", [[NOT_THE_DEMO], ["--train_file=a.csv", "--validation_file=b.csv"]])
@pytest.mark.parametrize("in_file", [False, True])
def test_other_data_has_not(words, in_file, tmp_path):
    if in_file:
        words = [config(tmp_path, "\n".join(word[2:].replace("=", ": ") for word in words))]
    args = parse(*words)
    assert args.level_columns is None and not args.no_pretrained and args.image_size is None


def test_a_file_may_choose_the_demo_and_the_command_line_other_data(tmp_path):
    file = config(tmp_path, "dataset_name: demo")
    assert parse(file).image_size == 64
    assert parse(file, NOT_THE_DEMO).image_size is None


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("level_columns: [phylum, class]", "level_columns", ["phylum", "class"]),
        ("level_columns:\n- phylum\n- class", "level_columns", ["phylum", "class"]),
        ("level_columns: phylum", "level_columns", ["phylum"]),
        ("level_weights: [0.25, 1, 2]", "level_weights", ["0.25", "1", "2"]),
        ("level_weights: leaf_heavy", "level_weights", ["leaf_heavy"]),
        ("no_pretrained: true", "no_pretrained", True),
        ("no_pretrained: false", "no_pretrained", False),
        ("compile: yes", "compile", True),
        ("compile: no", "compile", False),
        ("mixed_precision: no", "mixed_precision", "no"),
        ("mixed_precision: 'no'", "mixed_precision", "no"),
        ("mixed_precision: null", "mixed_precision", None),
        ("mixed_precision:", "mixed_precision", None),
        ("mixed_precision: bf16", "mixed_precision", "bf16"),
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("weight_decay: 0", "weight_decay", 0.0),
        ("group_column: observation id", "group_column", "observation id"),
        ("output_dir: --odd", "output_dir", "--odd"),
        ("report_to: none", "report_to", "none"),
        ("label_column: 7", "label_column", "7"),
        ("# nothing", "seed", 0),
    ],
)
def test_values_in_files(text, name, value, tmp_path):
    found = getattr(parse(NOT_THE_DEMO, config(tmp_path, text)), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["--level_columns", "phylum", "class"], "level_columns", ["phylum", "class"]),
        (["--level_weights", "0.5", "1"], "level_weights", ["0.5", "1"]),
        (["--no_pretrained"], "no_pretrained", True),
        (["--no_pretrained", "false"], "no_pretrained", False),
        (["--image-size", "32"], "image_size", 32),
        (["--mixed_precision", "no"], "mixed_precision", "no"),
    ],
)
def test_values_on_the_command_line(words, name, value):
    assert getattr(parse(NOT_THE_DEMO, *words), name) == value


def test_the_command_line_can_undo_a_switch_of_the_file(tmp_path):
    assert parse(NOT_THE_DEMO, config(tmp_path, "compile: true"), "--compile", "false").compile is False


# ---- round trip


EVERYTHING = ["--level_columns=a", "--level_columns", "a", "b c", "--level_weights", "0.5", "1", "--no_pretrained"]
EVERYTHING += ["--learning_rate=2e-5", "--mixed_precision=no", "--seed=7", "--group_column=no", "--output_dir=1e3"]
EVERYTHING += ["--label_column=null", "--image_column=true", "--ema_decay=0.9999", "--train_split=train[:5%]"]


@pytest.mark.parametrize("words", [[], [NOT_THE_DEMO], [NOT_THE_DEMO, *EVERYTHING]])
def test_saved_arguments_give_the_same_run(words, tmp_path):
    args = parse(*words)
    save_arguments(args, tmp_path / "args.yaml")
    again = parse(f"--config={tmp_path / 'args.yaml'}")
    assert again == args and asdict(again) == asdict(args)


# ---- mistakes


@pytest.mark.parametrize(
    "words, message",
    [
        (["--imge_size", "64"], "Unknown option --imge_size. Did you mean --image_size?"),
        (["--learning-rte=3"], "Unknown option --learning_rte. Did you mean --learning_rate?"),
        (["--qqqqqqq"], "Unknown option --qqqqqqq. See --help."),
        (["--image"], "Unknown option --image"),  # no abbreviations, they break when options are added
        (["64"], "Unexpected word '64'; options start with --."),
        (["--image_size", "big"], "image_size.*'big'"),
        (["--image_size", "3.5"], "image_size.*'3.5'"),
        (["--image_size"], "image_size.*expected one argument"),
        (["--level_columns"], "level_columns.*expected at least one argument"),
        (["--head", "trees"], "head.*'trees'.*independent"),
        (["--lr_scheduler_type", "Cosine"], "lr_scheduler_type.*'Cosine'.*cosine"),
        (["--no_pretrained", "maybe"], "maybe"),
        (["--config", "missing.yaml"], "No configuration file at missing.yaml"),
    ],
)
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    "text, message",
    [
        ("imge_size: 64", "Unknown key imge_size. Did you mean image_size\\?"),
        ("image-size: 64", "Unknown key image-size. Did you mean image_size\\?"),
        ("qqqqqqq: 64", "Unknown key qqqqqqq"),
        ("config: other.yaml", "Unknown key config\\.(?! Did you mean config)"),
        ("image_size: big", "image_size.*'big'"),
        ("image_size: [1, 2]", "Unexpected word '2'"),
        ("image_size: yes", "image_size.*invalid.*'yes'"),
        ("image_size: {a: 1}", "image_size must not be a mapping"),
        ("head: trees", "head.*'trees'"),
        ("level_columns: []", "level_columns.*at least one"),
        ("- a\n- b", "must hold one setting a line"),
        ("just words", "must hold one setting a line"),
        ("a: b: c", "is not YAML"),
        ("seed: 1\nseed: 2", "twice.*seed"),
    ],
)
def test_mistakes_in_files_name_the_file(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        parse(NOT_THE_DEMO, config(tmp_path, text, "mine.yaml"))
    assert "mine.yaml" in str(caught.value)


# ---- settings that cannot be right


def test_all_problems_at_once():
    with pytest.raises(ValueError) as caught:
        parse(NOT_THE_DEMO, "--image_size=0", "--hflip=2", "--train_file=a.csv", "--mixup=-1")
    message = str(caught.value)
    for part in ("--image_size must be greater than 0, not 0", "--hflip", "--mixup", "go together"):
        assert message.count(part) == 1


POSITIVE = "max_train_samples max_eval_samples image_size num_train_epochs max_train_steps global_batch_size "
POSITIVE += "per_device_train_batch_size per_device_eval_batch_size learning_rate logging_steps eval_epochs "
POSITIVE += "early_stopping_patience crop_pct layer_decay crop_scale aspect_ratio class_weight_max_ratio"
NOT_NEGATIVE = "weight_decay max_grad_norm mixup cutmix color_jitter logit_adjustment seed dataloader_num_workers "
NOT_NEGATIVE += "hflip vflip random_erasing mix_probability dropout drop_path_rate warmup_ratio label_smoothing "
NOT_NEGATIVE += "ema_decay adam_beta1 adam_beta2"
AT_MOST_ONE = "hflip vflip random_erasing mix_probability warmup_ratio crop_pct layer_decay crop_scale"
BELOW_ONE = "ema_decay adam_beta1 adam_beta2 dropout drop_path_rate label_smoothing"
OUT_OF_RANGE = [(name, "0") for name in POSITIVE.split()] + [(name, "-1") for name in NOT_NEGATIVE.split()]
OUT_OF_RANGE += [(name, "1.01") for name in AT_MOST_ONE.split()] + [(name, "1") for name in BELOW_ONE.split()]
OUT_OF_RANGE += [("learning_rate", "nan"), ("learning_rate", "inf"), ("weight_decay", "nan"), ("hflip", "nan")]
IN_RANGE = [(name, "1") for name in [*POSITIVE.split(), *AT_MOST_ONE.split()]]
IN_RANGE += [(name, "0") for name in NOT_NEGATIVE.split()]


@pytest.mark.parametrize("name, value", OUT_OF_RANGE)
def test_out_of_range(name, value):
    with pytest.raises(ValueError) as caught:
        parse(NOT_THE_DEMO, f"--{name}={value}")
    assert str(caught.value).count(f"--{name} must be ") == 1


@pytest.mark.parametrize("name, value", IN_RANGE)
def test_ends_of_the_ranges(name, value):
    assert getattr(parse(NOT_THE_DEMO, f"--{name}={value}"), name) == float(value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--class_weighting=inverse", "--logit_adjustment=1"], "the same thing twice"),
        (["--train_file=a.csv"], "go together"),
        (["--validation_file=a.csv"], "go together"),
        (["--mixup=0.2", "--per_device_train_batch_size=3"], "must be even"),
        (["--cutmix=1", "--per_device_train_batch_size=1"], "must be even"),
        (["--checkpointing_steps", "often"], "--checkpointing_steps must be a number or epoch"),
        (["--checkpointing_steps", "0"], "--checkpointing_steps must be a number or epoch"),
        (["--keep_last", "1"], "--keep_last must be at least 2"),
        (["--curriculum", "20"], "--curriculum takes EPOCHS=WEIGHT"),
        (["--curriculum", "0=leaf"], "--curriculum takes EPOCHS=WEIGHT"),
        (["--eval_only", "--model_name_or_path=nowhere"], "--eval_only needs --model_name_or_path FOLDER"),
    ],
)
def test_contradictions(words, message):
    with pytest.raises(ValueError, match=message):
        parse(NOT_THE_DEMO, *words)


def test_evaluation_alone_needs_no_training_file(tmp_path):
    config(tmp_path, "{}", "config.json")
    args = parse("--eval_only", f"--model_name_or_path={tmp_path}", "--validation_file=a.csv")
    assert args.eval_only and args.train_file is None


def test_what_is_given_goes_before_what_a_model_saved(tmp_path):
    """Also where it is the default."""
    saved = {"tta": "hflip", "decoding": "levels", "crop_pct": 0.9}
    LabelTreeConfig(hierarchy={}, evaluation=saved).save_pretrained(tmp_path)
    args = parse("--eval_only", f"--model_name_or_path={tmp_path}", config(tmp_path, "decoding: leaf"), "--tta=none")
    evaluated_as_saved(args, ("tta", "decoding", "crop_pct"))
    assert (args.tta, args.decoding, args.crop_pct) == ("none", "leaf", 0.9)


def test_mixing_with_even_batches():
    assert parse(NOT_THE_DEMO, "--mixup=0.2", "--per_device_train_batch_size=4").mixup == 0.2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--mix_probability 0.5", ["mix_probability"]),
        ("--mix_probability 0.5 --mixup 0.2", []),
        ("--class_weight_max_ratio 5", ["class_weight_max_ratio"]),
        ("--class_weight_max_ratio 5 --class_weighting inverse", []),
        ("--image_root x", ["image_root"]),
        ("--model_name_or_path timm/resnet18 --trust_remote_code", ["trust_remote_code"]),
        ("--curriculum 2=leaf --num_train_epochs 3", ["num_train_epochs"]),
        ("--curriculum 2=leaf --level_weights equal", ["level_weights"]),
        ("--curriculum_schedule restart", ["curriculum_schedule"]),
    ],
)
def test_settings_without_effect_are_told(words, expected):
    args = parse("--dataset_name", "x", *words.split(), demo="unused.yaml")
    assert [line.split()[0].removeprefix("--") for line in args.without_effect()] == expected


# ---- segmentation's own


def parse_segmentation(*words):
    return parse(NOT_THE_DEMO, *words, kind=SegmentationArguments)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--eval_crop=62"], "multiples of 4"),
        (["--eval_crop=64", "--eval_stride=30"], "multiples of 4"),
        (["--eval_crop=64", "--eval_stride=68"], "no more than the crop"),
        (["--scale_jitter", "0.5"], "smallest and the largest"),
        (["--scale_jitter", "2", "0.5"], "smallest and the largest"),
        (["--scale_jitter", "0", "1"], "smallest and the largest"),
        (["--dice_weight=0", "--focal_weight=0"], "must not both be 0"),
        (["--loss", "dice=1", "jaccard"], "parts with weights, such as dice=1.*; not dice=1 jaccard"),
        (["--ohem=0"], "--ohem must be over 0 and up to 1"),
        (["--rot90=1.5"], "--rot90 must be from 0 up to 1"),
        (["--mixup=0.2"], "Unknown option --mixup"),
    ],
)
def test_contradictions_in_segmentation(words, message):
    with pytest.raises(ValueError, match=message):
        parse_segmentation(*words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--eval_stride 32", ["eval_stride"]),
        ("--eval_stride 32 --eval_crop 64", []),
        ("--resize_longer 512", ["resize_longer"]),
        ("--eval_crop 64 --resize_mode fit", ["resize_mode"]),
        ("--loss dice --focal_gamma 1", ["focal_gamma"]),
        ("--loss cross_entropy --dice_weight 1 --dice_over batch", ["dice_weight", "dice_over"]),
        ("--loss lovasz ce=0 --ohem 0.7 --tversky_beta 0.9", ["tversky_beta", "ohem"]),
        ("--loss tversky=2 focal --ohem 0.7 --focal_gamma 1 --dice_over batch", []),
    ],
)
def test_segmentation_settings_without_effect_are_told(words, expected):
    args = parse_segmentation(*words.split())
    assert [line.split()[0].removeprefix("--") for line in args.without_effect()] == expected


def test_stages_of_a_curriculum(tmp_path):
    """As mappings or as words, which is what is saved."""
    stages = "curriculum:\n- {epochs: 2, level_weights: [1, 0, 0]}\n- 3=0.2,0.3,1\n"
    args = parse_segmentation(config(tmp_path, stages))
    assert args.curriculum == ["2=1,0,0", "3=0.2,0.3,1"] and args.epochs == 5
    save_arguments(args, tmp_path / "args.yaml")
    assert parse_segmentation(f"--config={tmp_path / 'args.yaml'}") == args
    with pytest.raises(ValueError, match="a stage needs epochs and level_weights"):
        parse_segmentation(config(tmp_path, "curriculum:\n- {epochs: 2, weights: [1, 0, 0]}\n"))
