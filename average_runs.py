"""Average the models of several runs with one label tree: model soups (Wortsman et al., ICML 2022).

    python average_runs.py output/seed_0 output/seed_1 output/seed_2 --output_dir output/soup
    python average_runs.py output/seed_* --greedy --output_dir output/soup --max_eval_samples 2000

Each folder is the --output_dir of a run; options that are not listed below go to its script's --eval_only evaluation,
which otherwise is as in the first run. Runs that started from the same trained weights have a good average, others
usually have not. ``predict.py --more_models`` averages what models answer instead, which needs no such start.
"""

from __future__ import annotations

import argparse
import json
import logging
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
from common.predict.views import load_models
from common.publish.card import write_card
from common.publish.models import save_model
from common.report.summary import RunSummary
from common.run import command
from common.run.arguments import parse_arguments
from common.run.processes import make_accelerator
from common.run.setup import make_sampler

logger = logging.getLogger(__name__)

BATCHES = 200
"""At most so many training batches tell the averaged model's BatchNorm statistics"""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Average, evaluate and save; returns the results as all_results.json holds them.

    Raises:
        ValueError: the runs do not fit together, or a folder is not one of a finished run.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="OUTPUT_DIR", help="Output folder of a finished run.")
    parser.add_argument("--output_dir", required=True, help="Folder for the averaged model.")
    parser.add_argument("--greedy", action="store_true", help="Keep a run only if the average gets no worse by it.")
    parser.add_argument(
        "--batch_norm",
        choices=("reestimate", "average"),
        default="reestimate",
        help="Statistics of BatchNorm: from the first run's training images, or averaged like the weights.",
    )
    args, words = parser.parse_known_args(argv)
    models = load_models(args.folders)
    check_architectures(args.folders, models)
    options = Path(args.folders[0]) / "args.yaml"
    if not options.is_file():
        raise ValueError(f"{args.folders[0]} has no args.yaml: it is not the output folder of a run.")
    dense = isinstance(models[0], LabelTreeForSemanticSegmentation)
    script = train_segmentation if dense else train_taxonomy
    words = ["--config", str(options), "--no_report", "true", *words]

    def mixed(chosen: Sequence[int]) -> LabelTreeModel:
        model = average([models[index] for index in chosen])
        if len(chosen) > 1 and any(True for _ in batch_norms(model)):
            if args.batch_norm == "average":
                logger.warning("BatchNorm's statistics are averaged, which fits no network; see --batch_norm.")
            else:
                reestimate(script, words, model)
        return model

    def evaluate(model: LabelTreeModel, folder: str | Path) -> dict[str, Any]:
        save_model(model, AutoImageProcessor.from_pretrained(args.folders[0]), folder)
        return script.main([*words, "--eval_only", "--model_name_or_path", str(folder), "--output_dir", str(folder)])

    def score(chosen: Sequence[int]) -> float:
        with tempfile.TemporaryDirectory(prefix="soup_") as folder:
            value = dict(flatten(evaluate(mixed(chosen), folder)["eval"]))[metric]
        return value if is_better(metric, 1, 0) else -value

    settings = yaml.safe_load(options.read_text(encoding="utf-8"))
    metric = settings["metric_for_best_model"]
    chosen = list(range(len(models)))
    if args.greedy:
        chosen = greedy(len(models), score)
    model, output_dir = mixed(chosen), Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    results = evaluate(model, output_dir)
    if not dense:
        model.config.calibration = json.loads((output_dir / "calibration.json").read_text(encoding="utf-8"))
        save_model(model, AutoImageProcessor.from_pretrained(args.folders[0]), output_dir)
    names = ", ".join(Path(args.folders[index]).name for index in chosen)
    facts = {"model": f"average of the weights of {len(chosen)} runs: {names}", "label tree": str(model.hierarchy)}
    options = {**settings, "push_to_hub": False, "hub_model_id": None}
    unit = "pixels" if dense else "images"
    write_card(RunSummary(output_dir, options, model.hierarchy, unit, script.MEASURES, facts, results))
    logger.info("The average of %s is in %s.", names, output_dir)
    return results


def check_architectures(folders: Sequence[str], models: Sequence[LabelTreeModel]) -> None:
    """ValueError if weights of one model have no counterpart in another."""
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in models]
    for folder, found in zip(folders, shapes, strict=True):
        if found != shapes[0]:
            name = min(name for name in found.keys() | shapes[0].keys() if found.get(name) != shapes[0].get(name))
            raise ValueError(f"{folder} has another architecture than {folders[0]} ({name}): they have no average.")


@torch.no_grad()
def average(models: Sequence[LabelTreeModel]) -> LabelTreeModel:
    """A new model with the mean of the weights and buffers, summed in float64; counters are the first model's."""
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
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
    normalize = Normalize(spec["mean"], spec["std"]).to(accelerator.device)
    update_bn(
        (normalize(batch["pixels"].to(accelerator.device)) for batch in islice(loader, BATCHES)),
        model.to(accelerator.device),
    )
    model.cpu().eval()


if __name__ == "__main__":
    command.run(main)
