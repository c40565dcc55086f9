"""Streams, events, and their capture into graphs."""

import ctypes

import numpy as np
import pytest

import emulator

UNSUPPORTED, INVALIDATED, UNMATCHED, UNJOINED, ISOLATION, IMPLICIT = 900, 901, 903, 904, 905, 906
NON_BLOCKING, GLOBAL, RELAXED = 1, 0, 2


@pytest.fixture
def stream(lib, gpu):
    handle = make_stream(lib)
    yield handle
    lib.stream_destroy(handle)  # ends a capture that a failed test left
    lib.last_error()


def make_stream(lib, flags=NON_BLOCKING):
    handle = ctypes.c_void_p()
    assert lib.stream_create(handle, flags) == 0
    return handle.value


def make_event(lib):
    handle = ctypes.c_void_p()
    assert lib.event_create(handle) == 0
    return handle.value


def finish(lib, stream):
    graph, executable, count = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
    assert lib.end_capture(stream, graph) == 0
    assert lib.graph_nodes(graph.value, count) == 0
    assert lib.graph_instantiate(executable, graph.value) == 0
    return executable.value, count.value


def test_captured_work_runs_when_the_graph_does(lib, gpu, stream):
    log, length = gpu.zeros(16, np.int32), gpu.zeros(1, np.int32)
    assert lib.begin_capture(stream, GLOBAL) == 0
    for value in (1, 2, 3):
        assert lib.run_append(log, length, value, stream) == 0
    assert length[0] == 0
    graph, nodes = finish(lib, stream)
    assert nodes == 3
    for _ in range(2):
        assert lib.graph_launch(graph, stream) == 0
    assert log.tolist()[:6] == [1, 2, 3, 1, 2, 3]


def test_copies_and_fills_are_captured(lib, gpu, stream):
    x, y = gpu.zeros(4, np.int32), gpu.zeros(4, np.int32)
    assert lib.begin_capture(stream, GLOBAL) == 0
    assert lib.async_fill(x, 1, 16, stream) == 0
    assert lib.copy_async(y, x, 16, 3, stream) == 0
    graph, nodes = finish(lib, stream)
    assert nodes == 2
    assert y[0] == 0
    assert lib.graph_launch(graph, stream) == 0
    assert y[0] == 0x01010101


@pytest.mark.parametrize("joined", [True, False])
def test_events_join_streams(lib, gpu, stream, joined):
    log, length = gpu.zeros(16, np.int32), gpu.zeros(1, np.int32)
    side, fork, join = make_stream(lib), make_event(lib), make_event(lib)
    assert lib.begin_capture(stream, GLOBAL) == 0
    assert lib.event_record(fork, stream) == 0
    assert lib.stream_wait(side, fork) == 0
    status = ctypes.c_int()
    assert lib.is_capturing(side, status) == 0
    assert status.value == 1
    assert lib.run_append(log, length, 1, side) == 0
    assert lib.end_capture(side, ctypes.c_void_p()) == UNMATCHED
    if joined:
        assert lib.event_record(join, side) == 0
        assert lib.stream_wait(stream, join) == 0
        graph, nodes = finish(lib, stream)
        assert nodes == 1
        assert lib.graph_launch(graph, stream) == 0
        assert log[0] == 1
    else:
        assert lib.end_capture(stream, ctypes.c_void_p()) == UNJOINED
    assert lib.is_capturing(side, status) == 0
    assert status.value == 0


def test_a_missing_dependency_shows(lib, gpu, stream):
    """Branches of a graph run in any order: (2 * 3) + nothing waits for nothing."""
    values = set()
    side, fork, join = make_stream(lib), make_event(lib), make_event(lib)
    log, length = gpu.zeros(16, np.int32), gpu.zeros(1, np.int32)
    lib.begin_capture(stream, GLOBAL)
    lib.event_record(fork, stream)
    lib.stream_wait(side, fork)
    lib.run_append(log, length, 1, stream)
    lib.run_append(log, length, 2, side)
    lib.event_record(join, side)
    lib.stream_wait(stream, join)
    graph, _ = finish(lib, stream)
    for _ in range(20):
        length[0] = 0
        assert lib.graph_launch(graph, stream) == 0
        values.add(tuple(log[:2].tolist()))
    assert values == {(1, 2), (2, 1)}


