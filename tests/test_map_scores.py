"""Deletion and insertion: how faithful a class map is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from explained_networks import image, network, red_finder, with_square

from partialnet.explain import Explainer, deletion_and_insertion


def test_deletion_and_insertion_of_a_known_network() -> None:
    explainer = red_finder()
    picture = with_square(0, 0, 32, (64, 64))
    right = explainer.class_map(picture, 0)
    wrong = replace(right, at_input=1 - right.at_input)
    good, bad = (deletion_and_insertion(explainer, picture, found, num_steps=16) for found in (right, wrong))
    assert good.areas()["deletion"] < bad.areas()["deletion"]
    assert good.areas()["insertion"] > bad.areas()["insertion"]
    whole = float(explainer.probabilities(explainer.prepare([picture]))[0, 0])
    assert (good.deletion[0], good.insertion[-1]) == pytest.approx((whole, whole))
    assert good.deletion[-1] == pytest.approx(0.5)  # nothing is left: both classes are equal
    # the square is a quarter of the image: with a quarter of the pixels everything is back
    assert good.insertion[4] >= whole - 1e-3
    again = deletion_and_insertion(explainer, picture, right, num_steps=16, batch_size=3)
    np.testing.assert_allclose(again.deletion, good.deletion, atol=1e-6)


def test_scores_need_a_class() -> None:
    explainer = Explainer(network())
    with pytest.raises(ValueError, match="of no class"):
        deletion_and_insertion(explainer, image(), explainer.class_map(image(), method="eigencam"))
