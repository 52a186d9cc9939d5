"""Export a model of train_taxonomy.py or train_segmentation.py to ONNX, for programs without PyTorch.

    python export_onnx.py output                          # writes output/model.onnx
    python export_onnx.py ORG/MODEL --output model.onnx   # a model on the Hub

The file's log-probabilities are compared with the model's before it takes its name. The option --export onnx of the
training scripts does the same at the end of training. Needs: pip install -r requirements-onnx.txt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.publish.models import load_saved_model
from common.publish.onnx_export import check_export_packages, export_onnx
from common.run.command import run


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the command line; returns the file's path.

    Raises:
        ValueError: if there is no such model, a package is missing, or the file computes something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("--output", metavar="FILE", help="the file to write; MODEL/model.onnx by default")
    args = parser.parse_args(argv)
    check_export_packages()
    if args.output is None and not Path(args.model).is_dir():
        raise ValueError(f"{args.model} is no folder; say with --output where the file goes.")
    path = Path(args.output or Path(args.model) / "model.onnx")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} (--output).")
    difference = export_onnx(load_saved_model(args.model), path)
    print(f"{path}: log-probabilities differ by at most {difference:.1e} from PyTorch's.")
    return path


if __name__ == "__main__":
    run(main)
