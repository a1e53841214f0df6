"""Result records: the bootstrap, what is derived, what is packed, and what is refused."""

import base64
import hashlib
import json
import math
import os
import time
import zlib
from importlib.metadata import version

import numpy as np
import pytest
import torch

from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.outcome import Outcome, pack, unpack
from rclip_metric.train.evaluation.results.record import Averaging, Effort, load_results, record, result_name, save
from rclip_metric.train.runs.machine import device_record
from rclip_metric.weights import get_spec

THREAT = {"attack": "apgd", "norm": "linf", "eps": 4 / 255, "steps": 100, "restarts": 1, "loss": "ce"}
TINY = {"name": "tiny", "revision": f"sha256:{(get_spec('tiny').files[0].sha256 or '')[:12]}", "resize": "published"}
R_CLIP_F = (get_spec("r-clip-f").revision or "").ljust(40, "0")
NIGHTS = {"name": "nights", "split": "test", "protocol": "2afc", "unreadable": []}


def outcomes(count: int, seed: int = 0) -> list[Outcome]:
    """As an evaluation makes them: margins with all their digits, three quarters right, half of those robust."""
    generator = np.random.default_rng(seed)
    rows = []
    for index, (margin, attacked) in enumerate(generator.normal(0.1, 0.15, (count, 2))):
        right = margin > 0
        split = "test_imagenet" if index % 3 else "test_no_imagenet"
        robust_margin = float(margin - abs(attacked))
        clean, robust = float(right), float(robust_margin > 0)
        rows.append(Outcome(f"{index:06d}", split, clean, False, float(margin), robust, robust_margin))
    return rows


def made(rows: list[Outcome] | None = None, **changes):
    settings = {"task": "2afc", "model": TINY, "data": NIGHTS, "threat": THREAT, "effort": Effort(8.0), **changes}
    return record(outcomes(60) if rows is None else rows, **settings)


# The bootstrap


def binomial_quantiles(count: int, share: float) -> tuple[float, float]:
    """The exact 2.5 % and 97.5 % quantiles of a binomial share, in percent, from its probabilities."""
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(share) + (count - k) * math.log1p(-share)
        for k in range(count + 1)
    ]  # fmt: skip
    below = np.cumsum(np.exp(logs))
    return 100 * int(np.searchsorted(below, 0.025)) / count, 100 * int(np.searchsorted(below, 0.975)) / count


@pytest.mark.parametrize(("right", "count"), [(1072, 1824), (30, 1000), (57, 60)])
def test_interval_of_right_and_wrong_is_the_binomial_one(right, count):
    found = summary([1.0] * right + [0.0] * (count - right), ["all"] * count, macro=False)
    assert found["accuracy"] == round(100 * right / count, 4) and found["samples"] == count
    # 10,000 resamples leave the quantiles uncertain by about 0.03 standard deviations.
    deviation = 100 * math.sqrt(right * (count - right) / count**3)
    tolerance = max(100 / count, 0.15 * deviation)
    assert found["interval_95"] == pytest.approx(binomial_quantiles(count, right / count), abs=tolerance)


def test_interval_of_scores_is_the_normal_one():
    generator = np.random.default_rng(3)
    fifths, continuous = generator.integers(0, 6, 900) / 5, generator.random(900)
    for scores in (fifths, continuous):  # counts are drawn for the first, samples for the second
        found = summary(scores.tolist(), ["all"] * 900, macro=False)
        half = 1.959964 * scores.std() / math.sqrt(900)
        expected = [100 * (scores.mean() - half), 100 * (scores.mean() + half)]
        assert found["interval_95"] == pytest.approx(expected, abs=0.15)
        assert found["accuracy"] == pytest.approx(100 * scores.mean(), abs=1e-4)


def test_macro_mean_by_hand():
    values, splits = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], ["a"] * 4 + ["b"] * 4
    # a: 3 of 4, b: 0 of 4; and with b twice as long, the mean over splits stays.
    assert summary(values, splits, macro=True)["accuracy"] == 37.5
    assert summary(values + [0.0] * 4, splits + ["b"] * 4, macro=True)["accuracy"] == 37.5
    assert summary(values + [0.0] * 4, splits + ["b"] * 4, macro=False)["accuracy"] == 25.0


