from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.spec import manifest as schema
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.manifest import Manifest, SavedValue, Trainable, TrainableKind, WeightEntry
from s2a_edge.spec.memory_plan import Evidence, GradientError, MemoryKind, MemoryPlan
from s2a_edge.spec.text_inputs import TEXT_INPUTS
from tests.spec import bundle_samples

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=30)
sizes = st.integers(0, 2**48)
dims = st.lists(st.integers(1, 50), max_size=4).map(tuple)


def plans() -> st.SearchStrategy[MemoryPlan]:
    kinds = st.dictionaries(st.sampled_from(MemoryKind), sizes)
    return st.builds(
        MemoryPlan,
        sizes,
        sizes,
        sizes,
        names,
        kinds,
        sizes,
        node_count=st.integers(0, 10**6),
        threads=st.integers(1, 64),
        whole_image_arena_bytes=sizes,
        whole_image_thread_bytes=sizes,
    )


def evidences() -> st.SearchStrategy[Evidence]:
    ratios = st.floats(0, 1e9)
    errors = st.builds(
        GradientError,
        ratios,
        st.floats(-1, 1),
        ratios,
        ratios,
        names,
        st.dictionaries(names, ratios, max_size=3),
    )
    milliseconds = st.floats(0, 1e9)
    count = st.integers(0, 1000)
    gradient_error = st.none() | errors
    return st.builds(
        Evidence, names, names, sizes, sizes, sizes, sizes, milliseconds, count, gradient_error
    )


