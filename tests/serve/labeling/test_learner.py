"""The model learns from what is not in the random sample, is measured on the sample alone, and decides what to ask."""

import json
import math

import numpy as np
import pytest
import torch

from lit_vision.data.batch import normalize
from lit_vision.data.views.decode import decode
from lit_vision.data.views.views import resize_and_crop
from lit_vision.evaluation.acquisition import margin
from lit_vision.evaluation.label_law import fit_law
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.serve.labeling.learner import Accuracy, more_labels_law
from lit_vision.serve.labeling.probe import fit_probe_model

NAMES = ("cat", "dog", "bird")


def truth(client) -> np.ndarray:
    """Set features of three groups, and return the group of each image."""
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 3, len(client.labeling.images))
    client.learner.features.rows = (4 * np.eye(3, 8)[groups] + rng.normal(size=(len(groups), 8))).astype(np.float32)
    return groups


def give(client, numbers, groups) -> None:
    for number in numbers:
        client.labeling.answer(number, "label", [NAMES[groups[number]]], f"a{number}", None)


def test_what_measures_accuracy_is_not_learned_from(label, many) -> None:
    with label(NAMES, root=many) as client:
        groups, queue = truth(client), client.labeling.queue
        give(client, queue.random_order[:40], groups)
        give(client, queue.audit_order[:10], (groups + 1) % 3)  # wrong on purpose: a model that saw them would know
        client.learner.learn()
        state = client.get("/v1/label/state").json()
        assert state["model"] == {"labels": 40, "classes": 3}
        assert (state["audit"]["images"], state["audit"]["right"]) == (10, client.learner.accuracy().right)
        assert state["audit"]["right"] <= 2
        left = queue.random_order[40:]
        proposed = [client.learner.propose(number)["labels"][0] for number in left]
        assert np.mean([name == NAMES[groups[n]] for name, n in zip(proposed, left)]) > 0.9
        assert max(client.learner.propose(n)["confidence"] for n in left) <= 1
        assert not {number for number, _ in queue.chosen} & set(queue.audit_order)


def test_the_sample_counts_in_its_order_and_its_proposals_are_hidden_but_kept(label, many) -> None:
    with label(NAMES, root=many) as client:
        groups, (first, second, third) = truth(client), client.labeling.queue.audit_order[:3]
        give(client, client.labeling.queue.random_order[:30], groups)
        client.learner.learn()
        give(client, [third], groups)  # found by search, say
        assert client.learner.accuracy().images == 0
        assert client.get(f"/v1/label/item/{first}").json()["proposal"] is None
        give(client, [first], groups)
        assert client.get(f"/v1/label/item/{first}").json()["proposal"] is not None
        assert json.loads(client.lines()[-1])["predicted"] == client.learner.propose(first)
        assert client.learner.accuracy().images == 1
        client.labeling.answer(second, "skip", [], "s", None)
        assert client.learner.accuracy().images == 2  # the first and the third
        client.labeling.undo(f"a{first}")
        assert client.learner.accuracy().images == 0


def test_the_interval_is_wilsons() -> None:
    shown = Accuracy(50, 45).shown()
    z, n, p = 1.959963984540054, 50, 0.9
    center, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert shown["low"] == pytest.approx((center - half) / (1 + z * z / n))
    assert shown["high"] == pytest.approx((center + half) / (1 + z * z / n))
    assert Accuracy(0, 0).shown() is None


def test_the_curve_is_that_of_the_first_labels(label, many) -> None:
    with label(NAMES, root=many) as client:
        groups, queue = truth(client), client.labeling.queue
        numbers = queue.random_order[:45]
        give(client, numbers[:20], groups)
        client.learner.learn()
        give(client, [*numbers[20:], *queue.audit_order[:12]], groups)
        client.learner.learn()
        assert [model.images for model in client.learner.curve] == [8, 12, 18, 27, 40]
        rows, sample = client.learner.features.rows, queue.audit_order[:12]
        points = client.get("/v1/label/state").json()["curve"]
        assert [point["labels"] for point in points] == [8, 12, 18, 27, 40, 45]
        for point in points:
            fitted = logistic_regression(
                rows[numbers[: point["labels"]]], groups[numbers[: point["labels"]]], rows[sample], 3
            )
            assert point["accuracy"] == pytest.approx((fitted.predictions == groups[sample]).mean(), abs=1 / 11)


