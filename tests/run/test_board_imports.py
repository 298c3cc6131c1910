from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_ir", "onnxscript"}:
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Blocked())
from s2a_edge.run.trainer import Trainer
from s2a_edge.run.finished_run import evaluate_run, export_run

bundle, data, out = sys.argv[1:]
Trainer(bundle).fit(data, val=data, epochs=1, lr=0.1, out=out)
evaluate_run(__import__("pathlib").Path(out), data)
export_run(__import__("pathlib").Path(out), __import__("pathlib").Path(out) / "tuned.onnx")
print("done")
"""


def test_a_board_trains_evaluates_and_exports_without_torch_and_onnx(
    toy: Path, train_npz: Path, tmp_path: Path
) -> None:
    run = [sys.executable, "-c", SCRIPT, str(toy), str(train_npz), str(tmp_path / "run")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")
