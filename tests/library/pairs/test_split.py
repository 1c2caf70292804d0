from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import DataError
from library.pairs.split import Split, fraction_of

scenes = st.lists(st.from_regex(r"(TEST_|UNK_|UNK_TEST_)?[A-Za-z0-9_ -]{1,12}", fullmatch=True), max_size=40)


@given(scenes)
def test_no_reserved_scene_is_ever_trained_or_validated_on(names: list[str]):
    split = Split(validation=0.3)
    for name in names:
        if name.startswith(("TEST_", "UNK_TEST_")):
            assert split.part_of(name) == "test"
        elif name.startswith("UNK_"):
            assert split.part_of(name) == "unseen"
        else:
            assert split.part_of(name) in ("train", "validation")


@given(scenes, scenes)
def test_a_growing_tree_moves_no_scene_to_another_part(names: list[str], more: list[str]):
    split = Split(validation=0.3)
    assert {n: split.part_of(n) for n in names} == {n: split.part_of(n) for n in [*more, *names] if n in names}


def test_the_names_of_rawnind_are_reserved_as_its_list_has_them():
    names = ["TEST_7D-2", "UNK_TEST_LucieB_bw_drawing1", "UNK_LucieB_bw_drawing3", "MuseeL-Sepik", "7D_TEST_1"]
    parts = [Split(validation=("Musee*",)).part_of(name) for name in names]
    assert parts == ["test", "test", "unseen", "validation", "train"]


def test_about_the_fraction_that_is_asked_for_validates():
    parts = Split(validation=0.2).parts(f"scene {n}" for n in range(1000))
    assert 150 < sum(part == "validation" for part in parts.values()) < 250


def test_of_few_scenes_one_validates_even_if_the_fraction_is_none():
    names = [f"scene {n}" for n in range(60) if fraction_of(f"scene {n}") > 0.1][:5]
    parts = Split(validation=0.01).parts(names)
    assert sorted(parts.values()) == ["train"] * 4 + ["validation"]
    assert parts[min(names, key=fraction_of)] == "validation"


@pytest.mark.parametrize(
    ("names", "words"),
    [(["TEST_a", "UNK_b"], "leaves 0 scenes to train on and 0 to validate on, of 2"), ([], "none"), (["one"], "1 .*0")],
)
def test_a_split_that_leaves_nothing_is_refused_with_the_keys_to_change(names: list[str], words: str):
    with pytest.raises(DataError, match=words) as refused:
        Split(validation=0.001).parts(names)
    assert "split.test" in str(refused.value)


def test_patterns_that_reserve_everything_or_validate_nothing_are_refused():
    with pytest.raises(DataError, match="0 to validate on"):
        Split(validation=("nothing",)).parts(["a", "b"])
