"""Nested mappings: every array has a path, and paths lead back to the mapping."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from npgpt.explain.nested import label, leaves, replaced

KEYS = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=8)


@given(TREES)
def test_label_of_a_path_is_the_expression_for_its_leaf(tree):
    for path, leaf in leaves(tree):
        assert eval(label("tree", path), {"tree": tree}) is leaf


@given(TREES)
def test_one_leaf_is_replaced_in_a_copy(tree):
    for path, leaf in leaves(tree):
        other = replaced(tree, path, "other")
        assert dict(leaves(other)) == {**dict(leaves(tree)), path: "other"}
        assert dict(leaves(tree))[path] is leaf


def test_keys_that_are_numbers_are_labelled_as_numbers():
    tree = {"h": {0: {"bias": np.ones(2)}}}
    assert [label("p", path) for path, _ in leaves(tree)] == ['p["h"][0]["bias"]']
