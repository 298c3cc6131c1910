"""A text encoder from a transformers folder to a tuned classifier of a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import s2a_edge
from s2a_edge.pack.capture.timm_model import define_torchvision_schemas
from s2a_edge.run.data import open_data
from s2a_edge.run.finished_run import evaluate_run, export_run
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BundleError, DataError
from s2a_edge.spec.manifest import TextPreprocessing
from tests.run.data.words import VOCABULARY, WORDS, write_tokenizer

LENGTH = 8


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights as a transformers folder, tokenizer included."""
    transformers = pytest.importorskip("transformers")
    define_torchvision_schemas()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=16, initializer_range=0.5)
    transformers.BertModel(config).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def packed(encoder: Path) -> Path:
    out = encoder.parent / "text.s2a"
    s2a_edge.pack(f"hf:{encoder}", out, labels=("negative", "positive"), input_shape=(LENGTH,),
                  effective_batch=8, micro_batches=(8,), calibration=_write(encoder / "c.csv", 8))
    return out


def _write(path: Path, count: int, seed: int = 0) -> Path:
    """Sentences that are positive where good comes more often than bad."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(count):
            words = [str(word) for word in rng.choice(WORDS[2:], 4)]
            words[int(rng.integers(4))] = "good" if i % 2 else "bad"
            rows.writerow([" ".join(words), "positive" if i % 2 else "negative"])
    return path


def test_the_bundle_carries_its_tokenizer(packed: Path, encoder: Path) -> None:
    with Bundle.open(packed) as bundle:
        spec = bundle.manifest.preprocessing
        assert spec == TextPreprocessing("text", "tokenizer.json", LENGTH, 0)
        carried = bundle.file("tokenizer.json").read_bytes()
        assert carried == (encoder / "tokenizer.json").read_bytes()
        assert bundle.manifest.precision.calibration is not None
        assert bundle.manifest.precision.calibration.source == "c.csv"


def test_it_learns_from_a_csv_and_is_exported(packed: Path, tmp_path: Path) -> None:
    train, val = _write(tmp_path / "train.csv", 64, 1), _write(tmp_path / "val.csv", 32, 2)
    trainer = s2a_edge.Trainer(packed)
    summary = trainer.fit(train, val=val, epochs=8, lr=0.02, out=tmp_path / "run")
    assert summary.history[-1].loss < 0.6 * summary.history[0].loss
    result = evaluate_run(tmp_path / "run", val)
    assert result.metrics["top1"] > 0.7  # of a backbone that knows nothing
    exported = export_run(tmp_path / "run", tmp_path / "tuned.onnx")
    session = ort.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    with Bundle.open(packed) as bundle:
        data = open_data(val, bundle.manifest, bundle.path)
    hits = []
    for i in range(len(data)):
        rows = {x.name: np.zeros(x.shape, np.int64) for x in data.inputs}
        data.load(i, rows)
        logits = session.run(None, {name: row[None] for name, row in rows.items()})[0]
        hits.append(int(logits.argmax()) == data.targets[i])
    assert float(np.mean(hits)) == result.metrics["top1"]


def test_tokens_are_those_of_transformers(packed: Path, encoder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(encoder / "tokenizer.json"), pad_token="[PAD]")
    path = tmp_path / "d.csv"
    texts = ["good", "the book was not very very very good", "unknown words"]
    path.write_text("text,label\n" + "".join(f"{text},positive\n" for text in texts))
    with Bundle.open(packed) as bundle:
        data = open_data(path, bundle.manifest, bundle.path)
    for i, text in enumerate(texts):
        expected = theirs(text, padding="max_length", truncation=True, max_length=LENGTH)
        rows = {x.name: np.zeros(x.shape, np.int64) for x in data.inputs}
        data.load(i, rows)
        for name, row in rows.items():
            assert row.tolist() == expected[name], (text, name)


def test_arrays_of_token_ids_train_as_well_and_unknown_ids_are_one_line(
    packed: Path, tmp_path: Path) -> None:
    ids = np.full((16, LENGTH), VOCABULARY["film"], np.int64)
    ids[::2, 1], ids[1::2, 1] = VOCABULARY["good"], VOCABULARY["bad"]
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.savez(tmp_path / "d.npz", labels=np.arange(16) % 2, **arrays)  # type: ignore[arg-type]  # names are data
    trainer = s2a_edge.Trainer(packed)
    summary = trainer.fit(tmp_path / "d.npz", epochs=3, lr=0.02, out=tmp_path / "run")
    assert summary.history[-1].loss < summary.history[0].loss
    ids[3, 2] = 999
    np.savez(tmp_path / "d.npz", labels=np.arange(16) % 2, **arrays)  # type: ignore[arg-type]  # names are data
    with pytest.raises(DataError, match=r"indices up to 11, such as token ids .* got 999"):
        trainer.fit(tmp_path / "d.npz", epochs=1, lr=0.02, out=tmp_path / "other")


def test_another_tokenizer_than_was_packed_is_refused(packed: Path, tmp_path: Path) -> None:
    with Bundle.open(packed) as bundle:
        folder = tmp_path / "copy"
        folder.mkdir()
        for name in ("SHA256SUMS", "manifest.json", *bundle.manifest.files()):
            (folder / name).write_bytes((bundle.path / name).read_bytes())
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Bundle.open(folder)
