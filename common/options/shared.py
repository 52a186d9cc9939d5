"""The options that both scripts share, in the groups in which ``--help`` shows them; each script adds its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from .arguments import changed, option, out_of_range

MISSING_VALUES = "Cells that mean blank, beside empty ones; by default NA N/A n/a NaN nan null NULL -."
HEADS = Literal["tree", "independent", "flat"]
CLASS_WEIGHTINGS = Literal["none", "inverse", "inverse_sqrt", "effective_number", "inverse_sqrt_log_scaled"]
PLATEAU = ("plateau_factor", "plateau_patience")
OF_THE_BACKBONE = ("drop_path_rate", "gradient_checkpointing")
HUB_OPTIONS = ("hub_model_id", "hub_private", "hub_strategy")


@dataclass
class CommonArguments:
    """All shared options, in one object.

    What needs torch or timm is imported where it is used: ``--help`` and wrong options are answered without them.
    """

    given: ClassVar[set[str]] = set()
    """Names of the options that the user gave, see :func:`common.options.arguments.parse_arguments`"""

    dataset_name: str = option("demo", "demo, a prepared folder, or folder or Hub id for load_dataset.", group="Data")
    dataset_config_name: str | None = option(None, "Configuration of the data set on the Hub.")
    train_file: str | None = option(None, "CSV, TSV, XLSX, JSON lines or Parquet to train on, not a dataset_name.")
    validation_file: str | None = option(None, "The same for validation; without, a tenth of the groups is drawn.")
    image_root: str | None = option(None, "Folder that image paths lie in; by default the train_file's, or as noted.")
    train_split: str = option("train", "Split to train on.")
    validation_split: str = option("validation", "Split to evaluate and to choose the best model on.")
    test_split: str | None = option(
        None, "Split to score once, by the best model, when training is done; in all_results.json, report and card."
    )
    test_file: str | None = option(None, "The same from a file, beside train_file.")
    image_column: str = option("image", "Column with the images, or their paths.")
    image_suffix: str | None = option(None, "Ending to add to image paths that lack it, for example .jpg.")
    missing_values: list[str] | None = option(None, MISSING_VALUES)
    hierarchy: str | None = option(None, "File with the label tree: table of paths, JSON or YAML.")
    group_column: str | None = option(None, "Column (observation, artwork) whose values must not cross splits.")
    max_train_samples: int | None = option(None, "Train on a random subset of this size.", "greater than 0")
    max_eval_samples: int | None = option(None, "Evaluate on a random subset of this size.", "greater than 0")
    exclude_rows: list[str] | None = option(None, "problems.csv files, whose rows are left out; later ones move up.")
    on_bad_sample: Literal["error", "skip"] = option(
        "error", "An image that does not decode stops the run, or is skipped, counted and listed."
    )

    image_size: int | None = option(
        None,
        "Side of the input in pixels; the backbone's own by default.",
        "greater than 0",
        group="Images and augmentation",
    )
    image_mean: list[float] | None = option(None, "Mean of red, green, blue (0 to 1); by default the backbone's own.")
    image_std: list[float] | None = option(None, "Their standard deviation; compute_statistics.py finds both.")
    hflip: float = option(0.5, "Probability of a horizontal flip.", "from 0 up to 1")
    vflip: float = option(0.0, "Probability of a vertical flip.", "from 0 up to 1")
    color_jitter: float = option(0.2, "Strength of colour jitter; 0 for none.", "at least 0")

    model_name_or_path: str = option(
        "microsoft/beit-base-patch16-224",
        "timm/<name>, hf-hub:<org>/<timm model>, a Transformers id or folder, or a folder that this script wrote.",
        group="Model",
    )
    no_pretrained: bool = option(False, "Build the architecture with random weights, offline.")
    backbone_weights: str | None = option(None, "Load the backbone from this safetensors file.")
    head: HEADS = option("tree", "How classes are scored; see common/model/heads.py.")
    head_scale: float | None = option(
        None,
        "Tree head: a leaf's score is the sum over its path times this; by default one over the root of the number "
        "of levels. Before it existed it was 1.",
        "greater than 0",
    )
    dropout: float = option(0.0, "Dropout before the heads.", "at least 0 and less than 1")
    drop_path_rate: float | None = option(None, "Stochastic depth; the backbone's own.", "at least 0 and less than 1")
    trust_remote_code: bool = option(False, "Allow code from the model's repository to run.")
    tune: Literal["full", "head", "lora"] = option(
        "full", "Train the whole model; heads (and decoder) alone; or those and low-rank additions to the backbone."
    )
    lora_rank: int = option(8, "--tune lora: width of the additions.", "greater than 0")
    unfreeze_after: int | None = option(
        None, "--tune head or lora: train the whole backbone, too, after so many epochs.", "greater than 0"
    )

    level_weights: list[str] = option(
        ["auto"],
        "A number per level, or leaf (the last level alone), equal, leaf_heavy or rising; auto: equal for independent "
        "heads, leaf for the others, whose upper levels follow from the leaves.",
        group="Loss",
    )
    curriculum: list[str] | None = option(None, "Stages of other level weights: EPOCHS=WEIGHT,WEIGHT,... for each.")
    curriculum_schedule: Literal["span", "restart"] = option("span", "The rate's course spans stages, or restarts.")
    class_weighting: CLASS_WEIGHTINGS = option("none", "Weight of classes by how rare they are.")
    class_weight_max_ratio: float = option(100.0, "Largest class weight over the smallest.", "at least 1")

    num_train_epochs: int = option(10, "Passes over the training data.", "greater than 0", group="Optimization")
    max_train_steps: int | None = option(None, "Optimizer steps, instead of num_train_epochs.", "greater than 0")
    global_batch_size: int | None = option(
        None, "Images per optimizer step over all processes; by default what fits on them at once.", "greater than 0"
    )
    per_device_train_batch_size: int | None = option(
        None,
        "Images per forward pass of a process; accumulation follows. By default 32, or the process's share of the "
        "global batch; fewer if there are less than 256 images.",
        "greater than 0",
    )
    per_device_eval_batch_size: int = option(64, "The same in evaluation.", "greater than 0")
    optimizer: str = option("adamw", "Of timm's factory: adamw, sgd, momentum, lion, lamb, ...")
    learning_rate: float = option(1e-4, "Peak learning rate of the backbone.", "greater than 0")
    find_learning_rate: bool = option(
        False, "Train some steps at rising rates, draw the loss over the rate into output_dir/learning_rate, and end."
    )
    head_lr_scale: float | None = option(
        None,
        "Learning rate of heads and decoder relative to the backbone's; by default 10 if they are new, the "
        "backbone is trained and there is no --layer_decay, otherwise 1.",
        "greater than 0",
    )
    weight_decay: float = option(0.05, "None on biases and norms.", "at least 0")
    momentum: float = option(0.9, "Of sgd, and other optimizers that have one.", "at least 0 and less than 1")
    adam_beta1: float = option(0.9, "First beta of adamw, lion and the like.", "at least 0 and less than 1")
    adam_beta2: float = option(0.999, "Second beta.", "at least 0 and less than 1")
    layer_decay: float = option(1.0, "A layer's rate, relative to the next; BEiT: 0.65 to 0.9.", "over 0 and up to 1")
    lr_scheduler_type: Literal["cosine", "linear", "onecycle", "constant", "plateau"] = option(
        "cosine", "Course of the learning rate; plateau lowers it when the evaluation's loss stops falling."
    )
    warmup_ratio: float = option(0.05, "Share of the steps in which the learning rate rises.", "from 0 up to 1")
    plateau_factor: float = option(0.9, "plateau: what multiplies the learning rate.", "at least 0 and less than 1")
    plateau_patience: int = option(1, "plateau: evaluations without a better loss before that.", "at least 0")
    max_grad_norm: float = option(1.0, "Clip gradients to this norm; 0 for none.", "at least 0")
    batch_norm: Literal["local", "sync", "frozen"] = option(
        "local",
        "BatchNorm's statistics: of each forward pass, of all GPUs together (sync), or those that the pretrained "
        "backbone has (frozen), which no split of a batch can change.",
    )
    ema_decay: float = option(
        0.0, "Evaluate and keep an exponential moving average of weights; 0 for none.", "at least 0 and less than 1"
    )

    output_dir: str = option("output", "Folder for the model, results and logs.", group="Run")
    seed: int = option(0, "Of weights, order and augmentation.", "at least 0")
    deterministic: bool = option(False, "Use deterministic algorithms only, even if slower.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "By default what accelerate launch says.")
    channels_last: bool = option(False, "Keep images channels-last; faster for most convolutional networks.")
    compile: bool = option(False, "torch.compile the model for training.")
    gradient_checkpointing: bool = option(False, "Compute activations twice: less memory, a third more time.")
    dataloader_num_workers: int | None = option(None, "Per process; by default one per core, up to 8.", "at least 0")
    logging_steps: int = option(50, "Log the loss every so many optimizer steps.", "greater than 0")
    eval_epochs: int = option(1, "Evaluate every so many epochs, and at the end.", "greater than 0")
    metric_for_best_model: str = option(
        "path.full_path_accuracy", "Entry of eval in all_results.json, for example levels.species.macro_f1, or loss."
    )
    early_stopping_patience: int | None = option(None, "Stop after so many evaluations no better.", "greater than 0")
    checkpointing_steps: str = option("epoch", "Save a checkpoint every so many optimizer steps, or every epoch.")
    checkpointing_seconds: float | None = option(
        None, "Save one whenever the last is this old, too; 0 for never. 600, on the ISC 30, by default.", "at least 0"
    )
    keep_last: int = option(2, "How many checkpoints to keep, at least 2.", "at least 2")
    resume_from_checkpoint: str = option("auto", "auto: newest in output_dir; none; a checkpoint or output folder.")
    max_train_minutes: float | None = option(None, "Stop after this time, with a checkpoint.", "greater than 0")
    max_skipped_steps: int = option(10, "Steps in a row that may be skipped for NaN or infinite loss.", "at least 0")
    eval_only: bool = option(False, "Evaluate a folder that this script wrote, and do nothing else.")
    decoding: Literal["leaf", "levels"] = option(
        "leaf", "Best path: that of the most probable leaf, or the one with the most levels expected right."
    )
    save_predictions: bool = option(False, "Keep what is predicted for the evaluation images of the best model.")
    export: Literal["none", "onnx"] = option("none", "Also write the best model in this form, when all is done.")
    watch: list[str] | None = option(None, "Names of classes, of any level, whose recall and confusions are reported.")
    no_report: bool = option(False, "Draw no report.html and no plots.")
    push_to_hub: bool = option(False, "Upload model, card and report to the Hub; log in by hf auth login or HF_TOKEN.")
    hub_model_id: str | None = option(None, "Repository to upload to; by default named as the output folder.")
    hub_private: bool = option(False, "Make the repository private if it is new.")
    hub_strategy: Literal["end", "best"] = option("end", "At the end, or each new best model too, in the background.")
    license: str | None = option(None, "Of the model, for its card; for example apache-2.0.")
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "all"] = option("none", "Trackers to log to.")

    def validate(self) -> None:
        """Raise one ValueError that lists every setting that cannot be right on its own."""
        problems = self.problems()
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def problems(self) -> list[str]:
        """A sentence for each of them."""
        problems = out_of_range(self)
        for name, low in (("image_mean", 0.0), ("image_std", 1e-6)):
            value = getattr(self, name)
            if value is not None and not (len(value) == 3 and all(low <= number <= 1 for number in value)):
                problems.append(f"--{name} takes three numbers from 0 to 1, of red, green and blue; got {value}")
        evaluated = self.validation_file or self.test_file
        if bool(self.train_file) != bool(evaluated) and not (self.validation_file and self.eval_only):
            problems.append("--train_file and --validation_file go together")
        if self.test_file and not self.train_file:
            problems.append("--test_file goes with --train_file")
        if self.test_file and self.test_split:
            problems.append("give --test_file or --test_split, not both")
        try:
            if changed(self, "optimizer"):
                from ..optim.parameters import check_optimizer

                check_optimizer(self.optimizer)
            if self.curriculum:
                _ = self.epochs
        except ValueError as error:
            problems.append(str(error))
        if self.checkpointing_steps != "epoch" and not (
            self.checkpointing_steps.isdecimal() and int(self.checkpointing_steps)
        ):
            problems.append(f"--checkpointing_steps must be a number or epoch, not {self.checkpointing_steps}")
        if self.eval_only and not (Path(self.model_name_or_path) / "config.json").is_file():
            problems.append("--eval_only needs --model_name_or_path FOLDER, one that a training run has written")
        return problems

    @property
    def epochs(self) -> int:
        """Passes over the training data: those of the curriculum's stages if there is one."""
        if not self.curriculum:
            return self.num_train_epochs
        from ..optim.schedule import stage_epochs

        return sum(stage_epochs(self.curriculum))

    @property
    def partly(self) -> bool:
        """Whether the backbone's own weights are never trained."""
        return self.tune != "full" and not self.unfreeze_after

    def _holds_paths(self) -> bool:
        """Whether the data are tables, or a folder that notes paths: images are then found under a root."""
        from ..data.prepared import read_image_root

        noted = read_image_root(self.dataset_name)
        return bool(self.train_file or self.validation_file) or noted is not None

    def idle(self) -> list[tuple[str, bool, str]]:
        """(option, whether it cannot take effect beside the others, why)."""
        from timm.optim import get_optimizer_info

        from ..model.encoders import TIMM_PREFIXES

        info = get_optimizer_info(self.optimizer)
        has_betas = info.has_betas and info.num_betas == 2
        fixed = self.partly and self.tune == "head"
        return [
            ("head_scale", self.head != "tree", "only tree heads sum over paths"),
            ("lora_rank", self.tune != "lora", f"--tune is {self.tune}"),
            ("unfreeze_after", self.tune == "full", "--tune is full"),
            ("layer_decay", self.partly, f"--tune is {self.tune}"),
            *((name, fixed, "--tune head leaves the backbone as it is") for name in OF_THE_BACKBONE),
            *((name, self.eval_only, "--eval_only trains nothing") for name in ("tune", "gradient_checkpointing")),
            ("curriculum_schedule", not self.curriculum, "there is no --curriculum"),
            ("num_train_epochs", bool(self.curriculum), "--curriculum has epochs of its own"),
            ("level_weights", bool(self.curriculum), "--curriculum has weights of its own"),
            ("class_weight_max_ratio", self.class_weighting == "none", "--class_weighting is none"),
            ("image_root", not self._holds_paths(), "images come with the data set"),
            ("image_suffix", not self._holds_paths(), "images come with the data set"),
            ("dataset_config_name", bool(self.validation_file), "files are given"),
            ("trust_remote_code", self.model_name_or_path.startswith(TIMM_PREFIXES), "timm runs no remote code"),
            ("no_pretrained", bool(self.backbone_weights), "--backbone_weights are loaded"),
            ("export", self.eval_only, "--eval_only writes no model; use export_onnx.py"),
            ("test_split", self.eval_only, "--eval_only evaluates --validation_split alone"),
            ("test_file", self.eval_only, "--eval_only evaluates --validation_file alone"),
            ("push_to_hub", self.eval_only, "--eval_only writes no model"),
            ("license", self.eval_only, "--eval_only writes no model card"),
            *((name, not self.push_to_hub, "there is no --push_to_hub") for name in HUB_OPTIONS),
            ("watch", self.no_report, "there is to be no report"),
            ("warmup_ratio", self.eval_only, "--eval_only trains nothing"),
            ("adam_beta1", not has_betas, f"{self.optimizer} has no betas"),
            ("adam_beta2", not has_betas, f"{self.optimizer} has no betas"),
            ("momentum", not info.has_momentum, f"{self.optimizer} has no momentum"),
            *((name, self.lr_scheduler_type != "plateau", "--lr_scheduler_type is another") for name in PLATEAU),
        ]

    def without_effect(self) -> list[str]:
        """A sentence for each setting that was changed and cannot take effect."""
        return [f"--{name} has no effect: {why}." for name, idle, why in self.idle() if idle and changed(self, name)]

    def without_effect_on_saved_models(self, *more: str) -> list[str]:
        """The same for what a model brings along that this project has saved; ``more`` are the script's own."""
        names = ("no_pretrained", "backbone_weights", "dropout", "drop_path_rate", "image_mean", "image_std", *more)
        return [f"--{name} has no effect on a saved model." for name in names if changed(self, name)]
