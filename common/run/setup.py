"""What both scripts do before the loop: open the splits, put batch sizes together, find the model to start from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from torch import nn

from ..data.drawing import draw_splits, number_groups
from ..data.parts import Data, Part
from ..data.prepared import find_image_root
from ..data.problems import image_names, leave_out
from ..data.rows import ProblemLog
from ..data.sampling import GlobalBatchSampler
from ..data.splits import (
    Reading,
    check_columns,
    check_groups,
    choose_rows,
    get_split,
    load_splits,
    read_cells,
    read_groups,
)
from ..metrics.results import check_metric_name, flatten
from ..model.backbones import Backbone, load_backbone, resized
from ..model.heads import default_scale
from ..model.hierarchy import Hierarchy
from ..model.modeling import LabelTreeConfig, LabelTreeModel
from ..options.shared import CommonArguments
from ..publish.hub import Publisher
from ..publish.onnx_export import check_export_packages
from .identity import BEGUN_WITH
from .processes import local_main_first, on_main_process

logger = logging.getLogger(__name__)

TEST = "test"
VALIDATION_SHARE = 0.1
"""Of training, drawn for validation where there is none"""

NEW_HEAD_LR_SCALE = 10.0
"""Rate of new heads relative to that of a trained backbone: as measured in benchmarks/README.md"""


def open_splits(
    args: CommonArguments, accelerator: Accelerator, draw_demo: Callable[[], Path]
) -> tuple[DatasetDict, str]:
    """The data set's splits, and its name or folder; the demo is drawn if it is asked for and not there yet.

    Rows to exclude are not in them. ``draw_demo`` draws the demo data if they are not there yet, and returns their
    folder; one process of a node draws, the others wait.
    """
    with local_main_first(accelerator):
        files = {args.train_split: args.train_file, args.validation_split: args.validation_file}
        files |= {TEST: args.test_file} if args.test_file else {}
        name = args.dataset_name
        if name == "demo" and not any(files.values()):
            name = str(draw_demo())
        splits = load_splits(name, args.dataset_config_name, files, Reading.of(args))
    splits, _ = leave_out(splits, args.exclude_rows or [], args.image_column)
    lacking = args.validation_split == "validation" not in splits and not args.eval_only
    return _draw_validation(args, splits) if lacking and {args.train_split, TEST} <= set(splits) else splits, name


def _draw_validation(args: CommonArguments, splits: DatasetDict) -> DatasetDict:
    """Training divided, by groups, where a data set has training and test only; ValueError if groups are too few."""
    train = splits[args.train_split]
    names = read_groups(train, args.group_column) if args.group_column else image_names(train, args.image_column)
    labels = [name for name in (vars(args).get("level_columns") or [vars(args).get("label_column")]) if name]
    paths = list(zip(*(read_cells(train, name) for name in labels), strict=True)) or [()] * len(train)
    numbers = {path: number for number, path in enumerate(dict.fromkeys(paths))}
    groups = number_groups([name or None for name in names])
    drawn = draw_splits(groups, np.array([numbers[path] for path in paths]), (VALIDATION_SHARE,), args.seed)
    if not drawn.any():
        raise ValueError(
            f"The data have no split 'validation' (--validation_split), and the {len(set(groups.tolist()))} groups of "
            "training are too few to draw one, or too large, or each is the only one with some class."
        )
    logger.warning(
        "The data have no split 'validation': %d of %d training images were drawn for it, by %s (--seed).",
        np.count_nonzero(drawn),
        len(drawn),
        args.group_column or "image",
    )
    parts = {args.train_split: np.flatnonzero(drawn == 0), args.validation_split: np.flatnonzero(drawn)}
    return DatasetDict({**splits, **{name: train.select(rows) for name, rows in parts.items()}})


def open_parts(
    args: CommonArguments,
    splits: DatasetDict,
    hierarchy: Hierarchy,
    read: Callable[[Dataset, str, Path], tuple[Any, np.ndarray | None]],
) -> Data:
    """The splits that the options name; ``read`` returns images and labels of rows, split name and image root.

    ValueError if a split is missing, or a group is in training and validation.
    """
    test = None if args.eval_only else TEST if args.test_file else args.test_split
    if test is None and not args.eval_only and TEST in set(splits) - {args.train_split, args.validation_split}:
        logger.info("The data have a split %s: --test_split %s scores the best model on it, at the end.", TEST, TEST)

    def part(name: str, option: str, file: str | None, num_samples: int | None) -> Part:
        rows = get_split(splits, name, option)
        images, labels = read(rows, name, image_root(args, file))
        together = None if option == "--train_split" else vars(args).get("eval_group_column")
        columns = [column for column in (args.group_column, together) if column]
        check_columns(rows, columns, name)
        groups = {column: number_groups(read_groups(rows, column)) for column in columns}
        chosen, suffix = choose_rows(len(rows), num_samples, args.seed), "_test" if name == test else ""
        return Part(images, labels, chosen, groups.get(args.group_column), suffix, groups.get(together))

    data = Data(
        hierarchy,
        None if args.eval_only else part(args.train_split, "--train_split", args.train_file, args.max_train_samples),
        part(args.validation_split, "--validation_split", args.validation_file, args.max_eval_samples),
        part(test, "--test_split", args.test_file, args.max_eval_samples) if test else None,
    )
    if data.train is not None and args.group_column:
        check_groups(splits[args.train_split], splits[args.validation_split], args.group_column)
    return data


def image_root(args: CommonArguments, file: str | None) -> Path:
    """The folder that image paths of a table, or of a prepared folder, are relative to; ValueError if it is gone."""
    if args.image_root:
        return Path(args.image_root)
    file = file or args.train_file  # validation may be drawn from training
    return Path(file).parent if file else find_image_root(args.dataset_name)


def make_sampler(
    args: CommonArguments,
    accelerator: Accelerator,
    num_samples: int,
    mix_pairs: bool = False,
    weights: np.ndarray | None = None,
) -> GlobalBatchSampler:
    """Batch sizes that fit together (or ValueError), the number of optimizer steps, and the order of the samples.

    ``mix_pairs`` says whether neighbours in a batch are mixed; ``weights`` how often samples are drawn, see
    :func:`common.data.sampling.epoch_order`.
    """
    processes = accelerator.num_processes
    micro = args.per_device_train_batch_size or (args.global_batch_size or 0) // processes
    if not micro:  # small data: eight steps an epoch rather than large batches
        share = num_samples // processes
        micro = max(1, min(32, share, max(4, share // 8)))
        micro -= micro % 2 if micro > 1 else 0
    if mix_pairs and micro % 2:
        raise ValueError(f"mixup and cutmix mix pairs: {micro} images per device and forward pass are not even.")
    return GlobalBatchSampler(
        num_samples,
        args.global_batch_size or micro * processes,
        micro,
        num_steps=args.max_train_steps,
        num_epochs=args.epochs,
        seed=args.seed,
        process_index=accelerator.process_index,
        num_processes=processes,
        weights=weights,
    )


def check_settings(args: CommonArguments, accelerator: Accelerator, metrics: Any) -> None:
    """What can be known to be wrong before a model is loaded; a warning names options without effect.

    ``metrics.compute`` names what ``--metric_for_best_model`` may be. One process asks the Hub.
    """
    for line in args.without_effect():
        logger.warning("%s", line)
    if args.export != "none":
        check_export_packages()
    metrics.hierarchy.find_nodes(args.watch or (), "--watch")
    names = [name for name, _ in flatten(metrics.compute())]
    names += [f"observations.{name}" for name in names] if vars(args).get("eval_group_column") else []
    names += ["costs.mean_cost"] if args.decoding == "cost" else []
    check_metric_name(args.metric_for_best_model, ["loss", *names])
    if args.push_to_hub and not args.eval_only:
        publisher = Publisher(args.output_dir, args.hub_model_id, args.hub_private)
        args.hub_model_id = on_main_process(accelerator, lambda: publisher.check(args.license), share=True)


def check_images(accelerator: Accelerator, parts: Sequence[Any], problems: ProblemLog) -> None:
    """Look for broken image files before hours of training; one process of a node looks, ``None`` is passed over."""
    if accelerator.is_local_main_process:
        for part in parts:
            if part is not None:
                problems.add(part.images.check_headers())


def start_from(
    args: CommonArguments, kind: type[LabelTreeModel], hierarchy: Hierarchy, *brought_along: str, pyramid: bool = False
) -> tuple[LabelTreeModel | None, Backbone | None, nn.Linear | LabelTreeModel | None]:
    """What ``--model_name_or_path`` names: a model that the script wrote, or a backbone to build one on.

    Args:
        args, kind: the options, and the script's model class.
        hierarchy: the data's label tree.
        brought_along: options of the script that a saved model has settled.
        pyramid: whether the backbone has to give a pyramid of feature maps.

    Returns:
        The complete model; or ``None``, its backbone, and its trained classifier or the saved model of other classes.
    """
    name = args.model_name_or_path
    if kind.read_hierarchy(name) is None:
        options = ("image_size", "drop_path_rate", "trust_remote_code", "image_mean", "image_std")
        return None, *load_backbone(
            name,
            pretrained=not args.no_pretrained,
            weights=args.backbone_weights,
            pyramid=pyramid,
            **{option: getattr(args, option) for option in options},
        )
    model = kind.from_pretrained(name, dtype=torch.float32)  # also one saved in half precision
    size = model.config.backbone["image_size"]
    if args.image_size not in (None, size):
        if args.eval_only:
            raise ValueError(f"--image_size {args.image_size} differs from the saved model's {size} (--eval_only).")
        model.backbone = resized(model.backbone, args.image_size)
        model.config.backbone = model.backbone.spec
    for line in args.without_effect_on_saved_models(*brought_along):
        logger.warning("%s", line)
    if model.hierarchy == hierarchy and (args.eval_only or model.config.head == args.head):
        return model, None, None
    for option in set(brought_along) & set(vars(model.config)):
        setattr(args, option, getattr(model.config, option))
    return None, model.backbone, model


def settle(
    args: CommonArguments, hierarchy: Hierarchy, model: LabelTreeModel | None, backbone: Backbone | None
) -> None:
    """Put numbers in the place of options whose defaults depend on what :func:`start_from` has found."""
    for name in ("resize_mode", "crop_pct"):
        if getattr(args, name, "") is None:
            kept = backbone.spec if model is None else {**model.backbone.spec, **(model.config.evaluation or {})}
            setattr(args, name, kept.get(name, BEGUN_WITH[name]))
    if args.head_lr_scale is None:
        trained = bool(args.backbone_weights) or not args.no_pretrained
        new = model is None and not getattr(args, "init_leaf_from_classifier", None) or args.tune == "lora"
        flat = args.layer_decay == 1  # layer decay has lowered the backbone's rate already
        args.head_lr_scale = NEW_HEAD_LR_SCALE if trained and new and flat else 1.0
    if model is not None:
        args.head_scale = model.config.head_scale
    elif args.head_scale is None:
        args.head_scale = default_scale(args.head, hierarchy.num_levels)


def evaluated_as_saved(args: CommonArguments, names: Sequence[str]) -> None:
    """With ``--eval_only``: set options of ``names`` that were not given as the saved model was evaluated."""
    if args.eval_only:
        config, name = LabelTreeConfig.from_pretrained(args.model_name_or_path), args.model_name_or_path
        if config.hierarchy is None:
            raise ValueError(f"{name} holds no model written by this script (--eval_only).")
        args.head = config.head
        for name in set(names) & set(config.evaluation or {}) - args.given:
            setattr(args, name, config.evaluation[name])
