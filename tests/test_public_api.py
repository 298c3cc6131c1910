"""The public face: small, lazy, documented, and changed only on purpose."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import s2a_edge

# Every public callable with its parameters; a change here is a change for users.
SIGNATURES = {
    "pack": "(source, out, *, on_stage=None, **recipe)",
    "Bundle.open": "(path, *, verify=True, trust=None)",
    "Trainer": (
        "(bundle, *, budget_bytes=None, micro_batch=None, threads=None, provider='cpu', seed=0, "
        "training=True, kernels='auto', headroom_bytes=None, "
        "evaluation=True, cuda_context_bytes=0)"
    ),
    "Trainer.step": "(self, inputs, labels=None, *, lr, hyperparameters=None)",
    "Trainer.fit": (
        "(self, data, *, val=None, epochs, lr, out, weight_decay=0.0, momentum=0.9, "
        "betas=(0.9, 0.999), eps=1e-08, max_norm=None, warmup_epochs=0.0, label_smoothing=0.0, "
        "class_weights=None, standardize=True, patience=None, augment=True, resume=False, "
        "on_progress=None, checkpoint_every_steps=None, step_down=True, on_step_down=None)"
    ),
    "Trainer.evaluate": "(self, data)",
    "Trainer.export": "(self, out)",
    "Trainer.load_checkpoint": "(self, path)",
    "S2AError": "(*, where, expected, got, todo)",
}


def _signature(callable_: object) -> str:
    """Parameter names, kinds and defaults, without annotations."""
    assert callable(callable_)
    signature = inspect.signature(callable_)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(bare))


def test_all_is_what_users_were_promised() -> None:
    assert set(s2a_edge.__all__) == {"Bundle", "S2AError", "Trainer", "__version__", "pack"}
    assert dir(s2a_edge) == sorted(s2a_edge.__all__)


@pytest.mark.parametrize("name", sorted(set(s2a_edge.__all__) - {"__version__"}))
def test_public_names_resolve_and_are_documented(name: str) -> None:
    value = getattr(s2a_edge, name)
    documented = type(value).__call__ if name == "pack" else value
    assert inspect.getdoc(documented)
    if inspect.isclass(value):
        for member, function in inspect.getmembers(value, inspect.isroutine):
            home = str(getattr(function, "__module__", ""))  # built-in methods have none
            if not member.startswith("_") and home.startswith("s2a_edge"):
                assert inspect.getdoc(function), f"{name}.{member}"


def test_signatures() -> None:
    found = {name: _signature(_resolve(name)) for name in SIGNATURES}
    assert found == SIGNATURES


def _resolve(dotted: str) -> object:
    value: object = s2a_edge
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Packer'"):
        _ = s2a_edge.Packer


@pytest.mark.parametrize("before", ["pass", "import s2a_edge.pack", "from s2a_edge import pack"])
def test_pack_is_callable_in_any_order_of_imports(before: str) -> None:
    code = f"{before}\nimport s2a_edge\nassert callable(s2a_edge.pack)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_error_tree_is_rooted_in_the_public_error() -> None:
    from s2a_edge.spec import errors

    found = (c for _, c in inspect.getmembers(errors, inspect.isclass))
    classes = [c for c in found if c.__module__ == errors.__name__]
    assert all(issubclass(c, s2a_edge.S2AError) for c in classes)
    codes = {c.__name__: c.exit_code for c in classes if issubclass(c, s2a_edge.S2AError)}
    assert {name for name, code in codes.items() if code != 1} == {"UsageError", "BudgetError"}
    assert codes["UsageError"] == 2
    assert codes["BudgetError"] == 3


def test_recipe_fields_are_those_of_pack_options() -> None:
    from s2a_edge.pack.options import PackOptions

    assert "labels" in {field.name for field in dataclasses.fields(PackOptions)}
