"""A session whose calls take a known time, on a clock of its own: what is measured of it can be derived."""
import random

import numpy as np

from rs_timm.format.info import ModelInfo


class ClockedSession:
    """`network(resolution, batch, call)` and `preprocessing(resolution, image)` give nanoseconds; `calls` is a log."""

    engine_name, precision, memory, threads = 'clock', 'float32', 'speed', 2
    versions = {'clock': '1.0'}

    def __init__(self, network, preprocessing=lambda resolution, image: 0, resolutions=(224, 160, 96), madds=None):
        self.network, self.preprocessing = network, preprocessing
        self.info = ModelInfo(name='clockwork', resolutions=resolutions, madds=madds or {})
        self.now, self.calls, self.prepared = 0, [], []

    @property
    def resolutions(self):
        return self.info.resolutions

    @property
    def graph(self):
        raise ImportError('this session has no graph')

    def clock(self):
        return self.now

    def prepare(self, resolutions=None, batch=1):
        self.prepared += [(resolution, batch) for resolution in resolutions]

    def preprocess(self, images, resolution):
        self.now += sum(self.preprocessing(resolution, image) for image in images)
        return np.zeros((len(images), 3, resolution, resolution), np.float32)

    def run(self, x, resolution=None):
        assert x.shape[1:] == (3, resolution, resolution) and (resolution, len(x)) in self.prepared
        self.calls.append((resolution, len(x)))
        self.now += int(self.network(resolution, len(x), len(self.calls)))
        return np.zeros((len(x), 10), np.float32)


def jittery(cost_ms, seed=0):
    """Nanoseconds with an exponential tail above `cost_ms[resolution]`."""
    generator = random.Random(seed)
    return lambda resolution, batch, call: 1e6 * batch * cost_ms(resolution) * (1 + generator.expovariate(20))
