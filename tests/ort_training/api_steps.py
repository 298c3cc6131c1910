"""Runs inside the environment: optimizer steps on given inputs, and what they leave.

argv: artifacts, inputs.npz (arrays of the training inputs, each [steps, ...]), out.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from tools.ort_training_train import Trainer


def main() -> None:
    folder, inputs, out = map(Path, sys.argv[1:4])
    trainer = Trainer(folder, threads=1)
    names = list(trainer.about["training_inputs"])
    with np.load(inputs) as archive:
        steps = [archive[name] for name in names]
    trainer.optimizer.set_learning_rate(1e-2)
    left: dict[str, np.ndarray] = {"losses": np.zeros(len(steps[0]))}
    parameters = [p["name"] for p in trainer.about["parameters"]]
    for number, given in enumerate(zip(*steps, strict=True)):
        trainer.module.train()
        left["losses"][number] = trainer.module(*given)[0]
        if number == 0:
            for name in parameters:
                left[f"gradient.{name}"] = np.array(trainer.state.parameters[name].grad)
            # A second run adds to the buffers; the first one then counts alone again.
            trainer.module(*given)
            left["twice"] = np.array(trainer.state.parameters[parameters[0]].grad)
            trainer.module.lazy_reset_grad()
            trainer.module(*given)
        trainer.optimizer.step()
        trainer.module.lazy_reset_grad()
    for name in parameters:
        left[name] = np.array(trainer.state.parameters[name].data)
    trainer.module.eval()
    left["eval_loss"], left["logits"] = trainer.module(*(s[0] for s in steps))
    trainer.save(folder / "saved")
    again = Trainer(folder, folder / "saved", threads=1).state
    assert all(np.array_equal(again.parameters[n].data, left[n]) for n in parameters)
    trainer.module.export_model_for_inferencing(folder / "tuned.onnx", ["logits"])
    session = ort.InferenceSession(str(folder / "tuned.onnx"), providers=["CPUExecutionProvider"])
    (data,) = session.get_inputs()
    left["exported_logits"] = session.run(None, {data.name: steps[0][0]})[0]
    np.savez(out, **left)  # type: ignore[arg-type]  # names are data
    print(json.dumps({"inputs": trainer.module.input_names()}))


if __name__ == "__main__":
    main()