@st.composite
def weight_tables(draw: st.DrawFn) -> tuple[WeightEntry, ...]:
    entries: list[WeightEntry] = []
    offset = 0
    for name in draw(st.lists(names, unique=True, max_size=4)):
        dtype, item_bytes = draw(st.sampled_from([("float32", 4), ("int8", 1), ("float16", 2)]))
        shape = draw(dims)
        size_bytes = math.prod(shape) * item_bytes
        entries.append(WeightEntry(name, dtype, shape, offset, size_bytes))  # type: ignore[arg-type]  # sampled from the literal's values
        offset += -(-size_bytes // 4096) * 4096
    return tuple(draw(st.permutations(entries)))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    base = bundle_samples.manifest()
    kinds: st.SearchStrategy[TrainableKind] = st.sampled_from(get_args(TrainableKind))
    trainables = []
    for name in draw(st.lists(names, unique=True, min_size=1, max_size=4)):
        shape = draw(dims)
        size_bytes = 4 * math.prod(shape)
        trainables.append(
            Trainable(name, shape, draw(kinds), draw(names), draw(st.booleans()), size_bytes)
        )
    weights = draw(weight_tables())
    saved = st.builds(SavedValue, names, names, names, names, st.floats(0, 64), dims, sizes)
    graphs = bundle_samples.graphs()
    train = tuple(
        dataclasses.replace(graph, plan=draw(plans()), evidence=draw(evidences()))
        for graph in graphs.train
    )
    infer = dataclasses.replace(graphs.infer, weights=tuple(w.name for w in weights[:2]))
    return dataclasses.replace(
        base,
        trainables=tuple(trainables),
        weights=weights,
        saved=tuple(draw(st.lists(saved, max_size=3))),
        versions=draw(st.dictionaries(names, names, max_size=3)),
        preprocessing=draw(st.sampled_from([None, bundle_samples.image_preprocessing()])),
        graphs=dataclasses.replace(graphs, train=train, infer=infer),
    )


@settings(max_examples=60)
@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    text = manifest.to_json()
    again = Manifest.from_json(text)
    assert again == manifest
    assert again.to_json() == text


def test_json_is_the_contract() -> None:
    value = json.loads(bundle_samples.manifest().to_json())
    assert list(value) == [
        *("format", "format_version", "created", "tool_version", "versions", "source", "inputs"),
        *("preprocessing", "task", "recipe", "trainables", "saved", "weights", "graphs", "compat"),
        *("precision", "tuning", "frozen"),
    ]
    assert value["preprocessing"] is None
    assert value["weights"] == [
        {
            "name": "backbone.weight",
            "dtype": "float32",
            "shape": [6, 5],
            "offset": 0,
            "size_bytes": 120,
            "part_of": None,
        }
    ]
    assert value["graphs"]["train"][0]["plan"]["at_peak"] == {"saved": 600, "working": 400}
    assert value["graphs"]["infer"] == {
        "file": "infer.onnx",
        "weights": ["backbone.weight"],
        "inputs": None,
        "outputs": None,
    }


def test_files_follow_from_the_graphs() -> None:
    assert bundle_samples.manifest().files() == (
        *("train_b1.onnx", "train_b2.onnx", "eval.onnx", "infer.onnx", "optimizer.onnx"),
        *("adapters.safetensors", "weights.bin"),
    )


def every_place(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside a JSON value, its own included."""
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    return [path, *(p for key, item in pairs for p in every_place(item, (*path, key)))]


def changed(path: tuple[Any, ...], change: Callable[[Any], Any]) -> str:
    """The sample's JSON with the value at ``path`` replaced."""
    value = json.loads(
        dataclasses.replace(
            bundle_samples.manifest(), preprocessing=bundle_samples.image_preprocessing()
        ).to_json()
    )
    if not path:
        return json.dumps(change(value))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = change(holder[path[-1]])
    return json.dumps(value)


PLACES = every_place(json.loads(changed((), lambda v: v)))
OBJECTS = [p for p in PLACES if p and isinstance(p[-1], str)]


def dotted(path: tuple[Any, ...]) -> str:
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).removeprefix(".")


def test_every_value_of_a_wrong_type_is_refused_by_its_place() -> None:
    # A list of an object is right nowhere; a wrong type may meet another check first only in
    # the two fields that identify the format.
    for path in PLACES:
        with pytest.raises(BundleError) as error:
            Manifest.from_json(changed(path, lambda value: [{"?": value}]))
        if path and path[0] not in ("format", "format_version"):
            assert error.value.where.startswith(f"manifest.json: {dotted(path)}"), path


def test_every_missing_and_every_unknown_key_is_refused() -> None:
    for path in OBJECTS:
        if path[:-1] in (("versions",), ("graphs", "train", 0, "plan", "at_peak")) or (
            path[-2:-1] in (("at_peak",), ("each",))
        ):
            continue  # open maps: no key of theirs is required
        later = (("task", "output"), ("graphs", "infer", "inputs"), ("graphs", "infer", "outputs"))
        if path[0] in ("precision", "tuning", "frozen") or path in later or path[-1] in (
            *("part_of", "sensitivity", "reason", "native", "timeline", "recompute", "precision"),
            *("emulated", "search", "lacking", "pool_bytes"),
        ):
            continue  # later than the first release: may be missing

        def without(holder: Any, key: str = path[-1]) -> Any:
            return {k: v for k, v in holder.items() if k != key}

        with pytest.raises(BundleError) as error:
            Manifest.from_json(changed(path[:-1], without))
        assert path[-1] in f"{error.value.where} {error.value.got}"
        if path[:-1] != ():
            assert error.value.where == f"manifest.json: {dotted(path[:-1])}"
        with pytest.raises(BundleError, match="unknown key 'surprise'"):
            Manifest.from_json(changed(path[:-1], lambda holder: {**holder, "surprise": 1}))


def test_manifests_of_the_first_release_are_read() -> None:
    value = json.loads(bundle_samples.manifest().to_json())
    del value["precision"], value["tuning"], value["task"]["output"]
    for saved in value["saved"]:
        del saved["sensitivity"], saved["reason"]
    del value["graphs"]["infer"]["inputs"], value["graphs"]["infer"]["outputs"]
    assert Manifest.from_json(json.dumps(value)) == bundle_samples.manifest()


@pytest.mark.parametrize(
    ("path", "value", "expected", "got"),
    [
        ("trainables[0].kind", "adapter", "one of bias", "'adapter'"),
        ("trainables[0].decay", 0, "true or false", "0"),
        ("trainables[0].name", "", "1 to 1024", "0"),
        ("trainables[0].name", "a" * 2000, "1 to 1024", "2000"),
        ("trainables[0].name", "a\x1b[2J", "printable", "'a\\x1b[2J'"),
        ("trainables[0].name", "a\ud800", "printable", "'a\\ud800'"),
        ("trainables[0].shape[0]", 0, "from 1 to", "0"),
        ("trainables[0].shape[0]", -3, "from 1 to", "-3"),
        ("trainables[0].shape[0]", 2**31, "from 1 to", "2147483648"),
        ("trainables[0].shape[0]", 3.0, "an integer", "3.0"),
        ("trainables[0].shape[0]", True, "an integer", "True"),
        ("trainables[0].shape", [1] * 9, "0 to 8", "9"),
        ("trainables[0].size_bytes", 16, "12 for its shape", "16"),
        ("trainables[1].name", "head.bias", "every name once", "'head.bias' again"),
        ("weights[0].dtype", "complex64", "one of float32", "'complex64'"),
        ("weights[0].offset", 64, "a multiple of 4096", "64"),
        ("weights[0].size_bytes", 2**60, "from 0 to", "1152921504606846976"),
        ("graphs.train[0].file", "../train.onnx", "plain file name", "'../train.onnx'"),
        ("graphs.train[0].file", "train_b2.onnx", "every name once", "'train_b2.onnx' again"),
        ("graphs.eval.file", "EVAL.ONNX", "named *.onnx", "EVAL.ONNX"),
        ("graphs.eval.file", "weights.bin", "named *.onnx", "weights.bin"),
        ("graphs.train[0].batch", 2, "one graph per micro-batch", "[2, 2]"),
        ("graphs.infer.weights[0]", "other", "a name in weights", "'other'"),
        ("graphs.train[0].plan.at_peak", {"heap": 1}, "one of saved", "'heap'"),
        ("graphs.train[0].evidence.step_ms", -1, "from 0 to", "-1"),
        ("recipe.micro_batches", [1], "[1, 2] as in", "[1]"),
        ("recipe.seed", 2**63, "from 0 to", "9223372036854775808"),
        ("task.labels", ["a"], "3 labels", "1"),
        ("preprocessing.size", [224], "2 entries", "1"),
        ("preprocessing.std[1]", 0, "from 1e-30", "0.0"),
        ("inputs", [], "1 to 64", "0"),
        ("created", "yesterday", "ISO 8601", "'yesterday'"),
        ("compat.onnxruntime_min", "latest", "a version", "'latest'"),
        ("compat.providers[0]", "rocm", "one of cpu, cuda", "'rocm'"),
        ("versions", {"onnx": 1}, "a text", "1"),
        ("format_version", 1, "2", "1"),
        ("format_version", True, "2", "no version number"),
        ("format", "zip", "s2a-bundle", "something else"),
    ],
)
def test_wrong_values(path: str, value: object, expected: str, got: str) -> None:
    keys = tuple(
        int(key) if key.isdigit() else key
        for key in path.replace("]", "").replace("[", ".").split(".")
    )
    with pytest.raises(BundleError) as error:
        Manifest.from_json(changed(keys, lambda _: value))
    assert expected in error.value.expected
    assert got in error.value.got
    assert error.value.where.startswith("manifest.json: ")
    # Faults between fields name the list; faults inside a field name the field.
    assert error.value.where.split(": ")[1].split("[")[0].split(" ")[0].split(".")[0] in path


def test_newer_versions_are_named_before_their_new_keys() -> None:
    text = changed((), lambda value: {**value, "format_version": 7, "shiny": 1})
    with pytest.raises(BundleError, match=r"format_version: expected 2, got 7; use the s2a-edge"):
        Manifest.from_json(text)


def test_overlapping_weights_are_refused() -> None:
    table = (
        WeightEntry("backbone.weight", "uint8", (5000,), 0, 5000),
        WeightEntry("b", "uint8", (10,), 4096, 10),
    )
    with pytest.raises(BundleError, match=r"weights\[1\].offset.*do not overlap"):
        dataclasses.replace(bundle_samples.manifest(), weights=table).to_json()


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        (WeightEntry("p", "uint8", (1, 4096), 4096, 4096, "whole"), None),
        (WeightEntry("p", "uint8", (3, 4096), 0, 3 * 4096, "whole"), None),
        (WeightEntry("p", "uint8", (1, 4096), 4096, 4096, "none"), r"weights\[1\].part_of"),
        (WeightEntry("p", "uint8", (1, 4096), 4096, 4096, "p"), r"weights\[1\].part_of"),
        (WeightEntry("p", "uint8", (2, 2048), 4096, 4096, "whole"), r"weights\[1\]: expected rows"),
        (WeightEntry("p", "int8", (1, 4096), 4096, 4096, "whole"), r"weights\[1\]: expected rows"),
        (WeightEntry("p", "uint8", (2, 4096), 8192, 8192, "whole"), r"weights\[1\].offset"),
    ],
)
def test_parts_are_rows_of_their_whole(part: WeightEntry, fault: str | None) -> None:
    table = (WeightEntry("whole", "uint8", (3, 4096), 0, 3 * 4096), part,
             WeightEntry("backbone.weight", "uint8", (3,), 12288, 3))
    manifest = dataclasses.replace(bundle_samples.manifest(), weights=table)
    if fault is None:
        assert Manifest.from_json(manifest.to_json()).weights == table
        return
    with pytest.raises(BundleError, match=fault):
        manifest.to_json()


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "Expecting value"),
        ("[]", "something else"),
        ("{", "line 1"),
        ('{"format": NaN}', "NaN"),
        ('{"format": -Infinity}', "-Infinity"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        ("1" * 5000, "one of 5000 characters"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": "\x00"}', "Invalid control character"),
    ],
)
def test_text_that_is_no_manifest(text: str, got: str) -> None:
    with pytest.raises(BundleError, match=got):
        Manifest.from_json(text)


