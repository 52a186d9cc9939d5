"""Average the models of several runs with one label tree: model soups (Wortsman et al., ICML 2022).

    python average_runs.py output/seed_0 output/seed_1 output/seed_2 --output_dir output/soup
    python average_runs.py output/seed_* --greedy --output_dir output/soup -- --max_eval_samples 2000

Each folder is the --output_dir of a run. The average is evaluated as the first run was, with the script's own options
after "--". Runs that started from the same trained weights have a good average, others usually have not.
``predict.py --more_models`` averages what models answer instead, which needs no such start.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch.optim.swa_utils import update_bn
from transformers import AutoImageProcessor

import train_segmentation
import train_taxonomy
from common.images.transforms import Normalize
from common.metrics.results import flatten, is_better
from common.model.modeling import LabelTreeForSemanticSegmentation, LabelTreeModel
from common.optim.batch_norm import batch_norms
from common.options.arguments import parse_arguments
from common.predict.views import load_models
from common.publish.card import write_card
from common.publish.models import save_model
from common.report.summary import RunSummary
from common.run import command
from common.run.processes import make_accelerator
from common.run.setup import make_sampler

logger = logging.getLogger(__name__)

BATCHES = 200  # at most so many training batches tell the averaged model's BatchNorm statistics


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Average, evaluate and save; returns the results as all_results.json holds them.

    Raises:
        ValueError: the runs do not fit together, or a folder is not one of a finished run.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="OUTPUT_DIR", help="Output folder of a finished run.")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder for the averaged model.")
    parser.add_argument("--greedy", action="store_true", help="Keep a run only if the average gets no worse by it.")
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:own])
    models = load_models(args.folders)
    check_architectures(args.folders, models)
    saved = Path(args.folders[0]) / "args.yaml"
    if not saved.is_file():
        raise ValueError(f"{args.folders[0]} has no args.yaml: it is not the output folder of a run.")
    settings = {**yaml.safe_load(saved.read_text(encoding="utf-8")), "push_to_hub": False, "hub_model_id": None}
    dense = isinstance(models[0], LabelTreeForSemanticSegmentation)
    script = train_segmentation if dense else train_taxonomy
    words = ["--config", str(saved), "--no_report", "true", *argv[own + 1 :]]

    def mixed(chosen: Sequence[int]) -> LabelTreeModel:
        model = average([models[index] for index in chosen])
        if len(chosen) > 1 and batch_norms(model):
            reestimate(script, words, model)
        return model

    def evaluate(model: LabelTreeModel, folder: Path) -> dict[str, Any]:
        save_model(model, AutoImageProcessor.from_pretrained(args.folders[0]), folder)
        return script.main([*words, "--eval_only", "--model_name_or_path", str(folder), "--output_dir", str(folder)])

    def score(chosen: Sequence[int]) -> float:
        metric = settings["metric_for_best_model"]
        with tempfile.TemporaryDirectory(prefix="soup_") as folder:
            value = dict(flatten(evaluate(mixed(chosen), Path(folder))["eval"]))[metric]
        return value if is_better(metric, 1, 0) else -value

    chosen = greedy(len(models), score) if args.greedy else range(len(models))
    model, names = mixed(chosen), ", ".join(Path(args.folders[index]).name for index in chosen)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results = evaluate(model, args.output_dir)
    if not dense:
        model.config.calibration = json.loads((args.output_dir / "calibration.json").read_text(encoding="utf-8"))
        model.config.save_pretrained(args.output_dir)
    facts = {"model": f"average of the weights of {len(chosen)} runs: {names}", "label tree": str(model.hierarchy)}
    unit = "pixels" if dense else "images"
    write_card(RunSummary(args.output_dir, settings, model.hierarchy, unit, script.MEASURES, facts, results))
    logger.info("The average of %s is in %s.", names, args.output_dir)
    return results


def check_architectures(folders: Sequence[str], models: Sequence[LabelTreeModel]) -> None:
    """ValueError if weights of one model have no counterpart in another."""
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in models]
    for folder, found in zip(folders, shapes, strict=True):
        if found != shapes[0]:
            name = min(name for name in found.keys() | shapes[0].keys() if found.get(name) != shapes[0].get(name))
            raise ValueError(f"{folder} has another architecture than {folders[0]} ({name}): they have no average.")


def average(models: Sequence[LabelTreeModel]) -> LabelTreeModel:
    """A new model with the mean of the weights and buffers, summed in float64; counters are the first model's."""
    states = [model.state_dict() for model in models]
    mean = dict(states[0])
    for name, value in mean.items():
        if value.is_floating_point():
            mean[name] = torch.stack([state[name].double() for state in states]).mean(0).to(value)
    model = type(models[0])(models[0].config)
    model.load_state_dict(mean)
    return model.eval()


def greedy(count: int, score: Callable[[Sequence[int]], float]) -> list[int]:
    """Which models to average: the best one, then from good to bad each with which the average gets no worse.

    Args:
        count: of models.
        score: of the average of some of them, by their indices; higher is better.
    """
    alone = [score([index]) for index in range(count)]
    first, *rest = sorted(range(count), key=lambda index: -alone[index])
    chosen, best = [first], alone[first]
    for index in rest:
        value = score([*chosen, index])
        if value >= best:
            chosen, best = [*chosen, index], value
    logger.info("greedy: %d of %d runs, %.4f (the best alone: %.4f)", len(chosen), count, best, alone[first])
    return chosen


def reestimate(script: ModuleType, words: Sequence[str], model: LabelTreeModel) -> None:
    """BatchNorm's statistics of the averaged weights, from training images, as stochastic weight averaging does it."""
    kind = script.SegmentationArguments if script is train_segmentation else script.TaxonomyArguments
    args = parse_arguments(kind, words, script.__doc__, script.DEMO_CONFIG)
    accelerator = make_accelerator(args)
    data, spec = script.load_data(args, accelerator), model.config.backbone
    sampler = make_sampler(args, accelerator, len(data.train.rows))
    loader = script.make_train_loader(args, accelerator, data.train, spec, sampler)
    normalize = Normalize(spec["mean"], spec["std"])
    logger.info("The average's BatchNorm statistics are estimated on at most %d training batches.", BATCHES)
    pixels = (normalize(batch["pixels"]) for batch in islice(loader, BATCHES))
    update_bn(pixels, model.to(accelerator.device), accelerator.device)
    model.cpu().eval()


if __name__ == "__main__":
    command.run(main)
