"""The command line: dataclasses of options, YAML files that set their defaults, and errors that help.

Precedence, the later wins: the defaults below; the demo's YAML file if the demo is trained; ``--config FILE``; the
command line. Unknown keys and options are errors that suggest the nearest one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from .backbones import TIMM_PREFIXES
from .heads import KINDS
from .hierarchy_files import StrictLoader
from .images import RESIZE_MODES
from .losses import CLASS_WEIGHTINGS
from .optimization import SCHEDULES

Arguments = TypeVar("Arguments", bound="CommonArguments")


def option(default: Any, help: str) -> Any:
    """A dataclass field that becomes an option of the command line."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """Where the images and labels are."""

    _argument_group_name = "Data"

    dataset_name: str = option(
        "demo", "demo, a prepared folder, or a folder or Hub id that datasets.load_dataset understands."
    )
    dataset_config_name: str | None = option(None, "Configuration of the data set on the Hub.")
    train_file: str | None = option(None, "CSV, TSV, JSON lines or Parquet file to train on, instead of dataset_name.")
    validation_file: str | None = option(None, "The same for validation.")
    image_root: str | None = option(None, "Folder that image paths lie in; by default that of the train_file.")
    train_split: str = option("train", "Split to train on.")
    validation_split: str = option("validation", "Split to evaluate and to choose the best model on.")
    image_column: str = option("image", "Column with the images, or their paths.")
    level_columns: list[str] | None = option(None, "One column per level of the label tree, coarse to fine.")
    label_column: str | None = option(None, "One column that names a class of the tree in the file --hierarchy.")
    hierarchy: str | None = option(None, "File with the label tree: CSV of paths, JSON or YAML.")
    group_column: str | None = option(None, "Column (observation, artwork) whose values must not cross splits.")
    max_train_samples: int | None = option(None, "Train on a random subset of this size.")
    max_eval_samples: int | None = option(None, "Evaluate on a random subset of this size.")
    on_bad_sample: Literal["error", "skip"] = option(
        "error", "An image that does not decode stops the run, or is skipped, counted and listed."
    )


@dataclass
class AugmentationArguments:
    """What happens to images on their way to the model."""

    _argument_group_name = "Images and augmentation"

    image_size: int | None = option(None, "Side of the square input in pixels; the backbone's own by default.")
    resize_mode: Literal[RESIZE_MODES] = option(
        "center", "In evaluation: cut out the centre, or squash the whole image."
    )
    crop_pct: float = option(1.0, "Share of the resized image that evaluation keeps.")
    crop_scale: float = option(0.25, "Smallest share of the image's area that a random crop keeps in training.")
    aspect_ratio: float = option(1.33, "Widest random crop, width to height.")
    hflip: float = option(0.5, "Probability of a horizontal flip.")
    vflip: float = option(0.0, "Probability of a vertical flip.")
    color_jitter: float = option(0.2, "Strength of colour jitter; 0 for none.")
    auto_augment: str | None = option(None, "timm policy, for example rand-m9-mstd0.5-inc1 (RandAugment).")
    random_erasing: float = option(0.0, "Probability of erasing a random rectangle.")
    mixup: float = option(0.0, "Alpha of mixup; 0 for none. The labels of every level are mixed.")
    cutmix: float = option(0.0, "Alpha of cutmix; 0 for none. The labels of every level are mixed.")
    mix_probability: float = option(1.0, "Share of the steps that mix, if mixup or cutmix are on.")


@dataclass
class ModelArguments:
    """Backbone and heads."""

    _argument_group_name = "Model"

    model_name_or_path: str = option(
        "microsoft/beit-base-patch16-224",
        "timm/<name>, hf-hub:<org>/<timm model>, a Transformers id or folder, or a folder that this script wrote.",
    )
    no_pretrained: bool = option(False, "Build the architecture with random weights, offline.")
    backbone_weights: str | None = option(None, "Load the backbone from this safetensors file.")
    init_leaf_from_classifier: str | None = option(
        None, "Start the last level from the backbone's own classifier; FILE lists its class names, one a line."
    )
    head: Literal[KINDS] = option("tree", "How classes are scored; see common/heads.py.")
    dropout: float = option(0.0, "Dropout before the heads.")
    drop_path_rate: float | None = option(None, "Stochastic depth of the backbone; its own by default.")
    trust_remote_code: bool = option(False, "Allow code from the model's repository to run.")


@dataclass
class LossArguments:
    """What is minimised."""

    _argument_group_name = "Loss"

    level_weights: list[str] = option(
        ["leaf"], "A number per level, or leaf, equal or leaf_heavy; normalised to sum to 1."
    )
    class_weighting: Literal[CLASS_WEIGHTINGS] = option("none", "Weight of classes by how rare they are.")
    class_weight_max_ratio: float = option(100.0, "Largest class weight over the smallest.")
    logit_adjustment: float = option(0.0, "Multiple of the log-prior added to scores in training; usually 0 or 1.")
    label_smoothing: float = option(0.0, "Share of the target spread over all classes of a level.")


@dataclass
class OptimizationArguments:
    """How it is minimised."""

    _argument_group_name = "Optimization"

    num_train_epochs: int = option(10, "Passes over the training data.")
    max_train_steps: int | None = option(None, "Optimizer steps, instead of num_train_epochs.")
    global_batch_size: int | None = option(
        None, "Images per optimizer step over all processes; by default what fits on them at once."
    )
    per_device_train_batch_size: int | None = option(
        None, "Images per forward pass of a process; accumulation follows. 32, or the process's share, by default."
    )
    per_device_eval_batch_size: int = option(64, "The same in evaluation.")
    learning_rate: float = option(1e-4, "Peak learning rate of the heads.")
    weight_decay: float = option(0.05, "AdamW's; none on biases and norms.")
    adam_beta1: float = option(0.9, "AdamW's first beta.")
    adam_beta2: float = option(0.999, "AdamW's second beta.")
    layer_decay: float = option(1.0, "Learning rate of each layer relative to the next one; BEiT: 0.65 to 0.9.")
    lr_scheduler_type: Literal[SCHEDULES] = option("cosine", "Course of the learning rate.")
    warmup_ratio: float = option(0.05, "Share of the steps in which the learning rate rises.")
    max_grad_norm: float = option(1.0, "Clip gradients to this norm; 0 for none.")
    ema_decay: float = option(0.0, "Evaluate and keep an exponential moving average of the weights; 0 for none.")


@dataclass
class RunArguments:
    """The run itself."""

    _argument_group_name = "Run"

    output_dir: str = option("output", "Folder for the model, results and logs.")
    seed: int = option(0, "Of weights, order and augmentation.")
    deterministic: bool = option(False, "Use deterministic algorithms only, even if slower.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "By default what accelerate launch says.")
    channels_last: bool = option(False, "Keep images channels-last; faster for most convolutional networks.")
    compile: bool = option(False, "torch.compile the model for training.")
    dataloader_num_workers: int | None = option(None, "Per process; by default up to 8, as there are cores.")
    logging_steps: int = option(50, "Log the loss every so many optimizer steps.")
    eval_epochs: int = option(1, "Evaluate every so many epochs, and at the end.")
    metric_for_best_model: str = option(
        "path.full_path_accuracy", "Entry of eval in all_results.json, for example levels.species.macro_f1, or loss."
    )
    early_stopping_patience: int | None = option(None, "Stop after so many evaluations without improvement.")
    eval_only: bool = option(False, "Evaluate a folder that this script wrote, and do nothing else.")
    decoding: Literal["leaf", "levels"] = option(
        "leaf", "Best path: that of the most probable leaf, or the one with the most levels expected right."
    )
    save_predictions: bool = option(False, "Write predictions.parquet for the evaluation images.")
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "all"] = option("none", "Trackers to log to.")


@dataclass
class CommonArguments(
    DataArguments, AugmentationArguments, ModelArguments, LossArguments, OptimizationArguments, RunArguments
):
    """All options, in one object."""

    def validate(self) -> None:
        """Raise one ValueError that lists every setting that cannot be right on its own."""
        problems = [f"--{name} must be {what}, not {getattr(self, name)}" for name, what in self._out_of_range()]
        if self.class_weighting != "none" and self.logit_adjustment:
            problems.append("--class_weighting and --logit_adjustment correct the same thing twice; choose one")
        if bool(self.train_file) != bool(self.validation_file) and not (self.validation_file and self.eval_only):
            problems.append("--train_file and --validation_file go together")
        if (self.mixup or self.cutmix) and (self.per_device_train_batch_size or 2) % 2:
            problems.append("mixup and cutmix mix pairs: --per_device_train_batch_size must be even")
        if self.eval_only and not (Path(self.model_name_or_path) / "config.json").is_file():
            problems.append("--eval_only needs --model_name_or_path FOLDER, one that a training run has written")
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _out_of_range(self) -> list[tuple[str, str]]:
        """(option, what it must be) for each number outside of its range."""
        positive = "max_train_samples max_eval_samples image_size num_train_epochs max_train_steps global_batch_size "
        positive += "per_device_train_batch_size per_device_eval_batch_size learning_rate logging_steps eval_epochs "
        positive += "early_stopping_patience"
        shares = "hflip vflip random_erasing mix_probability warmup_ratio"
        below_one = "dropout drop_path_rate label_smoothing ema_decay adam_beta1 adam_beta2"
        not_negative = "weight_decay max_grad_norm mixup cutmix color_jitter logit_adjustment seed "
        not_negative += "dataloader_num_workers"
        rules = [
            (positive, "greater than 0", lambda value: 0 < value < math.inf),
            (shares, "from 0 up to 1", lambda value: 0 <= value <= 1),
            (below_one, "at least 0 and less than 1", lambda value: 0 <= value < 1),
            ("crop_pct layer_decay crop_scale", "over 0 and up to 1", lambda value: 0 < value <= 1),
            ("class_weight_max_ratio aspect_ratio", "at least 1", lambda value: value >= 1),
            (not_negative, "at least 0", lambda value: value >= 0),
        ]
        return [
            (name, what)
            for names, what, holds in rules
            for name in names.split()
            if getattr(self, name) is not None and not holds(getattr(self, name))
        ]

    def without_effect(self) -> list[str]:
        """A sentence for each setting that cannot take effect beside the others."""
        reasons = [
            ("mix_probability", not (self.mixup or self.cutmix), "mixup and cutmix are off"),
            ("class_weight_max_ratio", self.class_weighting == "none", "--class_weighting is none"),
            ("image_root", not (self.train_file or self.validation_file), "images come with the data set"),
            ("dataset_config_name", bool(self.validation_file), "files are given"),
            ("trust_remote_code", self.model_name_or_path.startswith(TIMM_PREFIXES), "timm runs no remote code"),
            ("no_pretrained", bool(self.backbone_weights), "--backbone_weights are loaded"),
            ("warmup_ratio", self.eval_only, "--eval_only trains nothing"),
        ]
        return [
            f"--{name} has no effect: {reason}." for name, holds, reason in reasons if holds and self._changed(name)
        ]

    def without_effect_on_saved_models(self) -> list[str]:
        """The same for what a model brings along that this project has saved."""
        names = ("no_pretrained", "backbone_weights", "init_leaf_from_classifier", "dropout", "drop_path_rate")
        return [f"--{name} has no effect on a saved model." for name in names if self._changed(name)]

    def _changed(self, name: str) -> bool:
        return getattr(self, name) != next(entry.default for entry in fields(self) if entry.name == name)

    def save(self, path: str | Path) -> None:
        """Write the resolved arguments as YAML; ``--config`` reads it."""
        Path(path).write_text(yaml.safe_dump(asdict(self), sort_keys=False), encoding="utf-8")


def groups_of(kind: type[CommonArguments]) -> list[type]:
    """The dataclasses that make up a script's options, in the order of ``--help``."""
    return [base for base in kind.__mro__ if "_argument_group_name" in vars(base)]


