"""`rclip-metric eval`: what is printed, what is written, and what is said when something is wrong."""

import json
import shutil
from pathlib import Path

import pytest

import rclip_metric
from rclip_metric.cli.main import main
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.commands.evaluate.options import balls_of
from rclip_metric.train.data.scenes.formats import write_bapps, write_things
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.evaluation.tasks import nights_data
from rclip_metric.train.metrics.paper import reported
from rclip_metric.weights import get_spec

from support.scenes import small_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = small_scenes(tmp_path_factory.mktemp("scenes"), (0, 4, 16), queries=2)
    write_bapps(folder / "bapps", per_split=3, quiet=True)
    write_things(folder / "things", concepts=24, triplets=20, quiet=True)
    return folder


FAST = ["--model", "tiny-clean", "--device", "cpu", "--quiet"]


def test_nights_writes_a_record_per_threat_and_does_not_do_it_again(scenes, tmp_path, capsys):
    out = tmp_path / "results"
    arguments = ["eval", "nights", "--data", str(scenes / "nights"), *FAST, "--steps", "3", "--out", str(out)]
    assert main([*arguments, "--norm", "linf", "l2", "--eps", "4/255", "0.857"]) == 0
    printed = capsys.readouterr().out
    assert "| scenes test majority |" in printed and "linf 4/255" in printed and "3 steps" in printed
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "tiny-clean__scenes-test__apgd-l2-0.857-3steps.json",
        "tiny-clean__scenes-test__apgd-linf-4_255-3steps.json",
    ]
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main([*arguments, "--norm", "linf", "--eps", "4/255", "8/255"]) == 0  # one is there, one is new
    assert capsys.readouterr().out.splitlines()[0].count("linf") == 2
    assert {name: (out / name).stat().st_mtime_ns for name in names} == before and len(list(out.iterdir())) == 3
    # Other settings under the same name are not overwritten unless asked.
    changed = [*arguments, "--norm", "linf", "--eps", "4/255", "--batch-size", "5"]
    assert main(changed) == 2
    assert "holds a result of other data or settings" in capsys.readouterr().err
    assert {name: (out / name).stat().st_mtime_ns for name in names} == before
    assert main([*changed, "--overwrite"]) == 0
    [record] = [r for r in load_results([out]) if r["settings"]["batch_size"] == 5]
    assert record["threat"]["eps_text"] == "4/255"


def test_a_part_of_nights_is_attacked_and_its_results_have_names_of_their_own(scenes, tmp_path, capsys):
    arguments = ["eval", "nights", "--data", str(scenes / "nights"), *FAST, "--norm", "linf", "--steps", "2"]
    arguments += ["--out", str(tmp_path)]
    name = "tiny-clean__scenes-test{}__apgd-linf-4_255-2steps.json"
    assert main(arguments) == 0
    before = (tmp_path / name.format("")).read_bytes()
    assert main([*arguments, "--attacked", "3"]) == 0
    assert "; 3 samples)" in capsys.readouterr().out
    assert main([*arguments, "--attacked", "16"]) == 0  # that is all of them, which is there
    assert {path.name for path in tmp_path.iterdir()} == {name.format(""), name.format("-3attacked")}
    assert (tmp_path / name.format("")).read_bytes() == before
    whole, part = (json.loads((tmp_path / name.format(end)).read_text()) for end in ("", "-3attacked"))
    assert part["clean"] == whole["clean"] and (part["robust"]["samples"], whole["robust"]["samples"]) == (3, 16)
    assert "attacked" not in whole["data"] and part["data"]["attacked"] == 3
    for n, (one, other) in enumerate(zip(unpack(part), unpack(whole), strict=True)):
        assert one.robust == (other.robust if n in (0, 5, 10) else None)  # 16 n / 3, rounded down
    published = {"model": {"name": "r-clip-f", "revision": get_spec("r-clip-f").revision}, "splits": {}}
    published["threat"] = {"attack": "apgd", "norm": "linf", "eps": 4 / 255, "steps": 100}
    for asked, paper in ((None, 74.3), (500, None)):
        data = {"published": "nights", "unreadable": [], "attacked": asked}
        assert reported({**published, "data": data, "settings": {}}, "robust") == paper
        assert reported({**published, "data": data, "settings": {}}, "clean") == 90.6


