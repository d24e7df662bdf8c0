"""The table of captions on a toy set: what is compared with what, and the page."""

import numpy as np
import pytest
import table_captions
from PIL import Image


def test_captions_of_held_out_concepts_come_from_the_training_pictures(tmp_path, monkeypatch) -> None:
    for name, value in {"EPOCHS": 1, "CHOICES": (1,), "BATCH": 8, "SHOWN": 3}.items():
        monkeypatch.setattr(table_captions, name, value)
    paths = [tmp_path / f"{i}.png" for i in range(60)]
    for path in paths:
        Image.new("RGB", (8, 8), "red").save(path)
    concepts = [f"c{i // 3}" for i in range(60)]
    captions = [[f"<b>{concept}</b> {i}", f"tag {i}"] for i, concept in enumerate(concepts)]
    features = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    pictures = table_captions.CaptionSet(paths, features, captions, concepts, "")
    found = {kind: table_captions.measure(pictures, kind, 0) for kind in table_captions.KINDS}
    rows = table_captions.draw_split(concepts, "concept", 0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for (kind, number), one in zip(table_captions.KINDS.items(), found.values()):
        nearest = rows["train"][(unit[rows["test"]] @ unit[rows["train"]].T).argmax(1)]
        assert one.captions["neighbor"] == [captions[row][number] for row in nearest], kind
        assert len(one.captions["decoder"]) == len(rows["test"])
        assert one.scores["neighbor"]["rouge_l"] == pytest.approx(0.5)  # half of the words
        assert set(one.scores["decoder"]) == set(table_captions.METRICS)
    page = table_captions.page({"emoji": (pictures, found)})
    assert page.count("<img ") == 3
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert table_captions.LICENSES["emoji"] in page
