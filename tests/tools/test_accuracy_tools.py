from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import pytest

from tools.accuracy_report import difference, rows, table, verdicts
from tools.accuracy_task import Outcome
from tools.prepare_cifar10 import class_names, extract, members_by_class, select

_OUTCOME = Outcome(configuration="ours-32", seed=0, top1=0.8, test_loss=0.6, test_images=5000,
                   losses=(2.3, 1.2), trained_images=600, train_s=20.0, test_s=9.0,
                   peak_bytes=300 * 2**20, load_average=1.0, tuned_numbers=55_306)


def _outcome(configuration: str, seed: int, top1: float, *losses: float) -> Outcome:
    return dataclasses.replace(_OUTCOME, configuration=configuration, seed=seed, top1=top1,
                               losses=losses or (2.3, 1.2))


def _archive(path: Path, per_class: int = 6) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "test"):
            for label in ("frog", "cat"):
                for number in range(per_class):
                    archive.writestr(f"some/{split}/{label}/{number:04}.jpg",
                                     f"{split} {label} {number}")
        archive.writestr("some/readme.txt", "not an image")
    return path


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_outcome_survives_json() -> None:
    assert Outcome.from_json(_OUTCOME.to_json()) == _OUTCOME


def test_classes_are_sorted_and_other_members_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(_archive(tmp_path / "a.zip")) as archive:
        found = members_by_class(archive, "train")
    assert list(found) == ["cat", "frog"] == list(class_names(tmp_path / "a.zip"))
    assert all(len(names) == 6 for names in found.values())


def test_extract_copies_the_bytes_of_a_seeded_subset(tmp_path: Path) -> None:
    path = _archive(tmp_path / "a.zip")
    counts = extract(path, "train", tmp_path / "one", per_class=3, seed=1)
    assert counts == {"cat": 3, "frog": 3}
    extract(path, "train", tmp_path / "again", per_class=3, seed=1)
    assert _files(tmp_path / "one") == _files(tmp_path / "again")
    for name in _files(tmp_path / "one"):
        label, file = name.split("/")
        assert (tmp_path / "one" / name).read_text() == f"train {label} {int(file[:4])}"


def test_images_left_out_of_training_do_not_overlap_with_it(tmp_path: Path) -> None:
    path = _archive(tmp_path / "a.zip")
    extract(path, "train", tmp_path / "train", per_class=4, seed=7)
    extract(path, "train", tmp_path / "held", per_class=2, seed=7, skip=4)
    assert not set(_files(tmp_path / "train")) & set(_files(tmp_path / "held"))
    assert len(_files(tmp_path / "train") + _files(tmp_path / "held")) == 12


def test_too_few_images_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = _archive(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="7 images of a class wanted, 6 there"):
        extract(path, "test", tmp_path / "out", per_class=7, seed=0)
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_file_names_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/../x.jpg", "")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, pytest.raises(ValueError, match="plain"):
        members_by_class(archive, "train")


def test_select_depends_on_the_seed() -> None:
    names = [f"{n:03}" for n in range(100)]
    assert select(names, 10, seed=0) != select(names, 10, seed=1)


def test_differences_are_paired_by_seed() -> None:
    ours = {0: _outcome("ours-4", 0, 0.80, 2.3, 1.25), 1: _outcome("ours-4", 1, 0.90, 2.5, 1.0)}
    peer = {0: _outcome("torch", 0, 0.79, 2.3, 1.20), 1: _outcome("torch", 1, 0.92, 2.4, 1.1),
            2: _outcome("torch", 2, 0.10)}
    found = difference(ours, peer)
    assert found.n == 2
    assert found.mean_points == pytest.approx(-0.5)
    assert found.std_points == pytest.approx(3 / 2**0.5)  # of +1 and -2
    assert found.first_loss == pytest.approx(0.1)
    assert found.max_loss == pytest.approx(0.1)


def test_rows_have_mean_spread_and_peers() -> None:
    outcomes = [_outcome(name, seed, top1) for name, tops in
                {"ours-32": (0.80, 0.82), "ours-4": (0.79, 0.81), "torch": (0.80, 0.83)}.items()
                for seed, top1 in enumerate(tops)]
    found = {row.configuration: row for row in rows(outcomes)}
    assert found["ours-4"].mean_percent == pytest.approx(80)
    assert found["ours-4"].std_percent == pytest.approx(2**0.5)
    assert found["ours-4"].against["ours-32"].mean_points == pytest.approx(-1)
    assert set(found["ours-32"].against) == {"ours-4", "torch"}
    assert found["ours-32"].images_s == pytest.approx(30)
    assert [line.rpartition(" ")[2] for line in verdicts(list(found.values()))] == ["NO", "NO"]


def test_table_of_one_seed_has_no_spread() -> None:
    found = rows([_outcome("ours-32", 0, 0.5), _outcome("ours-4", 0, 0.5)])
    text = table({"model": "m", "what": "w", "machine": "x", "revision": "r", "command": "c"},
                 found)
    assert "±" not in text.split("|---|")[1].split("Differences")[0]
    assert "| ours-4 | 50.00 | 50.00 | +0.00 |" in text


def test_twin_takes_weights_by_name_and_trains_only_what_it_is_told() -> None:
    torch = pytest.importorskip("torch")
    np = pytest.importorskip("numpy")
    from tools.accuracy_torch import Classifier, Sizes, twin

    torch.manual_seed(0)
    sizes = Sizes(width=64, patch=4, tokens=5, depth=2, classes=3)
    source = Classifier(sizes)
    state = {name: value.numpy() for name, value in source.state_dict().items()}
    trained = {name: value for name, value in state.items()
               if name.endswith("bias") or name == "head.weight"}
    frozen = {name: value.T if value.ndim == 2 else value for name, value in state.items()
              if name not in trained}
    frozen["/positions"] = frozen.pop("backbone.embeddings.position")
    made = twin(frozen, trained)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32))
    assert torch.equal(made(images), source(images))
    assert {n for n, p in made.named_parameters() if p.requires_grad} == set(trained)
