"""What must hold between the fields of a manifest; each check reads like its sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from s2a_edge.spec.frozen_weights import check_coded, decoded_shapes
from s2a_edge.spec.strict_json import refuse
from s2a_edge.spec.text_inputs import TEXT_INPUTS, TOKENIZER_NAME, TOKENS_INPUT

if TYPE_CHECKING:
    from s2a_edge.spec.manifest import Manifest, WeightEntry

WEIGHTS_ALIGNMENT_BYTES = 4096  # a page: every tensor can be mapped on its own
RESERVED_FILES = ("manifest.json", "SHA256SUMS", "weights.bin", "adapters.safetensors")
ITEM_BYTES = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


def check_consistency(manifest: Manifest) -> None:
    """Raise BundleError at the first contradiction inside ``manifest``."""
    _check_names(manifest)
    _check_sizes(manifest)
    check_weight_table(manifest.weights)
    check_coded(manifest.frozen, manifest.weights)
    _check_graphs(manifest)
    _check_pools(manifest)
    _check_search(manifest)
    _check_task(manifest)
    _check_text(manifest)


def check_weight_table(weights: Sequence[WeightEntry]) -> None:
    """Every tensor has the bytes of its shape, starts at a page, and shares none but its parts'.

    Raises:
        BundleError: names the offending entry.
    """
    for i, entry in enumerate(weights):
        place = f"manifest.json: weights[{i}]"
        size_bytes = math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
        if entry.size_bytes != size_bytes:
            refuse(f"{place}.size_bytes", f"{size_bytes} for its shape", str(entry.size_bytes))
        if entry.offset % WEIGHTS_ALIGNMENT_BYTES:
            refuse(f"{place}.offset", f"a multiple of {WEIGHTS_ALIGNMENT_BYTES}", str(entry.offset))
    _check_parts(weights)
    used = sorted((e.offset, e.offset + e.size_bytes, i) for i, e in enumerate(weights)
                  if e.part_of is None)
    end_so_far = 0
    for start, end, i in used:
        if start < end_so_far and start < end:
            got = f"offset {start} inside the tensor before it"
            refuse(f"manifest.json: weights[{i}].offset", "tensors that do not overlap", got)
        end_so_far = max(end_so_far, end)


def _check_parts(weights: Sequence[WeightEntry]) -> None:
    """Every part is a run of rows of a tensor that is there and is no part itself."""
    wholes = {e.name: e for e in weights if e.part_of is None}
    for i, entry in enumerate(weights):
        if entry.part_of is None:
            continue
        place = f"manifest.json: weights[{i}]"
        whole = wholes.get(entry.part_of)
        if whole is None:
            refuse(f"{place}.part_of", "a tensor of its own in weights", ascii(entry.part_of))
        if (entry.dtype, entry.shape[1:]) != (whole.dtype, whole.shape[1:]) or not entry.shape:
            refuse(place, f"rows of {whole.dtype}{list(whole.shape)}",
                   f"{entry.dtype}{list(entry.shape)}")
        row_bytes = math.prod(whole.shape[1:]) * ITEM_BYTES[whole.dtype]
        first = entry.offset - whole.offset
        if first < 0 or first + entry.size_bytes > whole.size_bytes or (
                row_bytes and first % row_bytes):
            refuse(f"{place}.offset", f"a row of {whole.name}", str(entry.offset))


def _check_names(manifest: Manifest) -> None:
    _check_unique("inputs", (x.name for x in manifest.inputs))
    _check_unique("trainables", (x.name for x in manifest.trainables))
    _check_unique("weights", (x.name for x in manifest.weights))
    _check_unique("graphs.infer.weights", manifest.graphs.infer.weights)
    known = {x.name for x in manifest.weights} | decoded_shapes(manifest.frozen).keys()
    for i, name in enumerate(manifest.graphs.infer.weights):
        if name not in known:
            expected = "a name in weights or frozen.coded"
            refuse(f"manifest.json: graphs.infer.weights[{i}]", expected, ascii(name))


def _check_unique(place: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            refuse(f"manifest.json: {place}[{i}]", "every name once", f"{name!a} again")
        seen.add(name)


def _check_sizes(manifest: Manifest) -> None:
    for i, trainable in enumerate(manifest.trainables):
        size_bytes = math.prod(trainable.shape) * ITEM_BYTES["float32"]
        if trainable.size_bytes != size_bytes:
            place = f"manifest.json: trainables[{i}].size_bytes"
            refuse(place, f"{size_bytes} for its shape", str(trainable.size_bytes))


def _check_graphs(manifest: Manifest) -> None:
    graphs = manifest.graphs
    batches = sorted(graph.batch for graph in graphs.train)
    if len(set(batches)) != len(batches):
        refuse("manifest.json: graphs.train", "one graph per micro-batch", str(batches)[:100])
    if batches != sorted(manifest.recipe.micro_batches):
        got = str(sorted(manifest.recipe.micro_batches))[:100]
        refuse("manifest.json: recipe.micro_batches", f"{batches} as in graphs.train"[:100], got)
    files = [*(g.file for g in graphs.train), graphs.eval.file]
    files += [graphs.infer.file, graphs.optimizer.file]
    files += [g.native.file for g in graphs.train if g.native is not None]
    if graphs.eval.native is not None:
        refuse("manifest.json: graphs.eval.native", "null: evaluation has one form", "a graph")
    _check_unique("graphs (train, eval, infer, optimizer)", (f.lower() for f in files))
    reserved = {name.lower() for name in RESERVED_FILES}
    drawings = [g.timeline for g in graphs.train if g.timeline is not None]
    _check_unique("graphs.train (timeline)", (f.lower() for f in drawings))
    for file in drawings:
        if not file.endswith(".timeline.json.gz"):
            refuse("manifest.json: graphs", "timelines named *.timeline.json.gz", file)
    for file in files:
        if file.lower() in reserved or not file.endswith(".onnx"):
            refuse("manifest.json: graphs", "graph files named *.onnx", file)


def _check_pools(manifest: Manifest) -> None:
    """A pool is a part of what its graph needs: else a budget would not count all of it."""
    graphs = manifest.graphs
    forms = [g for g in (*graphs.train, *(g.native for g in graphs.train), graphs.eval,
                         graphs.optimizer) if g is not None]
    for form in forms:
        plan = form.plan
        most = min(plan.arena_bytes, plan.whole_image_arena_bytes)
        if plan.pool_bytes > most:
            refuse(f"manifest.json: graphs ({form.file}).plan.pool_bytes",
                   f"at most {most}, a part of the memory that is planned", str(plan.pool_bytes))


def _check_search(manifest: Manifest) -> None:
    """The chosen row is there, and is what was packed."""
    search = manifest.recipe.search
    if search is None:
        return
    place = "manifest.json: recipe.search"
    if search.chosen >= len(search.rows):
        refuse(f"{place}.chosen", f"one of {len(search.rows)} rows", str(search.chosen))
    row, packed = search.rows[search.chosen], max(manifest.recipe.micro_batches)
    if row.micro_batch != packed or row.frozen != manifest.frozen.storage:
        refuse(f"{place}.rows[{search.chosen}]",
               f"micro-batch {packed} and {manifest.frozen.storage} weights, as packed",
               f"{row.micro_batch} and {row.frozen}")


def _check_text(manifest: Manifest) -> None:
    text = manifest.preprocessing
    if text is None or text.kind != "text":
        return
    place = "manifest.json: preprocessing"
    if text.tokenizer != TOKENIZER_NAME:
        refuse(f"{place}.tokenizer", TOKENIZER_NAME, text.tokenizer)
    shapes = {x.name: (x.dtype, x.shape) for x in manifest.inputs}
    tokens = ("int64", (text.max_length,))
    if TOKENS_INPUT not in shapes or not shapes.keys() <= set(TEXT_INPUTS):
        refuse(f"{place}.kind", f"inputs among {', '.join(TEXT_INPUTS)}", ", ".join(shapes)[:100])
    if any(found != tokens for found in shapes.values()):
        refuse(f"{place}.max_length", "the length of every input, int64", str(text.max_length))


def _check_task(manifest: Manifest) -> None:
    task = manifest.task
    if task.labels and len(task.labels) != task.classes:
        got = str(len(task.labels))
        refuse("manifest.json: task.labels", f"{task.classes} labels, or none", got)
    is_own = task.loss == "output"
    if is_own != (task.classes == 0):
        expected = "0, since the graph is its own loss" if is_own else "at least 1"
        refuse("manifest.json: task.classes", expected, str(task.classes))
    if is_own != (task.output is not None):
        expected = "the name of the loss" if is_own else f"null for {task.loss}"
        refuse("manifest.json: task.output", expected, ascii(task.output)[:60])
    infer = manifest.graphs.infer
    if is_own != (infer.inputs is not None and infer.outputs is not None):
        expected = "inputs and outputs" if is_own else f"no inputs or outputs for {task.loss}"
        refuse("manifest.json: graphs.infer", expected, "the contrary")
    if is_own:
        _check_full_micro_batches(manifest)


def _check_full_micro_batches(manifest: Manifest) -> None:
    recipe = manifest.recipe
    for batch in recipe.micro_batches:
        if recipe.effective_batch % batch:
            expected = f"divisors of {recipe.effective_batch}, since every micro-batch is full"
            refuse("manifest.json: recipe.micro_batches", expected, str(batch))
