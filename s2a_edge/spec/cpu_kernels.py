"""What ONNX Runtime's CPU kernels do with the memory of their operands.

Facts of onnxruntime 1.32's CPU provider, each found by shrinking the arena under a model of one
operator until it failed (``tools/measure_arena.py`` does that for any model), to 256 bytes.
"""

from __future__ import annotations

# The output is the input's buffer under another shape, whoever else reads it.
ALIASES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})

# The output takes the buffer of input 0 if nobody reads that buffer afterwards. Binary arithmetic
# (Add, Sub, Mul, Div), Neg, Sqrt, Erf, Exp, Abs, Gelu and LayerNormalization are not among them.
IN_PLACE = frozenset({
    "Cast", "Celu", "Clip", "Elu", "HardSigmoid", "LeakyRelu", "LogSoftmax", "Relu",
    "ScatterElements", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh",
    "ThresholdedRelu",
})  # fmt: skip

# These read each element before they write it, so a result may lie where an operand of its shape
# does. The runtime never does that itself; it has to be bound there (a planned place in the pool).
ELEMENTWISE = frozenset({
    "Abs", "Add", "Div", "Erf", "Exp", "Max", "Min", "Mul", "Neg", "Reciprocal", "Sqrt", "Sub",
})  # fmt: skip

__all__ = ["ALIASES", "ELEMENTWISE", "IN_PLACE"]
