"""What half precision costs: relative errors of all gradients together, measured.

``measure_half.py`` prints the rows. Against the float32 step with nothing compressed and weights
that are not rounded; bits 0 is PyTorch's autocast on the CPU, for comparison.
"""

from __future__ import annotations

from tests.parity.tolerances import Measured

# By (model, precision, bits of saved values): 6 batches of 4 random images, gradients scaled by at
# most 2**16. Intel Xeon, 2 cores; onnxruntime 1.32.0, torch 2.13.0; 23 November 2026.
HALF: dict[tuple[str, str, int], Measured] = {
    ("tiny_vit", "fp16", 32): Measured(0.001, 0.0001, 6),
    ("tiny_vit", "fp16", 4): Measured(0.0026, 0.0005, 6),
    ("tiny_vit", "fp16", 0): Measured(0.00077, 0.0002, 6),
    ("tiny_vit", "bf16", 32): Measured(0.0073, 0.001, 6),
    ("tiny_vit", "bf16", 4): Measured(0.0076, 0.001, 6),
    ("tiny_vit", "bf16", 0): Measured(0.0063, 0.002, 6),
    ("tiny_resnet", "fp16", 32): Measured(0.00044, 8e-05, 6),
    ("tiny_resnet", "fp16", 4): Measured(0.00044, 8e-05, 6),
    ("tiny_resnet", "fp16", 0): Measured(0.00069, 0.0002, 6),
    ("tiny_resnet", "bf16", 32): Measured(0.0001, 2e-05, 6),
    ("tiny_resnet", "bf16", 4): Measured(0.0001, 2e-05, 6),
    ("tiny_resnet", "bf16", 0): Measured(0.0064, 0.002, 6),
    ("vit_s", "fp16", 32): Measured(0.0015, 0.0002, 6),
    ("vit_s", "fp16", 4): Measured(0.082, 0.009, 6),
    ("vit_s", "fp16", 0): Measured(0.0011, 0.0001, 6),
    ("vit_s", "bf16", 32): Measured(0.011, 0.001, 6),
    ("vit_s", "bf16", 4): Measured(0.083, 0.009, 6),
    ("vit_s", "bf16", 0): Measured(0.0095, 0.001, 6),
    ("resnet", "fp16", 32): Measured(0.0062, 0.001, 6),
    ("resnet", "fp16", 4): Measured(0.0062, 0.001, 6),
    ("resnet", "fp16", 0): Measured(0.0059, 0.002, 6),
    ("resnet", "bf16", 32): Measured(0.0046, 0.001, 6),
    ("resnet", "bf16", 4): Measured(0.0046, 0.001, 6),
    ("resnet", "bf16", 0): Measured(0.017, 0.004, 6),
}