def test_macro_interval_is_stratified():
    # Split a is all right and split b all wrong: resampled by themselves, nothing varies; as one, half of it does.
    values, splits = [1.0] * 50 + [0.0] * 50, ["a"] * 50 + ["b"] * 50
    assert summary(values, splits, macro=True)["interval_95"] == [50.0, 50.0]
    low, high = summary(values, splits, macro=False)["interval_95"]
    assert (low, high) == pytest.approx((40.0, 60.0), abs=1.5)
    # Two splits, both 50 of 100: the variance of the mean of two means is half of that of one.
    halves = [1.0, 0.0] * 100
    low, high = summary(halves, ["a"] * 100 + ["b"] * 100, macro=True)["interval_95"]
    assert high - low == pytest.approx(2 * 1.959964 * 100 * math.sqrt(0.25 / 100 / 2), rel=0.1)


def test_interval_is_seeded_and_does_not_depend_on_the_order():
    values, splits = np.random.default_rng(0).random(300), np.array(["a", "b", "c"] * 100)
    order = np.random.default_rng(1).permutation(300)
    found = summary(values.tolist(), splits.tolist(), macro=True)
    assert found == summary(values[order].tolist(), splits[order].tolist(), macro=True)
    assert found["interval_95"] != summary(values.tolist(), splits.tolist(), macro=True, seed=1)["interval_95"]


