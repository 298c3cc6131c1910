"""Runs ONNX Runtime's CUDA provider on a machine without a GPU, to see which nodes it takes.

    pip download --no-deps onnxruntime-gpu==1.22.0     # then unzip the wheel into WHEEL
    python -m tools.cuda_without_gpu WHEEL GRAPH.onnx|FOLDER ... [--probed OUT.json]

The CUDA libraries that the wheel's provider asks for are made here (``tools/cuda_shim``): every
function answers "success", memory comes from the host, kernels do nothing. What a graph computes is
meaningless; which nodes get a kernel, which options and which memory the provider asks for is the
provider's own doing. ``--probed`` writes the forms of operators that all ran on CUDA, for
``tools/cuda_kernel_table.py``. Takes gcc, nm and objdump; the wheel must fit this Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s2a_edge.run.placement import placed_on

_SHIM = Path(__file__).parent / "cuda_shim" / "shim.c"
_DRIVER = "libcuda.so.1"  # asked for while running, so that no symbol table names its functions
_DRIVER_CALL = r"(?m)^cu(?!blas|dnn|fft|da|rand)[A-Z]\w+$"


def provider_library(wheel: Path) -> Path:
    """The CUDA provider inside an unpacked wheel."""
    return wheel / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"


def make_libraries(wheel: Path, folder: Path) -> None:
    """Writes a stand-in into ``folder`` for every CUDA library that the provider needs."""
    library = provider_library(wheel)
    needed = re.findall(r"NEEDED\s+(lib(?:cu|nv)\S+)", _output("objdump", "-p", library))
    wanted: dict[str, set[str]] = {name: set() for name in (*needed, _DRIVER)}
    for line in _output("nm", "-D", "--undefined-only", library).splitlines():
        name, _, source = line.split()[-1].partition("@")
        if source in wanted or (not source and re.match(r"cu[A-Z]", name)):
            wanted[source or _DRIVER].add(name)
    wanted[_DRIVER] |= set(re.findall(_DRIVER_CALL, _output("strings", "-n", "6", library)))
    source_text = _SHIM.read_text(encoding="utf-8")
    present = set(re.findall(r"HANDLE\((\w+)\)|\b(\w+)\(", source_text))
    rest = set().union(*wanted.values()) - {name for pair in present for name in pair}
    code = folder / "shim.c"
    code.write_text(source_text + "".join(f"int {n}(void) {{ return 0; }}\n" for n in sorted(rest)),
                    encoding="utf-8")
    cuda = 13000 if any(name.endswith(".13") for name in needed) else 12080
    for name, symbols in wanted.items():
        # The runtime library keeps the count of memory, for whoever asks.
        nodes = {name: symbols or {"nothing"}, **({"SHIM": {"shim_*"}} if "cudart" in name else {})}
        # Nothing else is visible: functions of another library would be found here first.
        script = folder / f"{name}.map"
        script.write_text("".join(
            f"{node} {{ global: {'; '.join(sorted(names))};"
            f"{' local: *;' if node == name else ''} }};\n"
            for node, names in nodes.items()), encoding="utf-8")
        subprocess.run(["gcc", "-O1", "-w", "-shared", "-fPIC", f"-DSHIM_CUDA={cuda}", str(code),
                        "-o", str(folder / name), f"-Wl,-soname,{name}",
                        f"-Wl,--version-script={script}"], check=True)


def environment(wheel: Path, folder: Path) -> dict[str, str]:
    """Variables with which a process imports the wheel's onnxruntime and finds the stand-ins."""
    paths = [str(wheel), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(paths)}


def _output(*command: object) -> str:
    made = subprocess.run([str(part) for part in command], capture_output=True, check=True)
    return made.stdout.decode(errors="replace")


def graphs_of(paths: Iterable[Path]) -> list[Path]:
    """The graphs themselves, and those in folders; a bundle's native forms are for the CPU."""
    found = [file for path in paths
             for file in (sorted(path.rglob("*.onnx")) if path.is_dir() else [path])]
    return [file for file in found if not file.name.endswith(".native.onnx")
            and file.name != "infer.onnx"]


def _probe(graphs: list[Path]) -> dict[str, Any]:
    """In the process that has the wheel: nodes that CUDA leaves to the CPU, by graph."""
    import onnxruntime as ort

    from s2a_edge.run.runtime_errors import RUNTIME_ERRORS

    left: dict[str, Any] = {}
    for graph in graphs:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.log_severity_level = 0
        with tempfile.TemporaryFile() as log:
            kept = os.dup(2)
            os.dup2(log.fileno(), 2)
            try:
                ort.InferenceSession(str(graph), options, providers=["CUDAExecutionProvider"])
                error = ""
            except RUNTIME_ERRORS as failure:
                error = str(failure)[:300]
            finally:
                os.dup2(kept, 2)
                os.close(kept)
            log.seek(0)
            text = log.read().decode(errors="replace")
        on_cpu = placed_on(text, "CPUExecutionProvider")
        if error or on_cpu or _all_on(text, "CPUExecutionProvider"):
            left[str(graph)] = {"error": error, "cpu": on_cpu or ["all nodes"]}
    return {"onnxruntime": ort.__version__, "graphs": len(graphs), "left": left}


def _all_on(text: str, provider: str) -> bool:
    return f"All nodes placed on [{provider}]" in text


def forms_of(graph: Path) -> set[tuple[str, str, int, tuple[tuple[str, str], ...]]]:
    """Domain, operator, opset of its form and types of the nodes; the graph must say all types."""
    import onnx_ir as ir

    from s2a_edge.pack.cuda_kernels import signature

    model = ir.load(graph)
    opset = model.graph.opset_imports[""]
    found = set()
    for node in model.graph:
        made = signature(node, opset)
        found.add((made.domain, made.op_type, made.since, made.types))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--probed", type=Path)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    graphs = graphs_of(given.graphs)
    if given.in_process:
        print(json.dumps(_probe(graphs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_libraries(given.wheel, Path(folder))
        command = [sys.executable, "-m", "tools.cuda_without_gpu", "--in-process",
                   str(given.wheel), *map(str, graphs)]
        made = subprocess.run(command, env=environment(given.wheel, Path(folder)), text=True,
                              stdout=subprocess.PIPE, check=True).stdout
    result = json.loads(made.splitlines()[-1])
    left = result["left"]
    print(f"onnxruntime {result['onnxruntime']}: {len(graphs) - len(left)} of {len(graphs)} graphs "
          "run on CUDA alone")
    for graph, why in left.items():
        kinds = Counter(node.split()[0] for node in why["cpu"])
        print(f"  {Path(graph).name}: {why['error'] or dict(kinds)}")
    if given.probed is not None:
        _write_probed(given.probed, [graph for graph in graphs if str(graph) not in left])
    raise SystemExit(1 if left else 0)


def _write_probed(out: Path, graphs: list[Path]) -> None:
    by_form: dict[tuple[str, str, int], dict[str, set[str]]] = {}
    for graph in graphs:
        for domain, op_type, since, types in forms_of(graph):
            sets = by_form.setdefault((domain, op_type, since), {})
            for name, kind in types:
                sets.setdefault(name, set()).add(kind)
    rows = [[*form, {name: " ".join(sorted(kinds)) for name, kinds in types.items()}]
            for form, types in sorted(by_form.items())]
    out.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