def test_every_kind_is_attacked_in_proportion(tmp_path):
    """At equal steps through a table in which kinds take turns, one of them alone would be met."""
    columns = "id,left_vote,right_vote,votes,ref_path,left_path,right_path,split,is_imagenet,kind"
    rows = [f"{n},1,0,10,r{n}.png,a{n}.png,b{n}.png,test,False,{('crop', 'blur', 'jpeg')[n % 3]}" for n in range(60)]
    (tmp_path / "data.csv").write_text("\n".join([columns, *rows]))
    data = nights_data(tmp_path, attacked=20)
    kinds = [triplet.kind for triplet in data.triplets if data.is_attacked(triplet)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"blur": 7, "crop": 7, "jpeg": 6}
    assert nights_data(tmp_path, attacked=60) == nights_data(tmp_path)
    assert data.judges == "people"
    (tmp_path / "photos.json").write_text("{}")
    assert nights_data(tmp_path).judges == "the order by construction"
    assert nights_data(tmp_path).settings() == nights_data(tmp_path, limit=60).settings()


def test_bapps_has_a_majority_and_soft_protocols(scenes, tmp_path, capsys):
    arguments = ["eval", "bapps", "--data", str(scenes / "bapps"), *FAST, "--out", str(tmp_path)]
    assert main([*arguments, "--norm", "linf", "--steps", "2", "--attacked", "1"]) == 0
    assert main([*arguments, "--protocol", "lpips", "--attack", "none"]) == 0
    assert "human" in capsys.readouterr().out
    soft, majority = sorted(load_results([tmp_path]), key=lambda r: r["data"]["protocol"])
    assert majority["data"]["interpolation"] == "bilinear"
    assert (soft["data"]["protocol"], majority["data"]["protocol"]) == ("lpips", "majority")
    assert majority["clean"]["samples"] == 18 and majority["robust"]["samples"] == 6 and len(majority["splits"]) == 6
    assert majority["model"]["resize"] == "squash" and majority["settings"]["macro"]
    assert soft["human"]["accuracy"] <= soft["human"]["ceiling"]
    assert {row.clean for row in unpack(majority)} <= {0.0, 1.0}


def test_things_zeroshot_and_table(scenes, tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["eval", "things", "--data", str(scenes / "things"), *FAST, "--out", str(out)]) == 0
    arguments = ["eval", "zeroshot", "--data", str(scenes / "classes" / "query"), "--prompts", "scenes"]
    assert main([*arguments, *FAST, "--eps", "2/255", "--steps", "2", "--out", str(out)]) == 0
    nights = ["eval", "nights", "--data", str(scenes / "nights"), *FAST, "--limit", "4", "--norm", "linf"]
    assert main([*nights, "--eps", "1/255", "2/255", "--steps", "2", "--out", str(tmp_path / "sweep")]) == 0
    capsys.readouterr()
    assert main(["eval", "table", str(out), str(tmp_path / "sweep")]) == 0
    table = capsys.readouterr().out
    assert "scenes-things" in table and "query scenes" in table and "linf 1/255" in table
    plot = tmp_path / "plot.png"
    files = ["--plot", str(plot), "--format", "csv", "--out", str(tmp_path / "t.csv")]
    assert main(["eval", "table", str(tmp_path / "sweep"), *files]) == 0
    assert plot.read_bytes()[:4] == b"\x89PNG" and (tmp_path / "t.csv").read_text().count("\n") >= 2
    assert main(["eval", "table", str(tmp_path / "nothing")]) == 2
    assert "there is no " in capsys.readouterr().err


