"""What TensorBoard's HParams tab shows: the options of a training, how it ended, and what a sweep searches.

The tab reads protos that are stored in the metadata of three entries. TensorBoard's own functions for them need
TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Value  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from trainable.training.tensorboard_tags import SCORE, SCORES

SHOWN_FIRST = ("lr", "optimizer")  # the tab shows five; it sorts by whether an option "differs", then by name
SESSION = (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)  # names of what started and ended return
Interval = tuple[float, float]


def started(options: Mapping[str, Any]) -> Summary.Value:
    """Return the entry that gives a training's options: numbers, truth values, texts, or lists, shown as text."""
    info = SessionStartInfo(start_time_secs=time.time())
    for name, value in options.items():
        info.hparams[name].CopyFrom(_value(value))
    return _entry(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def ended(*, failed: bool) -> Summary.Value:
    """Return the entry that says that a training has ended."""
    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    info = SessionEndInfo(status=status, end_time_secs=time.time())
    return _entry(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def searched(options: Mapping[str, Interval | Sequence[Any]]) -> Summary.Value:
    """Return the entry that says what a sweep searches, and which scores are shown beside it.

    options: of each searched option its two ends as a tuple, or the list of its values.
    """
    infos = []
    for name, values in options.items():
        first = _value(values[0]).WhichOneof("kind")
        kinds = {"bool_value": api_pb2.DATA_TYPE_BOOL, "number_value": api_pb2.DATA_TYPE_FLOAT64}
        info = api_pb2.HParamInfo(
            name=name, differs=name in SHOWN_FIRST, type=kinds.get(first or "", api_pb2.DATA_TYPE_STRING)
        )
        if isinstance(values, tuple):
            info.domain_interval.CopyFrom(api_pb2.Interval(min_value=values[0], max_value=values[1]))
        else:
            info.domain_discrete.CopyFrom(ListValue(values=[_value(value) for value in values]))
        infos.append(info)
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
        for name, tag in {"score": SCORE, **SCORES}.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=time.time())
    return _entry(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))


def _value(value: Any) -> Value:
    if isinstance(value, bool):
        return Value(bool_value=value)
    return Value(number_value=value) if isinstance(value, int | float) else Value(string_value=str(value))


def _entry(tag: str, data: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