def test_infinite_floats_are_refused() -> None:
    text = changed((), lambda v: v).replace('"crop_pct": 0.875', '"crop_pct": 1e999')
    with pytest.raises(BundleError, match=r"crop_pct: expected a finite number"):
        Manifest.from_json(text)


def test_too_large_manifests_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_MANIFEST_BYTES", 100)
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("parsed"))
    with pytest.raises(BundleError, match="at most 100 bytes"):
        Manifest.from_json(" " * 101)


def test_what_cannot_be_read_is_not_written() -> None:
    wrong = dataclasses.replace(bundle_samples.manifest(), tool_version="")
    with pytest.raises(BundleError, match="tool_version"):
        wrong.to_json()


@given(st.data())
def test_mutated_text_raises_bundle_errors_only(data: st.DataObject) -> None:
    text = list(bundle_samples.manifest().to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(text) - 1))
        text[position] = data.draw(st.sampled_from('{}[]",:0123456789-e. tfn\\u') | st.characters())
    try:
        manifest = Manifest.from_json("".join(text))
    except BundleError as error:
        assert error.where.startswith("manifest.json")
    else:
        assert Manifest.from_json(manifest.to_json()) == manifest


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_json_raises_bundle_errors_only(value: object) -> None:
    for path in (("graphs", "train"), ("weights",), ("task",), ()):
        with pytest.raises(BundleError):
            Manifest.from_json(changed(path, lambda _: {"x": value}))