def parse_arguments(
    kind: type[Arguments], argv: Sequence[str] | None, description: str, demo_config: str | Path
) -> Arguments:
    """Parse and validate the command line of a script.

    Args:
        kind: the script's dataclass.
        argv: the words of the command line, ``sys.argv[1:]`` by default.
        description: shown by ``--help``.
        demo_config: YAML file with the defaults of the demo.

    Raises:
        ValueError: for unknown options or keys, wrong values, and settings that contradict each other.
    """
    parser = _Parser(groups_of(kind), description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file that sets defaults for the options above; the command line wins.")
    given = parser.parse(argv)
    from_file = _yaml_words(parser, given.config) if given.config else []
    chosen = parser.parse([*from_file, *_words(argv)])
    demo = chosen.dataset_name == "demo" and not (chosen.train_file or chosen.validation_file)
    defaults = _yaml_words(parser, demo_config) if demo else []
    values = vars(parser.parse([*defaults, *from_file, *_words(argv)]))
    values.pop("config")
    arguments = kind(**values)
    arguments.validate()
    return arguments


def _words(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)


class _Parser(HfArgumentParser):
    """HfArgumentParser that raises instead of exiting, and suggests."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def parse(self, argv: Sequence[str] | None) -> Any:
        values, unknown = self.parse_known_args(_words(argv))
        if unknown:
            raise ValueError(self.unknown(unknown[0]))
        return values

    def unknown(self, word: str) -> str:
        """What to say of a word that is no option."""
        name = word.split("=")[0].lstrip("-").replace("-", "_")
        known = [action.dest for action in self._actions]
        near = get_close_matches(name, known, 1, 0.5)
        if not word.startswith("-"):
            return f"Unexpected word {word!r}; options start with --."
        return f"Unknown option --{name}." + (f" Did you mean --{near[0]}?" if near else " See --help.")


def _yaml_words(parser: _Parser, path: str | Path) -> list[str]:
    """A YAML file's settings as words of a command line, so that both are checked in the same way."""
    if not Path(path).is_file():
        raise ValueError(f"No configuration file at {path} (--config).")
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=StrictLoader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one setting a line, 'name: value'.")
    words: list[str] = []
    for key, value in content.items():
        words += _yaml_option(parser, path, str(key), value)
    try:
        parser.parse(words)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return words


def _yaml_option(parser: _Parser, path: str | Path, key: str, value: Any) -> list[str]:
    options = {entry.name: entry for group in parser.dataclass_types for entry in fields(group)}
    if key not in options:
        near = get_close_matches(key.replace("-", "_"), options, 1, 0.5)
        raise ValueError(f"{path}: Unknown key {key}." + (f" Did you mean {near[0]}?" if near else " See --help."))
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if isinstance(value, dict):
        raise ValueError(f"{path}: the value of {key} must not be a mapping.")
    if isinstance(value, bool) and not isinstance(options[key].default, bool):
        value = "yes" if value else "no"  # YAML reads an unquoted no as false; --mixed_precision takes the word
    return [f"--{key}={value}"]
