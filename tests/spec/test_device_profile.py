"""Device profiles: the shipped ones, the strict reader, and the budgets derived from them."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from s2a_edge.spec.device_profile import (
    list_profiles,
    load_profile,
    profile_names,
    profiles_folder,
    training_budget,
)
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.profile_facts import DeviceProfile
from s2a_edge.spec.units import GIB, MIB, parse_bytes

MODULES = {
    "nano-2gb", "nano-4gb", "tx2-4gb", "tx2-8gb", "xavier-nx-8gb", "xavier-nx-16gb",
    "agx-xavier-16gb", "agx-xavier-32gb", "agx-xavier-64gb", "orin-nano-4gb", "orin-nano-8gb",
    "orin-nx-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb", "thor-t4000", "thor-t5000",
}  # fmt: skip

MINIMAL = """\
schema_version = 1
name = "mine"
title = "My board"
kind = "board"
can_train = true
can_train_reason = "it runs Linux"
[sources]
me = { text = "measured by me", date = "2026-01-31" }
[memory]
mem_total = { value = "1GiB", source = "me" }
reserve_headless = { value = "100MiB", source = "me" }
"""


def load(folder: Path, text: str) -> DeviceProfile:
    file = folder / "mine.toml"
    file.write_text(text)
    return load_profile(file)


def test_there_is_a_profile_for_every_module_and_for_the_reference() -> None:
    assert set(profile_names()) == MODULES | {"cpu-reference"}


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.name)
class TestShippedProfile:
    def test_is_named_as_its_file(self, profile: DeviceProfile) -> None:
        assert (profiles_folder() / f"{profile.name}.toml").is_file()

    def test_every_fact_says_where_it_is_from_and_when(self, profile: DeviceProfile) -> None:
        facts = dict(profile.facts())
        assert facts
        for fact in facts.values():
            assert fact.source
            assert datetime.date.fromisoformat(fact.date).year >= 2026

    def test_carried_over_figures_name_a_profile(self, profile: DeviceProfile) -> None:
        carried = {fact.carried_over_from for _, fact in profile.facts()} - {None}
        assert carried <= set(profile_names()) - {profile.name}

    def test_typical_memory_is_below_what_is_sold(self, profile: DeviceProfile) -> None:
        total, capacity = profile.memory.mem_total_bytes, profile.memory.capacity_bytes
        if total is None:
            return
        assert capacity is not None
        assert 0.9 * capacity.value < total.value < capacity.value

    def test_jetsons_can_be_told_apart(self, profile: DeviceProfile) -> None:
        detection = profile.detection
        if profile.kind == "jetson":
            assert detection.soc is not None
            assert detection.model_contains is not None

    def test_is_json_ready(self, profile: DeviceProfile) -> None:
        assert profile.as_dict()["name"] == profile.name


def test_boards_whose_software_is_too_old_are_plan_only() -> None:
    plan_only = {profile.name for profile in list_profiles() if not profile.can_train}
    assert plan_only == {name for name in MODULES if name.startswith(("nano", "tx2"))} | {
        name for name in MODULES if "xavier" in name
    }


def test_an_unknown_name_gets_close_matches() -> None:
    with pytest.raises(DeviceError, match="did you mean orin-nano-8gb"):
        load_profile("orin-nano-8g")


def test_a_far_off_name_gets_the_list_command() -> None:
    with pytest.raises(DeviceError, match="devices list") as caught:
        load_profile("zzzzzz")
    assert "did you mean" not in str(caught.value)


def test_a_path_in_text_is_a_file(tmp_path: Path) -> None:
    load(tmp_path, MINIMAL)
    assert load_profile(str(tmp_path / "mine.toml")).title == "My board"


@pytest.mark.parametrize("name", ["no/such/folder", "absent.toml", ".", "..", ""])
def test_a_file_that_is_not_there_is_a_device_error(name: str) -> None:
    with pytest.raises(DeviceError):
        load_profile(name)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"not toml", b"a = " + b"[" * 20_000, b"a=1\na=2"]
)
def test_junk_is_a_device_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "junk.toml").write_bytes(content)
    with pytest.raises(DeviceError, match=r"junk\.toml"):
        load_profile(tmp_path / "junk.toml")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(DeviceError, match="above 1 MiB"):
        load_profile(tmp_path / "huge.toml")


def test_a_users_profile_is_read(tmp_path: Path) -> None:
    profile = load(tmp_path, MINIMAL)
    total = profile.memory.mem_total_bytes
    assert total is not None
    assert (total.value, total.source, total.date) == (GIB, "measured by me", "2026-01-31")
    assert profile.memory.capacity_bytes is None


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("schema_version = 1", "schema_version = 2", "schema_version"),
        ("schema_version = 1", "schema_version = true", "schema_version"),
        ('name = "mine"\n', "", "name: expected a text, got nothing"),
        ('name = "mine"', "name = 3", "name: expected a text, got 3"),
        ('kind = "board"', 'kind = "toaster"', "kind"),
        ("can_train = true", "can_train = 1", "can_train: expected true or false"),
        ("[memory]", "[memroy]", "did you mean memory"),
        ("mem_total =", "mem_totl =", "memory.mem_totl: expected one of .*did you mean mem_total"),
        (', source = "me" }\nreserve', " }\nreserve", "memory.mem_total.source: expected a text"),
        (
            'source = "me"',
            'source = "you"',
            r"memory.mem_total.source: expected one of \[sources\]",
        ),
        ('"1GiB"', "1024", "memory.mem_total.value: expected a size with its unit"),
        ('"1GiB"', '"1G"', "memory.mem_total.value: expected a size"),
        ('value = "1GiB", ', "", "memory.mem_total.value: expected a value, got nothing"),
        ('{ value = "1GiB", source = "me" }', '"1GiB"', "memory.mem_total: expected a table"),
        ("2026-01-31", "January", "sources.me.date: expected a date"),
        ("2026-01-31", "20260131", "sources.me.date: expected a date"),
        ('text = "measured by me", ', "", "sources.me.text"),
        ('text = "measured by me"', 'text = ""', "sources.me.text"),
        ("[sources]", "[[sources]]", "sources"),
    ],
)
def test_the_reader_is_strict(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in MINIMAL
    with pytest.raises(DeviceError, match=rf"mine\.toml: .*{complaint}"):
        load(tmp_path, MINIMAL.replace(old, new, 1))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('[gpu]\nsm = { value = 8.7, source = "me" }', "gpu.sm.value: expected an integer"),
        ('[gpu]\nsm = { value = true, source = "me" }', "gpu.sm.value: expected an integer"),
        ('[gpu]\nfp16_tflops = { value = nan, source = "me" }', "a positive number"),
        ('[gpu]\nfp16_tflops = { value = 0, source = "me" }', "a positive number"),
        ('[gpu]\narch = { value = 3, source = "me" }', "gpu.arch.value: expected a text"),
        ('[power]\nmodes = { value = "7W", source = "me" }', "power.modes.value: expected a list"),
        ('[overheads]\ncuda_context = { value = ["2MB"], source = "me" }', "two sizes"),
        ('[overheads]\ncuda_context = { value = ["2MB", "1MB"], source = "me" }', "smaller"),
    ],
)
def test_values_have_their_type(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint):
        load(tmp_path, MINIMAL + line)


def test_a_budget_is_total_less_reserve_less_overhead() -> None:
    budget = training_budget(load_profile("orin-nano-8gb"))
    assert budget.budget_bytes == 7620 * MIB - 544 * MIB - parse_bytes("0.8GB")
    assert [line.label for line in budget.lines] == [
        "MemTotal, typical",
        "idle system",
        "CUDA context and libraries",
    ]


def test_a_desktop_costs() -> None:
    profile = load_profile("orin-nano-8gb")
    headless, desktop = training_budget(profile), training_budget(profile, desktop=True)
    assert headless.budget_bytes - desktop.budget_bytes == parse_bytes("0.8GB")


def test_the_boards_own_total_wins() -> None:
    profile = load_profile("orin-nano-8gb")
    own = training_budget(profile, mem_total_bytes=7000 * MIB)
    assert own.budget_bytes == training_budget(profile).budget_bytes - 620 * MIB


def test_on_the_cpu_there_is_no_cuda_overhead() -> None:
    budget = training_budget(load_profile("nano-2gb"), provider="cpu")
    assert budget.budget_bytes == (1979 - 544) * MIB


def test_a_board_may_be_too_small_for_cuda_alone() -> None:
    assert training_budget(load_profile("nano-2gb")).budget_bytes < 0


def test_a_figure_from_another_board_says_so() -> None:
    lines = training_budget(load_profile("orin-nx-16gb")).lines
    assert "carried over from orin-nano-8gb" in lines[1].source


@pytest.mark.parametrize("name", ["tx2-4gb", "orin-nx-8gb", "thor-t4000"])
def test_an_unknown_total_is_asked_for(name: str) -> None:
    with pytest.raises(DeviceError, match="--budget"):
        training_budget(load_profile(name))


def test_an_unknown_total_may_be_read_on_the_board() -> None:
    budget = training_budget(load_profile("tx2-4gb"), mem_total_bytes=3800 * MIB, provider="cpu")
    assert budget.budget_bytes == (3800 - 544) * MIB


def test_available_memory_already_leaves_the_system_out() -> None:
    profile = load_profile("orin-nano-8gb")
    budget = training_budget(profile, available_bytes=5 * GIB)
    assert budget.budget_bytes == 5 * GIB - parse_bytes("0.8GB")


def test_the_reference_is_what_the_host_has_left() -> None:
    profile = load_profile("cpu-reference")
    assert training_budget(profile, available_bytes=GIB).budget_bytes == GIB
    with pytest.raises(DeviceError, match="--budget"):
        training_budget(profile)


def test_a_users_board_without_gpu_trains_on_its_cpu(tmp_path: Path) -> None:
    assert training_budget(load(tmp_path, MINIMAL)).budget_bytes == 924 * MIB


def test_cuda_on_a_board_without_cuda_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="CUDA"):
        training_budget(load(tmp_path, MINIMAL), provider="cuda")


def test_an_unknown_reserve_is_not_guessed(tmp_path: Path) -> None:
    text = MINIMAL.replace('reserve_headless = { value = "100MiB", source = "me" }\n', "")
    with pytest.raises(DeviceError, match="idle system"):
        training_budget(load(tmp_path, text))
    with pytest.raises(DeviceError, match="desktop"):
        training_budget(load(tmp_path, MINIMAL), desktop=True)