def test_images_that_stand_for_others_come_first_then_those_that_the_model_is_unsure_of(label, many) -> None:
    with label(NAMES, root=many) as client:
        groups, queue = truth(client), client.labeling.queue
        client.learner.learn()
        assert client.learner.now == "probcover"
        assert "stands for" in queue.chosen[0][1]
        asked = client.get("/v1/label/next", params={"count": 5}).json()["images"]
        assert [image["number"] for image in asked[:4]] == [number for number, _ in queue.chosen[:4]]
        give(client, queue.random_order[:30], groups)
        client.learner.learn()
        assert client.get("/v1/label/state").json()["strategy"] == "margin"
        left = np.array(queue.random_order[30:])
        margins = margin(client.learner.model.probabilities(client.learner.features.rows[left]))
        chosen = [number for number, _ in queue.chosen]
        assert chosen == left[np.argsort(margins, kind="stable")][: len(chosen)].tolist()
        assert queue.chosen[0][1].startswith("the model is least sure here: ")


def test_a_renamed_class_keeps_the_model_and_joined_ones_are_learned_anew(label, many) -> None:
    def rename(client, **body):
        return client.post("/v1/label/classes", json=body).status_code

    with label(NAMES, root=many) as client:
        groups, queue = truth(client), client.labeling.queue
        give(client, queue.random_order[:40], groups)
        client.learner.learn()
        before = client.learner.model
        assert rename(client, rename="cat", to="kitten") == 200
        assert client.learner.model.classes == tuple("kitten" if n == "cat" else n for n in before.classes)
        assert rename(client, rename="kitten", to="dog", merge=True) == 200
        assert client.learner.model is None
        client.learner.learn()
        assert set(client.learner.model.classes) == {"dog", "bird"}


def test_no_model_before_two_classes_and_no_word_on_more_labels_before_a_sample(label, many) -> None:
    with label(NAMES, root=many) as client:
        groups, queue = truth(client), client.labeling.queue
        give(client, [n for n in queue.random_order if groups[n] == 0][:10], groups)
        client.learner.learn()
        assert client.learner.model is None
        give(client, [n for n in queue.random_order if groups[n] == 1][:20], groups)
        client.learner.learn()
        assert client.learner.model.images == 30
        assert client.learner.more == ""


def test_the_law_has_the_error_of_the_sample_in_it() -> None:
    """Errors follow 0.6 * labels^-0.5, and are measured on one sample of 60 images: the gain is covered."""
    counts, more = [8, 12, 18, 27, 40, 60, 91], 100
    rng = np.random.default_rng(0)
    covered, wider = 0, 0
    for _ in range(30):
        difficulty = rng.random(60)  # an image is right from a number of labels on
        wrong = [(difficulty < 0.6 * count**-0.5 * 1.5).sum() for count in counts]
        accuracies = [Accuracy(60, int(60 - w)) for w in wrong]
        law = more_labels_law(counts, accuracies)
        assert law.weights.sum() == pytest.approx(1)
        _, low, high = law.gain(91, more)
        truly = 100 * 0.9 * (91**-0.5 - 191**-0.5)
        covered += low <= truly <= high
        plain = fit_law(counts, np.array([[(w + 0.5) / 61 for w in wrong]])).gain(91, more)
        wider += high - low >= plain.high - plain.low
    assert covered >= 27
    assert wider == 30


def test_several_labels_an_image_are_questions_of_their_own() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    labels = [[name for name, v in zip("ab", row) if v > 0] + ["all"] for row in x]
    model = fit_probe_model(x, labels, multiple=True)
    p = model.probabilities(x)
    for name in "ab":
        codes = np.array([name in given for given in labels], int)
        wanted = logistic_regression(x, codes, x, 2).probabilities[:, 1]
        np.testing.assert_allclose(p[:, model.classes.index(name)], wanted, atol=1e-5)
    assert (p[:, model.classes.index("all")] > 0.99).all()
    proposed = model.propose(np.array([3, -3, 0, 0, 0], np.float32))
    assert set(proposed["labels"]) == {"a", "all"}
    assert 0.5 <= proposed["confidence"] <= 1
    assert fit_probe_model(x, [["all"]] * 80, multiple=True) is None


