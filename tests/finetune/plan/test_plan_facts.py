"""Facts of a data set: lengths of segments, and videos that cannot be decoded."""

from kinemae.finetune.plan.facts import gather_facts
from kinemae.finetune.plan.plan import notes
from tests.finetune.plan.test_plan_rules import describe
from tests.label_index import segment_index

OTHERS = {"classes": None, "validation": None, "description": describe(), "has_weights": True}


def test_lengths_are_those_of_the_segments_and_motion_may_be_unknown(tmp_path):
    index = segment_index(tmp_path, [[], [], []])
    whole = gather_facts(index, seed=0, **OTHERS)
    fps = whole.fps
    view = index.view([0, 0, 1, 2, 2], window_s=[(0, 1), (1, 2), (0, 1), (0, 1), (0.5, 1.5)])

    facts = gather_facts(view, seed=0, **OTHERS)

    assert (facts.videos, facts.seconds, facts.frames, facts.fps) == (5, 1.0, round(fps), fps)
    assert whole.seconds > 1.0 and whole.videos == 3
    assert facts.motion is None and facts.static == 0.0
    assert facts.summary()["classes"] is None and facts.floors() == {}
    assert notes(facts)
