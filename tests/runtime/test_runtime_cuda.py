"""What is asked of torch.cuda to record and to run, on a stand-in for it; and the real thing where there is a GPU."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import altclip_fast as af
from altclip_fast.runtime import Runtime
from altclip_fast.runtime.cuda import CudaRecorder, is_capturing
from altclip_fast.testing.embeddings import FLOAT32

DEVICE = torch.device("cuda", 1)


class FakeCuda:
    """torch.cuda with a current device and stream of its own, which writes down what is done."""

    def __init__(self):
        self.log, self.devices, self.stream_now, self.fails, self.captures = [], [0], "caller", False, 0
        cuda = self

        class Stream:
            def wait_stream(self, other):
                cuda.log.append(f"graphs wait for {other}")

            def synchronize(self):
                cuda.log.append("host waits")

            def __str__(self):
                return "graphs"

        class Caller(str):
            def wait_stream(self, other):
                cuda.log.append(f"caller waits for {other}")

        class CUDAGraph:
            def replay(self):
                cuda.log.append("replay")

        self.Stream, self.CUDAGraph, self.stream_now = Stream, CUDAGraph, Caller("caller")
        self.set_stream = lambda stream: setattr(self, "stream_now", stream)
        self.current_stream = lambda: self.stream_now
        self.graph_pool_handle = lambda: (0, 7)
        self.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=132)
        self.memory_snapshot = lambda pool: [{"total_size": 2 << 20}, {"total_size": 4}] if pool == (0, 7) else []
        self.is_current_stream_capturing = lambda: self.captures > 0

    @contextmanager
    def device(self, device):
        self.devices.append(device.index)
        yield
        self.devices.pop()

    @contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert self.devices[-1] == 1 and capture_error_mode == "thread_local" and self.captures == 0
        self.log.append(f"capture on {stream} in pool {pool}")
        self.stream_now, before = stream, self.stream_now
        self.captures += 1
        yield
        self.captures -= 1
        if self.fails:
            raise RuntimeError("ending the capture failed")
        self.stream_now = before


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    for name in (
        *("Stream", "CUDAGraph", "device", "stream", "graph", "current_stream", "set_stream", "graph_pool_handle"),
        *("get_device_properties", "memory_snapshot", "is_current_stream_capturing"),
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


def test_recording(fake):
    recorder = CudaRecorder(DEVICE)

    def run():
        fake.log.append(f"run on device {fake.devices[-1]}, stream {fake.stream_now}")
        return "output"

    replay, output = recorder.record(run)
    assert output == "output" and fake.log == [
        "graphs wait for caller",
        "run on device 1, stream graphs",  # warm-up
        "caller waits for graphs",
        "capture on graphs in pool (0, 7)",
        "run on device 1, stream graphs",
    ]
    fake.log.clear()
    with recorder.turn():
        assert fake.devices[-1] == 1 and str(fake.stream_now) == "graphs"
        replay()
    recorder.wait()
    assert fake.log == ["graphs wait for caller", "replay", "caller waits for graphs", "host waits"]
    assert fake.devices == [0] and fake.stream_now == "caller"
    assert recorder.bytes() == (2 << 20) + 4 and recorder.multiprocessors == 132


def test_the_stream_is_the_callers_again_after_a_failed_capture(fake):
    fake.fails = True
    with pytest.raises(RuntimeError, match="ending the capture failed"):
        CudaRecorder(DEVICE).record(lambda: None)
    assert fake.stream_now == "caller" and fake.captures == 0


def test_one_capture_at_a_time_in_the_process(fake):
    def run():
        threading.Event().wait(0.002)

    threads = [threading.Thread(target=lambda: CudaRecorder(DEVICE).record(run)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(line.startswith("capture") for line in fake.log) == 3  # `graph` asserts that they do not overlap


def test_a_callers_own_capture_is_seen(fake):
    assert not is_capturing(DEVICE)
    fake.captures = 1
    assert is_capturing(DEVICE) and not is_capturing(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_graphs_have_the_bits_of_what_they_record(folder, dtype):
    model = af.AutoModel.from_pretrained(folder, device="cuda", dtype=dtype)
    runtime, side = Runtime(model, "graphs"), model.config.vision_config.image_size
    with torch.inference_mode():
        for count in (1, 2, 8):
            pixels = torch.randn(5, count, 3, side, side, device="cuda")
            found = [runtime.image_features(x) for x in pixels]
            assert all(torch.equal(y, model.image_features(x)) for x, y in zip(pixels, found, strict=True))
        other = torch.cuda.Stream()
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            assert torch.equal(runtime.image_features(pixels[0]), found[0])
    assert sorted(runtime.graphs().values()) == [4, 4, 5] and runtime.bytes() > 0


@pytest.mark.gpu
def test_threads_and_streams_share_graphs(folder):
    model = af.AutoModel.from_pretrained(folder, device="cuda")
    runtime, side, wrong = Runtime(model, "graphs"), model.config.vision_config.image_size, []
    pixels = torch.randn(8, 4, 3, side, side, device="cuda")
    with torch.inference_mode():
        expected = [model.image_features(x) for x in pixels]
    torch.cuda.synchronize()

    def work(i):
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            wrong.extend(i for _ in range(50) if not torch.equal(runtime.image_features(pixels[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
def test_files_to_embeddings_by_graphs(folder, photo_paths):
    expected = af.load(folder, device="cpu").encode_image([*photo_paths] * 9)
    encoder = af.load(folder, device="cuda", runtime="graphs")
    encoder.warmup()
    for _ in range(2):
        assert (encoder.encode_image([*photo_paths] * 9, batch_size=4) - expected).abs().max() <= FLOAT32