def test_features_are_those_of_the_encoder_and_are_found_again(label, photos, read_features) -> None:
    broken = photos / "day0/00.png"
    broken.write_bytes(broken.read_bytes()[:30])
    with label() as client:
        read_features(client)
        reader, encoder = client.learner.features, client.learner.features.encoder
        assert reader.done == 20
        assert reader.of(0) is None
        for number in (1, 13):
            pixels = decode((photos / client.labeling.images.paths[number]).read_bytes())
            view = torch.from_numpy(resize_and_crop(pixels, size=16, crop_pct=1.0))[None, None]
            with torch.inference_mode():
                wanted = encoder.backbone.eval()(normalize(view, encoder.mean, encoder.std)[:, 0])[0]
            np.testing.assert_allclose(reader.of(number), wanted.numpy(), atol=1e-5)
        cosines = [np.dot(reader.of(5), row) / np.linalg.norm(row) for row in reader.rows]
        cosines[5] = np.nan
        shown = client.get("/v1/label/similar/5", params={"count": 3}).json()["images"]
        best = np.sort(np.nan_to_num(cosines, nan=-9))[::-1][:3]  # some are equal: their images differ in brightness
        np.testing.assert_allclose([cosines[image["number"]] for image in shown], best, atol=1e-6)
        assert client.get("/v1/label/similar/0").status_code == 409
        rows = reader.rows
    written = {path: path.stat().st_mtime_ns for path in client.labeling.store.folder.rglob("*.npy")}
    with label() as client:
        read_features(client)
        assert np.array_equal(client.learner.features.rows, rows, equal_nan=True)
    assert written == {path: path.stat().st_mtime_ns for path in client.labeling.store.folder.rglob("*.npy")}


def test_without_weights_images_are_asked_at_random(label, answer) -> None:
    from lit_vision.errors import UserError

    def fail():
        raise UserError("no weights; connect once")

    with label() as client:
        client.learner.features._open_encoder = fail
        client.learner.start()
        client.learner.features.wait()
        number = client.get("/v1/label/next").json()["images"][0]["number"]
        assert answer(client, number, "cat").status_code == 200
        assert client.get("/v1/label/state").json()["problem"] == "no weights; connect once"
        client.learner.stop()
        assert (client.labeling.store.folder / "labels.csv").exists()


def test_an_error_that_nobody_thought_of_is_said_too(label) -> None:
    def fail():
        raise MemoryError("too large")

    with label() as client:
        client.learner.features._open_encoder = fail
        client.learner.features.start()
        client.learner.features.wait()
        assert client.get("/v1/label/state").json()["problem"] == "MemoryError: too large"


def test_a_class_renamed_while_the_curve_is_fitted_leaves_no_model_of_the_old_name(label, many, monkeypatch) -> None:
    with label(NAMES, root=many) as client:
        give(client, client.labeling.queue.random_order[:30], truth(client))
        fit, calls = client.learner._fit_to, []

        def fit_and_rename(*arguments):
            model = fit(*arguments)
            calls.append(model)
            if len(calls) == 3:
                client.post("/v1/label/classes", json={"rename": "dog", "to": "hund"})
            return model

        monkeypatch.setattr(client.learner, "_fit_to", fit_and_rename)
        client.learner.learn()
        assert client.learner.curve == []
        client.learner.learn()
        assert [model.images for model in client.learner.curve] == [8, 12, 18, 27]
        assert not [model for model in client.learner.curve if "dog" in model.classes]


def test_a_table_that_cannot_be_written_does_not_stop_the_learning(label, many, monkeypatch, capsys) -> None:
    from lit_vision.errors import UserError
    from lit_vision.serve.labeling import learner

    def full(_):
        raise UserError("labels.csv: cannot be written")

    monkeypatch.setattr(learner, "write_table", full)
    with label(NAMES, root=many) as client:
        give(client, client.labeling.queue.random_order[:8], truth(client))
        monkeypatch.setattr(client.learner, "learn", client.learner._stopping.set)
        client.learner.notify()
        client.learner._run()
        assert capsys.readouterr() == ("labels.csv: cannot be written\n", "")
