"""The sessions of one micro-batch, and the arena that they share."""

from __future__ import annotations

import gc
from functools import cached_property
from pathlib import Path

from s2a_edge.run import memory_check
from s2a_edge.run.device_tensor import Provider
from s2a_edge.run.engine import Engine
from s2a_edge.run.evaluate import Evaluator
from s2a_edge.run.heap import trim_heap
from s2a_edge.run.process_arena import can_replace_arena
from s2a_edge.run.state import TrainingState
from s2a_edge.run.step import TrainStep
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import S2AError, UsageError
from s2a_edge.spec.requirement import Requirement


class Sessions:
    """Training and evaluation graph, made when first asked for; another micro-batch can follow.

    The requirement says whether there is an evaluation graph: its session takes memory, run or not.

    A micro-batch brings sessions and an arena of its own: a session of a graph that does not run
    takes memory too (16 MiB of a ViT-S, as much as a fifth of what its largest step needs), and
    what an arena has touched stays resident until the arena is gone.

    Args:
        bundle: whose graphs.
        state: what they update.
        needed: of the micro-batch to begin with.
        provider: ``"cpu"`` or ``"cuda"``.
        threads: threads of one operator; None: all usable cores.
        training: False: the training graph is never loaded.
        kernels: the library of ``s2a_edge.native``, for graphs that need it.
    """

    def __init__(
        self,
        bundle: Bundle,
        state: TrainingState,
        needed: Requirement,
        *,
        provider: Provider,
        threads: int | None,
        training: bool,
        kernels: Path | None = None,
    ) -> None:
        self._bundle, self._state = bundle, state
        self._provider: Provider = provider
        self._threads, self._training = threads, training
        self._kernels = kernels
        self._weights = bundle.weights() if provider == "cpu" else None
        self.needed = needed

    @property
    def micro_batch(self) -> int:
        """Rows per run of the training graph."""
        return self.needed.micro_batch

    @property
    def evaluates(self) -> bool:
        """Whether there is an evaluation graph."""
        return self._bundle.manifest.graphs.eval.file in self.needed.arenas

    @property
    def arena_limit_bytes(self) -> int:
        """Hard limit of the runtime's arena."""
        return memory_check.arena_limit(self._bundle, self.needed, self._provider)

    @property
    def device_bytes(self) -> int:
        """Memory that the process's resident size does not show."""
        return 0 if self._provider == "cpu" else self.arena_limit_bytes + self.needed.pool_bytes

    @property
    def changeable(self) -> bool:
        """Whether this process can get another arena: with onnxruntime from 1.23 on, or before
        it has one."""
        made = "engine" in self.__dict__
        return not made or self._provider != "cpu" or can_replace_arena()

    def change(self, needed: Requirement) -> None:
        """Let go of all graphs and their arena; those of another micro-batch take their place.

        The caller must have let go of :attr:`train` and :attr:`evaluator` too.
        """
        assert self.changeable
        for name in ("train", "evaluator", "engine"):
            self.__dict__.pop(name, None)
        gc.collect()
        trim_heap()
        self.needed = needed
        _ = self.engine  # with a new arena the runtime lets go of the old one

    def terminate(self, reason: S2AError) -> None:
        """End the run in progress; from any thread."""
        engine = self.__dict__.get("engine")
        if engine is not None:
            engine.control.terminate(reason)

    @cached_property
    def engine(self) -> Engine:
        """What runs the graphs; registers the arena."""
        return Engine(
            arena_limit_bytes=self.arena_limit_bytes,
            pool_limit_bytes=self.needed.pool_bytes,
            provider=self._provider,
            threads=self._threads,
            weights=self._weights,
            kernels=self._kernels,
        )

    @cached_property
    def train(self) -> TrainStep:
        """The training step.

        Its session needs most and is made last: what the others keep in the arena then lies
        together at its start, and does not split the room that training needs in one piece.
        """
        if self.evaluates:
            _ = self.evaluator
        manifest = self._bundle.manifest
        graph = next(g for g in manifest.graphs.train if g.batch == self.micro_batch)
        return TrainStep(self.engine, self._bundle.path, manifest, graph, self._state)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluation graph.

        Raises:
            UsageError: the requirement was made without one.
        """
        if not self.evaluates:
            raise no_evaluation("evaluate")
        return Evaluator(self.engine, self._bundle.path, self._bundle.manifest, self._state)

    def load_all(self) -> None:
        """Make all sessions that there will be: see Engine.load on why none may come later."""
        _ = self.train if self._training else self.evaluator


def no_evaluation(where: str) -> UsageError:
    """What was asked for takes a graph that is not loaded."""
    return UsageError(
        where=where,
        expected="a trainer with its evaluation graph",
        got="evaluation=False",
        todo="make the Trainer without this argument",
    )
