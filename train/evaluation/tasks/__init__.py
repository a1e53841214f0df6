"""The tasks that metrics are judged by, one file each; and how each is read from a folder."""

from rclip_metric.train.evaluation.tasks.cue_conflict import CueConflictData, evaluate_cue_conflict
from rclip_metric.train.evaluation.tasks.filtering import Filtering, evaluate_filter
from rclip_metric.train.evaluation.tasks.folders import bapps_data, cue_conflict_data, nights_data, things_data
from rclip_metric.train.evaluation.tasks.jnd import JndData, average_precision, jnd_data
from rclip_metric.train.evaluation.tasks.neighbours import Neighbours, choose_queries
from rclip_metric.train.evaluation.tasks.odd_one_out import OddOneOutData, evaluate_odd_one_out
from rclip_metric.train.evaluation.tasks.retrieval import RetrievalData, retrieval_data
from rclip_metric.train.evaluation.tasks.self_distance import SelfDistance, direct_attack, direct_record
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, at_equal_steps, evaluate_two_afc
from rclip_metric.train.evaluation.tasks.zero_shot import ZeroShot, ZeroShotAttack, ZeroShotData, evaluate_zero_shot

__all__ = [
    "CueConflictData",
    "Filtering",
    "JndData",
    "Neighbours",
    "OddOneOutData",
    "RetrievalData",
    "SelfDistance",
    "TwoAfcData",
    "ZeroShot",
    "ZeroShotAttack",
    "ZeroShotData",
    "at_equal_steps",
    "average_precision",
    "bapps_data",
    "choose_queries",
    "cue_conflict_data",
    "direct_attack",
    "direct_record",
    "evaluate_cue_conflict",
    "evaluate_filter",
    "evaluate_odd_one_out",
    "evaluate_two_afc",
    "evaluate_zero_shot",
    "jnd_data",
    "nights_data",
    "retrieval_data",
    "things_data",
]