def text_manifest() -> Manifest:
    tokens = tuple(schema.InputSpec(n, "int64", (16,), "tensor") for n in TEXT_INPUTS[:2])
    spec = schema.TextPreprocessing("text", "tokenizer.json", 16, 0)
    return dataclasses.replace(bundle_samples.manifest(), inputs=tokens, preprocessing=spec)


def test_texts_are_a_kind_of_preprocessing_and_bring_a_file() -> None:
    made = text_manifest()
    assert Manifest.from_json(made.to_json()) == made
    assert "tokenizer.json" in made.files()
    assert "tokenizer.json" not in bundle_samples.manifest().files()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("preprocessing", "kind"), "sound", "a kind among image, text"),
        (("preprocessing",), 3, "a kind among image, text"),
        (("preprocessing", "tokenizer"), "other.json", "tokenizer.json"),
        (("preprocessing", "max_length"), 8, "the length of every input"),
        (("preprocessing", "pad_id"), -1, "preprocessing.pad_id"),
        (("inputs", 0, "name"), "words", "inputs among input_ids"),
        (("inputs", 1, "dtype"), "int32", "the length of every input, int64"),
    ],
)
def test_texts_that_contradict_are_refused(
    place: tuple[Any, ...], value: Any, message: str
) -> None:
    content = json.loads(text_manifest().to_json())
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"loss": "hinge"}, "one of cross_entropy, bce, mse, l1, output"),
        ({"loss": "mse", "classes": 0, "labels": []}, "task.classes"),
        ({"loss": "output"}, "0, since the graph is its own loss"),
        ({"loss": "output", "classes": 0, "labels": []}, "the name of the loss"),
        ({"output": "loss"}, "null for cross_entropy"),
        ({"loss": "output", "classes": 0, "labels": [], "output": "l"}, "inputs and outputs"),
        ({"labels": ["a"]}, "3 labels, or none"),
    ],
)
def test_tasks_that_contradict_are_refused(task: dict[str, Any], message: str) -> None:
    content = json.loads(bundle_samples.manifest().to_json())
    content["task"].update(task)
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(content))


def test_a_graphs_own_loss_takes_full_micro_batches() -> None:
    base = bundle_samples.manifest()
    output = schema.OutputSpec("y", "float32", (1, 3))
    infer = dataclasses.replace(base.graphs.infer, inputs=("x",), outputs=(output,))
    made = dataclasses.replace(
        base,
        task=schema.Task("output", 0, (), "loss"),
        graphs=dataclasses.replace(base.graphs, infer=infer),
    )
    assert Manifest.from_json(made.to_json()) == made
    ragged = dataclasses.replace(made, recipe=dataclasses.replace(made.recipe, effective_batch=5))
    with pytest.raises(BundleError, match="divisors of 5"):
        ragged.to_json()