def test_degenerate_summaries():
    assert summary([1.0] * 20, ["a"] * 20, macro=False)["interval_95"] == [100.0, 100.0]
    one = {"accuracy": 0.0, "interval_95": [0.0, 0.0], "samples": 1}
    assert summary([0.0], ["a"], macro=True) == one
    assert summary([0.3], ["a"], macro=False)["interval_95"] == [30.0, 30.0]
    for values, splits, message in (
        ([], [], "no sample"),
        ([1.0], ["a", "b"], "got 1 values and 2 splits"),
        ([1.5], ["a"], r"must lie in \[0, 1\]"),
        ([math.nan], ["a"], r"must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            summary(values, splits, macro=False)


def test_36_000_samples_take_a_moment():
    values = np.random.default_rng(0).integers(0, 6, 36_000) / 5
    begun = time.process_time()
    summary(values.tolist(), ["a", "b", "c", "d"] * 9000, macro=True)
    assert time.process_time() - begun < 2


# The record


def test_record_derives_its_numbers_from_the_outcomes():
    rows = outcomes(60)
    built = made(
        rows, effort=Effort(8.0, 400, 2, largest_violation=0.0), settings={"seed": 0}, human={"accuracy": 82.6}
    )
    assert built["schema"] == 1 and built["task"] == "2afc" and built["model"] == TINY
    assert built["data"] == {**NIGHTS, "samples": 60}
    assert built["threat"] == {**THREAT, "eps_text": "4/255"}
    assert built["clean"]["accuracy"] == pytest.approx(100 * sum(row.clean for row in rows) / 60, abs=1e-4)
    assert built["robust"]["accuracy"] == pytest.approx(100 * sum(row.robust or 0 for row in rows) / 60, abs=1e-4)
    assert built["clean"]["ties"] == 0 and built["warnings"] == [] and built["processes"] == 2
    part = [row for row in rows if row.split == "test_imagenet"]
    assert built["splits"].keys() == {"test_imagenet", "test_no_imagenet"}
    assert built["splits"]["test_imagenet"]["clean"]["samples"] == len(part) == 40
    share = 100 * sum(row.clean for row in part) / 40
    assert built["splits"]["test_imagenet"]["clean"]["accuracy"] == pytest.approx(share, abs=1e-4)
    assert (built["seconds"], built["passes"], built["images_per_second"]) == (8.0, 400, 50.0)
    assert built["versions"]["torch"] == version("torch") and set(built["versions"]) >= {"timm", "python"}
    assert built["device"] == device_record(torch.device("cpu"))
    assert built["human"] == {"accuracy": 82.6} and built["settings"]["bootstrap"]["resamples"] == 10_000
    assert unpack(built)[7].key == "000007"


def test_macro_record_averages_splits_and_counts_only_what_was_attacked():
    # cnn: 3 of 4 right, of the first two one is robust; color: 1 of 2 right, both attacked, none robust.
    rows = [Outcome(f"cnn/{i}", "cnn", float(i > 0), False, 0.1, float(i == 1) if i < 2 else None) for i in range(4)]
    rows += [Outcome(f"color/{i}", "color", float(i), False, 0.1, 0.0) for i in range(2)]
    built = made(rows, averaging=Averaging(macro=True), data={"name": "bapps", "split": "val", "protocol": "majority"})
    assert built["clean"]["accuracy"] == 62.5 and built["clean"]["samples"] == 6
    assert built["robust"]["accuracy"] == 25.0 and built["robust"]["samples"] == 4
    assert built["splits"]["cnn"]["robust"] == {"accuracy": 50.0, "interval_95": [0.0, 100.0], "samples": 2}


def test_clean_record_has_no_robust_numbers():
    rows = [Outcome(str(i), "test", 1.0, False, 0.2) for i in range(5)]
    built = made(rows, threat={"attack": "none"})
    assert built["robust"] is None and built["splits"]["test"]["robust"] is None
    assert built["threat"]["norm"] is None and built["warnings"] == []


def test_warnings_are_derived_from_the_counts():
    rows = outcomes(50)
    rows[3] = Outcome("tied", "test_imagenet", 0.0, True, 0.0, 0.0, 0.0)
    data = {**NIGHTS, "unreadable": ["a.png cannot be read: it is empty."]}
    built = made(rows, data=data, effort=Effort(8.0, largest_violation=1e-6, zero_gradients=12, nonfinite_gradients=3))
    zero, nonfinite, ties, unreadable, violation = built["warnings"]
    assert zero.startswith("12 of 50 samples met an all-zero gradient") and "--attack square" in zero
    assert nonfinite.startswith("3 of 50 samples met a gradient with NaN or infinity")
    assert ties.startswith("1 of 50 samples are ties") and built["clean"]["ties"] == 1
    assert unreadable.startswith("1 of 51 samples could not be read") and "a.png" in unreadable
    assert "linf ball of 4/255" in violation and "1e-06" in violation
    assert built["masking"] == {"zero_gradients": 12, "nonfinite_gradients": 3}


@pytest.mark.parametrize("eps", [4 / 255, 3.0])
def test_one_ulp_of_eps_is_rounding_and_two_are_not(eps):
    # The distance from eps to the next float32, by nextafter.
    value = torch.tensor(eps, dtype=torch.float32)
    ulp = (torch.nextafter(value, torch.tensor(10.0)) - value).item()
    threat = {**THREAT, "eps": eps}
    assert made(threat=threat, effort=Effort(8.0, largest_violation=ulp))["warnings"] == []
    assert len(made(threat=threat, effort=Effort(8.0, largest_violation=2 * ulp))["warnings"]) == 1


def test_record_refuses_what_it_cannot_hold():
    row = Outcome("a", "test", 1.0, False, 0.5)
    with pytest.raises(ValueError, match="at least one sample"):
        made([])
    with pytest.raises(ValueError, match="the same key"):
        made([row, row])
    with pytest.raises(ValueError, match="'a' has a score or margin that is not finite"):
        made([Outcome("a", "test", 1.0, False, math.nan)])
    with pytest.raises(ValueError, match="model of a record needs a 'name'"):
        made(model={"revision": "1"})
    with pytest.raises(ValueError, match="human needs 'accuracy'"):
        made(human={"ceiling": 80})


# The samples


def test_samples_round_trip_to_six_digits():
    rows = [*outcomes(200), Outcome("soft", "cnn", 0.2, True, -1.25e-9), Outcome("x", "cnn", 0.8, False, 3, 0.4, -2)]
    packed = {"samples": pack(rows), "data": {"samples": len(rows)}}
    back = unpack(json.loads(json.dumps(packed)))
    for ours, theirs in zip(rows, back, strict=True):
        for field in ("key", "split", "clean", "tie", "robust"):
            assert getattr(theirs, field) == getattr(ours, field)
        assert theirs.margin == pytest.approx(ours.margin, rel=5e-6)
        assert theirs.robust_margin == (ours.robust_margin and pytest.approx(ours.robust_margin, rel=5e-6))
        assert isinstance(theirs.clean, float) and isinstance(theirs.margin, float)


def test_samples_are_read_by_the_three_lines_of_the_docstring(tmp_path, monkeypatch):
    save(tmp_path / "result.json", made())
    lines = [line.strip() for line in (pack.__doc__ or "").splitlines() if line.startswith("        ")]
    assert len(lines) == 3
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(lines), names)
    assert names["columns"]["key"][:2] == ["000000", "000001"]
    assert names["columns"]["clean"] == [row.clean for row in outcomes(60)]


def test_samples_of_nights_fit_into_40_kilobytes():
    packed = pack(outcomes(1824))
    assert len(json.dumps(packed)) < 40_000
    text = zlib.decompress(base64.b64decode(packed["data"]))
    assert list(json.loads(text)) == packed["columns"] and packed["count"] == 1824


def test_damaged_samples_are_refused():
    built = made()
    for damage in ({"data": built["samples"]["data"][:-8]}, {"data": "%"}, {"count": 59}, {"data": None}):
        with pytest.raises(ValueError, match="run the evaluation again"):
            unpack({**built, "samples": {**built["samples"], **damage}})


# Files


def test_save_and_load_give_back_the_record(tmp_path):
    first, second = made(), made(threat={**THREAT, "eps": 8 / 255})
    save(tmp_path / "b" / result_name(first), first)
    save(tmp_path / "b" / result_name(second), second)
    assert load_results([tmp_path / "b" / result_name(second), str(tmp_path / "b")]) == [second, first]
    assert sorted(os.listdir(tmp_path / "b")) == [result_name(first), result_name(second)]


def test_folders_may_hold_other_json(tmp_path):
    save(tmp_path / "result.json", made())
    (tmp_path / "other.json").write_text('{"results": []}')
    (tmp_path / "list.json").write_text("[1, 2]")
    assert len(load_results([tmp_path])) == 1
    with pytest.raises(ValueError, match=r"other\.json is no result"):
        load_results([tmp_path / "other.json"])


def test_errors_name_the_path(tmp_path):
    built = made()
    path = tmp_path / "result.json"
    (tmp_path / "empty").mkdir()
    samples = {**built["samples"], "data": "AAAA"}
    for content, message in (
        ("{", r"result\.json is damaged: it cannot be read as JSON"),
        ("\udcff", r"result\.json is damaged: it cannot be read as JSON"),
        (json.dumps({**built, "schema": 2}), r"result\.json is a result of schema 2 and this version reads 1"),
        (json.dumps({"schema": 1, "task": "2afc"}), r"result\.json, field 'model': is missing"),
        (json.dumps({**built, "samples": samples}), r"result\.json is damaged: the samples"),
    ):
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        for given in (path, tmp_path):
            with pytest.raises(ValueError, match=message):
                load_results([given])
    with pytest.raises(ValueError, match=r"there is no .*absent\.json"):
        load_results([tmp_path / "absent.json"])
    with pytest.raises(ValueError, match="empty holds no result"):
        load_results([tmp_path / "empty"])


OWN = hashlib.sha256(b"../runs/own").hexdigest()[:8]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "tiny__nights-test__apgd-linf-4_255"),
        ({"threat": {"attack": "none"}}, "tiny__nights-test__clean"),
        ({"threat": {**THREAT, "norm": "l2", "eps": 0.857}}, "tiny__nights-test__apgd-l2-0.857"),
        ({"threat": {**THREAT, "steps": 50, "restarts": 3}}, "tiny__nights-test__apgd-linf-4_255-50steps-3restarts"),
        ({"threat": {**THREAT, "attack": "square", "loss": "margin"}}, "tiny__nights-test__square-linf-4_255-margin"),
        ({"threat": {**THREAT, "attack": "square", "steps": 5000}}, "tiny__nights-test__square-linf-4_255"),
        ({"threat": {**THREAT, "larger_eps": True}}, "tiny__nights-test__apgd-linf-4_255-larger_eps"),
        ({"threat": {**THREAT, "larger_eps": False}}, "tiny__nights-test__apgd-linf-4_255"),
        (
            {
                "threat": {
                    **THREAT,
                    "attack": "transfer",
                    "source": {"name": "a/b", "revision": "c" * 40, "resize": None},
                }
            },
            "tiny__nights-test__transfer-linf-4_255-source-a_b-ccccccc",
        ),
        ({"data": {**NIGHTS, "protocol": "soft"}}, "tiny__nights-test-soft__apgd-linf-4_255"),
        ({"settings": {"limit": 50, "seed": 1}}, "tiny__nights-test-first50__apgd-linf-4_255-1seed"),
        ({"settings": {"precision": "bfloat16"}}, "tiny__nights-test__apgd-linf-4_255-bfloat16"),
        ({"model": {**TINY, "resize": "squash"}}, "tiny-squash__nights-test__apgd-linf-4_255"),
        ({"model": {**TINY, "revision": "sha256:0123"}}, "tiny@sha256_0123__nights-test__apgd-linf-4_255"),
        ({"model": {"name": "r-clip-f", "revision": R_CLIP_F}}, "r-clip-f__nights-test__apgd-linf-4_255"),
        ({"model": {"name": "r-clip-f", "revision": "b" * 40}}, "r-clip-f@bbbbbbb__nights-test__apgd-linf-4_255"),
        ({"model": {"name": "owner/repo", "revision": "a" * 40}}, "owner_repo@aaaaaaa__nights-test__apgd-linf-4_255"),
        ({"model": {"name": "../runs/own"}}, f"runs_own@{OWN}__nights-test__apgd-linf-4_255"),
    ],
)
def test_result_names(changes, name):
    assert result_name(made(**changes)) == f"{name}.json"


def test_result_names_are_safe_everywhere():
    name = result_name(made(model={"name": "/" + "very long/" * 40 + "<b>: é\n"}))
    assert len(name) < 200 and not set(name) & set('/\\:*?"<>| \n') and name.isascii()
