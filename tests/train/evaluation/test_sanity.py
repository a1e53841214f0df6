"""The sanity suite: honest evaluations pass, and each way to be dishonest fails its check."""

import pytest

from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import AttackSettings
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Effort, record
from rclip_metric.train.evaluation.sanity import SanitySettings, markdown, sanity

BALL = LpBall("linf", 4 / 255)
SAMPLES = 200
SETTINGS = SanitySettings(steps=100, iterations=(50, 100, 200))


class Model:
    """A model of 200 samples: sample i is fooled once an attack's strength reaches i / 200, and i < 190 are right.

    Strength is the radius in units of 16/255 times what the attack is worth; this stands in for hours of attacking,
    while every record and verdict is made by the real code.
    """

    def __init__(self, **worth):
        self.worth = {"apgd": 1.0, "square": 0.8, "noise": 0.1, "transfer": 0.3, **worth}
        self.asked = []

    def fooled(self, attack, i):
        gain = self.worth.get("steps", lambda steps: 0.0)(attack.steps) if attack.attack == "apgd" else 0.0
        strength = attack.ball.eps / (16 / 255) * self.worth[attack.attack] + gain
        return i / SAMPLES < min(strength, self.worth.get("ceiling", 1.0))

    def __call__(self, attacks, *, attacked=None, transfer=False):
        found = []
        for attack in attacks:
            self.asked.append((attack, attacked, transfer))
            rows = []
            for i in range(SAMPLES):
                right = i < 190
                hit = attacked is None or str(i) in attacked
                robust = (float(right and not self.fooled(attack, i)), 0.1) if hit else (None, None)
                rows.append(Outcome(str(i), "all", float(right), False, 0.1 if right else -0.1, *robust))
            zero = self.worth.get("zero", 0) if attack.attack == "apgd" else 0
            found.append(
                record(rows, task="2afc", model={"name": "m"}, data={"name": "d"}, threat=attack.describe(),
                       effort=Effort(1.0, zero_gradients=zero))
            )  # fmt: skip
        return found


def run(model, transfer=True):
    checks, records = sanity(model, [BALL], SETTINGS, transfer=transfer, largest=lambda ball: 1.0)
    return {check.name: check for check in checks}, records


def test_an_honest_evaluation_passes_every_check():
    model = Model()
    checks, records = run(model)
    assert len(checks) == 6 and all(check.passed for check in checks.values())
    # APGD at 4/255 fools the first quarter: 50 of 190.
    assert records[0]["robust"]["accuracy"] == 70.0
    radius = checks["accuracy falls with the radius, to zero"].measured
    assert radius == "1/255: 88.5, 2/255: 82.5, 4/255: 70.0, 8/255: 45.0, 16/255: 0.0"
    square = [attacked for attack, attacked, _ in model.asked if attack.attack == "square"]
    assert square == [frozenset(str(i) for i in range(50, 190))]  # on top: only what APGD left
    assert [transfer for attack, _, transfer in model.asked if attack.attack == "transfer"] == [True]
    assert "6 of 6 checks passed" in markdown(list(checks.values()))
    assert "transfer from the clean model finds nothing more" not in run(Model(), transfer=False)[0]


@pytest.mark.parametrize(
    ("worth", "failing", "measured"),
    [
        ({"ceiling": 0.5}, "accuracy falls with the radius, to zero", "45.0"),
        ({"steps": lambda steps: steps / 2000}, "more iterations change little", "falls by 5.0"),
        ({"square": 1.2}, "Square on top of APGD finds nothing more", "10 of 200 samples more"),
        ({"noise": 1.1}, "random noise of the same size finds nothing more", "5 of 200 samples more"),
        ({"transfer": 1.5}, "transfer from the clean model finds nothing more", "25 of 200 samples more"),
        ({"zero": 3}, "gradients are there and finite", "3 of 200 samples"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_each_way_to_be_dishonest_fails_its_check(worth, failing, measured):
    checks, _ = run(Model(**worth))
    assert [name for name, check in checks.items() if not check.passed] == [failing]
    assert measured in checks[failing].measured
    assert "**FAIL**" in markdown(list(checks.values()))


def test_the_radius_sweep_stops_at_the_largest_ball():
    model = Model(ceiling=0.5)
    run(model)
    radii = sorted(attack.ball.eps * 255 for attack, _, _ in model.asked if attack == AttackSettings(attack.ball))
    assert radii[-1] == pytest.approx(255.0) and radii[0] == pytest.approx(1.0)
