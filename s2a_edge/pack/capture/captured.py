"""A backbone before its batch is fixed, and how one batch of it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from s2a_edge.pack.capture.backbone import Backbone
from s2a_edge.pack.capture.features import (
    Candidate,
    cut_at,
    default_features,
    list_features,
    set_output,
)
from s2a_edge.pack.capture.fixed_batch import open_batch
from s2a_edge.pack.capture.modules import name_modules
from s2a_edge.pack.capture.own_loss import keep_own_loss
from s2a_edge.pack.capture.pooling import pool_features
from s2a_edge.pack.capture.static_shapes import make_static
from s2a_edge.pack.graph import FOLDED_KEY, shape_of
from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.manifest import AnyPreprocessing, Source

# Length of a text where neither the source nor the user names one.
DEFAULT_TOKENS = 128


@dataclass(frozen=True)
class Captured:
    """A backbone as its exporter left it; :meth:`at_batch` makes it static.

    Attributes:
        graph_at: a fresh copy of the graph whose inputs have static shapes for a batch. Weights
            are shared between copies.
        preprocessing: of images or texts, or None.
        source: as the manifest records it.
        rehead: leave off a final classifier when no features are named.
        fixed_batch: the batch that the file was exported for; None where its batch is open.
        notes: what was assumed, for the user to read.
        loss: the output that is the graph's own loss; None: it ends in features.
        tokenizer: file that ``preprocessing`` of texts speaks of.
    """

    graph_at: Callable[[int], ir.Model]
    preprocessing: AnyPreprocessing | None
    source: Source
    rehead: bool
    fixed_batch: int | None = None
    notes: tuple[str, ...] = ()
    loss: str | None = None
    tokenizer: Path | None = None

    def at_batch(self, batch: int) -> Backbone:
        """The backbone for ``batch`` samples at a time, ending in features [batch, D] or its loss.

        Raises:
            SourceError: if it cannot be made static, or does not end so.
        """
        if self.loss is not None:
            return self._with_own_loss(self.loss, batch)
        if self.fixed_batch not in (None, 1, batch):
            raise SourceError(where=self.source.name, expected=f"batch {self.fixed_batch}",
                              got=f"batch {batch}", todo="export the model again with a dynamic "
                              "batch axis, or with a batch of 1")
        single = self.fixed_batch == 1
        model = self.graph_at(1 if single else batch)
        given = set(model.graph.initializers)
        name_modules(model.graph)
        if self.source.features is not None:
            cut_at(model, self.source.features)
        make_static(model)
        if single and batch != 1:
            open_batch(model, batch)
        if self.source.features is not None:
            value = model.graph.outputs[0]
        else:
            value = default_features(model, batch, rehead=self.rehead)
        set_output(model, pool_features(model, value, self.source.pool, batch))
        _mark_batch_constants(model.graph, given, batch)
        return Backbone(model, _used_inputs(model), model.graph.outputs[0], self.preprocessing,
                        self.source, batch)

    def _with_own_loss(self, loss: str, batch: int) -> Backbone:
        if self.fixed_batch not in (None, batch):
            raise SourceError(where=self.source.name, expected="a dynamic batch axis: export and "
                              "evaluation of a graph with its own loss take other batches",
                              got=f"batch {self.fixed_batch}",
                              todo="export the model again with a dynamic batch axis")
        model = self.graph_at(batch)
        given = set(model.graph.initializers)
        name_modules(model.graph)
        make_static(model)
        value, predictions = keep_own_loss(model, loss, batch)
        _mark_batch_constants(model.graph, given, batch)
        return Backbone(model, _used_inputs(model), value, self.preprocessing, self.source, batch,
                        predictions)

    def candidates(self) -> list[Candidate]:
        """Values that ``--features`` could name, the likeliest first (batch 1 shapes)."""
        batch = self.fixed_batch or 1
        model = self.graph_at(batch)
        name_modules(model.graph)
        make_static(model)
        return list_features(model, batch)


def _mark_batch_constants(graph: ir.Graph, given: set[str], batch: int) -> None:
    """Puts the batch into the name of each folded constant that has one row per sample.

    The graphs of a bundle share their constants by name.
    """
    for name, value in list(graph.initializers.items()):
        dims = shape_of(value)
        computed = name not in given and value.metadata_props.get(FOLDED_KEY) == "computed"
        if computed and len(dims) > 1 and dims[0] == batch:
            value.name = f"{name}_b{batch}"


def _used_inputs(model: ir.Model) -> tuple[ir.Value, ...]:
    """The inputs that the features depend on; the others are taken off the graph."""
    used = [v for v in model.graph.inputs if v.uses()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(used)
    if not used:
        raise SourceError(where="features", expected="a value computed from an input",
                          got=f"{model.graph.outputs[0].name}, which depends on none",
                          todo="choose another value with --features")
    return tuple(used)


def with_input_shapes(model: ir.Model, shapes: dict[str, tuple[int, ...]], batch: int) -> ir.Model:
    """A copy of ``model`` whose inputs are [batch, *shape]; weights are shared."""
    copy = model.clone()
    for value in copy.graph.inputs:
        assert value.name is not None
        value.shape = ir.Shape([batch, *shapes[value.name]])
    return copy


def fixed_batch(model: ir.Model) -> int | None:
    """The length of the first axis of the inputs, where the file fixes it."""
    first = [v.shape[0] for v in model.graph.inputs if v.shape is not None and len(v.shape)]
    sizes = {d for d in first if isinstance(d, int)}
    return int(sizes.pop()) if len(sizes) == 1 and len(first) == len(model.graph.inputs) else None


def sample_shapes(model: ir.Model, given: tuple[int, ...] | None, where: str,
                  ) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Shape without the batch of each input, and notes; ``given`` replaces sizes of the same rank.

    Integers [N, T] are taken for a text; where T is open and not given, it is
    :data:`DEFAULT_TOKENS`, and a note says so.

    Raises:
        SourceError: if a size is open and not given, or ranks differ.
    """
    found: dict[str, tuple[int, ...]] = {}
    notes: dict[str, None] = {}
    for value in model.graph.inputs:
        dims = list(value.shape) if value.shape is not None else []
        label = f"input {value.name} {[d if isinstance(d, int) else '?' for d in dims]} of {where}"
        if given is not None and len(given) == len(dims) - 1:
            found[str(value.name)] = given
        elif given is not None and (len(model.graph.inputs) == 1 or not dims):
            if dims:
                raise SourceError(where=label, expected=f"{len(dims) - 1} sizes in --input",
                                  got="x".join(map(str, given)), todo="give a size for each axis "
                                  "but the batch")
            found[str(value.name)] = given
        elif dims and all(isinstance(d, int) and d > 0 for d in dims[1:]):
            found[str(value.name)] = tuple(int(d) for d in dims[1:])  # type: ignore[arg-type]  # checked just above
        elif len(dims) == 2 and value.dtype in (ir.DataType.INT64, ir.DataType.INT32):
            found[str(value.name)] = (DEFAULT_TOKENS,)
            notes[tokens_note(DEFAULT_TOKENS)] = None
        else:
            raise SourceError(where=label, expected="a size for every axis but the batch",
                              got="open sizes", todo="give them with --input, for example "
                              "--input 3x224x224")
    return found, tuple(notes)


def tokens_note(tokens: int) -> str:
    """Says that a text's length was assumed."""
    return f"{tokens} tokens a text, shorter ones padded; --input sets another length"