def test_another_text_tower_is_another_result(scenes, tmp_path, capsys):
    """What was found with the model's own tower is not taken for that of another one; the own one may be named."""
    arguments = ["eval", "zeroshot", "--data", str(scenes / "classes" / "query"), "--prompts", "scenes"]
    arguments += ["--model", "tiny", "--device", "cpu", "--quiet", "--attack", "none", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    [path] = (tmp_path / "out").iterdir()
    before = path.stat().st_mtime_ns
    assert main([*arguments, "--text", "tiny-clean"]) == 0  # the base of tiny, whose tower it has
    assert path.stat().st_mtime_ns == before
    other = shutil.copy(
        Path(rclip_metric.__file__).parent / "models" / "tiny-text.safetensors", tmp_path / "t.safetensors"
    )
    capsys.readouterr()
    assert main([*arguments, "--text", str(other)]) == 2
    assert "holds a result of other data or settings" in capsys.readouterr().err
    assert path.stat().st_mtime_ns == before
    assert main([*arguments, "--text", str(other), "--overwrite"]) == 0
    assert json.loads(path.read_text())["settings"]["text"] == f"{other} (t.safetensors)"


def test_sanity_ends_in_verdicts_and_keeps_what_they_rest_on(scenes, tmp_path, capsys):
    arguments = ["eval", "sanity", "--data", str(scenes / "nights"), *FAST, "--limit", "6", "--norm", "linf"]
    settings = ["--eps", "1/255", "--steps", "6", "--iterations", "3", "6", "12", "--queries", "20", "--draws", "3"]
    code = main([*arguments, *settings, "--source", "tiny", "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert code in (0, 2) and "| check | threat | measured | verdict |" in printed.out
    saved = json.loads((tmp_path / "sanity-tiny-clean.json").read_text())
    assert (code == 0) == all(check["passed"] for check in saved["checks"])
    assert {check["name"] for check in saved["checks"]} >= {
        "accuracy falls with the radius, to zero",
        "more iterations change little",
    }
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("radius.png", "iterations.png"))
    records = load_results([path for path in tmp_path.glob("*__*.json")])
    assert {record["threat"]["attack"] for record in records} >= {"apgd", "noise", "transfer"}
    assert main([*arguments, *settings, "--source", "tiny", "--out", str(tmp_path)]) == code  # all of it is read again
    assert capsys.readouterr().out == printed.out


def test_check_walks_the_set_without_a_model(scenes, tmp_path, capsys):

    for task, folder in (("nights", scenes / "nights"), ("bapps", scenes / "bapps"), ("things", scenes / "things")):
        assert main(["eval", task, "--data", str(folder), "--check", "--quiet"]) == 0
        assert "images can be read" in capsys.readouterr().out
    broken = tmp_path / "nights"
    shutil.copytree(scenes / "nights", broken)
    victim = sorted((broken / "ref").rglob("*.png"))[-1]
    victim.write_bytes(victim.read_bytes()[:300])
    assert main(["eval", "nights", "--data", str(broken), "--check", "--quiet"]) == 2
    found = capsys.readouterr()
    assert victim.name in found.out and "1 of 48 images cannot be read" in found.err
    assert main(["eval", "nights", "--data", str(broken), *FAST, "--attack", "none"]) == 2
    found = capsys.readouterr()
    assert "| 15 |" in found.out and "1 samples could not be read" in found.err


def test_a_set_is_called_by_its_own_name_and_few_images_widen_the_interval(scenes, tmp_path, capsys):
    folder = tmp_path / "drawings"
    shutil.copytree(scenes / "things", folder)
    (folder / "things.json").unlink()  # what tells that they are scenes
    [table] = folder.glob("*.csv")
    arguments = ["eval", "things", *FAST, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--data", str(folder)]) == 0
    assert main([*arguments, "--data", str(table), "--resample", "images"]) == 0  # the table beside the images
    assert "| drawings odd-one-out | 20 |" in capsys.readouterr().out
    few, many = (json.loads((tmp_path / "out" / f"tiny-clean__drawings__clean{end}.json").read_text())
                 for end in ("-images", ""))  # fmt: skip
    assert few["data"] == many["data"] and few["data"]["published"] is None and len(few["data"]["digest"]) == 16
    assert few["clean"]["accuracy"] == many["clean"]["accuracy"]
    assert few["clean"]["interval_95"] != many["clean"]["interval_95"]
    assert (few["settings"]["resample"], many["settings"]["resample"]) == ("images", "samples")
    assert main([*arguments, "--data", str(folder), "--name", "other"]) == 0
    assert "| other odd-one-out |" in capsys.readouterr().out
    for task, data in (("things", folder), ("nights", scenes / "nights"), ("bapps", scenes / "bapps")):
        assert main(["eval", task, *FAST, "--data", str(data), "--published"]) == 2
        assert f"not the published set {task}" in capsys.readouterr().err


@pytest.mark.photos
@pytest.mark.parametrize(
    ("name", "triplets", "images", "right"), [("kriegeskorte92", 1840, 92, 62.6), ("zappos85", 2125, 85, 53.2)]
)
def test_people_on_photographs(photos, tmp_path, name, triplets, images, right):
    data = ["--data", str(photos / "judgements" / name), "--out", str(tmp_path)]
    assert (
        main(["eval", "nights", *data, "--model", "tiny", "--attack", "none", "--resample", "images", "--quiet"]) == 0
    )
    [record] = load_results([tmp_path])
    assert record["clean"]["accuracy"] == pytest.approx(right, abs=0.1)
    assert (record["data"]["name"], record["data"]["samples"], record["passes"]) == (name, triplets, images)


def test_the_paper_preset_prints_its_settings(capsys):
    assert main(["eval", "nights", "--preset", "paper"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "task": "nights", "split": "test", "min-votes": 6,
        "attack": "apgd", "norm": "linf l2", "eps": "4/255 3", "steps": 100,
    }  # fmt: skip
    assert balls_of(None, None) == [LpBall("linf", 4 / 255), LpBall("l2", 3.0)]  # and they are the defaults
    assert balls_of(["linf"], [0.1, 0.2]) == [LpBall("linf", 0.1), LpBall("linf", 0.2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nights"], "needs --data"),
        (["nights", "--data", "{scenes}/nights"], "needs --model"),
        (["nights", "--data", "{scenes}", "--model", "tiny"], "has no data.csv"),
        (["nights", "--data", "{scenes}/nights", "--model", "tiny", "--split", "x"], "unknown split 'x'"),
        (["nights", "--data", "{scenes}/nights", "--model", "tiny", "--norm", "l1"], "no radius for l1: pass --eps"),
        (["nights", "--data", "{scenes}/nights", "--model", "tiny", "--eps", "1/255"], "2 norms and 1 radii"),
        (
            [
                "nights",
                "--data",
                "{scenes}/nights",
                "--model",
                "tiny",
                "--norm",
                "l1",
                "--eps",
                "9",
                "--attack",
                "square",
            ],
            "l_1 ball",
        ),
        (["nights", "--data", "{scenes}/nights", "--model", "nope"], "nope"),
        (["bapps", "--data", "{scenes}/nights", "--model", "tiny"], "cnn"),
        (["things", "--data", "{scenes}/nights", "--model", "tiny"], "images"),
        (["zeroshot", "--data", "{scenes}/classes/query", "--model", "tiny"], "1000 classes"),
        (["zeroshot", "--data", "{scenes}/classes/query", "--model", "tiny", "--limit", "3"], "--per-class"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_gives_one_sentence(scenes, capsys, arguments, message):
    code = main(["eval", *(part.format(scenes=scenes) for part in arguments)])
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error


@pytest.mark.parametrize("eps", ["4/0", "x", "-1", "inf"])
def test_a_radius_that_is_none_is_refused(eps, capsys):
    assert main(["eval", "nights", f"--eps={eps}"]) == 2
    assert "argument --eps" in capsys.readouterr().err


def certify(scenes, *more):
    data = scenes / "nights"
    return ["eval", "nights", "--data", str(data), "--model", "l2", "--device", "cpu", "--quiet", *more]


def test_certificates_stand_beside_the_attack(scenes, tmp_path, capsys):
    few = ("--draws", "40", "--choose", "10", "--radius", "0.05", "51/255", "--out", str(tmp_path))
    attack = ("--norm", "l2", "--eps", "0.05", "--steps", "2", "--limit", "3")
    asked = certify(scenes, *attack, *few, "--certify", "smoothing", "lipschitz", "--sigma", "0.1", "0.5")
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "| l2 0.05 apgd 2 steps" in out and "| l2 0.2 smoothing sigma 0.5 n 40 n0 10 99.9 % confidence |" in out
    assert "it abstained on" in out and "from 40 draws" in out
    stem = "l2__scenes-test-first3__"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{stem}apgd-l2-0.05-2steps.json",
        *(f"{stem}certified-l2-{eps}.json" for eps in ("0.05", "0.2")),
        *(f"{stem}smoothing-l2-{e}-{sigma}sigma-10n0-40n.json" for e in ("0.05", "0.2") for sigma in ("0.1", "0.5")),
    ]
    records = load_results([tmp_path])
    sizes = {record["threat"]["attack"]: record["settings"]["batch_size"] for record in records}
    assert sizes == {"apgd": 64, "certified": 64, "smoothing": 1}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert main(asked) == 0  # nothing is done again
    assert capsys.readouterr().out == out and {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    assert main(["eval", "table", str(tmp_path)]) == 0
    assert "smoothing sigma 0.1" in capsys.readouterr().out


def test_certificates_alone_have_the_usual_radii_and_sigma(scenes, capsys):
    few = ("--draws", "40", "--choose", "10", "--limit", "2", "--attack", "none", "--batch-size", "2")
    assert main(certify(scenes, *few, "--certify", "smoothing")) == 0
    head, *_, caption = capsys.readouterr().out.split("\n\n- ")[0].splitlines()
    assert "| l2 0.1412 | l2 0.2824 | l2 0.4235 | l2 1 |" in head
    assert caption.endswith("Certificate: smoothing, sigma 0.25, n 40, n0 10, 99.9 % confidence.")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--certify", "smoothing", "--sigma", "0"), "sigma must be a finite number above 0, and it is 0"),
        (("--certify", "smoothing", "--draws", "99"), "n is 99 with n0 100"),
        (("--certify", "smoothing", "--choose", "2000"), "n is 1000 with n0 2000"),
        (("--certify", "smoothing", "--confidence", "99.9"), "a confidence is a share between 0 and 1"),
        (("--sigma", "0.25"), "are of --certify smoothing: add that"),
        (("--certify", "lipschitz", "--draws", "1000"), "are of --certify smoothing: add that"),
        (("--radius", "0.5"), "--radius is of certificates: add --certify"),
        (("--certify", "lipschitz", "--model", "ssim"), "ssim can certify nothing by itself: smoothing certifies any"),
    ],
)
def test_certificates_that_cannot_be_are_refused(scenes, capsys, more, message):
    assert main(certify(scenes, "--attack", "none", "--limit", "1", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
