import json
import math

import numpy as np

from lipprof.record import Measurement
from lipprof.report import derived
from lipprof.report.document import document, to_json


def read(run):
    return json.loads(to_json(document(run, derived.select(run))), parse_constant=refuse)


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_the_numbers_are_those_of_the_file(write_run):
    run = write_run()
    report = read(run)
    answer = run.recommendation()
    assert report["recommendation"]["first_order_share"] == answer.first_order_share
    tensors = report["recommendation"]["tensors"]
    assert [t["name"] for t in tensors] == run.tensor_names
    assert [t["lipschitz"] for t in tensors] == answer.evidence.lipschitz.tolist()
    assert {t["choice"] for t in tensors} == {"first-order", "second-order"}
    assert math.isclose(sum(t["share"] for t in tensors), 1)
    pairs = report["at"]["pairs"]
    assert [p["eigenvalue"] for p in pairs] == run["eigenvalue"][-1].tolist()
    assert report["series"]["iteration"] == run["iteration"].tolist()
    assert report["summary"]["failures"] == {
        "CUDA out of memory. Tried to allocate 2.00 GiB": 1
    }  # fmt: skip


def test_what_is_not_finite_is_null(write_run):
    row = dict(loss=math.inf, eigenvalue=np.array([math.nan, 1, 0, -1, -math.inf]))
    report = read(write_run(rows=[Measurement.blank(pairs=5, tensors=39, iteration=3, **row)]))
    assert report["series"]["loss"] == [None]
    assert [p["eigenvalue"] for p in report["at"]["pairs"]] == [None, 1, 0, -1, None]
    assert report["recommendation"] is None
