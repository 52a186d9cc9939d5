"""What both scripts do before the loop: open the splits, put batch sizes together, find the model to start from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import DatasetDict
from huggingface_hub.constants import HF_HOME
from torch import nn

from ..data.prepared import find_image_root
from ..data.problems import leave_out
from ..data.rows import ProblemLog
from ..data.sampling import GlobalBatchSampler
from ..data.splits import load_splits
from ..metrics.results import check_metric_name, flatten
from ..model.backbones import Backbone, load_backbone
from ..model.hierarchy import Hierarchy
from ..model.modeling import (
    LabelTreeModel,
)
from ..publish.hub import Publisher
from ..publish.onnx_export import check_export_packages
from ..report.confusions import find_classes
from .arguments import changed
from .options import CommonArguments

logger = logging.getLogger(__name__)


def open_splits(
    args: CommonArguments, accelerator: Accelerator, kind: str, make_demo: Callable[[Path], Path]
) -> tuple[DatasetDict, str]:
    """The data set's splits, and its name or folder; the demo is drawn if it is asked for and not there yet.

    Rows to exclude are not in them.

    Args:
        args: ``--dataset_name`` or the files.
        accelerator: one process of a node draws, the others wait.
        kind: of demo data; names its folder in the cache.
        make_demo: draws it into a folder.
    """
    with accelerator.local_main_process_first():
        files = {args.train_split: args.train_file, args.validation_split: args.validation_file}
        name = args.dataset_name
        if name == "demo" and not args.validation_file:
            name = str(make_demo(Path(HF_HOME) / "label_tree_demo" / kind))
        splits = load_splits(name, args.dataset_config_name, files)
    return leave_out(splits, args.exclude_rows or [], args.image_column), name


def image_root(args: CommonArguments, file: str | None) -> Path:
    """The folder that image paths of a table, or of a prepared folder that holds paths, are relative to.

    Raises:
        ValueError: a prepared folder says where its images are, and there is no such folder.
    """
    if args.image_root:
        return Path(args.image_root)
    return Path(file).parent if file else find_image_root(args.dataset_name)


def make_sampler(
    args: CommonArguments, accelerator: Accelerator, num_samples: int, mix_pairs: bool = False
) -> GlobalBatchSampler:
    """Batch sizes that fit together, the number of optimizer steps, and the order of the samples."""
    processes = accelerator.num_processes
    micro = args.per_device_train_batch_size or (args.global_batch_size or 32 * processes) // processes or 1
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
    )


def check_settings(
    args: CommonArguments, accelerator: Accelerator, metrics: Any, images: list[Any], problems: ProblemLog
) -> None:
    """What can be known to be wrong, or missing on the disk, before a model is loaded.

    Args:
        args: the options; those without effect are told.
        accelerator: one process of a node looks at the files.
        metrics: whose ``compute`` names what ``--metric_for_best_model`` may be.
        images: each with ``check_headers``; ``None`` is passed over.
        problems: gets what is wrong with the files.
    """
    for line in args.without_effect():
        logger.warning("%s", line)
    if args.export != "none":
        check_export_packages()
    find_classes(metrics.hierarchy, args.watch or ())
    check_metric_name(args.metric_for_best_model, ["loss", *(name for name, _ in flatten(metrics.compute()))])
    if args.push_to_hub and not args.eval_only:
        check_hub(args, accelerator)
    if accelerator.is_local_main_process:
        for rows in images:
            if rows is not None:
                problems.add(rows.check_headers())


def check_hub(args: CommonArguments, accelerator: Accelerator) -> None:
    """Make sure that the upload can work; the options then have the repository's full name.

    Raises:
        ValueError: on every process.
    """
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [(Publisher(args.output_dir, args.hub_model_id, args.hub_private).check(args.license), None)]
        except ValueError as error:
            found = [(None, str(error))]
    args.hub_model_id, problem = broadcast_object_list(found)[0]
    if problem:
        raise ValueError(problem)


def start_from(
    args: CommonArguments, kind: type[LabelTreeModel], hierarchy: Hierarchy, *brought_along: str, pyramid: bool = False
) -> tuple[LabelTreeModel | None, Backbone | None, nn.Linear | None]:
    """What ``--model_name_or_path`` names: a model that the script wrote, or a backbone to build one on.

    Args:
        args: the options.
        kind: the script's model class.
        hierarchy: the data's label tree; a saved model with another one lends its backbone only.
        brought_along: options of the script that a saved model has settled.
        pyramid: whether the backbone has to give a pyramid of feature maps.

    Returns:
        The whole model; or ``None``, its backbone, and the backbone's own classifier if it has a trained one.
    """
    name = args.model_name_or_path
    saved = kind.is_saved_at(name)
    if args.eval_only and not saved:
        raise ValueError(f"{name} holds no model written by this script (--eval_only).")
    if not saved:
        return None, *load_backbone(
            name,
            pretrained=not args.no_pretrained,
            weights=args.backbone_weights,
            image_size=args.image_size,
            drop_path_rate=args.drop_path_rate,
            trust_remote_code=args.trust_remote_code,
            pyramid=pyramid,
        )
    model = kind.from_pretrained(name)
    for line in args.without_effect_on_saved_models(*brought_along):
        logger.warning("%s", line)
    if model.hierarchy == hierarchy and (args.eval_only or model.config.head == args.head):
        return model, None, None
    logger.warning("%s has other classes or another head: only its backbone is used.", name)
    return None, model.backbone, None


def settle_evaluation(args: CommonArguments, model: LabelTreeModel, names: Sequence[str]) -> None:
    """Evaluate a saved model as it was evaluated, unless told otherwise; and let it keep how it is evaluated now."""
    before = model.config.evaluation or {}
    for name in names:
        if args.eval_only and name in before and not changed(args, name):
            setattr(args, name, before[name])
    model.config.evaluation = {name: getattr(args, name) for name in names}
