"""Write a model that train_taxonomy.py or train_segmentation.py saved as ONNX, for programs without PyTorch.

    python export_onnx.py MODEL [--output FILE.onnx]

MODEL is a folder or an id on the Hub. The file is checked against the model before it takes its name. Training does
the same at its end with --export onnx. Needs: pip install -r requirements-onnx.txt
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
        ValueError: if there is no such model, a package is missing, or the result is not the same.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("--output", metavar="FILE", help="by default MODEL/model.onnx")
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