@pytest.mark.parametrize("call", ["device", "stream", "copy", "malloc"])
def test_waiting_during_a_capture(lib, gpu, stream, call):
    x = gpu.zeros(4, np.int32)
    assert lib.begin_capture(stream, GLOBAL) == 0
    error = {
        "device": lambda: lib.device_synchronize(),
        "stream": lambda: lib.stream_synchronize(stream),
        "copy": lambda: lib.copy(np.zeros(4, np.int32), x, 16, 2),
        "malloc": lambda: lib.device_malloc(ctypes.c_void_p(), 16),
    }[call]()
    assert error == UNSUPPORTED
    assert lib.run_multiply(x, 1, stream) == INVALIDATED
    graph = ctypes.c_void_p()
    assert lib.end_capture(stream, graph) == INVALIDATED
    assert graph.value is None


def test_relaxed_captures_allow_allocation(lib, gpu, stream):
    assert lib.begin_capture(stream, RELAXED) == 0
    assert lib.device_malloc(ctypes.c_void_p(), 16) == 0
    finish(lib, stream)


def test_the_legacy_stream_and_captures(lib, gpu):
    assert lib.begin_capture(None, GLOBAL) == UNSUPPORTED
    blocking = make_stream(lib, 0)
    assert lib.begin_capture(blocking, GLOBAL) == 0
    assert lib.run_nothing(1, 1, 1, 1, 1, 1) == IMPLICIT
    assert lib.end_capture(blocking, ctypes.c_void_p()) == INVALIDATED
    lib.last_error()
    other = make_stream(lib, NON_BLOCKING)
    assert lib.begin_capture(other, GLOBAL) == 0
    assert lib.run_nothing(1, 1, 1, 1, 1, 1) == 0
    finish(lib, other)


def test_waiting_for_what_was_not_captured(lib, gpu, stream):
    event = make_event(lib)
    assert lib.event_record(event, make_stream(lib)) == 0
    assert lib.begin_capture(stream, GLOBAL) == 0
    assert lib.stream_wait(stream, event) == ISOLATION
    assert lib.end_capture(stream, ctypes.c_void_p()) == INVALIDATED


def test_a_fault_in_a_graph(lib, gpu, stream):
    x = gpu.zeros(1, np.int32)
    lib.begin_capture(stream, GLOBAL)
    assert lib.run_multiply(x.ctypes.data + 4, 2, stream) == 0
    graph, _ = finish(lib, stream)
    assert lib.graph_launch(graph, stream) == 700
    assert gpu.clear_fault().kind == "out_of_bounds"


def test_a_graph_of_another_gpu(lib, gpu, stream):
    x = gpu.zeros(1, np.int32)
    lib.begin_capture(stream, GLOBAL)
    lib.run_multiply(x, 2, stream)
    graph, _ = finish(lib, stream)
    with emulator.Gpu("H100"):
        assert lib.graph_launch(graph, stream) == 400


def test_events_take_time(lib, gpu, stream):
    begin, end, ms = make_event(lib), make_event(lib), ctypes.c_float()
    assert lib.event_elapsed(ms, begin, end) == 400
    lib.event_record(begin, stream)
    lib.run_nothing(1, 1, 1, 1, 1, 1)
    lib.event_record(end, stream)
    assert lib.event_synchronize(end) == 0
    assert lib.event_elapsed(ms, begin, end) == 0
    assert ms.value > 0


def test_handles_are_checked(lib, gpu, stream):
    assert lib.stream_destroy(stream) == 0
    assert lib.stream_synchronize(stream) == 400
    assert lib.event_record(stream, None) == 400
